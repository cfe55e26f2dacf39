"""Which layers a conversion is asked to convert."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from condconv.conversion.sites import KINDS, Site, Survey, name_patterns
from condconv.errors import ArgumentError, ConversionError, argument_error
from condconv.variants import Variant

Target = str | Callable[[str, nn.Module], bool]
Targets = Target | Sequence[Target] | None
"""A kind ("pointwise", …), "last N blocks", "last N stages", a regex on names, a predicate, or several of them."""

_LAST = re.compile(r"last (\d+) (block|stage)s?")


@dataclass(frozen=True)
class Selection:
    """The names that were asked for, and why the others were not."""

    chosen: frozenset[str]
    why_not: dict[str, str]


def select(survey: Survey, targets: Targets, variant: Variant) -> Selection:
    """Return the layers of `survey` that `targets` asks for; None asks for the variant's own placement.

    Kinds, "last N …" and placements leave squeeze-excite layers and classifiers static; a regex or a predicate that
    names them selects them.

    Raises:
        ArgumentError: a target that is neither of the allowed things, or targets that match no layer.
    """
    why_not = {name: _default_reason(site) for name, site in survey.sites.items()}
    if targets is None:
        static = _placement(survey, variant)
        chosen = {site.name for site in survey.convolutions} - static.keys()
        why_not.update(static)
        _warn_of_linear_blocks(survey, variant)
    else:
        if isinstance(targets, Tensor | nn.Module) or not (isinstance(targets, Iterable) or callable(targets)):
            rule = "must be a kind, a regex, a function (name, module) -> bool, or several of them"
            raise argument_error("plan", "targets", targets, rule, f"use {', '.join(KINDS)}")
        each = [targets] if isinstance(targets, str) or callable(targets) else list(targets)
        chosen = set().union(*(_matching(survey, target) for target in each))
    if not chosen:
        raise ArgumentError(_nothing(survey, targets))
    return Selection(frozenset(chosen), {name: why for name, why in why_not.items() if name not in chosen})


def stages_of(survey: Survey, asked: str) -> list[list[str]]:
    """Return the names of the blocks, stage by stage.

    A stage is what blocks stand in; where all stand in one sequence, a stage ends when channels or resolution change.
    `asked` is the argument that wants to know, for messages.

    Raises:
        ConversionError: the blocks form one sequence and no `input_size` was given.
    """
    by_parent: dict[str, list[str]] = {}
    for block in survey.blocks.values():
        by_parent.setdefault(block.parent, []).append(block.name)
    if len(by_parent) > 1 or not survey.blocks:
        return list(by_parent.values())
    if survey.trace is None:
        raise ConversionError(f"plan: {asked}: the blocks stand in one sequence; pass input_size")
    stages: list[list[str]] = []
    before = None
    for block in survey.blocks.values():
        output = survey.trace.of(block.name)[0].output
        shape = None if output is None else output.shape
        if shape != before:
            stages.append([])
        stages[-1].append(block.name)
        before = shape
    return stages


def _placement(survey: Survey, variant: Variant) -> dict[str, str]:
    """Convolutions that the variant's own placement leaves static, each with the reason."""
    names = [site.name for site in survey.convolutions]
    if variant.placement == "all_but_first":
        return dict.fromkeys(names[:1], f"first convolution ({variant.name}'s default)")
    half = len(names) // 2
    static = dict.fromkeys(names[:half], f"first half by depth ({variant.name}'s default)")
    if names and _lone_shortcut(survey, names[half]):
        static[names[half]] = f"shortcut of a block in the first half ({variant.name}'s default)"
    return static


def _lone_shortcut(survey: Survey, name: str) -> bool:
    """Whether it is the last convolution of its block, and leads from the block's input to its output."""
    block = survey.blocks.get(survey.sites[name].block or "")
    inside = [site for site in survey.convolutions if block is not None and site.name in block.layers]
    if len(inside) < 3 or inside[-1].name != name or inside[-1].kind != "pointwise":
        return False
    first, before, last = (inside[place].module for place in (0, -2, -1))
    return bool(last.in_channels == first.in_channels and last.out_channels == before.out_channels)


def _warn_of_linear_blocks(survey: Survey, variant: Variant) -> None:
    if survey.blocks and not any(site.block for site in survey.convolutions):
        warnings.warn(
            f"plan: the {len(survey.blocks)} blocks of {type(survey.model).__name__} hold linear layers alone, and "
            f'{variant.name} takes convolutions where targets is left out; pass targets="linear" or a regex on names',
            stacklevel=4,
        )


def _default_reason(site: Site) -> str:
    if site.squeeze_excite:
        return "squeeze-excite stays static"
    return "classifier stays static" if site.classifier else "not selected"


def _matching(survey: Survey, target: Target) -> set[str]:
    sites = survey.sites.values()
    if not isinstance(target, str):
        if not callable(target) or isinstance(target, type):
            rule, remedy = "is no string and no function (name, module) -> bool", f"use a regex or {', '.join(KINDS)}"
            raise argument_error("plan", "targets", target, rule, remedy)
        return {site.name for site in sites if target(site.name, site.module)}
    if target in KINDS:
        kind = [site for site in sites if site.kind == target and not site.squeeze_excite]
        return {site.name for site in kind if target == "linear" or not site.classifier}
    if last := _LAST.fullmatch(target):
        return _last(survey, int(last[1]), last[2], target)
    try:
        pattern = re.compile(target)
    except re.error as error:
        rule = f"is not a regular expression ({error})"
        raise argument_error("plan", "targets", target, rule, "escape what is meant literally") from None
    return {site.name for site in sites if pattern.search(site.name)}


def _last(survey: Survey, number: int, unit: str, target: str) -> set[str]:
    names = {site.name for site in survey.convolutions}
    groups = stages_of(survey, "targets='last N stages'") if unit == "stage" else [[name] for name in survey.blocks]
    layers = [[layer for block in group for layer in survey.blocks[block].layers if layer in names] for group in groups]
    layers = [group for group in layers if group]
    if not 1 <= number <= len(layers):
        rule = f"asks for {number} of the {len(layers)} {unit}s with convolutions"
        remedy = "ask for fewer" if layers else "this network has no blocks that repeat: give a regex"
        raise argument_error("plan", "targets", target, rule, remedy)
    return {layer for group in layers[-number:] for layer in group}


def _nothing(survey: Survey, targets: Targets) -> str:
    names = list(survey.sites)
    if not names:
        return "plan: the model has no convolution and no linear layer, so there is nothing to convert"
    words: Iterable[Target] = [targets] if isinstance(targets, str) or callable(targets) else targets or []
    close = [m for w in words if isinstance(w, str) for m in difflib.get_close_matches(w, [*names, *KINDS], 3, 0.4)]
    hint = f"; did you mean {' or '.join(map(repr, dict.fromkeys(close)))}?" if close else ""
    asked = "the variant's default placement" if targets is None else f"targets={targets!r}"
    return f"plan: {asked} matches no layer{hint or '.'} Layers are named: {name_patterns(names)}"


def matching_names(pattern: str, names: Iterable[str], where: str) -> list[str]:
    """Return the names that a regex matches somewhere.

    Raises:
        ArgumentError: it is no regex, or it matches none.
    """
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        rule = f"is not a regular expression ({error})"
        raise argument_error("plan", where, pattern, rule, "escape what is meant literally") from None
    if not found:
        raise ArgumentError(f"plan: {where}={pattern!r} matches none of the layers to convert; a plan lists them")
    return found
