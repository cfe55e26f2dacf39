from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from condconv.data import ImageView, SampleKey, open_source
from condconv.errors import DataError, UnknownNameError
from tests.data.writers import jpeg, write_folder_set


def test_classes_are_the_folders(tmp_path: Path) -> None:
    write_folder_set(tmp_path)
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4
    assert (source.channels, source.image_size, source.native) == (3, (16, 16), True)


def test_grey_and_mixed_sizes(tmp_path: Path) -> None:
    write_folder_set(tmp_path / "grey", grey=True)
    assert open_source(str(tmp_path / "grey")).channels == 1
    write_folder_set(tmp_path / "mixed")
    (tmp_path / "mixed" / "train" / "cat" / "large.jpg").write_bytes(jpeg(9, (50, 70)))
    source = open_source(str(tmp_path / "mixed"))
    assert (source.image_size, source.native) == ((224, 224), False)
    for train in (True, False):
        assert ImageView(source, train=train)[SampleKey(0, 0)].image.shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("remove", "expected"),
    [
        ("train", "train: no such folder"),
        ("val", "no folder val, valid, validation or test beside train/"),
        ("train/cat/*", "train/cat: no image files"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, remove: str, expected: str) -> None:
    write_folder_set(tmp_path)
    for path in tmp_path.glob(remove):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert expected in str(caught.value)


def test_one_class_and_foreign_class(tmp_path: Path) -> None:
    write_folder_set(tmp_path)
    shutil.rmtree(tmp_path / "train" / "dog")
    with pytest.raises(DataError, match="class 'dog' has no folder in"):
        open_source(str(tmp_path))
    shutil.rmtree(tmp_path / "val" / "dog")
    with pytest.raises(DataError, match="one class, 'cat'"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not an image", jpeg(3)[:200], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_an_undecodable_image_is_named_or_skipped(tmp_path: Path, content: bytes) -> None:
    write_folder_set(tmp_path)
    bad = tmp_path / "train" / "cat" / "2.jpg"
    bad.write_bytes(content)
    (tmp_path / "val" / "dog" / "0.jpg").write_bytes(content)
    source = open_source(str(tmp_path))
    with pytest.raises(DataError) as caught:
        ImageView(source, train=True)[SampleKey(0, 2)]
    assert str(bad) in str(caught.value)
    train = ImageView(source, train=True, skip_bad=True)
    assert train[SampleKey(0, 2)].decoded is False
    assert train[SampleKey(0, 2)].label == 0  # the next image takes its place
    assert train[SampleKey(0, 3)].decoded is True
    val = ImageView(source, train=False, skip_bad=True)
    assert (val[SampleKey(0, 4)].label, val[SampleKey(0, 4)].decoded) == (-1, False)


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'fashion-minst'; did you mean 'fashion-mnist'?"):
        open_source("fashion-minst")
    with pytest.raises(DataError, match="no such folder"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no data set recognised"):
        open_source(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="a file; expected a folder"):
        open_source(str(tmp_path / "file"))
