"""The ImageNet recipes on a made image folder: a thousand classes, a few steps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from condconv.cli.main import main
from condconv.recipes import list_recipes
from tests.cli.runner import metrics, quick
from tests.data.writers import jpeg

IMAGENET = [name for name in list_recipes() if name.startswith("imagenet_")]
# One for each paper.
QUICK = ("imagenet_condconv_mobilenetv1_025", "imagenet_dynamic_mobilenetv2_035")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 1,000 classes with one image each, all the same file."""
    folder = tmp_path_factory.mktemp("imagenet")
    image = folder / "image.jpg"
    image.write_bytes(jpeg(0, (250, 240)))
    for half in ("train", "val"):
        for label in range(1000):
            (folder / half / f"n{label:04d}").mkdir(parents=True)
            os.link(image, folder / half / f"n{label:04d}" / "1.jpg")
    return folder


def run(recipe: str, data: Path, out: Path, *arguments: str) -> None:
    command = ["train", "--recipe", recipe, "--data", str(data), "--out", str(out), "--fast-dev-run", "--workers", "0"]
    assert main([*command, "--device", "cpu", "--batch-size", "2", "--name", "made", *arguments]) == 0
    folder = out / "made-fast-1"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["recipe"], settings["num_classes"], settings["epochs"]) == (recipe, 1000, 1)
    row, *twins = metrics(folder)
    assert [twin["network"] for twin in twins] == (["static", "widened"] if "--twin" in arguments else [])
    assert row["network"] == "conditional" and float(row["train_loss"]) > 0
    assert (row["temperature"] != "") == ("dynamic" in recipe)
    assert (folder / "summary.md").exists()


@pytest.mark.parametrize("recipe", QUICK)
def test_a_few_steps_of_small_images(recipe: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    run(recipe, data, tmp_path, "--input-size", "64")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", IMAGENET)
def test_a_few_steps_as_published(recipe: str, data: Path, tmp_path: Path) -> None:
    run(recipe, data, tmp_path, "--twin" if recipe == IMAGENET[0] else "--no-twin")


def test_another_number_of_classes_is_said_before_the_first_step(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    for half in ("train", "val"):
        (small / half).mkdir(parents=True)
        for label in range(3):
            os.symlink(data / half / f"n{label:04d}", small / half / f"n{label:04d}")
    out = tmp_path / "runs"
    assert main(["train", "--recipe", QUICK[0], "--data", str(small), "--out", str(out)]) == 2
    assert "3 classes, and the classifier is to have 1000 (--num-classes)" in capsys.readouterr().err
    assert not out.exists()
