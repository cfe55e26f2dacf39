"""How the networks of each kind are built: a paper's row, a static backbone, a detector, any other timm network.

`condconv.models.zoo.create_model` finds out which kind a name is; what it was told is kept in an `Origin`, so that the
same network can be built again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import timm
import torch
from torch import nn

from condconv.arguments import number
from condconv.conversion import convert, forget_originals
from condconv.conversion.apply import conditional_layers
from condconv.errors import argument_error
from condconv.models.backbones import BACKBONES, build_backbone
from condconv.models.pose import COCO_JOINTS, POSES, PoseNetwork
from condconv.models.restorer import RESTORERS, Restorer
from condconv.models.specs import SPECS, Spec
from condconv.models.ssd import COCO_CLASSES, DETECTORS, SSD
from condconv.variants import variants

_ORIGIN = "condconv_origin"

TORCHVISION = "torchvision/"
"""What the names of torchvision's detectors begin with."""

STATIC = (*BACKBONES, *DETECTORS, *POSES, *RESTORERS)
"""Names of the static networks that are rows here."""

DEFAULTS: dict[str, Any] = {
    "num_classes": None,
    "in_chans": 3,
    "num_experts": None,
    "output_stride": None,
    "width_multiplier": 1.0,
    "features_only": False,
    "max_overhead": None,
    "input_size": None,
}
"""The arguments of `create_model` that say which network it is, and their defaults."""

PLACEMENT = ("num_experts", "max_overhead", "input_size")
"""Those of them that say how a network becomes conditional."""

# Where weights come from and where they go says nothing about which network it is.
_NOT_THE_NETWORK = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "device", "dtype")


@dataclass(frozen=True)
class Origin:
    """How a network was made: the `create_model` call that makes it again; no name where it was made elsewhere."""

    name: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def origin_of(model: nn.Module) -> Origin | None:
    """The `create_model` call that made ``model``, or None for one from elsewhere that was never saved."""
    return getattr(model, _ORIGIN, None)


def set_origin(model: nn.Module, name: str | None, arguments: Mapping[str, Any]) -> None:
    """Remember the `create_model` call that makes ``model`` again."""
    kept = {key: value for key, value in not_default(arguments).items() if key not in _NOT_THE_NETWORK}
    # A plain attribute: it travels with deepcopy and pickle, and is no part of the state dict.
    object.__setattr__(model, _ORIGIN, Origin(name, kept))


