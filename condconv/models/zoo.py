"""`create_model`: the papers' networks, their static twins, and any other timm network, by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from condconv.arguments import boolean, integer, number, probability, text
from condconv.errors import ArgumentError, UnknownNameError, argument_error
from condconv.models.build import (
    PLACEMENT,
    STATIC,
    TORCHVISION,
    build_conditional,
    build_static,
    build_timm,
    build_torchvision,
    convert_row,
    not_default,
    origin_of,
    published_name,
    refuse_changes,
    set_origin,
    variant_options,
)
from condconv.models.specs import SPECS
from condconv.models.timm_weights import from_timm
from condconv.registry import unknown_name_message


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    num_experts: int | None = None,
    output_stride: int | None = None,
    width_multiplier: float = 1.0,
    features_only: bool = False,
    max_overhead: float | None = None,
    input_size: tuple[int, int, int] | None = None,
    pretrained: bool = False,
    **timm_arguments: Any,
) -> nn.Module:
    """Make a network by name: a paper's network, one of their static backbones, or any other timm network.

    A detector of torchvision is "torchvision/NAME", for images with values in [0, 1].

    Args:
        name: `list_models` lists the papers' networks and the backbones; other names are looked up in timm.
        num_classes: width of the classifier, 0 for none; None for 1000, or for COCO's 90 in a detector.
        in_chans: channels of the image.
        num_experts: experts of each conditional layer; None for the paper's number. Only for the papers' networks.
        output_stride: for images below 64 pixels: total downsampling, the stem then keeps the resolution. See
            `condconv.models.backbones.build_backbone`.
        width_multiplier: factor on the width of a backbone.
        features_only: return the feature maps of each resolution instead of the logits.
        max_overhead: leave static what would be conditional where mixing costs more than this share of a layer's
            convolution; needs `input_size`. Only for the papers' networks.
        input_size: (C, H, W) of the images, for `max_overhead`.
        pretrained: download published ImageNet weights; ``list_models(pretrained=True)`` lists which names have some.
        **timm_arguments: what is special to the paper of a conditional network (``budget``, ``norm``, …), and further
            arguments of the timm network (``drop_rate``, ``drop_path_rate``, ``out_indices``, …).

    Raises:
        UnknownNameError: the name is neither here nor in timm; the message lists the closest ones.
        ArgumentError: an argument out of range, unknown to the network, or of no use to it.
    """
    where = f"create_model({text('create_model', 'name', name)!r})"
    boolean(where, "features_only", features_only)
    boolean(where, "pretrained", pretrained)
    integer(where, "in_chans", in_chans, 1)
    for argument, least, value in (("num_classes", 0, num_classes), ("num_experts", 1, num_experts)):
        if value is not None:
            integer(where, argument, value, least)
    if output_stride is not None:
        integer(where, "output_stride", output_stride, 1)
    number(where, "width_multiplier", width_multiplier, above=0, maximum=64, remedy="1 is the published width")
    for argument in timm_arguments.keys() & {"drop_rate", "drop_path_rate"}:
        probability(where, argument, timm_arguments[argument])
    given = dict(
        num_classes=num_classes, in_chans=in_chans, num_experts=num_experts, output_stride=output_stride,
        width_multiplier=width_multiplier, features_only=features_only, max_overhead=max_overhead,
        input_size=input_size, **timm_arguments,
    )  # fmt: skip
    if pretrained:
        _check_pretrained(name)
    if name in SPECS and pretrained:
        return _load_published(name, given)
    if name in SPECS:
        model = build_conditional(SPECS[name], given)
    elif name in STATIC:
        model = build_static(name, given, pretrained)
    elif name.startswith(TORCHVISION):
        model = build_torchvision(name, given)
    elif timm.is_model(name):
        model = build_timm(name, given, pretrained)
    else:
        message = unknown_name_message("model", name, [*SPECS, *STATIC, *timm.list_models()])
        raise UnknownNameError(f"{message}; `condconv models` and timm.list_models() list them")
    set_origin(model, name, given)
    return model


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names of the papers' networks and of their static backbones that match a shell pattern (``"*mobilenet*"``).

    Args:
        pattern: shell pattern over whole names.
        pretrained: only those with published weights that `create_model` can download.
    """
    text("list_models", "pattern", pattern)
    boolean("list_models", "pretrained", pretrained)
    names = fnmatch.filter([*SPECS, *STATIC], pattern)
    return [name for name in names if not pretrained or published_name(name)]


