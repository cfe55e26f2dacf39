"""Data sets of Hugging Face on disk; without the package, the command that installs it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from condconv.data import open_source
from condconv.errors import DataError
from tests.data.writers import jpeg


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'condconv\[datasets\]'"):
        open_source(str(tmp_path))


def rows(count: int) -> dict[str, list[Any]]:
    pictures = [Image.open(io.BytesIO(jpeg(number, kind="PNG"))) for number in range(count)]
    return {"picture": pictures, "species": [number % 2 for number in range(count)], "note": ["x"] * count}


def saved(folder: Path, **splits: int) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "species": datasets.ClassLabel(names=["cat", "dog"]),
            "note": datasets.Value("string"),
        }
    )
    made = {name: datasets.Dataset.from_dict(rows(count), features=features) for name, count in splits.items()}
    (datasets.DatasetDict(made) if len(made) > 1 else made["train"]).save_to_disk(str(folder))
    return str(folder)


def test_its_splits_images_and_classes(tmp_path: Path) -> None:
    source = open_source(saved(tmp_path / "pets", train=6, test=4))
    assert (len(source.train), len(source.val), source.classes) == (6, 4, ("cat", "dog"))
    assert (source.name, source.channels, source.image_size) == ("pets", 3, (16, 16))
    assert source.train.labels.tolist() == [0, 1] * 3
    expected = Image.open(io.BytesIO(jpeg(3, kind="PNG"))).convert("RGB")
    assert source.train.load(3).permute(1, 2, 0).flatten().tolist() == list(expected.tobytes())
    assert source.val.where(2) == f"{tmp_path / 'pets'}, test, row 2"


def test_one_split_is_divided_and_a_damaged_folder_is_said(tmp_path: Path) -> None:
    data = saved(tmp_path / "pets", train=8)
    with pytest.raises(DataError, match=r"no split for validation; pass --val-fraction 0\.2"):
        open_source(data)
    source = open_source(data, val_fraction=0.25)
    assert (len(source.train), source.val.labels.tolist()) == (6, [0, 1])
    (tmp_path / "pets" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a readable data set of Hugging Face"):
        open_source(data)
