"""Folders as they come: other names for validation, one folder that is split, a folder from elsewhere."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from condconv.data import open_source
from condconv.data.sampling import EpochSampler, balanced_order
from condconv.errors import DataError
from tests.data.writers import jpeg, write_folder_set, write_idx_set


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_validation_has_many_names(tmp_path: Path, name: str) -> None:
    write_folder_set(tmp_path)
    (tmp_path / "val").rename(tmp_path / name)
    source = open_source(str(tmp_path))
    assert len(source.val) == 8 and source.val.where(0) == str(tmp_path / name / "cat" / "0.jpg")


def test_what_is_called_validation_wins_over_a_test_set(tmp_path: Path) -> None:
    write_folder_set(tmp_path)
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    assert "/val/" in open_source(str(tmp_path)).val.where(0)


def test_one_folder_is_split_by_class_and_always_the_same(tmp_path: Path) -> None:
    write_folder_set(tmp_path, per_class=10)
    (tmp_path / "train" / "rare").mkdir()
    for number in range(2):
        (tmp_path / "train" / "rare" / f"{number}.jpg").write_bytes(jpeg(number))
    flat = tmp_path / "train"  # its class folders are all that it has
    source = open_source(str(flat), val_fraction=0.3)
    assert source.classes == ("cat", "dog", "rare")
    assert Counter(source.val.labels.tolist()) == {0: 3, 1: 3, 2: 1}
    assert Counter(source.train.labels.tolist()) == {0: 7, 1: 7, 2: 1}
    files = [half.where(place) for half in (source.train, source.val) for place in range(len(half))]
    assert sorted(files) == sorted(str(path) for path in flat.rglob("*.jpg"))
    again = open_source(str(flat), val_fraction=0.3)
    assert torch.equal(again.val.indices, source.val.indices)
    shutil.rmtree(tmp_path / "val")
    assert len(open_source(str(tmp_path), val_fraction=0.3).val) == 7  # of train/


def test_a_split_that_leaves_a_class_empty_is_said(tmp_path: Path) -> None:
    write_folder_set(tmp_path)
    for name in ("newt", "toad"):
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "1.jpg").write_bytes(jpeg(1))
    with pytest.raises(DataError, match=r"leave 2 of 4 classes empty.*'newt', 'toad'; add images of them.*--val-dir"):
        open_source(str(tmp_path / "train"), val_fraction=0.2)


def test_a_validation_folder_from_elsewhere(tmp_path: Path) -> None:
    write_folder_set(tmp_path / "a")
    write_folder_set(tmp_path / "b", per_class=2)
    source = open_source(str(tmp_path / "a" / "train"), val_dir=str(tmp_path / "b" / "val"))
    assert (len(source.train), len(source.val)) == (8, 4)
    assert "/b/val/" in open_source(str(tmp_path / "a"), val_dir=str(tmp_path / "b" / "val")).val.where(0)


def test_what_does_not_fit_says_what_to_do(tmp_path: Path) -> None:
    write_folder_set(tmp_path / "a")
    write_idx_set(tmp_path / "idx")
    data = str(tmp_path / "a")
    with pytest.raises(DataError, match="--val-dir .*nowhere: no such folder"):
        open_source(data, val_dir=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"val: is there, so --val-fraction 0\.2 has nothing to take"):
        open_source(data, val_fraction=0.2)
    with pytest.raises(DataError, match=r"no validation images; .*--val-dir FOLDER, or --val-fraction 0\.2"):
        open_source(str(tmp_path / "a" / "train"))
    for other in ("digits", str(tmp_path / "idx")):
        with pytest.raises(DataError, match=r"--val-fraction 0\.2: is for folders of images"):
            open_source(other, val_fraction=0.2)


def test_balanced_epochs_have_every_class_and_in_it_every_image_equally_often() -> None:
    labels = torch.tensor([0] * 50 + [1] * 7 + [4] * 3)  # 2 and 3 have none
    order = balanced_order(labels, torch.Generator().manual_seed(1))
    assert len(order) == 60
    assert Counter(labels[order].tolist()) == {0: 20, 1: 20, 4: 20}
    for label in (1, 4):
        times = Counter(order[labels[order] == label].tolist()).values()
        assert max(times) - min(times) <= 1
    assert len(set(order[labels[order] == 0].tolist())) == 20


def test_balanced_epochs_are_shared_and_resumed_like_others() -> None:
    labels = torch.arange(40) // 30
    whole = EpochSampler(40, shuffle=True, seed=3, labels=labels)
    ranks = [EpochSampler(40, shuffle=True, seed=3, rank=rank, world_size=2, labels=labels) for rank in (0, 1)]
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == list(whole)
    resumed = EpochSampler(40, shuffle=True, seed=3, labels=labels)
    resumed.resume(0, 13)
    assert list(resumed) == list(whole)[13:]
    whole.set_epoch(1)
    assert list(whole) != list(EpochSampler(40, shuffle=True, seed=3, labels=labels))
