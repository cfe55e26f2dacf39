"""Whole files and folders, locks that name their holder, and what killed processes left."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from condconv.cli.main import main
from condconv.data.sharding import write_shards
from condconv.errors import ArgumentError, BusyError
from condconv.files import Lock, is_temporary, remove_temporaries, require_writable, whole_file, whole_folder
from condconv.models import create_model, save_pretrained
from tests.data.writers import write_folder_set


@contextmanager
def held_elsewhere(path: Path) -> Iterator[int]:
    """Another process holds a lock; → its id."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        lock = Lock(path, "it")
        os.write(writing, b"held")
        signal.pause()
        os._exit(lock.descriptor)
    assert os.read(reading, 4) == b"held"
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading), os.close(writing)


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "lock") as pid:
        with pytest.raises(BusyError, match=f"the thing: in use by process {pid} on .+ since 20.+; wait for its end"):
            Lock(tmp_path / "lock", "the thing")
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with Lock(tmp_path / "lock", "the thing"):
            pass
    assert os.listdir(tmp_path) == []


def test_a_lock_that_its_holder_removes_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = Lock(path, "it")
    stale = os.open(path, os.O_RDWR)  # opened before the holder let go
    first.release()
    fcntl.flock(stale, fcntl.LOCK_EX)
    with Lock(path, "it"), pytest.raises(BusyError):
        Lock(path, "it")
    os.close(stale)


def test_what_is_being_written_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as temporary, whole_folder(tmp_path / "b") as folder:
        (tmp_path / ".a.0.tmp").touch()
        (tmp_path / ".b.0.tmp").mkdir()
        (tmp_path / ".b.0.tmp" / "half").touch()
        remove_temporaries(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {temporary.name, folder.path.name}
        assert is_temporary(temporary.name) and is_temporary(folder.path.name)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_folder_replaces_another_or_takes_the_next_name(tmp_path: Path) -> None:
    for number, (replace, name) in enumerate([(False, "out"), (False, "out-2"), (True, "out")]):
        with whole_folder(tmp_path / "out", replace=replace) as folder:
            (folder.path / "number").write_text(str(number))
        assert folder.path == tmp_path / name and (folder.path / "number").read_text() == str(number)
    assert sorted(os.listdir(tmp_path)) == ["out", "out-2"]


@pytest.mark.parametrize("out", ["", ".", "/", "a\0b"])
def test_what_is_no_name_of_a_folder_is_refused_before_anything_is_computed(out: str) -> None:
    with pytest.raises(ArgumentError, match="is not the name of a folder"):
        require_writable(out)


def test_files_have_the_rights_of_ordinary_ones(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "whole") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_at_once_are_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder_set(tmp_path / "pets")
    (tmp_path / "shards").mkdir()
    with held_elsewhere(tmp_path / "shards" / ".lock") as pid:
        assert main(["shard", str(tmp_path / "pets"), "--out", str(tmp_path / "shards"), "--workers", "0"]) == 2
        assert f"in use by process {pid}" in capsys.readouterr().err
    model = create_model("mobilenetv1_025", num_classes=2, output_stride=8, width_multiplier=0.25)
    (tmp_path / "net").mkdir()
    with held_elsewhere(tmp_path / "net" / ".lock"), pytest.raises(BusyError, match="net: in use by process"):
        save_pretrained(model, tmp_path / "net", input_size=(3, 32, 32))
    save_pretrained(model, tmp_path / "net", input_size=(3, 32, 32))
    assert sorted(os.listdir(tmp_path / "net")) == ["README.md", "config.json", "model.safetensors"]


def test_a_finished_set_of_shards_loses_what_a_killed_call_left(tmp_path: Path) -> None:
    write_folder_set(tmp_path / "pets")
    write_shards(tmp_path / "pets", tmp_path / "out", shard_size=4, workers=0)
    (tmp_path / "out" / ".progress").mkdir()
    (tmp_path / "out" / ".x.tar.0.tmp").touch()
    write_shards(tmp_path / "pets", tmp_path / "out", shard_size=4, workers=0)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    (tmp_path / "out" / "shards.json").unlink()
    with pytest.raises(ArgumentError, match="holds files that are not of these shards"):
        write_shards(tmp_path / "pets", tmp_path / "out", shard_size=4, workers=0)
