"""The static backbones of the two papers, and networks for small images, as rows of a table over network classes.

Nothing is written a second time here: a row names a timm class (``EfficientNet``, ``MobileNetV3`` or ``ResNet``) or
``CifarResNet``, its block strings, its width and its depth. timm itself registers only some of them: MobileNetV1 below
width 1.0 and ResNet-10 are missing there, and none of its mobile networks can be told to downsample by 4 in total,
which images below 64 pixels need.

Block strings are timm's: ``ir_r4_k5_s2_e6_c192_se0.25`` is four inverted residuals with a 5x5 depthwise convolution,
the first of stride 2, expansion 6, 192 output channels and squeeze-and-excitation of ratio 0.25.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import get_act_layer
from timm.models import build_model_with_cfg
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, resolve_bn_args, round_channels
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3, MobileNetV3Features
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from condconv.errors import argument_error
from condconv.models.cifar_resnet import CifarResNet, strides_for

_RESNET_CHANNELS = (64, 128, 256, 512)
_LOGITS_ONLY: Any = ("num_classes", "global_pool")
_STRIDE = re.compile(r"_s([12])_")

_MOBILENET_V1 = (
    "dsa_r1_k3_s1_c64",
    "dsa_r2_k3_s2_c128",
    "dsa_r2_k3_s2_c256",
    "dsa_r6_k3_s2_c512",
    "dsa_r2_k3_s2_c1024",
)
_MOBILENET_V2 = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)
_MNASNET_A1 = (
    "ds_r1_k3_s1_e1_c16_noskip",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k5_s2_e3_c40_se0.25",
    "ir_r4_k3_s2_e6_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "ir_r1_k3_s1_e6_c320",
)
_MOBILENET_V3_SMALL = (
    "ds_r1_k3_s2_e1_c16_se0.25_nre",
    "ir_r1_k3_s2_e4.5_c24_nre ir_r1_k3_s1_e3.67_c24_nre",
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r2_k5_s1_e6_c40_se0.25",
    "ir_r2_k5_s1_e3_c48_se0.25",
    "ir_r3_k5_s2_e6_c96_se0.25",
    "cn_r1_k1_s1_c576",
)
_MOBILENET_V3_LARGE = (
    "ds_r1_k3_s1_e1_c16_nre",
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre",
    "ir_r3_k5_s2_e3_c40_se0.25_nre",
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80",
    "ir_r2_k3_s1_e6_c112_se0.25",
    "ir_r3_k5_s2_e6_c160_se0.25",
    "cn_r1_k1_s1_c960",
)
_EFFICIENTNET_B0 = (
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)
_TF_ARGUMENTS = {"pad_type": "same", "bn_eps": 1e-3, "bn_momentum": 0.01}
_V3_ARGUMENTS = {
    "se_layer": partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels)
}


@dataclass(frozen=True)
class Backbone:
    """One static network: a timm class and its arguments, in the papers' notation.

    ``stages`` holds timm block strings, one entry for each stage (a stage of several kinds of block separates them by
    a space), or, for a ResNet, is empty and ``blocks`` holds the number of residual blocks of each stage. ``head`` is
    the width of the last 1x1 convolution, 0 where there is none; the papers do not scale it down with ``width``.
    ``timm_name`` is timm's own name for the same network with the same state dict, where there is one: its published
    weights fit.
    """

    name: str
    family: type[nn.Module]
    stages: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    block: type[nn.Module] | None = None
    width: float = 1.0
    depth: float = 1.0
    stem: int = 32
    head: int = 0
    activation: str = "relu"
    arguments: Mapping[str, Any] | None = None
    timm_name: str | None = None
    classifier: str = "classifier"
    input_side: int = 224

    @property
    def tf_like(self) -> bool:
        """Whether the row uses TensorFlow's SAME padding, and with it its batch-norm constants and input scaling."""
        return bool(self.arguments) and "pad_type" in (self.arguments or {})

    @property
    def num_blocks(self) -> int:
        """How many blocks the trunk has."""
        if self.blocks:
            return sum(self.blocks)
        stages = decode_arch_def([stage.split() for stage in self.stages], depth_multiplier=self.depth)
        return sum(len(stage) for stage in stages)


