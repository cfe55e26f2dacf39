"""timm's CondConv networks ↔ ours: the same network, with the experts' tensors under other names and in other shapes.

timm keeps a layer's experts flattened, ``<layer>.weight`` (n, prod), and a block's router as ``<block>.routing_fn``;
here they are ``<layer>.bank.weight`` (n, O, I/g, kh, kw) and ``<block>.router``. Both orders of elements are the same.
"""

from __future__ import annotations

import math
import re
from typing import Any

from timm.layers import CondConv2d as TimmCondConv2d
from timm.layers import Conv2dSame
from timm.models._efficientnet_blocks import CondConvResidual
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from condconv.conversion.apply import refuse_inference_form
from condconv.errors import ArgumentError, argument_error
from condconv.layers import ConditionalLayer
from condconv.models.backbones import BACKBONES
from condconv.models.build import DEFAULTS, build_conditional, set_origin
from condconv.models.loading import load_strictly
from condconv.models.specs import SPECS, Spec

_ROUTER = re.compile(r"(?P<block>.*)\.router\.body\.0\.(?P<leaf>weight|bias)$")
_ROUTING_FN = re.compile(r"(?P<block>.*)\.routing_fn\.(?P<leaf>weight|bias)$")


def from_timm(timm_model: nn.Module) -> nn.Module:
    """Return the zoo's network with the weights of one of timm's ``(tf_)efficientnet_cc_*`` networks.

    The copy has the timm network's classes, input channels, padding, batch-norm constants, dropout and stochastic
    depth, its mode, type and device.

    Raises:
        ArgumentError: ``timm_model`` is no CondConv network of timm.
        CheckpointError: its tensors do not fit, for example because it was built with another width.
    """
    spec, num_experts = _recognise(timm_model)
    first = next(timm_model.parameters())
    given = {**_arguments(timm_model), "num_experts": None if num_experts == spec.num_experts else num_experts}
    model = build_conditional(spec, DEFAULTS | given).to(first.device, first.dtype)
    set_origin(model, spec.name, given)
    state = {}
    for name, tensor in timm_model.state_dict().items():
        state[_from_timm_name(name, timm_model)] = tensor
    for layer_name, layer in _layers(model).items():
        name, shape = f"{layer_name}.bank.weight", (layer.num_experts, *layer.site.kernel_shape)
        if name in state and state[name].numel() == math.prod(shape):
            state[name] = state[name].reshape(shape)
    load_strictly(model, state, f"timm's {type(timm_model).__name__}")
    return model.train(timm_model.training)


def to_timm_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that timm's network of the same kind loads; the inverse of `from_timm`.

    Raises:
        ArgumentError: timm has no such network: a conditional layer or its router has no place there.
        ConversionError: the model is an inference form.
    """
    refuse_inference_form(model, "to_timm_state_dict")
    layers = _layers(model)
    if not layers:
        remedy = "pass a network of create_model"
        raise argument_error("to_timm_state_dict", "model", type(model).__name__, "has no conditional layer", remedy)
    foreign = sorted(name for name, layer in layers.items() if layer.scope is None or len(layer.site.kernel_size) != 2)
    if foreign or not isinstance(model, EfficientNet):
        raise ArgumentError(
            "to_timm_state_dict: timm has CondConv in EfficientNet's inverted residual blocks alone, with one router "
            f"for each block; this is a {type(model).__name__} with other conditional layers: "
            f"{', '.join(foreign[:5] or list(layers)[:5])}"
        )
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        router = _ROUTER.match(name)
        if router:
            state[f"{router['block']}.routing_fn.{router['leaf']}"] = tensor
        elif ".bank." in name:
            state[name.replace(".bank.", ".")] = tensor.flatten(1)
        else:
            state[name] = tensor
    return state


def _layers(model: nn.Module) -> dict[str, ConditionalLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ConditionalLayer)}


def _recognise(timm_model: Any) -> tuple[Spec, int]:
    """Which row the timm network is, told by its number of blocks, and its number of experts."""
    blocks = [module for module in timm_model.modules() if isinstance(module, CondConvResidual)]
    stages: Any = getattr(timm_model, "blocks", ())
    if not isinstance(timm_model, EfficientNet) or not blocks:
        raise argument_error(
            "from_timm", "timm_model", type(timm_model).__name__, "is none of timm's CondConv networks",
            "pass timm.create_model('tf_efficientnet_cc_b0_8e') or one like it; other networks: condconv.convert",
        )  # fmt: skip
    depth = sum(len(stage) for stage in stages)
    experts = blocks[0].num_experts
    specs = [spec for spec in SPECS.values() if spec.timm_name and BACKBONES[spec.backbone].num_blocks == depth]
    if not specs:
        rule = "is no depth of the papers' networks"
        raise argument_error("from_timm", "timm_model", f"{depth} blocks", rule, "those have 16 or 23")
    # Between 4e and 8e the number of experts decides; another number is a variation of the last row.
    return next((spec for spec in specs if spec.num_experts == experts), specs[-1]), experts


def _arguments(timm_model: Any) -> dict[str, Any]:
    blocks = [block for stage in timm_model.blocks for block in stage]
    last_drop = getattr(blocks[-1].drop_path, "drop_prob", 0.0)
    return dict(
        num_classes=timm_model.num_classes,
        in_chans=timm_model.in_chans,
        pad_type="same" if isinstance(timm_model.conv_stem, Conv2dSame) else "",
        bn_eps=timm_model.bn1.eps,
        bn_momentum=timm_model.bn1.momentum,
        drop_rate=timm_model.drop_rate,
        # timm gives block i of N the rate drop_path_rate * i / N.
        drop_path_rate=last_drop * len(blocks) / (len(blocks) - 1),
        global_pool=timm_model.global_pool.pool_type,
    )


def _from_timm_name(name: str, timm_model: nn.Module) -> str:
    routing = _ROUTING_FN.match(name)
    if routing:
        return f"{routing['block']}.router.body.0.{routing['leaf']}"
    layer, _, leaf = name.rpartition(".")
    if isinstance(timm_model.get_submodule(layer), TimmCondConv2d):
        return f"{layer}.bank.{leaf}"
    return name
