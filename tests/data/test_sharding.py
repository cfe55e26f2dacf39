from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from condconv.cli.main import main
from condconv.data import open_source
from condconv.data import sharding as module
from condconv.data.sharding import Job, Written, write_shard, write_shards
from condconv.errors import ArgumentError, DataError
from tests.data.writers import write_folder_set


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    write_folder_set(tmp_path / "images", per_class=5, classes=("ant", "bee", "cow"))
    return tmp_path / "images"


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_shards_hold_the_same_images_and_labels(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards(folder, tmp_path / "out", shard_size=4, workers=0)
    assert [shard.name for shard in manifest.train] == [f"train-00000{i}.tar" for i in range(4)]
    assert [shard.samples for shard in manifest.train] == [4, 4, 4, 3]
    files, shards = open_source(str(folder)), open_source(str(tmp_path / "out"))
    assert (shards.classes, len(shards.train), len(shards.val)) == (files.classes, 15, 15)

    def pairs(source: object) -> set[tuple[bytes, int]]:
        images = source.train
        return {(images.load(i).numpy().tobytes(), int(images.labels[i])) for i in range(len(images))}

    assert pairs(files) == pairs(shards)
    # Mixed, not class after class.
    assert shards.train.labels.tolist() != sorted(shards.train.labels.tolist())


def test_interrupted_it_keeps_finished_shards_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    write_shards(folder, whole, shard_size=4, workers=0)
    calls: list[str] = []

    def killed_in_the_third(job: Job, out: Path) -> Written:
        calls.append(job.name)
        if len(calls) == 3:
            (out / f".{job.name}.77.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return write_shard(job, out)

    monkeypatch.setattr(module, "write_shard", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, out, shard_size=4, workers=0)
    with pytest.raises(DataError, match="not all written; finish it with the same 'condconv shard'"):
        open_source(str(out))
    progress: list[tuple[int, int]] = []
    write_shards(folder, out, shard_size=4, workers=0, progress=lambda done, total: progress.append((done, total)))
    assert calls == [f"train-00000{i}.tar" for i in (0, 1, 2, 2, 3)] + [f"val-00000{i}.tar" for i in range(4)]
    assert progress[0] == (8, 30) and progress[-1] == (30, 30)
    assert contents(out) == contents(whole)
    write_shards(folder, out, shard_size=4, workers=0)
    assert len(calls) == 9  # finished already


def test_other_images_or_foreign_files_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        write_shards(folder, out, shard_size=4, workers=0)
    with pytest.raises(ArgumentError, match="was begun with other images, another --shard-size"):
        write_shards(folder, out, shard_size=5, workers=0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    with pytest.raises(ArgumentError, match="holds files that are not of these shards"):
        write_shards(folder, foreign, shard_size=4, workers=0)


def test_damaged_images_stop_it_or_are_left_out_and_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "train" / "bee" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:50])
    words = ["shard", str(folder), "--out", str(tmp_path / "out"), "--shard-size", "6", "--workers", "0"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{bad}: cannot be decoded" in error and "--skip-bad-images" in error
    shutil.rmtree(tmp_path / "out")
    assert main([*words, "--skip-bad-images"]) == 0
    output = capsys.readouterr().out
    assert "train: 14 images in 3 shards" in output and "val: 15 images in 3 shards" in output
    assert f"notice: left out {bad}" in output and "left out 1 damaged images" in output
    assert len(open_source(str(tmp_path / "out")).train) == 14


def test_no_image_folder_and_wrong_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        ((str(tmp_path / "no"),), "no such folder"),
        ((str(tmp_path), "--shard-size", "0"), "must be at least 1"),
        ((str(tmp_path), "--workers", "-1"), "must not be negative"),
        ((str(tmp_path), "--shard-sze", "3"), "did you mean '--shard-size'"),
    ):
        assert main(["shard", *words]) == 2
        assert expected in capsys.readouterr().err


def test_a_shard_that_is_missing_or_of_another_count_is_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards(folder, out, shard_size=5, workers=0)
    manifest = json.loads((out / "shards.json").read_text())
    (out / "train-000001.tar").rename(out / "away")
    with pytest.raises(DataError, match=r"train-000001\.tar: cannot be read \(No such file"):
        open_source(str(out))
    (out / "away").rename(out / "train-000001.tar")
    manifest["val"][2]["samples"] = 6
    (out / "shards.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"val-000002\.tar: 5 samples, and the list of shards says 6"):
        open_source(str(out))
    (out / "shards.json").write_text('{"format": 1, "train": [{"name": "../x.tar"}], "val": []}')
    with pytest.raises(DataError, match="must be a plain file name"):
        open_source(str(out))


@pytest.mark.slow
def test_several_processes_write_the_same_bytes_as_one(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path / "one", shard_size=4, workers=0)
    write_shards(folder, tmp_path / "two", shard_size=4, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_every_rank_and_worker_sees_its_share_once(folder: Path, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    from condconv.data import EpochSampler, ImageView

    write_shards(folder, tmp_path / "out", shard_size=4, workers=0)
    source = open_source(str(tmp_path / "out"))
    seen = []
    for rank in range(2):
        sampler = EpochSampler(len(source.train), shuffle=True, rank=rank, world_size=2)
        loader = DataLoader(ImageView(source, train=True), batch_size=3, sampler=sampler, num_workers=2 * rank)
        places = torch.cat([batch[2] for batch in loader])
        assert len(places) == len(sampler) == 7
        seen += places.tolist()
    assert len(set(seen)) == 14
