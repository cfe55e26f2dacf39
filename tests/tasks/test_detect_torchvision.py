"""torchvision's detectors through the same command: converted, trained, evaluated, from weights of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from condconv.cli.main import main
from condconv.conversion.apply import conditional_layers
from condconv.errors import ArgumentError, CheckpointError, UnknownNameError
from condconv.models import create_model
from condconv.runs.building import NetworkBuilder
from condconv.runs.config import TrainConfig
from condconv.runs.trained import load_run
from condconv.tasks import task_of
from condconv.tasks.base import Task
from tests.cli.runner import metrics, quick
from tests.tasks.test_detect import write_objects

SSDLITE = "torchvision/ssdlite320_mobilenet_v3_large"
NAMES = [
    SSDLITE,
    pytest.param("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", marks=pytest.mark.slow),
    pytest.param("torchvision/retinanet_resnet50_fpn_v2", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("data") / "boxes", count=4)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_detects(name: str, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    common = ("--workers", "0", "--device", "cpu")
    arguments = (
        "train", "--data", str(boxes), "--model", name, "--epochs", "1", "--batch-size", "2", "--num-experts", "2",
        "--input-size", "64", "--lr", "0.001", "--name", "run", "--out", str(tmp_path), "--no-report", *common,
    )  # fmt: skip
    assert main(list(arguments)) == 0
    (row,) = metrics(tmp_path / "run-1")
    assert float(row["train_class_loss"]) > 0 and 0 <= float(row["map"]) <= 1 and "val_loss" not in row
    layers = [layer for layer, _ in conditional_layers(load_run(tmp_path / "run-1"))]
    assert layers and all(layer.startswith("backbone.") for layer in layers)
    assert main(["predict", str(tmp_path / "run-1"), str(boxes / "val"), "--out", str(tmp_path / "out"), *common]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def task_with(boxes: Path, **settings: object) -> Task:
    return task_of(TrainConfig(data=str(boxes), task="detect", model=SSDLITE, input_size=64, **settings))


def test_weights_come_from_a_file_and_are_upcycled_exactly(boxes: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    static = create_model(SSDLITE, num_classes=2).eval()
    save_file(dict(static.state_dict()), tmp_path / "static.safetensors")
    task = task_with(boxes, num_experts=2, pretrained=str(tmp_path / "static.safetensors"))
    source = task.prepared(task.open(str(boxes)))
    converted = NetworkBuilder(task, source).conditional().eval()
    images = torch.rand(2, 3, 64, 64)
    seen: list[list[torch.Tensor]] = []
    for network in (static, converted):
        head = network.get_submodule("head")
        head.register_forward_hook(lambda module, args, y: seen.append(list(y.values())))
        with torch.no_grad():
            network(images)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-4)
    other = create_model(SSDLITE, num_classes=3)
    save_file(dict(other.state_dict()), tmp_path / "other.safetensors")
    task = task_with(boxes, num_experts=2, pretrained=str(tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        NetworkBuilder(task, source).conditional()


def test_what_cannot_be_is_said(boxes: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'torchvision/ssdlite320"):
        create_model("torchvision/ssdlite320_mobilenet_v3")
    with pytest.raises(ArgumentError, match="width_multiplier=0.5 is no argument of torchvision's detectors"):
        create_model(SSDLITE, width_multiplier=0.5)
    with pytest.raises(ArgumentError, match="Its weights come from a file"):
        create_model(SSDLITE, pretrained=True)
