"""Reads the CondConv authors' TensorFlow checkpoints (tensorflow/tpu, models/official/efficientnet/condconv).

How the authors' code names its variables, inside the scope of the model's name::

    stem/conv2d/kernel                          blocks_8/dense/kernel  (routing)
    stem/tpu_batch_normalization/gamma          blocks_8/cond_conv2d_1/condconv_kernel
    blocks_0/depthwise_conv2d/depthwise_kernel  blocks_8/depthwise_cond_conv2d/depthwise_condconv_kernel
    head/conv2d/kernel    head/dense/kernel     blocks_8/se/conv2d_1/bias

and the same again with ``/ExponentialMovingAverage`` behind, the weights that were evaluated. The numbers at the ends
of layer names depend on what else the graph held, and Keras layers may add a scope of their own; so a layer is told by
its section, its kind and its *rank* within the section, in the order in which the code makes them (expand, project).

Layouts: convolutions (kh, kw, I, O), depthwise (kh, kw, C, 1), dense (I, O); experts are flattened to (n, prod).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condconv.errors import CheckpointError
from condconv.layers import ConditionalLayer
from condconv.models.loading import load_strictly
from condconv.models.tensor_bundle import read_tensors

_AVERAGE = "/ExponentialMovingAverage"
_VARIABLE = re.compile(
    r"(?:^|.*/)(?P<section>stem|head|blocks_\d+)/(?:[^/]+/)*?(?P<se>se/)?"
    r"(?P<kind>(?:depthwise_)?(?:cond_)?conv2d|(?:tpu_)?batch_normalization(?:_v1)?|dense)(?:_(?P<number>\d+))?/"
    r"(?P<leaf>kernel|bias|gamma|beta|moving_mean|moving_variance|depthwise_kernel|condconv_kernel"
    r"|depthwise_condconv_kernel)$"
)
_TRAINING_STATE = re.compile(r"(^|/)(global_step|RMSProp(_\d+)?|Momentum(_\d+)?|beta[12]_power|Adam(_\d+)?)$")
_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclass(frozen=True)
class _Variable:
    section: str
    in_se: bool
    kind: str
    number: int
    leaf: str
    name: str


def load_tensorflow_checkpoint(model: nn.Module, prefix: str | Path, *, moving_average: bool = True) -> None:
    """Load the authors' checkpoint into one of the ``condconv_efficientnet_b0_*`` networks, in place.

    Args:
        model: made by `create_model`, with the number of experts and classes of the checkpoint.
        prefix: the checkpoint's path without ``.index`` and ``.data-…``.
        moving_average: take the exponential moving averages where the checkpoint holds them, as the authors do.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are missing, left over or of the wrong shape: all of
            them are listed, and nothing is loaded.
    """
    tensors = _choose_average(read_tensors(prefix), moving_average)
    load_strictly(model, state_dict_from_tensorflow(tensors, model, str(prefix)), str(prefix))


def state_dict_from_tensorflow(tensors: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Rename and lay out the checkpoint's tensors for ``model``.

    Raises:
        CheckpointError: a variable that the authors' network does not have.
    """
    variables, unknown = [], []
    for name in tensors:
        match = _VARIABLE.match(name)
        if match:
            number = int(match["number"] or 0)
            variables.append(_Variable(match["section"], bool(match["se"]), match["kind"], number, match["leaf"], name))
        elif not _TRAINING_STATE.search(name):
            unknown.append(name)
    if unknown:
        listed = "\n  ".join(f"{name} {tuple(tensors[name].shape)}" for name in sorted(unknown))
        raise CheckpointError(f"{source}: variables that the authors' EfficientNet does not have:\n  {listed}")
    modules = dict(model.named_modules())
    state = {}
    for variable, layer, leaf in _placed(variables, model):
        state[f"{layer}.{leaf}"] = _laid_out(
            tensors[variable.name], variable.leaf, modules.get(layer.removesuffix(".bank"))
        )
    return state


def _choose_average(tensors: Mapping[str, Tensor], moving_average: bool) -> dict[str, Tensor]:
    raw = {name: tensor for name, tensor in tensors.items() if not name.endswith(_AVERAGE)}
    if not moving_average:
        return raw
    return raw | {name.removesuffix(_AVERAGE): t for name, t in tensors.items() if name.endswith(_AVERAGE)}


def _placed(variables: list[_Variable], model: Any) -> Iterator[tuple[_Variable, str, str]]:
    """Yield each variable with the module path and the parameter name that it belongs to in ``model``."""
    blocks = [f"blocks.{s}.{b}" for s, stage in enumerate(model.blocks) for b in range(len(stage))]
    ranks: dict[tuple[str, bool, str], list[int]] = {}
    for variable in variables:
        ranks.setdefault((variable.section, variable.in_se, _family(variable.kind)), []).append(variable.number)
    for variable in variables:
        numbers = sorted(set(ranks[variable.section, variable.in_se, _family(variable.kind)]))
        rank = numbers.index(variable.number)
        yield variable, *_target(variable, rank, blocks, dict(model.named_modules()))


def _family(kind: str) -> str:
    if "batch_normalization" in kind:
        return "norm"
    if kind.startswith("depthwise"):
        return "depthwise"
    return "dense" if kind == "dense" else "conv"


def _target(variable: _Variable, rank: int, blocks: list[str], modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    family = _family(variable.kind)
    if variable.section in ("stem", "head"):
        names = {"stem": ("conv_stem", "bn1"), "head": ("conv_head", "bn2")}[variable.section]
        layer = {"conv": names[0], "norm": names[1], "dense": "classifier"}.get(family, variable.name)
    else:
        number = int(variable.section.removeprefix("blocks_"))
        block = blocks[number] if number < len(blocks) else f"blocks_{number}"
        expands = f"{block}.conv_pwl" in modules
        inner = {
            "conv": ("conv_pw", "conv_pwl") if expands else ("conv_pw",),
            "norm": ("bn1", "bn2", "bn3") if expands else ("bn1", "bn2"),
            "depthwise": ("conv_dw",),
            "dense": ("router.body.0",),
        }[family]
        if variable.in_se:
            inner = ("se.conv_reduce", "se.conv_expand")
        # A rank beyond the list names a layer that the model lacks; the strict loader then lists it.
        layer = f"{block}.{inner[rank] if rank < len(inner) else f'{variable.kind}_{rank}'}"
    if family == "norm":
        return layer, _BATCH_NORM[variable.leaf]
    parameter = "bias" if variable.leaf == "bias" else "weight"
    return (f"{layer}.bank" if "condconv" in variable.leaf else layer), parameter


def _laid_out(tensor: Tensor, leaf: str, layer: nn.Module | None) -> Tensor:
    """TensorFlow's layout → torch's. Tensors whose layer is unknown stay as they are, for the error to list."""
    if leaf == "kernel":
        return tensor.T.contiguous() if tensor.dim() == 2 else tensor.permute(3, 2, 0, 1).contiguous()
    if leaf == "depthwise_kernel":
        return tensor.permute(2, 3, 0, 1).contiguous()
    if "condconv" in leaf and isinstance(layer, ConditionalLayer):
        n, (out, inner, height, width) = layer.num_experts, layer.site.kernel_shape
        if tensor.shape != (n, out * inner * height * width):
            return tensor
        if leaf == "condconv_kernel":
            return tensor.reshape(n, height, width, inner, out).permute(0, 4, 3, 1, 2).contiguous()
        return tensor.reshape(n, height, width, out, 1).permute(0, 3, 4, 1, 2).contiguous()
    return tensor
