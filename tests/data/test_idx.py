from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from condconv.data import idx, open_source
from condconv.errors import DataError
from tests.data.writers import idx_bytes, write_idx_set


@pytest.mark.parametrize("compress", [True, False])
def test_reads_what_was_written(tmp_path: Path, compress: bool) -> None:
    array = torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if compress else idx_bytes(array))
    assert torch.equal(idx.read_idx(path, 3), array)


def test_opens_a_folder_of_idx_files(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    assert (len(source.train), len(source.val), source.classes) == (24, 12, ("0", "1", "2"))
    assert (source.channels, source.image_size) == (1, (9, 9))
    assert source.train.load(4).shape == (1, 9, 9)
    assert int(source.train.labels[4]) == 1


def _damage(path: Path, how: str) -> None:
    data = gzip.decompress(path.read_bytes())
    damaged = {
        "missing": None,
        "empty": b"",
        "truncated gzip": path.read_bytes()[:-40],
        "damaged gzip": path.read_bytes()[:20] + b"\xff" * 40 + path.read_bytes()[60:],
        "header only": data[:6],
        "cut": data[:-7],
        "too long": data + b"\0\0",
        "foreign": b"GIF89a" + data,
    }[how]
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("missing", "no such file"),
        ("empty", "empty"),
        ("truncated gzip", "truncated or damaged"),
        ("damaged gzip", "truncated or damaged"),
        ("header only", "expected an IDX header of 16 bytes, found 6"),
        ("cut", "promises 1944 bytes of data, found 1937"),
        ("too long", "too long"),
        ("foreign", "not an IDX file"),
    ],
)
def test_damaged_files_are_named_with_what_was_expected(tmp_path: Path, how: str, expected: str) -> None:
    write_idx_set(tmp_path / "set")
    _damage(tmp_path / "set" / "train-images-idx3-ubyte.gz", how)
    (tmp_path / "set" / "train-images-idx3-ubyte.keep").touch()  # still recognised as a folder of IDX files
    with pytest.raises(DataError, match="train-images-idx3-ubyte") as caught:
        open_source(str(tmp_path / "set"))
    assert expected in str(caught.value)


def test_label_out_of_range_and_counts_that_disagree(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "set", compress=False)
    labels = tmp_path / "set" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(torch.tensor([0, 1, 7] * 4)))
    with pytest.raises(DataError, match=r"image 2: label 7 is out of range; expected 0 … 2 \(4 such samples\)"):
        open_source(str(tmp_path / "set"))
    labels.write_bytes(idx_bytes(torch.tensor([0, 1])))
    with pytest.raises(DataError, match="2 labels for the 12 images"):
        open_source(str(tmp_path / "set"))


def test_one_class_only(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "set", classes=1)
    with pytest.raises(DataError, match="one class, '0'; a classifier needs at least two"):
        open_source(str(tmp_path / "set"))


def test_fashion_mnist_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist.*--data digits"):
        idx.open_fashion_mnist(tmp_path)


def test_fashion_mnist_of_the_debian_package() -> None:
    if not idx.is_idx_folder(idx.DEBIAN_FOLDER):
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    source = open_source("fashion-mnist")
    assert (len(source.train), len(source.val), len(source.classes)) == (60000, 10000, 10)
    assert torch.equal(source.train.labels.bincount(), torch.full((10,), 6000))
