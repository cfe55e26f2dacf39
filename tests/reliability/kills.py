"""Kills a command at every file operation that it makes, repeats it, and compares with an uninterrupted one.

Python tells an audit hook of every open, rename, mkdir, rmdir and remove before it happens. A kill at one of them
leaves what all former ones did; a torn one also leaves half of what was last opened for writing, as a kill inside a
write does. Everything runs in forks of one process that has imported the package, so that a kill point costs what the
command costs. That process takes no step of training itself: autograd refuses to run in a fork of one that has.
"""

from __future__ import annotations

import importlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.reliability.counts import note

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"}
LIMIT_S = 120
TOO_LONG = 124
"""The exit code of a command that was killed at its time limit."""
MOST_IN_A_ROW = 5
Words = Sequence[str]


class Scenario(NamedTuple):
    """A command, and what is to be found when it is done."""

    prepare: Callable[[Path], None]
    """Puts into an empty folder what the command reads."""
    words: Words
    result: Callable[[Path], dict[str, object]]
    """What is compared: of a folder in which the command is done."""
    again: Callable[[Path], Words | None] | None = None
    """The command to go on with, None where there is nothing left to do; the same command where not given."""
    quicken: Callable[[], None] = lambda: None
    """Called in the warm process: leaves out what takes time and has tests of its own."""
    done: str = ""
    """Words of an error that says that everything is done."""


class Outcome(NamedTuple):
    """One kill: at which operation, and what was wrong after the command was repeated ("" for nothing)."""

    point: str
    problem: str


def attack(scenario: Scenario, every: int = 1, first: int = 0) -> list[Outcome]:
    """Kill at every `every`-th point from the one numbered `first` on, and say what became of each."""
    with _begun(scenario) as (base, expected, problem):
        if problem:
            return [Outcome("none", problem)]
        points = (base / "points").read_text().splitlines()
        kills = [(number, torn) for number, point in enumerate(points) for torn in _ways(point, points, number)]
        return [_kill(base, scenario, expected, points, *kill) for kill in kills[first::every]]


def disturb(scenario: Scenario, kills: int, seed: int = 0) -> list[Outcome]:
    """Kill that often at random times, and say what became of the commands that were then left alone."""
    with _begun(scenario) as (base, expected, problem):
        if problem:
            return [Outcome("none", problem)]
        seconds, chance, outcomes = float((base / "seconds").read_text()), random.Random(seed), list[Outcome]()
        while len(outcomes) < kills:
            most = min(chance.randint(1, MOST_IN_A_ROW), kills - len(outcomes))
            killed = _kill_in_a_row(base, scenario, [chance.uniform(0, seconds) for _ in range(most)])
            if killed:
                outcomes += [Outcome(name, "") for name in killed[:-1]]
                outcomes.append(Outcome("; ".join(killed), _end(base, scenario, expected)))
        return outcomes


def _kill_in_a_row(base: Path, scenario: Scenario, seconds: Sequence[float]) -> list[str]:
    """Kill a command after so long, go on with it, kill it again; → what was killed, less where it was done before."""
    killed: list[str] = []
    words: Words | None = scenario.words
    for limit_s in seconds:
        if words is None:
            break
        folder, code = _play(base, "killed", words, None, fresh=not killed, limit_s=limit_s)
        if code != TOO_LONG:
            break
        killed.append(f"{' '.join(words[:3])} killed after {limit_s:.2f} s")
        words = _again(scenario, folder)
    return killed


