"""torchvision's classification networks and detectors: convert, upcycle exactly, forward and backward, revert."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conversion.networks import check_conversion, make_telling

models = pytest.importorskip("torchvision").models

FAST = ("mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5")

EXAMPLES: dict[str, tuple[int, int]] = {"inception_v3": (4, 128), "maxvit_t": (2, 224), "vit_b_16": (2, 224)}
"""Networks that do not take four examples at 64 px: (examples, pixels)."""


def architectures() -> list[Any]:
    """The smallest (first) variant of every module of torchvision.models that builds classifiers."""
    first: dict[str, str] = {}
    for name in models.list_models(module=models):
        module = models.get_model_builder(name).__module__
        first[module] = min(first.get(module, name), name, key=lambda n: (len(n), n))
    chosen = sorted({*first.values(), *FAST})
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in chosen]


@pytest.mark.parametrize("name", architectures())
def test_classifier(name: str) -> None:
    # Auxiliary heads run in training only, and pool to a fixed size that small images do not have.
    arguments = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    net = models.get_model(name, weights=None, **arguments).double()
    for module in net.modules():
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    batch, pixels = EXAMPLES.get(name, (4, 64))
    x = torch.randn(batch, 3, pixels, pixels, dtype=torch.float64)
    make_telling(net, (x,))
    plan = check_conversion(net, (x,), tolerance=1e-12, input_size=(3, pixels, pixels))
    assert plan.converted


class Detector:
    """How a detector is run: raw head outputs, since suppression would hide small differences or double them."""

    def __init__(self, heads: tuple[str, ...]) -> None:
        self.heads = heads

    def __call__(self, net: nn.Module, inputs: Any, training: bool) -> list[Tensor]:
        net = copy.deepcopy(net).train(training)
        seen: list[Any] = []
        for head in self.heads:
            net.get_submodule(head).register_forward_hook(lambda module, args, y: seen.append(y))
        torch.manual_seed(1)
        with torch.no_grad():
            net(*inputs)
        return seen


DETECTORS = {
    "ssd300_vgg16": ("head",),
    "ssdlite320_mobilenet_v3_large": ("head",),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("backbone", "rpn.head"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detector(name: str) -> None:
    net = models.get_model(name, weights=None, weights_backbone=None, num_classes=4).double()
    images = [torch.rand(3, 128, 128, dtype=torch.float64) for _ in range(2)]
    boxes = torch.tensor([[10.0, 12.0, 60.0, 70.0], [40.0, 30.0, 120.0, 110.0]], dtype=torch.float64)
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
    make_telling(net, (images, targets))
    plan = check_conversion(
        net,
        (images,),
        train_inputs=(images, targets),
        tolerance=1e-12,
        input_size=images,
        output=Detector(DETECTORS[name]),
        loss=lambda losses: sum(losses.values()),
        num_experts=2,
    )
    assert any(converted.startswith("backbone.") for converted in plan.converted)