def _mobilenet_rows() -> list[Backbone]:
    rows = []
    for percent in (25, 50, 75, 100):
        rows.append(
            Backbone(
                f"mobilenetv1_{percent:03d}", EfficientNet, _MOBILENET_V1, width=percent / 100, activation="relu6",
                timm_name="mobilenetv1_100" if percent == 100 else None,
            )
        )  # fmt: skip
    for percent in (35, 50, 75, 100):
        rows.append(
            Backbone(
                f"mobilenetv2_{percent:03d}", EfficientNet, _MOBILENET_V2, width=percent / 100, head=1280,
                activation="relu6", timm_name=f"mobilenetv2_{percent:03d}",
            )
        )  # fmt: skip
    for size, stages, head in (("small", _MOBILENET_V3_SMALL, 1024), ("large", _MOBILENET_V3_LARGE, 1280)):
        rows.append(
            Backbone(
                f"mobilenetv3_{size}", MobileNetV3, stages, stem=16, head=head, activation="hard_swish",
                arguments=_V3_ARGUMENTS, timm_name=f"mobilenetv3_{size}_100",
            )
        )  # fmt: skip
    rows.append(Backbone("mnasnet_a1", EfficientNet, _MNASNET_A1, head=1280, timm_name="semnasnet_100"))
    return rows


def _efficientnet_rows() -> list[Backbone]:
    # B1 differs from the papers' "B0-depth" in its input size alone (240 instead of 224): same layers, same weights.
    plans = [("efficientnet_b0", 1.0, "tf_efficientnet_b0"), ("efficientnet_b0_depth", 1.1, "tf_efficientnet_b1")]
    return [
        Backbone(
            name, EfficientNet, _EFFICIENTNET_B0, depth=depth, head=1280, activation="swish",
            arguments=_TF_ARGUMENTS, timm_name=timm_name,
        )
        for name, depth, timm_name in plans
    ]  # fmt: skip


def _resnet_rows() -> list[Backbone]:
    plans: list[tuple[int, type[nn.Module], tuple[int, ...]]] = [
        (10, BasicBlock, (1, 1, 1, 1)),
        (18, BasicBlock, (2, 2, 2, 2)),
        (50, Bottleneck, (3, 4, 6, 3)),
    ]
    return [
        Backbone(
            f"resnet{layers}", ResNet, blocks=blocks, block=block, stem=64, classifier="fc",
            timm_name=None if layers == 10 else f"resnet{layers}",
        )
        for layers, block, blocks in plans
    ]  # fmt: skip


def _cifar_rows() -> list[Backbone]:
    kinds: list[tuple[str, dict[str, Any]]] = [("resnet", {}), ("seresnet", {"attn_layer": "se"})]
    return [
        Backbone(
            f"cifar_{kind}{6 * m + 2}", CifarResNet, blocks=(m, m, m), stem=16, classifier="fc", input_side=32,
            arguments=arguments,
        )
        for kind, arguments in kinds
        for m in (1, 2, 3)
    ]  # fmt: skip


BACKBONES: dict[str, Backbone] = {
    row.name: row for row in (*_mobilenet_rows(), *_efficientnet_rows(), *_resnet_rows(), *_cifar_rows())
}


