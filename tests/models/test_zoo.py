"""The papers' networks: what is conditional in them, how they are initialised, their names, options and twins."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import nn

import condconv
from condconv.errors import ArgumentError, UnknownNameError
from condconv.layers import ConditionalLayer
from condconv.models import create_model, list_models, origin_of, static_twin, upcycle
from condconv.models.specs import SPECS

SMALLEST = ("condconv_mobilenetv1_025", "condconv_mobilenetv2_050", "dynamic_mobilenetv2_035", "dynamic_resnet10")
ISSUE_NAMES = {
    *(f"condconv_mobilenetv1_{w}" for w in ("025", "050", "075", "100")),
    *(f"condconv_mobilenetv2_{w}" for w in ("050", "100")),
    *("condconv_mnasnet_a1", "condconv_resnet50"),
    *(f"condconv_efficientnet_b0_{s}" for s in ("4e", "8e", "8e_depth")),
    *(f"condconv_ssd_mobilenetv1_{w}" for w in ("050", "075", "100")),
    *("dynamic_pose_mobilenetv2_100_a", "dynamic_pose_mobilenetv2_050_b"),
    *(f"dynamic_mobilenetv2_{w}" for w in ("035", "050", "075", "100")),
    *("dynamic_mobilenetv3_small", "dynamic_mobilenetv3_large"),
    *("dynamic_resnet10", "dynamic_resnet18", "dynamic_resnet50"),
    *(f"odconv_{name}" for name in ("resnet18", "resnet50", "mobilenetv2_050", "mobilenetv2_075", "mobilenetv2_100")),
    *(f"dcd_{name}" for name in ("resnet18", "resnet50")),
    *(f"dcd_mobilenetv2_{w}" for w in ("035", "050", "075", "100")),
    *(f"kernel_warehouse_{name}" for name in ("resnet18", "resnet50", "mobilenetv2_050", "mobilenetv2_100")),
    "fdconv_resnet50",
}


def conditional(model: nn.Module) -> dict[str, ConditionalLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ConditionalLayer)}


def test_names() -> None:
    assert set(SPECS) == ISSUE_NAMES
    patterns = ("condconv*", "dynamic*", "odconv*", "dcd*", "kernel*", "fdconv*")
    assert {name for pattern in patterns for name in list_models(pattern)} == ISSUE_NAMES


@pytest.mark.parametrize("name", SPECS)
def test_every_row_builds_and_converts_what_it_says(name: str) -> None:
    with torch.device("meta"):  # shapes alone
        model = create_model(name)
    layers = conditional(model)
    spec = SPECS[name]
    assert {layer.num_experts for layer in layers.values()} == {spec.num_experts}
    stems = ("conv1",) if spec.variant == "kernel_warehouse" else ("conv1", "conv_stem")
    assert not any(".se." in layer or layer in stems for layer in layers)
    own = {layer for layer in layers if layers[layer].scope is None}
    if spec.variant != "condconv":
        assert own == set(layers)
        assert {"classifier", "fc"} & set(layers) == {"classifier", "fc"} & set(spec.single)
    else:
        assert own == {part for part in ("conv_head", "classifier", "fc") if part in spec.single}


EXPECTED_BLOCKS = {
    "condconv_mobilenetv1_025": (8, 17),  # blocks with a router, conditional layers
    "condconv_mobilenetv2_050": (11, 35),
    "condconv_mnasnet_a1": (6, 18),
    "condconv_resnet50": (3, 10),
    "condconv_efficientnet_b0_4e": (8, 24),
    "condconv_efficientnet_b0_8e_depth": (11, 33),
    "condconv_ssd_mobilenetv1_050": (12, 24),
}


@pytest.mark.parametrize("name", EXPECTED_BLOCKS)
def test_one_router_for_each_block(name: str) -> None:
    with torch.device("meta"):
        layers = conditional(create_model(name))
    scopes = {layer.scope for layer in layers.values() if layer.scope is not None}
    assert (len(scopes), len(layers)) == EXPECTED_BLOCKS[name]


def test_routing_comes_from_the_blocks_input() -> None:
    model = create_model("condconv_efficientnet_b0_4e", num_classes=3).eval()
    block = model.blocks[4][1]
    assert block.router.in_channels == block.conv_pw.in_channels == 112
    x = torch.randn(2, 112, 4, 4)
    with condconv.record_routing(model) as routing:
        block(x)
    expected = torch.sigmoid(block.router.body[0](x.mean((2, 3))))
    for layer in ("conv_pw", "conv_dw", "conv_pwl"):
        assert torch.allclose(routing[f"blocks.4.1.{layer}"], expected, atol=1e-6)


def test_conditional_classifier_is_routed_by_the_pooled_features() -> None:
    model = create_model("condconv_mobilenetv1_025", num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    with condconv.record_routing(model) as routing:
        model(x)
    assert torch.allclose(routing["classifier"], torch.sigmoid(model.classifier.router.body[0](pooled)), atol=1e-6)


@pytest.mark.parametrize("name", SMALLEST)
def test_trains_forward_and_backward(name: str) -> None:
    model = create_model(name, num_classes=5, in_chans=1, num_experts=3)
    assert {layer.num_experts for layer in conditional(model).values()} == {3}
    model(torch.randn(2, 1, 64, 64)).square().sum().backward()
    zero_scale = "resnet" in name  # a ResNet's last batch norm of each block starts at zero: no gradient behind it
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert zero_scale or parameter.grad.abs().sum() > 0 or "router" in parameter_name, parameter_name


@pytest.mark.parametrize("name", ["condconv_mobilenetv1_025", "condconv_mnasnet_a1", "dynamic_resnet10"])
def test_features_only(name: str) -> None:
    model = create_model(name, features_only=True).eval()
    maps = model(torch.randn(1, 3, 64, 64))
    assert [64 // m.shape[-1] for m in maps] == model.feature_info.reduction()
    assert conditional(model)


def test_small_images() -> None:
    model = create_model("condconv_mobilenetv1_025", output_stride=4, in_chans=1, num_classes=10)
    assert model.forward_features(torch.randn(1, 1, 28, 28)).shape[-2:] == (7, 7)


@pytest.mark.parametrize("name", ["condconv_efficientnet_b0_8e", "dynamic_resnet10"])
def test_each_expert_starts_as_the_backbone_initialises_its_kernel(name: str) -> None:
    """Normal with variance 2 / fan-out of the expert's own shape, and different from expert to expert."""
    layers = conditional(create_model(name))
    large = {path: layer for path, layer in layers.items() if layer.weight[0].numel() >= 2000}
    assert len(large) > 5  # in a small kernel chance is as large as what is looked at
    for path, layer in large.items():
        fan_out = math.prod(layer.kernel_size) * layer.out_channels / layer.groups
        experts = layer.weight.detach()
        std = experts.flatten(1).std(1)
        assert torch.allclose(std, torch.full_like(std, math.sqrt(2 / fan_out)), rtol=0.1), path
        assert float(torch.corrcoef(experts.flatten(1))[0, 1]) == pytest.approx(0, abs=0.1)


