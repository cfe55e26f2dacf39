"""Labels in a table: what is wrong in it is counted and named, all of it at once, before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from condconv.cli.main import main
from condconv.data import open_source
from condconv.data.label_table import TaggedImages, open_labelled
from condconv.errors import DataError
from tests.data.writers import jpeg


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, a.jpg … l.jpg."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abcdefghijkl"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(jpeg(number))
    return tmp_path / "images"


def table(folder: Path, rows: Sequence[tuple[str, ...]], head: str = "image,label,split") -> str:
    path = folder.parent / "labels.csv"
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


GOOD = [
    (f"{name}.jpg", "cat" if name in "acegik" else "dog", "val" if name in "kl" else "train") for name in "abcdefghijkl"
]


def test_the_table_says_class_and_half(folder: Path) -> None:
    source = open_source(str(folder), labels=table(folder, GOOD))
    assert source.classes == ("cat", "dog") and (source.channels, source.image_size) == (3, (16, 16))
    assert [len(source.train), len(source.val)] == [10, 2]
    assert source.train.labels.tolist() == [0, 1] * 5
    assert source.val.where(1) == str(folder / "l.jpg") and source.val.load(1).shape == (3, 16, 16)


def test_without_halves_it_is_split(folder: Path) -> None:
    labels = table(folder, [row[:2] for row in GOOD], "image,label")
    with pytest.raises(DataError, match=r"no column 'split' .*--val-fraction 0\.2"):
        open_source(str(folder), labels=labels)
    source = open_source(str(folder), labels=labels, val_fraction=0.5)
    assert Counter(source.val.labels.tolist()) == {0: 3, 1: 3}
    with pytest.raises(DataError, match=r"has a column 'split', so --val-fraction"):
        open_source(str(folder), labels=table(folder, GOOD), val_fraction=0.5)


def test_all_that_is_wrong_is_counted_and_named(folder: Path) -> None:
    bad = [
        *GOOD, ("a.jpg", "dog", "train"), ("b.jpg", "dog", "train"), ("gone.jpg", "cat", "train"),
        ("lost.jpg", "dog", "val"), ("c.jpg", "cat", "train"),
    ]  # fmt: skip
    bad[11] = ("l.jpg", "dgo", "val")
    labels = table(folder, bad)
    with pytest.raises(DataError) as caught:
        open_source(str(folder), labels=labels)
    message = str(caught.value)
    assert "1 images with two labels or in two halves: 'a.jpg'" in message
    assert "2 images named twice: 'b.jpg', 'c.jpg'" in message
    assert f"2 images missing in {folder}: 'gone.jpg', 'lost.jpg'" in message
    assert "1 images of unknown classes (of no training image: 'dgo'): 'l.jpg'" in message
    assert "--skip-bad-images" in message
    source = open_source(str(folder), labels=labels, skip_bad=True)
    assert (len(source.train), len(source.val), len(source.skipped)) == (7, 1, 4)


def test_classes_txt_says_which_classes_there_are(folder: Path) -> None:
    (folder / "classes.txt").write_text("dog\ncat\n\n")
    assert open_source(str(folder), labels=table(folder, GOOD)).classes == ("dog", "cat")
    typo = [*GOOD[:2], ("c.jpg", "catt", "train"), *GOOD[3:]]
    with pytest.raises(DataError, match=r"unknown classes \(not in classes.txt: 'catt'\): 'c.jpg'"):
        open_source(str(folder), labels=table(folder, typo))


@pytest.mark.parametrize(
    ("rows", "head", "expected"),
    [
        ([("a.jpg", "cat")], "file,label", "no column 'image'; expected 'image' and 'label', found 'file', 'label'"),
        ([], "", "no column 'image' and no 'label'"),
        ([("a.jpg", "cat", "holdout")], "image,label,split", "row 2: split 'holdout' is unknown"),
        ([("a.jpg", "cat", "train"), ("b.jpg", "dog", "")], "image,label,split", "row 3: its split is empty"),
        ([("a.jpg", "", "train")], "image,label,split", "row 2: has no label"),
        ([("", "cat", "train")], "image,label,split", "row 2: has no image"),
        ([row[:2] + ("train",) for row in GOOD], "image,label,split", "no validation images in it"),
    ],
)
def test_a_table_of_another_kind(folder: Path, rows: list[tuple[str, ...]], head: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(str(folder), labels=table(folder, rows, head))
    assert expected in str(caught.value)


def test_the_command_line_says_it_in_one_line_and_leaves_no_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = table(folder, [*GOOD, ("gone.jpg", "cat", "train")])
    runs = tmp_path / "runs"
    assert main(["train", "--data", str(folder), "--labels", labels, "--out", str(runs)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "1 images missing" in error
    assert not runs.exists()


def test_several_labels_for_an_image(folder: Path) -> None:
    rows = [
        ("a.jpg", "cat|dog", "train"),
        ("b.jpg", "", "train"),
        ("c.jpg", " dog | toad ", "val"),
        ("d.jpg", "toad", "train"),
    ]
    source = open_labelled(folder, table(folder, rows), several=True)
    assert source.classes == ("cat", "dog", "toad")
    assert source.train.target(0).tolist() == [1, 1, 0] and source.train.target(1).tolist() == [0, 0, 0]
    assert source.val.target(0).tolist() == [0, 1, 1]
    assert source.train.labels.tolist() == [0, -1, 2]
    assert isinstance(source.train.images, TaggedImages)


def test_parquet_is_read_too_and_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder.parent / "labels.parquet"
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(DataError, match="pip install pyarrow"):
            open_source(str(folder), labels=str(path))
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = dict(zip(("image", "label", "split"), zip(*GOOD, strict=True), strict=True))
    parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), path)
    assert open_source(str(folder), labels=str(path)).val.labels.tolist() == [0, 1]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        open_source(str(folder), labels=str(path))