def build_backbone(
    row: Backbone,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    output_stride: int | None = None,
    width_multiplier: float = 1.0,
    features_only: bool = False,
    **timm_arguments: Any,
) -> nn.Module:
    """Build the static network of ``row`` with freshly initialised weights.

    Args:
        row: which network.
        num_classes: width of the classifier; 0 for none.
        in_chans: channels of the input image.
        output_stride: total downsampling for small images: the stem then has stride 1, the first strided stages keep
            their stride 2 until the total is reached and the later ones get stride 1. None: as published (32).
        width_multiplier: factor on the channels of every layer, rounded to whole channels rather than to multiples
            of 8, so that a search can reach a given number of multiply-adds. 1.0: the network as published.
            A ResNet's stem keeps its 64 channels. A CIFAR ResNet rounds up in some layers and down in others
            (`condconv.models.cifar_resnet.spread_channels`).
        features_only: return the feature maps of each resolution instead of the logits.
        **timm_arguments: further arguments of the timm class (``drop_rate``, ``drop_path_rate``, ``out_indices``, …).

    Raises:
        ArgumentError: an argument out of range or unknown to the network's class.
    """
    where = f"create_model('{row.name}')"
    _check_sizes(where, num_classes, in_chans, output_stride, width_multiplier)
    _check_arguments(where, row, timm_arguments)
    builders = {
        EfficientNet: _build_mobile, MobileNetV3: _build_mobile, ResNet: _build_resnet, CifarResNet: _build_cifar,
    }  # fmt: skip
    arguments = dict(in_chans=in_chans, **timm_arguments)
    if not features_only:
        arguments["num_classes"] = num_classes
    return builders[row.family](row, arguments, output_stride, width_multiplier, features_only)


def _build_mobile(
    row: Backbone, arguments: dict[str, Any], output_stride: int | None, width: float, features_only: bool
) -> nn.Module:
    classes = {EfficientNet: EfficientNetFeatures, MobileNetV3: MobileNetV3Features}
    stages = row.stages if output_stride is None else _restride(row.stages, output_stride)

    def scaled(channels: int) -> int:
        return max(1, round(round_channels(channels, multiplier=row.width) * width))

    arguments = dict(row.arguments or {}) | arguments
    batch_norm = resolve_bn_args(arguments)  # takes bn_eps and bn_momentum out
    if batch_norm:
        arguments.setdefault("norm_layer", partial(nn.BatchNorm2d, **batch_norm))
    arguments.setdefault("act_layer", get_act_layer(row.activation))
    arguments |= dict(
        block_args=decode_arch_def([stage.split() for stage in stages], depth_multiplier=row.depth),
        stem_size=row.stem,
        round_chs_fn=scaled,
    )
    if features_only:
        arguments.setdefault("out_indices", tuple(range(_feature_levels(stages))))
    else:
        arguments["num_features"] = round(row.head * width)
    model: Any = build_model_with_cfg(
        classes[row.family] if features_only else row.family,
        row.name,
        False,
        pretrained_cfg=_timm_cfg(row),
        kwargs_filter=_LOGITS_ONLY if features_only else None,  # timm would fill them in
        **arguments,
    )
    if output_stride is not None:
        model.conv_stem.stride = (1, 1)
        # timm's builder counts from a stem of stride 2.
        for info in model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info:
            info["reduction"] //= 2
    return model


def _build_resnet(
    row: Backbone, arguments: dict[str, Any], output_stride: int | None, width: float, features_only: bool
) -> nn.Module:
    channels = tuple(max(1, round(c * row.width * width)) for c in _RESNET_CHANNELS)
    model = build_model_with_cfg(
        partial(_resnet, output_stride=output_stride), row.name, False, pretrained_cfg=_timm_cfg(row),
        feature_cfg={"out_indices": tuple(range(5))}, features_only=features_only,
        block=row.block, layers=row.blocks, channels=channels, **arguments,
    )  # fmt: skip
    return model


def _build_cifar(
    row: Backbone, arguments: dict[str, Any], output_stride: int | None, width: float, features_only: bool
) -> nn.Module:
    return build_model_with_cfg(
        CifarResNet, row.name, False, pretrained_cfg=_timm_cfg(row), feature_cfg={"out_indices": (0, 1, 2, 3)},
        features_only=features_only, blocks=row.blocks[0], strides=strides_for(output_stride), width=width,
        **dict(row.arguments or {}), **arguments,
    )  # fmt: skip


