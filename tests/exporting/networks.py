"""Networks to export: small, with weights that tell what is wrong."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

import condconv
from condconv.routers import AnnealedGate
from tests.contract.cases import MIXTURES
from tests.conversion.networks import make_telling

SIZE = (3, 48, 48)


def network(variant: str = "condconv") -> nn.Module:
    """Depthwise, pointwise, strided and linear layers, two of them routed together where they can; in eval mode."""
    return copy.deepcopy(_network(variant))


@functools.cache
def _network(variant: str) -> nn.Module:
    torch.manual_seed(0)
    pair = nn.Sequential(*_step(8, 8, groups=8), *_step(8, 12, kernel_size=1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    model: nn.Module = nn.Sequential(*_step(3, 8, stride=2), pair, *_step(12, 16, stride=2), *head)
    experts = 3 if variant in (*MIXTURES, "odconv") else None
    model = condconv.convert(model, variant, num_experts=experts, init="fresh", share={"3": r"^3\."}, input_size=SIZE)
    return settled(model, torch.randn(16, *SIZE))


def _step(before: int, after: int, kernel_size: int = 3, **how: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=False, **how)
    return convolution, nn.BatchNorm2d(after), nn.ReLU6()


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """The network with batch norm statistics and gates that differ from their initial ones, in eval mode."""
    make_telling(model, (images,))
    for module in model.modules():
        if isinstance(module, AnnealedGate):
            module.anneal((module.start + module.end) / 2)
    return model.eval()


def images(number: int, size: tuple[int, ...] = SIZE) -> Tensor:
    """Random images that depend on nothing."""
    return torch.randn(number, *size, generator=torch.Generator().manual_seed(number))