def test_the_static_twins_kernels_have_the_same_scale() -> None:
    name = "condconv_mobilenetv1_025"
    twin = dict(static_twin(name).named_modules())
    layers = conditional(create_model(name))
    large = [path for path in layers if twin[path].weight.numel() > 2000]
    assert len(large) > 5
    for path in large:
        static, experts = twin[path].weight.detach(), layers[path].weight.detach()
        assert float(experts.std()) == pytest.approx(float(static.std()), rel=0.1), path


@pytest.mark.parametrize(
    "name", ["condconv_mobilenetv1_025", "condconv_ssd_mobilenetv1_050", "dynamic_mobilenetv2_035"]
)
def test_static_twin_is_the_same_network_without_experts(name: str) -> None:
    twin = static_twin(name, num_classes=4, num_experts=16)
    assert not conditional(twin)
    layers = conditional(create_model(name, num_classes=4))
    modules = dict(twin.named_modules())
    assert all(modules[path].weight.shape == layer.weight.shape[1:] for path, layer in layers.items())


def test_timm_makes_them_too() -> None:
    assert set(timm.list_models()) >= ISSUE_NAMES
    model = timm.create_model("condconv_mobilenetv1_025", num_classes=10, in_chans=1, num_experts=2)
    assert {layer.num_experts for layer in conditional(model).values()} == {2}
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 10)
    with pytest.raises(ArgumentError, match="no weights are published"):
        timm.create_model("condconv_mobilenetv1_025", pretrained=True)


def test_upcycling_a_row_keeps_the_twins_function() -> None:
    twin = static_twin("condconv_mobilenetv1_025", num_classes=10).double().eval()
    reference = copy.deepcopy(twin)
    model = upcycle("condconv_mobilenetv1_025", twin, num_experts=4)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(model(x), reference(x), rtol=1e-10, atol=1e-12)
    assert len(conditional(model)) == 17
    origin = origin_of(model)
    assert origin is not None
    assert (origin.name, origin.arguments) == ("condconv_mobilenetv1_025", {"num_classes": 10, "num_experts": 4})


def test_upcycling_needs_a_conditional_row() -> None:
    with pytest.raises(UnknownNameError, match="condconv_mobilenetv1_025"):
        upcycle("mobilenetv1_025", static_twin("mobilenetv1_025"))


def test_wrong_number_of_experts() -> None:
    with pytest.raises(ArgumentError, match="num_experts=0"):
        create_model("condconv_mobilenetv1_025", num_experts=0)