@contextmanager
def _begun(scenario: Scenario) -> Iterator[tuple[Path, dict[str, object], str]]:
    """A folder with what an uninterrupted command read and left; its results; and what was wrong with it."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        (base / "start").mkdir()
        _prepare(scenario, base / "start")
        scenario.quicken()
        began = time.monotonic()
        whole, code = _play(base, "whole", scenario.words, None)
        (base / "seconds").write_text(str(time.monotonic() - began))
        if code:
            yield base, {}, f"the uninterrupted command ended with {code}: {_said(base)}"
        else:
            yield base, scenario.result(whole), ""


def _prepare(scenario: Scenario, folder: Path) -> None:
    """In a fork too, for it computes."""
    child = os.fork()
    if child == 0:
        try:
            scenario.prepare(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def _ways(point: str, points: Sequence[str], number: int) -> tuple[bool, ...]:
    """A kill before an operation, and, where the former one opened a file for writing, another one inside the write."""
    return (False, True) if number and points[number - 1].startswith("open ") else (False,)


def _kill(
    base: Path, scenario: Scenario, expected: dict[str, object], points: list[str], at: int, torn: bool
) -> Outcome:
    name = f"{at}{' torn' if torn else ''} {points[at]}"
    _, code = _play(base, "killed", scenario.words, (at, torn))
    if code != -signal.SIGKILL:
        return Outcome(name, f"was not killed but ended with {code}: {_said(base)}")
    return Outcome(name, _end(base, scenario, expected))


def _again(scenario: Scenario, folder: Path) -> Words | None:
    return scenario.words if scenario.again is None else scenario.again(folder)


def _end(base: Path, scenario: Scenario, expected: dict[str, object]) -> str:
    """Go on with what was killed, to its end; → what is wrong with that, "" for nothing."""
    words = _again(scenario, base / "killed")
    if words is not None:
        _, code = _play(base, "killed", words, None, fresh=False)
        if code and not (scenario.done and scenario.done in _said(base)):
            return f"{' '.join(words[:3])} ended with {code}: {_said(base)}"
    return _difference(expected, scenario.result(base / "killed"))


def _difference(expected: dict[str, object], found: dict[str, object]) -> str:
    different = [key for key in expected.keys() & found.keys() if expected[key] != found[key]]
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    parts = [("missing", missing), ("too much", extra), ("differ", different)]
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in parts if names)


def _said(base: Path) -> str:
    return (base / "output").read_text(errors="replace")[-600:]


def _play(
    base: Path,
    name: str,
    words: Words,
    kill: tuple[int, bool] | None,
    fresh: bool = True,
    limit_s: float = LIMIT_S,
) -> tuple[Path, int]:
    """Run a command in a fork, in a folder of its own; → the folder, the exit code (minus the signal that ended it)."""
    folder = base / name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base / "start", folder)
    child = os.fork()
    if child == 0:
        _child(base, folder, words, kill)
    deadline = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return folder, os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return folder, TOO_LONG
        time.sleep(0.005)


def _child(base: Path, folder: Path, words: Words, kill: tuple[int, bool] | None) -> None:
    code = 99
    try:
        output = os.open(base / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        streams = (io.FileIO(number, "w", closefd=False) for number in (1, 2))
        sys.stdout, sys.stderr = (io.TextIOWrapper(stream, write_through=True) for stream in streams)
        os.chdir(folder)
        watch = _Watch(str(folder), kill)
        sys.addaudithook(watch)
        from condconv.cli.main import main

        code = main(list(words))
        watch.over = True
        if kill is None:
            (base / "points").write_text("".join(f"{point}\n" for point in watch.points))
    except BaseException:
        traceback.print_exc()
    os._exit(code)


class _Watch:
    """Counts the operations that change something in a folder, and kills this process at one of them."""

    def __init__(self, folder: str, kill: tuple[int, bool] | None) -> None:
        self.folder = folder
        self.kill = kill
        self.points: list[str] = []
        self.opened = ""
        self.over = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.over or (event != "open" and event not in CHANGES):
            return
        path = arguments[0]
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path)
        # What is removed below an open folder has a name relative to it.
        inside = os.path.abspath(name).startswith(self.folder)
        if not inside or (event == "open" and not _writes(*arguments[1:3])):
            return
        if self.kill is not None and len(self.points) == self.kill[0]:
            self.over = True
            if self.kill[1] and os.path.exists(self.opened):
                os.truncate(self.opened, os.path.getsize(self.opened) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.points.append(f"{event} {os.path.relpath(os.path.abspath(name), self.folder)}")
        self.opened = name if event == "open" else ""


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def run(name: str, every: int = 1, first: int = 0) -> int:
    """In a process of its own: attack one of the scenarios; print each problem."""
    return _report("kills", name, attack(_scenario(name), every, first))


def run_and_note(name: str, every: int, first: int) -> int:
    """The same, and note the count."""
    part = name if every == 1 else f"{name}, part {first + 1} of {every}"
    return _report("kills", name, attack(_scenario(name), every, first), part)


def run_disturbed(name: str, kills: int) -> int:
    """In a process of its own: kill one of the scenarios at random times; print each problem."""
    return _report("random kills", name, disturb(_scenario(name), kills))


def disturb_and_note(name: str, kills: int, part: int) -> int:
    """The same, and note the count."""
    return _report("random kills", name, disturb(_scenario(name), kills, part), f"{name}, part {part}")


def _scenario(name: str) -> Scenario:
    for module in ("condconv.training.experiment", "condconv.tasks.classify.prediction", "condconv.data.sharding",
                   "condconv.analysis", "condconv.models", "condconv.cli.train"):  # fmt: skip
        importlib.import_module(module)
    scenarios: dict[str, Scenario] = importlib.import_module("tests.reliability.scenarios").SCENARIOS
    return scenarios[name]


def _report(kind: str, name: str, outcomes: list[Outcome], noted: str = "") -> int:
    bad = [outcome for outcome in outcomes if outcome.problem]
    for outcome in bad:
        print(f"{name}: {outcome.point}: {outcome.problem}")
    if noted:
        note(kind, noted, len(outcomes), len(bad))
    else:
        print(f"{len(outcomes)} {kind} of {name}, {len(bad)} bad")
    return 1 if bad or not outcomes else 0
