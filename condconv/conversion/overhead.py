"""What mixing costs a layer, and leaving out those that it costs too much.

A layer with n experts mixes n·|W| numbers for each example, and convolves H'·W'·|W|: its *overhead* is n / (H'·W').
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from condconv.conversion.sites import Survey
from condconv.counting.rules import paper_macs
from condconv.errors import ArgumentError, argument_error


def convolution_macs(found: Survey, name: str) -> int | None:
    """Multiply-adds of a static layer in the traced pass, or None where the network was not traced."""
    site = found.sites[name]
    if found.trace is None:
        return None
    return sum(
        sum(paper_macs(site.module, call.input, call.output))
        for call in found.trace.of(name)
        if call.input is not None and call.output is not None and site.kind != "other"
    )


def mixing_macs(found: Survey, name: str, num_experts: int) -> int:
    """Multiply-adds of mixing n kernels for each example of the traced pass; 0 where there is none."""
    weight = cast(torch.Tensor, found.sites[name].module.weight)
    calls = [] if found.trace is None else found.trace.of(name)
    return sum(cast(torch.Tensor, call.input).shape[0] * num_experts * weight.numel() for call in calls)


def layer_overhead(found: Survey, name: str, num_experts: int) -> float | None:
    """Mixing over convolution of a layer with n experts; None where it is not known, since it was not called."""
    convolution = None if found.sites[name].obstacle else convolution_macs(found, name)
    return mixing_macs(found, name, num_experts) / convolution if convolution else None


def too_dear(found: Survey, names: Sequence[str], num_experts: int, max_overhead: float | None) -> dict[str, str]:
    """Those of the layers whose overhead is above a limit, each with the reason for skipping it.

    Raises:
        ArgumentError: a negative limit, or one that leaves no layer; the message says the smallest overhead there is.
            No input size, without which no overhead is known.
    """
    if max_overhead is None:
        return {}
    if not 0 < max_overhead < math.inf:
        rule = "must be a positive share: multiply-adds of mixing over those of the convolution"
        raise argument_error("plan", "max_overhead", max_overhead, rule, "pass 0.05 for 5 %, or leave it out")
    if found.trace is None:
        raise ArgumentError(
            f"plan: max_overhead={max_overhead:g} needs the sizes of the maps; add input_size, such as (3, 224, 224)"
        )
    overheads = {name: layer_overhead(found, name, num_experts) for name in names}
    known = {name: overhead for name, overhead in overheads.items() if overhead is not None}
    dear = {name: overhead for name, overhead in known.items() if overhead > max_overhead}
    if known and len(dear) == len(known):
        least = min(known, key=lambda name: known[name])
        raise ArgumentError(
            f"plan: max_overhead={max_overhead:g} leaves no layer: the smallest overhead is {known[least]:.3g}, of "
            f"{least}; pass that or more, fewer experts than {num_experts}, or larger images"
        )
    return {name: f"mixing costs {overhead:.1%}, above {max_overhead:.3g}" for name, overhead in dear.items()}
