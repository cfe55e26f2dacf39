"""The made detection set: the same for the same seed, boxes around what is drawn, styles that differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import styles
from condconv.tasks.detect.opening import open_objects


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.*"))]


def test_the_seed_is_the_set(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        styles.main([str(tmp_path / name), "--train", "12", "--val", "6", "--size", "96", "--seed", str(seed)])
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    source = open_objects(str(tmp_path / "a"))
    assert source.classes == styles.SHAPES and (len(source.train), len(source.val)) == (12, 6)
    assert not np.array_equal(source.train.load(0), source.val.load(0))
    entries = json.loads((tmp_path / "a" / "train.json").read_text())["images"]
    assert len({entry["style"] for entry in entries}) > 2


@pytest.mark.parametrize("style", ["filled", "inverted", "outline", "hatched"])
def test_boxes_are_around_what_is_drawn(style: str, tmp_path: Path) -> None:
    styles.main([str(tmp_path / "s"), "--train", "4", "--val", "1", "--size", "96", "--styles", style])
    content = json.loads((tmp_path / "s" / "train.json").read_text())
    for entry in content["images"]:
        pixels = np.asarray(Image.open(tmp_path / "s" / "train" / entry["file_name"]), dtype=float)
        ground = 255 - 60 if style == "inverted" else 60
        drawn = np.abs(pixels - ground) > 45
        boxes = [each["bbox"] for each in content["annotations"] if each["image_id"] == entry["id"]]
        outside = np.ones_like(drawn)
        for x, y, width, height in boxes:
            inside = drawn[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1]
            assert inside.any(axis=0).mean() > 0.8 and inside.any(axis=1).mean() > 0.8
            outside[max(0, int(y) - 2) : int(y + height) + 4, max(0, int(x) - 2) : int(x + width) + 4] = False
        assert boxes and not (drawn & outside).any()
