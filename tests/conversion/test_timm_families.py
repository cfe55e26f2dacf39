"""One architecture of every family that timm has: convert, upcycle exactly, forward and backward, revert."""

from __future__ import annotations

import gc
import re
import warnings
from typing import Any

import pytest
import torch

from condconv.conversion import Plan
from tests.conversion.networks import CannotFail, check_conversion, make_telling

timm = pytest.importorskip("timm")

_SMALL = (
    *("test", "zepto", "atto", "femto", "pico", "nano", "xxs", "xxtiny", "xx_small", "mini", "xs", "x_small", "xtiny"),
    *("tiny", "ti", "t", "t0", "s0", "m0", "b0", "s", "small", "lite"),
)
"""Words that stand for a small network in timm's names, the smallest first."""

FAST = ("convnext", "efficientnet", "regnet", "resnet")

UNABLE = {
    "levit": "amplifies rounding: one ulp on its static weights moves its output by 1.7e-12 to 4.6e-12",
    "nfnet": "every convolution standardises its weights (ScaledStdConv2d), which experts would have to do each",
}
"""Families that cannot be converted right, and why; strict, so that one that learns it is noticed."""


def smallest(family: str) -> str:
    """The architecture of a family whose name speaks of the smallest network; ties: smallest numbers, then alphabet."""

    def rank(name: str) -> tuple[int, list[int], str]:
        parts = re.split(r"[_\-]", name)
        words = [i for i, word in enumerate(_SMALL) if word in parts or ("_" in word and word in name)]
        return min(words, default=len(_SMALL)), [int(number) for number in re.findall(r"\d+", name)], name

    return min(timm.list_models(module=family), key=rank)


def families() -> list[Any]:
    """All of timm's families as parameters; those outside of FAST are slow, those that cannot are strict xfails."""
    parameters = []
    for family in timm.list_modules():
        # What condconv.models.timm_names registered is conditional already.
        if family == "timm_names" or not timm.list_models(module=family):
            continue
        marks = [] if family in FAST else [pytest.mark.slow]
        if family in UNABLE:
            marks.append(pytest.mark.xfail(strict=True, reason=UNABLE[family]))
        parameters.append(pytest.param(family, marks=marks))
    return parameters


@pytest.mark.slow
def test_there_are_enough_families() -> None:
    able = [family for family in timm.list_modules() if family not in UNABLE and timm.list_models(module=family)]
    assert sum(is_convolutional(smallest(family)) for family in able) >= 40


def is_convolutional(name: str) -> bool:
    """Whether a network has more convolutions than the one or two that cut an image into patches."""
    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False)
    return sum(isinstance(module, torch.nn.Conv2d) for module in net.modules()) >= 4


@pytest.mark.parametrize("family", families())
def test_family(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own deprecation and rounding notices
        if not is_convolutional(smallest(family)):
            pytest.skip("fewer than four convolutions")
        try:
            plan = convert_and_back(family, None)
        except CannotFail:
            # Norms behind the few convolutions of the second half hide their scale: take all convolutions.
            plan = convert_and_back(family, ["pointwise", "depthwise", "dense"])
    assert plan.converted
    assert all(layer.converted or layer.why for layer in plan.layers)
    gc.collect()


def convert_and_back(family: str, targets: list[str] | None) -> Plan:
    """Check the conversion of a family's smallest architecture."""
    net = timm.create_model(smallest(family), pretrained=False).double()
    size = input_size(net)
    # Four examples: batch norm over two values would amplify rounding without bound.
    x = torch.randn(4, *size, dtype=torch.float64)
    make_telling(net, (x,))
    return check_conversion(net, (x,), tolerance=1e-12, input_size=size, targets=targets)


def input_size(net: Any) -> tuple[int, int, int]:
    """64 or 128 px where the network takes that, else the size that it was made for."""
    config = net.pretrained_cfg
    for pixels in () if config.get("fixed_input_size") else (64, 128):
        small = (config["input_size"][0], pixels, pixels)
        try:
            with torch.no_grad():
                net.eval()(torch.rand(1, *small, dtype=torch.float64))
        except (RuntimeError, AssertionError):
            continue
        return small
    return config["input_size"]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("variant", ["condconv", "dynamic_convolution"])
def test_single_precision_and_both_variants(name: str, variant: str) -> None:
    net = timm.create_model(name, pretrained=False)
    x = torch.randn(4, 3, 64, 64)
    make_telling(net, (x,))
    check_conversion(net, (x,), tolerance=1e-5, variant=variant, input_size=(3, 64, 64))


def test_tensorflow_padding() -> None:
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).double()
    # 43 px: even sizes follow odd ones, so that the padding is symmetric here and asymmetric there.
    x = torch.randn(2, 3, 43, 43, dtype=torch.float64)
    make_telling(net, (x,))
    plan = check_conversion(net, (x,), tolerance=1e-12, variant="dynamic_convolution", input_size=(3, 43, 43))
    strided = [name for name, module in net.named_modules() if type(module).__name__ == "Conv2dSame"]
    assert set(strided) & set(plan.converted)
