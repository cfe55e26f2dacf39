"""What its bank costs a layer, and leaving out those that it costs too much.

A layer with n experts mixes n·|W| numbers for each example, and convolves H'·W'·|W|: its *overhead* is n / (H'·W').
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from condconv.arguments import number
from condconv.banks import Bank
from condconv.conversion.sites import Survey
from condconv.counting.rules import bank_macs, paper_macs
from condconv.errors import ArgumentError


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


def mixing_macs(found: Survey, name: str, bank: Bank) -> int:
    """Multiply-adds of what a bank does in the traced pass beside the convolution; 0 where there is none."""
    calls = [] if found.trace is None else found.trace.of(name)
    linear = found.sites[name].kind == "linear"
    return sum(
        bank_macs(bank, call.input, call.output, linear)
        for call in calls
        if call.input is not None and call.output is not None
    )


def layer_overhead(found: Survey, name: str, banks: Mapping[str, Bank]) -> float | None:
    """Mixing over convolution of a layer; None where it is not known, since it was not called or has no bank."""
    convolution = convolution_macs(found, name) if name in banks else None
    return mixing_macs(found, name, banks[name]) / convolution if convolution else None


def too_dear(
    found: Survey, names: Sequence[str], banks: Mapping[str, Bank], max_overhead: float | None
) -> dict[str, str]:
    """Those of the layers whose overhead is above a limit, each with the reason for skipping it.

    Raises:
        ArgumentError: a negative limit, or one that leaves no layer; the message says the smallest overhead there is.
            No input size, without which no overhead is known.
    """
    if max_overhead is None:
        return {}
    remedy = "pass 0.05 for 5 %, or leave it out"
    max_overhead = number("plan", "max_overhead", max_overhead, above=0, remedy=remedy)
    if found.trace is None:
        raise ArgumentError(
            f"plan: max_overhead={max_overhead:g} needs the sizes of the maps; add input_size, such as (3, 224, 224)"
        )
    overheads = {name: layer_overhead(found, name, banks) for name in names}
    known = {name: overhead for name, overhead in overheads.items() if overhead is not None}
    dear = {name: overhead for name, overhead in known.items() if overhead > max_overhead}
    if known and len(dear) == len(known):
        least = min(known, key=lambda name: known[name])
        raise ArgumentError(
            f"plan: max_overhead={max_overhead:g} leaves no layer: the smallest overhead is {known[least]:.3g}, of "
            f"{least}; pass that or more, fewer experts, or larger images"
        )
    return {name: f"mixing costs {overhead:.1%}, above {max_overhead:.3g}" for name, overhead in dear.items()}
