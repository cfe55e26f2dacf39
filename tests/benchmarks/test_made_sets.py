"""The made sets: the same for the same seed, boxes and joints on what is drawn, styles that differ."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import puppets, styles
from condconv.tasks import task_named_by
from condconv.tasks.detect.opening import open_objects
from condconv.tasks.keypoints.opening import open_keypoints


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.*"))]


@pytest.mark.parametrize("made", [styles, puppets], ids=["styles", "puppets"])
def test_the_seed_is_the_set(made: ModuleType, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made.main([str(tmp_path / name), "--train", "12", "--val", "6", "--size", "96", "--seed", str(seed)])
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    drawn = [Image.open(tmp_path / "a" / half / "00001.png") for half in ("train", "val")]
    assert not np.array_equal(*drawn)
    path = next((tmp_path / "a").rglob("*train.json"))
    assert len({entry["style"] for entry in json.loads(path.read_text())["images"]}) > 2


def test_tasks_recognise_their_set(tmp_path: Path) -> None:
    for made in (styles, puppets):
        made.main([str(tmp_path / made.__name__), "--train", "3", "--val", "2", "--size", "96"])
    shapes, figures = (str(tmp_path / made.__name__) for made in (styles, puppets))
    assert (task_named_by(shapes), task_named_by(figures)) == ("detect", "keypoints")
    for source, classes in ((open_objects(shapes), styles.SHAPES), (open_keypoints(figures), puppets.JOINTS)):
        assert source.classes == classes and (len(source.train), len(source.val)) == (3, 2)


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


def test_joints_are_on_what_is_drawn(tmp_path: Path) -> None:
    puppets.main([str(tmp_path / "p"), "--train", "6", "--val", "1", "--styles", "filled"])
    content = json.loads((tmp_path / "p" / "annotations" / "puppet_keypoints_train.json").read_text())
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / "p" / "train" / image["file_name"]), dtype=float)
        joints = np.array(entry["keypoints"]).reshape(-1, 3)
        assert (joints[:, 2] == 2).all() and len(joints) == len(puppets.JOINTS)
        for x, y, _ in joints:
            # A joint at the end of a bone has the bone on one side of it.
            assert pixels[int(y) - 1 : int(y) + 3, int(x) - 1 : int(x) + 3].max() > 110
        x, y, width, height = entry["bbox"]
        outside = np.ones(pixels.shape, dtype=bool)
        outside[max(0, int(y)) : int(y + height) + 1, max(0, int(x)) : int(x + width) + 1] = False
        assert (pixels[outside] < 110).all()
        left, right = (joints[puppets.JOINTS.index(f"{side}_knee"), 0] for side in ("left", "right"))
        assert left > right
