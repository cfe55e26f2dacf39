"""timm's CondConv networks and ours: the same function, both ways, and published weights through timm's loader."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from condconv.errors import ArgumentError, CheckpointError
from condconv.layers import ConditionalLayer
from condconv.models import create_model, from_timm, to_timm_state_dict

TIMM_NETWORKS = timm.list_models("*efficientnet_cc*")
FAST = ("tf_efficientnet_cc_b0_4e", "efficientnet_cc_b0_8e")
PARAMETERS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TIMM_NETWORKS]


def lively(model: nn.Module) -> nn.Module:
    """Draw batch-norm weights from U(0.5, 1.5) and set its statistics: fresh networks hide wrong branches."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    for module in model.modules():
        if type(module).__name__ == "CondConvResidual":
            nn.init.normal_(module.routing_fn.weight, 0.0, 1.0)  # routing that tells the examples apart
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 32, 32))
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_there_are_six_networks() -> None:
    assert len(TIMM_NETWORKS) == 6


@pytest.mark.parametrize("name", PARAMETERS)
def test_same_outputs_in_eval_and_train_and_the_same_state_dict_back(name: str) -> None:
    theirs = lively(timm.create_model(name, num_classes=11)).eval()
    ours = from_timm(theirs)
    assert not ours.training
    back = to_timm_state_dict(ours)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in theirs.state_dict().items())
    x = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        output = ours(x)
        assert not torch.allclose(output[0], output[1])
        assert relative_error(output, theirs(x)) < 1e-5
        # In f64: batch statistics over a handful of values blow rounding up.
        ours, theirs, x = ours.double().train(), theirs.double().train(), x.double()
        assert relative_error(ours(x), theirs(x)) < 1e-8
        # The comparison can fail:
        next(m for m in ours.modules() if isinstance(m, ConditionalLayer)).weight[0] *= 1.5
        assert relative_error(ours(x), theirs(x)) > 1e-3


def test_dropout_stochastic_depth_channels_type_and_batch_norm_come_along() -> None:
    theirs = timm.create_model("efficientnet_cc_b0_8e", in_chans=1, drop_rate=0.3, drop_path_rate=0.2).double().train()
    ours = from_timm(theirs)
    assert ours.training and ours.conv_stem.weight.dtype == torch.float64
    assert ours.in_chans == 1 and ours.drop_rate == 0.3 and ours.bn1.eps == 1e-5
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in ours.blocks for block in stage]
    assert rates == pytest.approx([getattr(b.drop_path, "drop_prob", 0.0) for s in theirs.blocks for b in s])


def test_networks_without_condconv_are_refused() -> None:
    with pytest.raises(ArgumentError, match="none of timm's CondConv networks.*tf_efficientnet_cc_b0_8e"):
        from_timm(timm.create_model("resnet18"))
    with pytest.raises(ArgumentError, match="no conditional layer"):
        to_timm_state_dict(create_model("mobilenetv1_025"))
    with pytest.raises(ArgumentError, match="classifier"):
        to_timm_state_dict(create_model("condconv_mobilenetv1_025"))


def test_timm_network_of_another_width_lists_what_does_not_fit() -> None:
    theirs = timm.create_model("tf_efficientnet_cc_b0_4e")
    theirs.blocks[4][0].conv_pw = copy.deepcopy(theirs.blocks[4][1].conv_pw)
    with pytest.raises(CheckpointError, match=r"wrong shape: blocks\.4\.0\.conv_pw\.bank\.weight"):
        from_timm(theirs)


def test_pretrained_goes_through_timms_loader(tmp_path: Path) -> None:
    theirs = lively(timm.create_model("tf_efficientnet_cc_b0_4e")).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = create_model(
        "condconv_efficientnet_b0_4e",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.safetensors")},
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) < 1e-5


def test_pretrained_with_another_classifier_keeps_the_trunk(tmp_path: Path) -> None:
    theirs = timm.create_model("tf_efficientnet_cc_b0_4e")
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    ours = create_model("condconv_efficientnet_b0_4e", pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay)
    assert ours.classifier.out_features == 5
    assert torch.equal(ours.blocks[4][0].conv_pw.weight.flatten(1), theirs.blocks[4][0].conv_pw.weight)


@pytest.mark.parametrize("argument", [{"num_experts": 16}, {"output_stride": 4}, {"features_only": True}])
def test_pretrained_with_another_network_is_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(argument))):
        create_model("condconv_efficientnet_b0_4e", pretrained=True, **argument)


def test_pretrained_without_published_weights_lists_who_has_some_and_shows_upcycling() -> None:
    with pytest.raises(ArgumentError) as error:
        create_model("condconv_resnet50", pretrained=True)
    for words in ("condconv_efficientnet_b0_4e", "_8e,", "_8e_depth", "condconv.models.upcycle('condconv_resnet50')"):
        assert words in str(error.value)
    with pytest.raises(ArgumentError, match=r"upcycle\('condconv_mobilenetv1_025', static\)"):
        create_model("condconv_mobilenetv1_025", pretrained=True)
