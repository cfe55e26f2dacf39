"""The static backbones: published multiply-adds, timm's state dicts, small images, widths."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from condconv.counting import count
from condconv.errors import ArgumentError, UnknownNameError
from condconv.models import create_model, list_models
from condconv.models.backbones import BACKBONES

# Multiply-adds and parameters by hand count of the papers' layer tables (conv + linear + SE, SE pooling and rescaling).
STATIC_COUNTS = {
    "mobilenetv1_025": (41_030_272, 470_072),
    "mobilenetv1_050": (149_497_088, 1_331_592),
    "mobilenetv1_075": (325_400_448, 2_585_560),
    "mobilenetv1_100": (568_740_352, 4_231_976),
    "mobilenetv2_050": (97_131_840, 1_968_680),
    "mobilenetv2_100": (300_774_272, 3_504_872),
    "mnasnet_a1": (312_773_888, 3_887_038),
    "efficientnet_b0": (390_427_808, 5_288_548),
    "efficientnet_b0_depth": (576_698_272, 7_794_184),
    "resnet10": (889_229_312, 5_418_792),
    "resnet18": (1_814_073_344, 11_689_512),
    "resnet50": (4_089_184_256, 25_557_032),
}
TIMM_FAST = ("mobilenetv2_035", "mobilenetv3_small", "efficientnet_b0", "resnet18")
FAST = ["mobilenetv1_025", "mobilenetv2_035", "mobilenetv3_small", "mnasnet_a1", "resnet10"]
CIFAR = [name for name in BACKBONES if name.startswith("cifar_resnet")]


@pytest.mark.parametrize("name", STATIC_COUNTS)
def test_multiply_adds_and_parameters_are_the_papers(name: str) -> None:
    with torch.device("meta"):  # shapes are enough
        model = create_model(name)
    counted = count(model, (3, 224, 224))
    assert (counted.macs, counted.params) == STATIC_COUNTS[name]


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if row.timm_name])
def test_row_has_timms_state_dict(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name).state_dict(), timm.create_model(BACKBONES[name].timm_name).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}


@pytest.mark.parametrize(
    "name",
    [
        name if name in TIMM_FAST else pytest.param(name, marks=pytest.mark.slow)
        for name, row in BACKBONES.items()
        if row.timm_name
    ],
)
def test_row_is_timms_network(name: str) -> None:
    ours = create_model(name).eval()
    theirs = timm.create_model(BACKBONES[name].timm_name).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", FAST)
def test_output_stride_4_keeps_7x7_at_28_pixels_without_dilation(name: str) -> None:
    model = create_model(name, output_stride=4, in_chans=1, num_classes=10)
    features = model.forward_features(torch.randn(2, 1, 28, 28))
    assert features.shape[-2:] == (7, 7)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0].stride == (1, 1)
    assert all(m.dilation == (1, 1) for m in convolutions)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    with torch.device("meta"):
        published = create_model(name, in_chans=1, num_classes=10)
    assert model.state_dict().keys() == published.state_dict().keys()


@pytest.mark.parametrize("output_stride", [None, 2, 4, 8, 16])
@pytest.mark.parametrize("name", FAST)
def test_features_only_reports_the_reductions_that_it_has(name: str, output_stride: int | None) -> None:
    with torch.device("meta"):
        model = create_model(name, features_only=True, output_stride=output_stride, in_chans=1).eval()
        maps = model(torch.randn(1, 1, 64, 64))
    assert [64 // m.shape[-1] for m in maps] == model.feature_info.reduction()
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert model.feature_info.reduction()[-1] == (output_stride or 32)


@pytest.mark.parametrize("output_stride", [None, 1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", CIFAR)
def test_a_cifar_resnet_doubles_its_channels_where_it_halves_the_map(name: str, output_stride: int | None) -> None:
    with torch.device("meta"):
        model = create_model(name, features_only=True, output_stride=output_stride, in_chans=1).eval()
        maps = model(torch.randn(1, 1, 32, 32))
    assert [32 // m.shape[-1] for m in maps] == model.feature_info.reduction()
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert model.feature_info.reduction()[-1] == (output_stride or 4)
    ends = [(m.shape[1], 32 // m.shape[-1]) for m in maps[1:]]
    assert all(c * before_s == before_c * s for (before_c, before_s), (c, s) in itertools.pairwise(ends))


@pytest.mark.parametrize(("name", "published"), [("cifar_resnet20", 0.27)])
def test_a_cifar_resnet_has_the_papers_parameters(name: str, published: float) -> None:
    assert round(count(create_model(name, num_classes=10), (3, 32, 32)).params / 1e6, 2) == published


@pytest.mark.parametrize("name", CIFAR)
def test_a_cifar_resnet_of_any_width_trains(name: str) -> None:
    for width in (0.3, 0.77, 1.0, 1.03, 1.6):
        model = create_model(name, width_multiplier=width, in_chans=1, num_classes=4, drop_rate=0.1, drop_path_rate=0.1)
        model(torch.randn(2, 1, 9, 12)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


CELLS = [(name, output_stride) for name in CIFAR for output_stride in (2, 1, 4, 8)]


@pytest.mark.parametrize(
    ("name", "output_stride"), [CELLS[0], *(pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS[1:])]
)
def test_a_cifar_resnet_comes_within_two_percent_of_any_multiply_adds(name: str, output_stride: int) -> None:
    def macs(width: float) -> int:
        with torch.device("meta"):
            model = create_model(name, width_multiplier=width, output_stride=output_stride, num_classes=10)
        return count(model, (3, 32, 32)).macs

    published = macs(1.0)
    widths = [1 + step / 200 for step in range(31)]
    found = [macs(width) for width in widths]
    assert found == sorted(found) and found[0] == published
    gaps = [after / before - 1 for before, after in itertools.pairwise(found)]
    assert max(gaps) < 0.04  # so that the closer end of each gap is within 2 %


def test_a_widths_multiply_adds_can_be_found_within_two_percent() -> None:
    def macs(width: float) -> int:
        with torch.device("meta"):
            model = create_model("mobilenetv1_025", width_multiplier=width, output_stride=4, in_chans=1)
        return count(model, (1, 28, 28)).macs

    assert macs(1.0) == count(create_model("mobilenetv1_025", output_stride=4, in_chans=1), (1, 28, 28)).macs
    target, low, high = 1.13 * macs(1.0), 1.0, 1.5
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(middle) < target else (low, middle)
    assert macs(low) == pytest.approx(target, rel=0.02)


def test_width_multiplier_widens_a_residual_network_too() -> None:
    assert create_model("resnet10", width_multiplier=1.25).fc.in_features == 640


def test_efficientnet_has_tensorflows_padding_and_batch_norm() -> None:
    model = create_model("efficientnet_b0")
    assert isinstance(model.conv_stem, Conv2dSame)
    assert (model.bn1.eps, model.bn1.momentum) == (1e-3, pytest.approx(0.01))
    assert create_model("efficientnet_b0", pad_type="", bn_eps=1e-5).bn1.eps == 1e-5


def test_any_timm_name_is_a_fallback() -> None:
    assert create_model("resnet26", num_classes=7)(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_list_models_filters() -> None:
    assert list_models("mobilenetv1*") == [f"mobilenetv1_{w}" for w in ("025", "050", "075", "100")]
    assert "condconv_efficientnet_b0_8e" in list_models(pretrained=True)
    assert "mobilenetv1_025" not in list_models(pretrained=True)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("mobilenetv1_025", {"in_chans": 0}, ["in_chans=0", "at least 1"]),
        ("mobilenetv1_025", {"num_classes": -1}, ["num_classes=-1"]),
        ("mobilenetv1_025", {"output_stride": 3}, ["output_stride=3", "2, 4, 8 or 16"]),
        ("mobilenetv1_025", {"width_multiplier": 0.0}, ["width_multiplier=0.0", "above 0"]),
        ("mobilenetv1_025", {"num_experts": 4}, ["num_experts=4", "condconv_mobilenetv1_025", "condconv.convert"]),
        ("mobilenetv1_025", {"drop_rat": 0.1}, ["drop_rat", "drop_rate"]),
        ("resnet26", {"output_stride": 4}, ["output_stride=4", "mobilenetv1_025"]),
        ("resnet26", {"width_multiplier": 2.0}, ["width_multiplier=2.0"]),
        ("ssd_mobilenetv1_050", {"output_stride": 4}, ["output_stride=4", "num_classes, in_chans"]),
        ("ssd_mobilenetv1_050", {"num_classes": 0}, ["num_classes=0"]),
    ],
)
def test_bad_arguments_name_themselves(name: str, arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        create_model(name, **arguments)
    for word in [name, *words]:
        assert word in str(error.value)


def test_unknown_name_lists_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="condconv_mobilenetv1_025"):
        create_model("condconv_mobilenetv1_25")
