"""Activation checkpointing that changes nothing but memory and time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from condconv.errors import argument_error

_ASIDE = "statistics_put_aside"


def checkpoint_activations(network: nn.Module) -> None:
    """Keep the inputs of blocks alone, and compute what is inside them again in the backward pass.

    Raises:
        ArgumentError: the network is none of timm's, or has no blocks.
    """
    switch: Any = getattr(network, "set_grad_checkpointing", None)
    if switch is None:
        rule = f"needs a network that knows its blocks, and {type(network).__name__} has no set_grad_checkpointing"
        raise argument_error("train", "activation_checkpointing", True, rule, "leave it out, or take a timm network")
    switch(True)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.register_forward_pre_hook(_put_statistics_aside)
            module.register_forward_hook(_put_statistics_back, always_call=True)


def _put_statistics_aside(norm: nn.Module, _: Any) -> None:
    """Inside the backward pass the batch is in the running statistics already; copies get it a second time."""
    if torch._C._current_graph_task_id() != -1:
        vars(norm)[_ASIDE] = dict(norm._buffers)
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})


def _put_statistics_back(norm: nn.Module, _: Any, __: Any) -> None:
    norm._buffers.update(vars(norm).pop(_ASIDE, {}))