def static_twin(name: str, **arguments: Any) -> nn.Module:
    """The static network that the conditional network ``name`` is made from; takes the arguments of `create_model`.

    ``num_experts``, ``max_overhead``, ``input_size`` and what is special to the paper are ignored, so that both twins
    can be made from the same arguments. The name of a static network gives that network.
    """
    text("static_twin", "name", name)
    for argument in (*PLACEMENT, *variant_options(name)):
        arguments.pop(argument, None)
    return create_model(SPECS[name].backbone if name in SPECS else name, **arguments)


def upcycle(
    name: str, static: nn.Module | None = None, *, num_experts: int | None = None, **arguments: Any
) -> nn.Module:
    """Make the conditional network ``name`` so that it computes exactly what a trained static network computes.

    Args:
        name: one of the papers' networks.
        static: its static twin with trained weights, which is converted in place; None for the twin with published
            weights, which are downloaded.
        num_experts: experts of each conditional layer; None for the paper's number.
        **arguments: what is special to the network's paper; and those of `create_model`, for the twin that is made
            where ``static`` is None.

    Raises:
        UnknownNameError: ``name`` is no network of a paper.
        ArgumentError: arguments for a twin that is given, or no twin with published weights.

    >>> twin = static_twin("condconv_mobilenetv1_025", num_classes=10)
    >>> model = upcycle("condconv_mobilenetv1_025", twin)
    """
    if name not in SPECS:
        raise UnknownNameError(unknown_name_message("conditional network", name, SPECS))
    options = {option: arguments.pop(option) for option in variant_options(name) if option in arguments}
    if static is None:
        static = static_twin(name, pretrained=True, **arguments)
    elif arguments:
        first = next(iter(arguments))
        raise argument_error(f"upcycle('{name}')", first, arguments[first], "is for a twin made here", "leave it out")
    origin = origin_of(static)
    model = convert_row(static, SPECS[name], num_experts, "upcycle", options)
    set_origin(model, name, {**(origin.arguments if origin else {}), "num_experts": num_experts, **options})
    return model


def _check_pretrained(name: str) -> None:
    if published_name(name) or not (name in (*SPECS, *STATIC) or name.startswith(TORCHVISION)):
        return
    message = (
        f"create_model('{name}', pretrained=True): no weights are published for it; names with weights: "
        f"{', '.join(list_models(pretrained=True))}"
    )
    if name.startswith(TORCHVISION):
        message += ". Its weights come from a file: condconv.models.load_weights(model, file)"
    elif name in SPECS and published_name(SPECS[name].backbone):
        message += f". To start from the published static network: condconv.models.upcycle('{name}')"
    elif name in SPECS:
        message += f". To start from a trained static network: condconv.models.upcycle('{name}', static)"
    raise ArgumentError(message)


def _load_published(name: str, given: Mapping[str, Any]) -> nn.Module:
    spec, timm_name = SPECS[name], published_name(name)
    assert timm_name is not None  # _check_pretrained has seen to it
    given = dict(given)
    if given["num_experts"] == spec.num_experts:
        given["num_experts"] = None
    arguments = refuse_changes(name, given, PLACEMENT + ("output_stride", "width_multiplier", "features_only"))
    return from_timm(timm.create_model(timm_name, pretrained=True, **not_default(arguments)))
