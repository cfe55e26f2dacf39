"""Pins: which strategy was measured to be the fastest, for one kind of input on one machine.

A pin answers the question that it was measured for and no other, so that it can neither slow down nor break what it
knows nothing of: another batch, another type, training where inference was tuned, another machine. There the planner
answers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.cpu_info import processor
from condconv.execution.native import instruction_set
from condconv.execution.native.strategy import needs_gradient
from condconv.execution.planner import AUTO
from condconv.func_transforms import transformed
from condconv.lowered import Lowered


class Question(NamedTuple):
    """What a strategy's time depends on, beyond the layer itself."""

    machine: str
    """See `machine_of`."""
    input_shape: tuple[int, ...]
    """(B, I, *space), padding by the layer itself included."""
    channels_last: bool
    dtype: torch.dtype
    """Of the input."""
    autocast: torch.dtype | None
    """What autocast casts to, or None outside of it."""
    form: str
    """The class of the lowered form."""
    training: bool
    """Whether a gradient will be asked for."""
    threads: int
    """Of torch; 0 where the work is not the CPU's."""


Pins = Mapping[Question, str]
"""Question → name of a strategy."""


def question(x: Tensor, lowered: Lowered) -> Question:
    """The question that x (B, I, *space) and what its layer lowered put to the planner now."""
    device = x.device
    return Question(
        machine_of(device),
        x.shape,
        x.stride(1) == 1,
        x.dtype,
        torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None,
        type(lowered).__name__,
        needs_gradient(x, lowered),
        torch.get_num_threads() if device.type == "cpu" else 0,
    )


def pinned(pins: Pins, x: Tensor, lowered: Lowered) -> str:
    """The strategy that is pinned for such an input; "auto" where none is.

    Also "auto" inside a transform of `torch.func`, which not every strategy can serve.
    """
    return AUTO if transformed() else pins.get(question(x, lowered), AUTO)


@functools.cache
def machine_of(device: torch.device) -> str:
    """The name of what computes there: the processor and the native operator's instruction set, or the GPU."""
    if device.type == "cpu":
        return f"{processor()}, {instruction_set()}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
