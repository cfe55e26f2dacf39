"""The weights of the authors' own networks: ODConv's and KernelWarehouse's, whose tensors have other names.

* ODConv: each layer has `weight` (n, O, I/g, k, k), `attention.fc`, `attention.bn`, and a linear layer for each slice;
* KernelWarehouse: `warehouse_manager.weights.j` (n, o, i, 1, 1), and each layer `attention.{fc1, norm1, fc2}`.

The rest is torchvision's ResNet, whose names are timm's too, or its MobileNetV2. A prefix "module." is left out. Gates
stand at the end of their schedule, as the authors evaluate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from condconv.conversion.apply import conditional_layers
from condconv.errors import CheckpointError
from condconv.layers import ConditionalLayer
from condconv.models.loading import load_strictly
from condconv.routers import annealed_gates

_HEADS = {"input": "channel_fc", "output": "filter_fc", "taps": "spatial_fc", "mixing": "kernel_fc"}
"""Slice → ODConv's name of the layer that makes it."""
_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
"""Of MobileNetV2, by stage."""


def load_official(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Load the authors' weights into a row of the zoo, in place, and return it.

    Args:
        model: `create_model` of an `odconv_…` or `kernel_warehouse_…` network, with the arguments of the weights.
        weights: the state dict in the authors' file: open it with ``torch.load(path, weights_only=True)``, and take
            ``["state_dict"]`` of ODConv's, ``["model"]`` of KernelWarehouse's.

    Raises:
        CheckpointError: the tensors are not those of such a network; nothing was loaded.
    """
    source = "the authors' state dict"
    given = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if any(name.startswith("features.") for name in given):
        given = {_from_mobilenet(name): tensor for name, tensor in given.items()}
    layers = dict(conditional_layers(model))
    found = {name: tensor for name, tensor in model.state_dict().items() if ".gate." in name}
    try:
        for name, layer in layers.items():
            found.update(_layer(name, layer, given))
        found.update(_warehouses(layers, given))
    except KeyError as error:
        message = f"{source}: does not fit {type(model).__name__}: it has no tensor {error}; nothing was loaded"
        raise CheckpointError(message) from None
    load_strictly(model, {**given, **found}, source)
    for gate in annealed_gates(model):
        gate.anneal(gate.end)
    return model


def _layer(name: str, layer: ConditionalLayer, given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of one layer, its warehouse left out; takes them out of `given`."""
    attention, body = f"{name}.attention.", f"{name}.router.body."
    if layer.bank.common() is not None:
        first, norm = "fc1", "norm1"
        yield f"{body}3.weight", given.pop(f"{attention}fc2.weight")
        yield f"{body}3.bias", given.pop(f"{attention}fc2.bias")
    else:
        first, norm = "fc", "bn"
        heads = [f"{attention}{_HEADS[part]}." for part in layer.slices.names]
        yield f"{body}3.weight", torch.cat([given.pop(f"{head}weight").flatten(1) for head in heads])
        yield f"{body}3.bias", torch.cat([given.pop(f"{head}bias") for head in heads])
        kernels = given.pop(f"{name}.weight")
        yield f"{name}.bank.inner.weight", kernels if layer.num_experts > 1 else kernels[0]
    yield f"{body}0.weight", given.pop(f"{attention}{first}.weight").flatten(1)
    for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield f"{body}1.{tensor}", given.pop(f"{attention}{norm}.{tensor}")


def _warehouses(layers: Mapping[str, ConditionalLayer], given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of the warehouses, in the order of the layers that hold them, which is the authors'."""
    holders: dict[nn.Module | None, str] = {}
    for name, layer in layers.items():
        holders.setdefault(layer.bank.common(), name)
    holders.pop(None, None)
    for place, name in enumerate(holders.values()):
        yield f"{name}.bank.warehouse.cells", given.pop(f"warehouse_manager.weights.{place}").squeeze(4).squeeze(3)


def _from_mobilenet(name: str) -> str:
    """Timm's name of a tensor of torchvision's MobileNetV2."""
    if not name.startswith("features."):
        return re.sub(r"^classifier\.1\.", "classifier.", name)
    _, number, rest = name.split(".", 2)
    place, last = int(number), sum(_BLOCKS) + 1
    if place in (0, last):
        stem = {"0.": "conv_stem.", "1.": "bn1."} if place == 0 else {"0.": "conv_head.", "1.": "bn2."}
        return stem[rest[:2]] + rest[2:]
    stage = next(stage for stage in range(len(_BLOCKS)) if place <= sum(_BLOCKS[: stage + 1]))
    steps = ["conv.0.0.", "conv.0.1.", "conv.1.0.", "conv.1.1.", "conv.2.", "conv.3."]
    ours = ["conv_pw.", "bn1.", "conv_dw.", "bn2.", "conv_pwl.", "bn3."]
    if stage == 0:  # It has no expansion.
        steps, ours = [*steps[:2], "conv.1.", "conv.2."], ["conv_dw.", "bn1.", "conv_pw.", "bn2."]
    inside = next(own + rest.removeprefix(step) for step, own in zip(steps, ours, strict=True) if rest.startswith(step))
    return f"blocks.{stage}.{place - 1 - sum(_BLOCKS[:stage])}.{inside}"