def _resnet(*, output_stride: int | None, **arguments: Any) -> ResNet:
    """A timm ResNet whose stem keeps the resolution and whose later stages stop downsampling at ``output_stride``.

    timm's own ``output_stride`` dilates the convolutions instead, and starts from 8.
    """
    model: Any = ResNet(**arguments)
    if output_stride is None:
        return model
    model.conv1.stride = (1, 1)
    reductions = [1]
    total = 1
    if output_stride == 16:  # the four stages alone downsample by 8
        total = 2
    else:
        model.maxpool = nn.Identity()
    reductions.append(total)
    for number in (2, 3, 4):
        if total < output_stride:
            total *= 2
        else:
            for module in getattr(model, f"layer{number}").modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
        reductions.append(total)
    for info, reduction in zip(model.feature_info, reductions, strict=True):
        info["reduction"] = reduction
    return model


def _restride(stages: tuple[str, ...], output_stride: int) -> tuple[str, ...]:
    """Stage strings whose strides multiply to ``output_stride``: the first strides stay, the later become 1."""
    total, restrided = 1, []
    for stage in stages:
        if "_s2_" in stage:
            if total < output_stride:
                total *= 2
            else:
                stage = _STRIDE.sub("_s1_", stage)
        restrided.append(stage)
    return tuple(restrided)


def _feature_levels(stages: tuple[str, ...]) -> int:
    """How many feature maps timm's builder offers: one for each resolution, the stem's where stage 1 leaves it."""
    return 1 + sum("_s2_" in stage for stage in stages)


def _timm_cfg(row: Backbone) -> dict[str, Any]:
    """What timm's data pipeline wants to know of a network (``timm.data.resolve_data_config``)."""
    mean, std = ((0.5,) * 3, (0.5,) * 3) if row.tf_like else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    stem = "conv1" if row.family in (ResNet, CifarResNet) else "conv_stem"
    return dict(
        architecture=row.name, num_classes=1000, input_size=(3, row.input_side, row.input_side), crop_pct=0.875,
        interpolation="bicubic", mean=mean, std=std, first_conv=stem, classifier=row.classifier,
    )  # fmt: skip


def _check_sizes(where: str, num_classes: int, in_chans: int, output_stride: int | None, width: float) -> None:
    if num_classes < 0:
        raise argument_error(
            where, "num_classes", num_classes, "must be 0 (no classifier) or more", "pass 1000 for ImageNet"
        )
    if in_chans < 1:
        raise argument_error(where, "in_chans", in_chans, "must be at least 1", "pass 3 for colour, 1 for grey images")
    if output_stride is not None and output_stride not in (1, 2, 4, 8, 16):
        raise argument_error(
            where, "output_stride", output_stride, "must be 1, 2, 4, 8 or 16, since the stem then has stride 1",
            "leave it out for the published network, or pass 4 for images below 64 pixels",
        )  # fmt: skip
    if not 0 < width <= 64:
        raise argument_error(
            where, "width_multiplier", width, "must be above 0 and at most 64", "1.0 is the published width"
        )


def _check_arguments(where: str, row: Backbone, given: Mapping[str, Any]) -> None:
    reserved = {
        "block_args", "num_features", "stem_size", "round_chs_fn", "block", "layers", "channels", "cfg", "self",
        "blocks", "strides", "width",
    }  # fmt: skip
    known = set(inspect.signature(row.family.__init__).parameters) - reserved | {"out_indices"}
    if row.family not in (ResNet, CifarResNet):
        known |= {"bn_eps", "bn_momentum"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise argument_error(
            where,
            unknown[0],
            given[unknown[0]],
            f"is no argument of {row.family.__name__}",
            f"known: {', '.join(sorted(known))}",
        )
