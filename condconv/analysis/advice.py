"""Advice that follows from the numbers, each with the threshold that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from condconv.analysis.results import Analysis
from condconv.analysis.totals import DEAD_SHARE, off_below
from condconv.registry import Registry

FOLD_SPREAD = 0.05
COLLAPSED_EFFECTIVE = 1.05
ANNEALED_TEMPERATURE = 1.0
COPIED_WEIGHTS = 0.99
CHANCE_DEVIATIONS = 2


@dataclass(frozen=True)
class Advice:
    """One thing to do. `value` broke the `rule`, which names its threshold."""

    kind: str
    where: str
    text: str
    rule: str
    value: str


Rule = Callable[[Analysis], Iterator[Advice]]
rules: Registry[Rule] = Registry("advice")


def advise(analysis: Analysis) -> list[Advice]:
    """Return all advice for a network, by rule and depth; empty where there is nothing to say."""
    return [advice for name in rules for advice in rules[name](analysis)]


def _at_chance(analysis: Analysis) -> Iterator[Advice]:
    if _is_at_chance(analysis):
        accuracy = analysis.collection.accuracy
        yield Advice(
            "train the network",
            "the network",
            "It answers no better than chance, so its routing does not say yet which layers could be static and which "
            "experts are superfluous: nothing is advised of either.",
            f"accuracy within {CHANCE_DEVIATIONS} standard deviations of chance, or below",
            f"{accuracy.value:.2%} of {accuracy.images:,} images, where chance is {1 / len(analysis.classes):.2%}",
        )


def _is_at_chance(analysis: Analysis) -> bool:
    accuracy, chance = analysis.collection.accuracy, 1 / len(analysis.classes)
    if not accuracy.images:
        return False
    return accuracy.value <= chance + CHANCE_DEVIATIONS * math.sqrt(chance * (1 - chance) / accuracy.images)


def _fold(analysis: Analysis) -> Iterator[Advice]:
    if _is_at_chance(analysis):
        return
    for group in analysis.groups:
        spread = analysis.measures[group.name].spread
        if spread < FOLD_SPREAD and analysis.measures[group.name].images > 1:
            yield Advice(
                "fold to static",
                group.name,
                f"Routing hardly depends on the image, so {', '.join(group.layers)} could be static: "
                "layer.to_static(mean coefficients) gives the kernel. Compare the accuracy before and after.",
                f"spread below {FOLD_SPREAD}",
                f"spread {spread:.4f}",
            )


def _drop(analysis: Analysis) -> Iterator[Advice]:
    if _is_at_chance(analysis):
        return
    for group in analysis.groups:
        dead = analysis.measures[group.name].dead
        if dead:
            yield Advice(
                "drop experts",
                group.name,
                f"These experts are hardly ever used: {', '.join(map(str, dead))}. Train with fewer experts.",
                f"coefficient below {off_below(group.num_experts):g} for at least {DEAD_SHARE:.1%} of the images",
                f"{len(dead)} of {group.num_experts} experts",
            )


def _anneal(analysis: Analysis) -> Iterator[Advice]:
    hot = {name: t for name, t in analysis.temperatures.items() if t > ANNEALED_TEMPERATURE}
    if hot:
        yield Advice(
            "anneal the temperature",
            ", ".join(hot),
            "These softmax gates were left above temperature 1, so that all kernels weigh almost the same. Train with "
            "condconv.RoutingSchedule, which goes from 30 to 1 over the first ten epochs.",
            f"softmax temperature above {ANNEALED_TEMPERATURE:g}",
            f"temperature {min(hot.values()):g} … {max(hot.values()):g}",
        )


def _collapsed(analysis: Analysis) -> Iterator[Advice]:
    for group in analysis.groups:
        measures = analysis.measures[group.name]
        if group.num_experts > 1 and measures.effective_overall < COLLAPSED_EFFECTIVE:
            yield Advice(
                "collapsed router",
                group.name,
                f"One expert ({int(measures.mean.argmax())}) takes it all for nearly every image. Train with a higher "
                "temperature at first, with expert dropout, or with a lower learning rate.",
                f"effective experts overall below {COLLAPSED_EFFECTIVE}",
                f"effective experts overall {measures.effective_overall:.3f} of {group.num_experts}",
            )


def _copies(analysis: Analysis) -> Iterator[Advice]:
    for group in analysis.groups:
        similarity = analysis.group_weight_similarity(group)
        if not math.isnan(similarity) and similarity >= COPIED_WEIGHTS:
            yield Advice(
                "experts are still copies",
                group.name,
                "The experts' kernels are nearly the same, as an upcycled network's are before training: train it, or "
                "revert these layers.",
                f"weight similarity of at least {COPIED_WEIGHTS}",
                f"weight similarity {similarity:.4f}",
            )


rules.register("chance", _at_chance)
rules.register("fold", _fold)
rules.register("drop", _drop)
rules.register("anneal", _anneal)
rules.register("collapsed", _collapsed)
rules.register("copies", _copies)
