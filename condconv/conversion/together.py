"""Which converted layers' banks have something in common, as those of a stage may share a warehouse of kernel cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from condconv.conversion.select import matching_names, stages_of
from condconv.conversion.sites import Survey
from condconv.errors import argument_error

STAGE = "stage"


def together(survey: Survey, names: Sequence[str], option: str, wanted: Any) -> list[tuple[str, ...]]:
    """Distribute layers (`names`) over groups that have something in common; members are in the order of the modules.

    Layers on different devices, or of different types, have nothing in common.

    Args:
        survey: of the network.
        names: the layers to convert.
        option: the keyword that asks for it, for messages.
        wanted: "stage", or {name: regex}; a layer that no regex matches is by itself.

    Raises:
        ArgumentError: `wanted` is something else, or a regex matches no layer, or two match the same.
        ConversionError: "stage", but where stages end is not known without `input_size`.
    """
    if wanted == STAGE:
        group_of: Mapping[str, Any] = _by_stage(survey, option)
    elif isinstance(wanted, Mapping):
        group_of = by_pattern(names, wanted, option)
    else:
        rule, remedy = "is not a way to put layers together", f'use "{STAGE}" or {{name: regex}}'
        raise argument_error("plan", option, wanted, rule, remedy)
    order = {name: i for i, (name, _) in enumerate(survey.model.named_modules())}
    groups: dict[Any, list[str]] = {}
    for name in sorted(names, key=lambda name: order[name]):
        weight = cast(Tensor, survey.sites[name].module.weight)
        groups.setdefault((group_of.get(name, (None, name)), weight.device, weight.dtype), []).append(name)
    return [tuple(group) for group in groups.values()]


def _by_stage(survey: Survey, option: str) -> dict[str, tuple[str, str]]:
    """Layer → (its stage, its kind): depthwise ones apart, for their kernels are of another shape."""
    found = {}
    for stage in stages_of(survey, f"{option}={STAGE!r}"):
        for block in stage:
            for layer in survey.blocks[block].layers:
                kind = survey.sites[layer].kind
                found[layer] = stage[0], kind if kind in ("depthwise", "linear", "transposed") else "other"
    return found


def by_pattern(names: Sequence[str], patterns: Mapping[str, str], option: str) -> dict[str, str]:
    """Return which key's regex matches each name; those that none matches are left out.

    Raises:
        ArgumentError: a regex matches none of the names, or two match the same.
    """
    taken: dict[str, str] = {}
    for key, pattern in patterns.items():
        for name in matching_names(pattern, names, f"{option}[{key!r}]"):
            if name in taken:
                rule = f"puts {name} into {taken[name]!r} and {key!r}"
                raise argument_error("plan", option, dict(patterns), rule, "make the regexes exclusive")
            taken[name] = key
    return taken
