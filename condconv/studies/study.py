"""A study: which networks are trained on which data with which seeds, read from YAML, and its table of finished runs.

    title: CIFAR-10-JPEG, static beside conditional
    data: cifar10-jpeg                                # a named set, or the name of the folder that --data gives
    seeds: [0, 1, 2, 3, 4]
    common: {model: mobilenetv1_025, epochs: 8}       # settings of `condconv train`, of every arm
    arms:
      static: {variant: none}
      condconv8: {variant: condconv, num_experts: 8}
      wide8: {widened_to: condconv8}                  # static, with the multiply-adds of another arm
      upcycled: {variant: condconv, start_from: static}  # from the trained weights of another arm, same seed
    claims:                                           # what a paper says, to be compared with the outcome
      - {better: condconv8, worse: static, source: "CondConv, table 1"}
    routing_checks: true                              # also evaluate with changed coefficients
    remarks: What was found out.                      # for the page that is made of the table

An arm and a seed are one run and one row of `results/<study>.csv` beside the YAML file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from condconv.errors import ArgumentError
from condconv.files import write_text
from condconv.reading import parse_yaml, read_text
from condconv.registry import unknown_name_message
from condconv.runs.config import TrainConfig
from condconv.tasks import Score, score_of

WIDENED_TO, START_FROM = "widened_to", "start_from"
CHECKS = ("intact", "mean", "argmax", "shuffle", "shuffle_experts")
"""What `routing_checks` evaluates on 2,000 images: the coefficients as they are, and the changes of
`condconv.override_routing`."""

StudyRow = dict[str, str]
Cell = tuple[str, int]
"""Arm and seed."""


def columns_of(score: Score) -> tuple[str, ...]:
    """The columns of a table of finished runs.

    `macs`: multiply-adds of one image, the papers' convention; `ratio`: to the static network of the same shape; the
    score (`top1_pct` of classification): after the last epoch (`best_…`: of the best one); `wall_s`: training and
    validation; `settings`: what the study asked for, by which a run is recognised.
    """
    return (
        "study", "arm", "network", "variant", "experts", "width", "seed", "data", "n_train", "n_val", "epochs",
        "params", "macs", "ratio", "train_loss", "val_loss", score.study_column, f"best_{score.study_column}",
        *(check_column(name, score) for name in CHECKS),
        "wall_s", "machine", "threads", "torch", "commit", "date", "settings",
    )  # fmt: skip


def check_column(name: str, score: Score) -> str:
    """The column of a routing check: its name and the unit of the score."""
    return f"{name}_{score.study_column.rpartition('_')[2]}"

# What the sweep itself decides about a run.
_NOT_FOR_STUDIES = frozenset({"data", "seed", "name", "out", "twin", "report", "tensorboard", "recipe"})


@dataclass(frozen=True)
class Claim:
    """What a paper says: one arm is more accurate than another."""

    better: str
    worse: str
    source: str


@dataclass(frozen=True)
class Study:
    """See the module's docstring."""

    path: Path
    title: str
    data: str
    seeds: tuple[int, ...]
    common: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    claims: tuple[Claim, ...] = ()
    routing_checks: bool = False
    remarks: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    @property
    def score(self) -> Score:
        """By which the arms are compared: that of their task, which is the same for all."""
        return score_of(self.common.get("task"))

    @property
    def results(self) -> Path:
        """The table of finished runs."""
        return self.path.parent / "results" / f"{self.name}.csv"

    @property
    def cells(self) -> list[Cell]:
        """All runs, seed by seed, so that every arm has its first run early."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    def settings(self, arm: str) -> dict[str, Any]:
        """The settings of an arm; another arm that it refers to stands in it with its own settings."""
        settings = {**self.common, **self.arms[arm]}
        for name in (WIDENED_TO, START_FROM):
            if name in settings:
                settings[name] = self.settings(settings[name])
        return settings

    def identity(self, arm: str) -> str:
        """The `settings` column of an arm's rows."""
        return json.dumps(self.settings(arm), sort_keys=True)

    def finished(self) -> dict[Cell, StudyRow]:
        """The rows of the table that are runs of this study with its present settings."""
        rows = {(row["arm"], int(row["seed"])): row for row in read_rows(self.results, columns_of(self.score))}
        return {cell: rows[cell] for cell in self.cells if cell in rows and self._is_mine(cell[0], rows[cell])}

    def _is_mine(self, arm: str, row: StudyRow) -> bool:
        return row["data"] == self.data and row["settings"] == self.identity(arm)

    def status(self, cells: Iterable[Cell]) -> Iterator[tuple[str, list[int], list[int]]]:
        """Of each arm among the cells: name, seeds that are done, seeds that are not run."""
        finished = self.finished()
        cells = list(cells)
        for arm in dict.fromkeys(arm for arm, _ in cells):
            seeds = [seed for name, seed in cells if name == arm]
            done = [seed for seed in seeds if (arm, seed) in finished]
            yield arm, done, [seed for seed in seeds if seed not in done]

    def command(self, arms: Sequence[str], seeds: Sequence[int]) -> str:
        """The command that runs some arms, all where none is given, with some seeds."""
        from condconv.data import sources  # slow to import, and only commands need it

        data = "" if self.data in sources else f"--data {self.data} "
        chosen = f"--arms {' '.join(arms)} " if arms else ""
        return f"condconv sweep {self.path} {data}{chosen}--seeds {' '.join(map(str, seeds))}"


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        ArgumentError: a missing or malformed file, unknown keys (with the closest ones), arms that refer to nothing.
    """
    try:
        content = parse_yaml(read_text(path))
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{path}: not a readable study ({error}); pass a YAML file such as those of benchmarks"
        ) from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{path}: not a study; expected a mapping with title, data, seeds and arms")
    known = [field.name for field in fields(Study) if field.name != "path"]
    _require_known(str(path), "key", content, known)
    for name, kind in (("title", str), ("data", str), ("seeds", list), ("arms", dict)):
        if not isinstance(content.get(name), kind) or not content[name]:
            raise ArgumentError(f"{path}: {name} is missing or not a {kind.__name__}")
    settings = [field.name for field in fields(TrainConfig) if field.name not in _NOT_FOR_STUDIES]
    common, arms = content.get("common") or {}, content["arms"]
    _require_known(f"{path}: common", "setting", common, settings)
    score_of(common.get("task"))
    for arm, own in arms.items():
        of_arms = [name for name in settings if name != "task"]
        _require_known(f"{path}: arm {arm}", "setting", own, [*of_arms, WIDENED_TO, START_FROM])
    for arm in arms:
        _require_references(path, arms, [arm])
    claims = tuple(_claim(path, arms, claim) for claim in content.get("claims") or ())
    seeds = tuple(content["seeds"])
    if not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) != len(seeds):
        raise ArgumentError(f"{path}: seeds={content['seeds']} must be different whole numbers")
    given = {"path": path, "seeds": seeds, "common": common, "arms": arms, "claims": claims}
    return Study(**{**content, **given})


def _require_known(where: str, kind: str, given: object, known: Sequence[str]) -> None:
    if not isinstance(given, dict):
        raise ArgumentError(f"{where}: expected a mapping, found {given!r}")
    for name in given:
        if name not in known:
            raise ArgumentError(f"{where}: {unknown_name_message(kind, str(name), known)}")


def _require_references(path: Path, arms: Mapping[str, Mapping[str, Any]], chain: Sequence[str]) -> None:
    """Every arm that the last one of a chain refers to exists and is not in the chain already."""
    for name in (WIDENED_TO, START_FROM):
        target = arms[chain[-1]].get(name)
        if target is None:
            continue
        if target not in arms:
            raise ArgumentError(f"{path}: arm {chain[-1]}: {unknown_name_message('arm', str(target), list(arms))}")
        if target in chain:
            raise ArgumentError(f"{path}: arm {chain[0]} refers to itself ({' → '.join([*chain, target])})")
        _require_references(path, arms, [*chain, target])


def _claim(path: Path, arms: Mapping[str, Any], claim: object) -> Claim:
    _require_known(f"{path}: claims", "key", claim, [field.name for field in fields(Claim)])
    try:
        made = Claim(**claim)  # type: ignore[arg-type]
    except TypeError as error:
        raise ArgumentError(f"{path}: claims: {error}; each needs better, worse and source") from error
    for arm in (made.better, made.worse):
        if arm not in arms:
            raise ArgumentError(f"{path}: claims: {unknown_name_message('arm', arm, list(arms))}")
    return made


def read_rows(path: Path, columns: Sequence[str]) -> list[StudyRow]:
    """The rows of a table of finished runs with these columns; none where there is no file.

    `ArgumentError` where it is another table.
    """
    if not path.exists():
        return []
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        found, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise ArgumentError(f"{path}: not a readable table of finished runs ({error})") from error
    whole = all(None not in row and None not in row.values() for row in rows)
    if found != tuple(columns) or not whole:
        raise ArgumentError(
            f"{path}: not a table of this version's runs; its columns are {', '.join(found)}"
        )
    return rows


def write_row(path: Path, row: StudyRow, columns: Sequence[str]) -> None:
    """Add a row to a table, in place of a former one of the same arm and seed; the file is replaced as a whole."""
    kept = [old for old in read_rows(path, columns) if (old["arm"], old["seed"]) != (row["arm"], row["seed"])]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, row])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, buffer.getvalue())
