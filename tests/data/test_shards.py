from __future__ import annotations

from pathlib import Path

import pytest
import torch

from condconv.data import open_source
from condconv.data.decoding import decode_image
from condconv.errors import DataError
from tests.data.writers import jpeg, shard_samples, write_shard_set, write_tar


def test_reads_any_image_in_any_order(tmp_path: Path) -> None:
    write_shard_set(tmp_path)
    source = open_source(str(tmp_path))
    assert (len(source.train), len(source.val), source.classes) == (11, 4, ("0", "1", "2"))
    assert (source.channels, source.image_size, source.native) == (3, (16, 16), True)
    for index in (10, 0, 7):
        assert torch.equal(source.train.load(index), decode_image(jpeg(index), "", 3))
        assert int(source.train.labels[index]) == index % 3
    assert "train-001.tar, sample s007" in source.train.where(7)


def test_class_names_and_labels_by_name(tmp_path: Path) -> None:
    samples = {"a.jpg": jpeg(0), "a.cls": b"dog", "b.jpg": jpeg(1), "b.cls": b"0\n"}
    for shard in ("train.tar", "val.tar"):
        write_tar(tmp_path / shard, samples)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize("keep", [700, 512 * 7 + 100, 512 * 8])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    write_shard_set(tmp_path)
    shard = tmp_path / "train-001.tar"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-001\.tar: truncated.* after member"):
        open_source(str(tmp_path))


def test_a_shard_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    # Python's tarfile takes such a file for a complete one.
    write_shard_set(tmp_path)
    shard = tmp_path / "test-000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"s052.jpg")])
    with pytest.raises(DataError, match=r"test-000\.tar.*end mark is missing after member"):
        open_source(str(tmp_path))


def test_empty_and_missing_shards(tmp_path: Path) -> None:
    write_shard_set(tmp_path)
    (tmp_path / "train-001.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-001\.tar: the file is empty"):
        open_source(str(tmp_path))
    for path in tmp_path.glob("test*"):
        path.unlink()
    with pytest.raises(DataError, match=r"no val\*\.tar or test\*\.tar"):
        open_source(str(tmp_path))


def test_of_a_truncated_shard_the_whole_samples_are_kept_when_asked(tmp_path: Path) -> None:
    write_shard_set(tmp_path)
    shard = tmp_path / "train-001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"s008.jpg") + 600])
    source = open_source(str(tmp_path), skip_bad=True)
    assert len(source.train) == 8
    assert [source.train.load(i).shape for i in (6, 7)] == [(3, 16, 16)] * 2
    assert len(source.skipped) == 1 and "train-001.tar: truncated" in source.skipped[0]


def test_all_that_is_bad_is_counted_before_it_stops(tmp_path: Path) -> None:
    write_shard_set(tmp_path)
    extra = {"x.jpg": jpeg(1), "y.jpg": jpeg(2), "y.cls": b"nine"}
    write_tar(tmp_path / "train-002.tar", extra)
    (tmp_path / "train-003.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-002\.tar, sample x: no label.* \(and 2 more such.*--skip-bad-images"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path), skip_bad=True).skipped) == 3


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"x.jpg": jpeg(1)}, "sample x: no label"),
        ({"x.cls": b"1"}, "sample x: no image"),
        ({"x.jpg": jpeg(1), "x.cls": b"9"}, "sample x: label 9 is out of range; expected 0 … 2"),
        ({"x.jpg": jpeg(1), "x.cls": b"-1"}, "sample x: label '-1' is neither a number nor a name"),
    ],
)
def test_bad_samples_stop_or_are_listed(tmp_path: Path, extra: dict[str, bytes], expected: str) -> None:
    write_shard_set(tmp_path)
    write_tar(tmp_path / "test-000.tar", {**shard_samples(4), **extra})
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert expected in str(caught.value)
    source = open_source(str(tmp_path), skip_bad=True)
    assert len(source.val) == 4
    assert len(source.skipped) == 1 and expected in source.skipped[0]


def test_without_names_labels_are_below_the_number_of_classes_that_is_asked_for(tmp_path: Path) -> None:
    write_shard_set(tmp_path)
    write_tar(tmp_path / "train-009.tar", {"x.jpg": jpeg(1), "x.cls": b"9"})
    assert len(open_source(str(tmp_path)).classes) == 10
    with pytest.raises(DataError, match=r"train-009\.tar, sample x: label 9 is out of range; expected 0 … 2"):
        open_source(str(tmp_path), num_classes=3)
    source = open_source(str(tmp_path), skip_bad=True, num_classes=3)
    assert len(source.classes) == 3 and len(source.skipped) == 1


def test_a_shard_that_shrinks_later_is_named(tmp_path: Path) -> None:
    write_shard_set(tmp_path)
    source = open_source(str(tmp_path))
    shard = tmp_path / "train-000.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(DataError, match=r"train-000\.tar, sample s005: the shard was cut short"):
        source.train.load(5)


def test_the_shared_set_of_small_colour_images() -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    source = open_source(str(folder))
    assert (len(source.train), len(source.val), len(source.classes), source.image_size) == (50000, 10000, 10, (32, 32))
    assert source.train.labels.bincount().tolist() == [5000] * 10
    assert source.train.load(49999).shape == (3, 32, 32)