def not_default(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that differ from their defaults: timm's entry points do not all take all of them."""
    return {key: value for key, value in arguments.items() if value != DEFAULTS.get(key, ...)}


def published_name(name: str) -> str | None:
    """Timm's name for the network of a row, if there are weights of it to download."""
    row = SPECS.get(name) or BACKBONES.get(name)
    timm_name = None if row is None else row.timm_name
    return timm_name if timm_name and timm.models.is_model_pretrained(timm_name) else None


def refuse_changes(name: str, given: Mapping[str, Any], arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return what is given without ``arguments``, which must have their defaults where published weights are loaded.

    Raises:
        ArgumentError: one of them differs from its default.
    """
    for argument in arguments:
        if given[argument] != DEFAULTS[argument]:
            raise argument_error(
                f"create_model('{name}', pretrained=True)", argument, given[argument],
                "changes the network that the published weights belong to", "leave it out, or train from scratch",
            )  # fmt: skip
    return {key: value for key, value in given.items() if key not in arguments}


def build_conditional(spec: Spec, given: Mapping[str, Any]) -> nn.Module:
    """A paper's network with fresh weights: the static one, converted, every expert drawn as the backbone draws."""
    arguments = dict(given)
    num_experts, max_overhead, input_size = (arguments.pop(name) for name in PLACEMENT)
    options = {name: arguments.pop(name) for name in variant_options(spec.name) if name in arguments}
    static = build_static(spec.backbone, arguments, pretrained=False)
    limit = {} if max_overhead is None else {"max_overhead": max_overhead, "input_size": input_size}
    model = forget_originals(convert_row(static, spec, num_experts, "fresh", options, **limit))
    initialise_experts(model)
    return model


def convert_row(
    static: nn.Module,
    spec: Spec,
    num_experts: int | None,
    init: Literal["upcycle", "fresh"],
    options: Mapping[str, Any],
    **limit: Any,
) -> nn.Module:
    """Convert the layers that a row names, in place.

    Args:
        static: the row's backbone.
        spec: the row.
        num_experts: None for the row's.
        init: of `convert`.
        options: of the variant, where they differ from the row's.
        limit: `max_overhead` and `input_size` of `convert`.
    """
    design, options = variants[spec.variant].design, {**spec.options, **options}
    together: dict[str, Any] = {}
    if spec.together is not None and design.common is not None:
        together[design.common.option] = spec.together({**design.options, **options})
    return convert(
        static,
        spec.variant,
        targets=f"^(?:{spec.pattern})$",
        num_experts=spec.num_experts if num_experts is None else num_experts,
        init=init,
        **options,
        **together,
        **limit,
    )


def variant_options(name: str) -> tuple[str, ...]:
    """Names of the arguments of `create_model` that are special to the paper of a row; none of a static network."""
    return tuple(variants[SPECS[name].variant].design.options) if name in SPECS else ()


@torch.no_grad()
def initialise_experts(model: nn.Module) -> None:
    """Draw the experts of every conditional layer as these backbones draw the kernel that each expert stands for.

    Convolutions: normal with variance 2 / fan-out, fan-out = k·k·O / groups (the authors' code, and timm's
    initialisers of EfficientNet, MobileNet and ResNet). Linear layers of the EfficientNet family: uniform in
    ±1/√O, zero bias; a ResNet's as torch draws them. Routers keep their own initialisation (Glorot-uniform).
    """
    resnet = hasattr(model, "fc")
    for _, layer in conditional_layers(model):
        site = layer.site
        if site.kernel_size:
            std = math.sqrt(2.0 / (site.taps * site.out_channels // site.groups))
            layer.bank.draw(partial(nn.init.normal_, std=std), nn.init.zeros_)
        elif not resnet:
            bound = 1.0 / math.sqrt(site.out_channels)
            layer.bank.draw(partial(nn.init.uniform_, a=-bound, b=bound), nn.init.zeros_)


def build_static(name: str, given: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """One of the static backbones, detectors or restorers."""
    arguments = _without_experts(name, given)
    if name in DETECTORS:
        return _build_detector(name, arguments)
    if name in POSES:
        return _build_pose(name, arguments)
    if name in RESTORERS:
        return _build_restorer(name, arguments)
    row = BACKBONES[name]
    if pretrained and row.timm_name is not None:
        arguments = refuse_changes(name, arguments, ("output_stride", "width_multiplier"))
        return timm.create_model(row.timm_name, pretrained=True, **not_default(arguments))
    if arguments["num_classes"] is None:
        arguments["num_classes"] = 1000
    return build_backbone(row, **arguments)


def build_torchvision(name: str, given: Mapping[str, Any]) -> nn.Module:
    """A detector of torchvision; see `condconv.detection.torchvision_detectors`."""
    from condconv.detection import torchvision_detectors  # slow to import, and detection alone needs it

    return torchvision_detectors.build(name, not_default(_without_experts(name, given)))


def build_timm(name: str, given: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """A network that timm knows and that is no row here."""
    arguments = _without_experts(name, given)
    where, remedy = f"create_model('{name}')", f"use one of: {', '.join(BACKBONES)}"
    if arguments.pop("width_multiplier") != 1.0:
        rule = "is for the backbones of condconv.models alone"
        raise argument_error(where, "width_multiplier", given["width_multiplier"], rule, remedy)
    if arguments["output_stride"] is not None and arguments["output_stride"] < 8:
        rule = "below 8 is for the backbones of condconv.models alone"
        raise argument_error(where, "output_stride", arguments["output_stride"], rule, remedy)
    return timm.create_model(name, pretrained=pretrained, **not_default(arguments))


def _build_detector(name: str, given: Mapping[str, Any]) -> nn.Module:
    where = f"create_model('{name}')"
    arguments = not_default(given)
    num_classes, in_chans = arguments.pop("num_classes", COCO_CLASSES), arguments.pop("in_chans", 3)
    width, prior = arguments.pop("width_multiplier", 1.0), arguments.pop("class_prior", None)
    if prior is not None:
        number(where, "class_prior", prior, above=0, maximum=0.5, remedy="pass 0.01")
    if arguments:
        first = next(iter(arguments))
        rule = "is no argument of the detector"
        remedy = "known: num_classes, in_chans, width_multiplier, class_prior, num_experts"
        raise argument_error(where, first, arguments[first], rule, remedy)
    if num_classes < 1:
        rule = "must be at least 1, background not counted"
        raise argument_error(where, "num_classes", num_classes, rule, "COCO has 90")
    return SSD(
        DETECTORS[name], num_classes=num_classes, in_chans=in_chans, width_multiplier=width, class_prior=prior
    )


def _build_pose(name: str, given: Mapping[str, Any]) -> nn.Module:
    where = f"create_model('{name}')"
    arguments = not_default(given)
    joints, in_chans = arguments.pop("num_classes", COCO_JOINTS), arguments.pop("in_chans", 3)
    width = arguments.pop("width_multiplier", 1.0)
    if arguments:
        first = next(iter(arguments))
        rule, remedy = "is no argument of the pose network", "known: num_classes, in_chans, width_multiplier"
        raise argument_error(where, first, arguments[first], rule, remedy)
    if joints < 1:
        raise argument_error(where, "num_classes", joints, "must be at least 1, the number of joints", "COCO has 17")
    backbone, head = POSES[name]
    return PoseNetwork(backbone, head, joints=joints, in_chans=in_chans, width_multiplier=width)


def _build_restorer(name: str, given: Mapping[str, Any]) -> nn.Module:
    arguments = not_default(given)
    in_chans, width = arguments.pop("in_chans", 3), arguments.pop("width_multiplier", 1.0)
    if arguments:
        first = next(iter(arguments))
        rule, remedy = "is no argument of the restorer", "known: in_chans, width_multiplier"
        raise argument_error(f"create_model('{name}')", first, arguments[first], rule, remedy)
    return Restorer(in_chans, width, squeeze_excite=RESTORERS[name])


def _without_experts(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(given)
    num_experts, max_overhead, _ = (arguments.pop(argument, None) for argument in PLACEMENT)
    if max_overhead is not None:
        rule = "has no meaning for a static network"
        remedy = f"use condconv.convert(model, 'condconv', max_overhead={max_overhead}, input_size=…)"
        raise argument_error(f"create_model('{name}')", "max_overhead", max_overhead, rule, remedy)
    if num_experts is not None:
        conditional = [spec.name for spec in SPECS.values() if spec.backbone == name] or list(SPECS)
        raise argument_error(
            f"create_model('{name}')", "num_experts", num_experts, "has no meaning for a static network",
            f"use {' or '.join(conditional[:3])}, or condconv.convert(model, 'condconv', num_experts={num_experts})",
        )  # fmt: skip
    return arguments
