"""What is known of joints by their names: how exactly people place them, and which one is which in a mirror."""

from __future__ import annotations

from collections.abc import Sequence

_COCO_SIGMAS = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107,
    "knee": 0.087, "ankle": 0.089,
}  # fmt: skip
OTHER_SIGMA = 0.05
"""Of joints that COCO has not: the deviation of annotators as a share of the object's size."""


def sigmas_of(names: Sequence[str]) -> list[float]:
    """COCO's deviations where all names are COCO's ("left_knee", …), 0.05 for every joint otherwise."""
    found = [_COCO_SIGMAS.get(name.removeprefix("left_").removeprefix("right_")) for name in names]
    if any(sigma is None for sigma in found):
        return [OTHER_SIGMA] * len(names)
    return [sigma for sigma in found if sigma is not None]


def mirror_of(names: Sequence[str]) -> list[int] | None:
    """Which joint of the mirrored object each one is; None where no names differ by "left" and "right" alone.

    Without such names nothing says what a mirrored object looks like, and nothing is mirrored.
    """
    places = {name: place for place, name in enumerate(names)}
    swapped = [places.get(_other_side(name), place) for place, name in enumerate(names)]
    return None if swapped == list(range(len(names))) else swapped


def _other_side(name: str) -> str:
    for one, other in (("left", "right"), ("Left", "Right")):
        if one in name:
            return name.replace(one, other)
        if other in name:
            return name.replace(other, one)
    return name
