"""Pictures under unknown conditions: each one inverted, turned, noisy or blurred, and nobody says which.

What cameras, sites and sensors do to a deployed network, made on purpose. A picture gets one of the named conditions;
which one, and its noise, are a function of a seed alone (of run, epoch and index in training; of the index in
validation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from condconv.errors import argument_error
from condconv.registry import Registry

CONTRAST, NOISE, BLUR = 0.5, 0.7, 1.0
"""Of a noisy picture: the contrast that is left, and the noise in standard deviations of the set; of a blurred one: the
standard deviation of the Gaussian, pixels. Strength 1; noise and blur grow with it."""


@dataclass(frozen=True)
class Setting:
    """What a condition may use: mean and standard deviation of the set, each (C, 1, 1), strength, random numbers of the
    image's device.
    """

    mean: Tensor
    std: Tensor
    strength: float
    generator: torch.Generator


Condition = Callable[[Tensor, Setting], Tensor]
"""Image f32 (C, H, W), or several (N, C, H, W), on [0, 1] → the same shape."""

conditions: Registry[Condition] = Registry("condition")


def _noisy(image: Tensor, setting: Setting) -> Tensor:
    drawn = torch.randn(image.shape, generator=setting.generator, device=image.device)
    noise = drawn * (NOISE * setting.strength * setting.std)
    return (image - setting.mean) * CONTRAST + setting.mean + noise


def _blurred(image: Tensor, setting: Setting) -> Tensor:
    sigma = BLUR * setting.strength
    side = 2 * min(round(3 * sigma), (min(image.shape[-2:]) - 1) // 2) + 1
    return v2.functional.gaussian_blur(image, [side, side], [sigma, sigma])


conditions.register("plain", lambda image, _: image)
conditions.register("inverted", lambda image, _: 1 - image)
conditions.register("turned", lambda image, _: image.rot90(1, (-2, -1)))
conditions.register("noisy", _noisy)
conditions.register("blurred", _blurred)

_WITH_STRENGTH = ("noisy", "blurred")


@dataclass(frozen=True)
class Conditions:
    """The conditions that pictures are under, each equally often, with the strength of each."""

    names: tuple[str, ...]
    strengths: tuple[float, ...]

    def of(self, seed: int) -> int:
        """Which one a seed (63 bits, from `sample_seed`) chooses: its place among the names."""
        return (seed >> 20) % len(self.names)

    def apply(self, which: int, image: Tensor, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
        """Put an image, or several (N, C, H, W), under the condition at that place among the names."""
        setting = Setting(mean, std, self.strengths[which], generator)
        return conditions[self.names[which]](image, setting)

    def __call__(self, image: Tensor, mean: Tensor, std: Tensor, seed: int) -> Tensor:
        """Put an image, f32 (C, H, W) on [0, 1], under the condition that the seed chooses."""
        return self.apply(self.of(seed), image, mean, std, torch.Generator().manual_seed(seed))


def parse_conditions(text: str, image_size: Sequence[int], where: str = "train") -> Conditions:
    """Read "plain,inverted,noisy:1.5", or "all": names joined by commas, some with a strength behind a colon.

    Raises:
        UnknownNameError: an unknown name; the message has the closest ones.
        ArgumentError: a name twice, a strength that is no positive number or of a condition without one, or pictures
            that are not square and would be turned.
    """
    words = conditions.names() if text == "all" else [word.strip() for word in text.split(",")]
    names, strengths = [], []
    for word in words:
        name, _, given = word.partition(":")
        conditions[name]
        names.append(name)
        strengths.append(_strength(text, name, given, where) if given else 1.0)
    if len(set(names)) != len(names):
        raise argument_error(where, "conditions", text, "has a name twice", "name each one once")
    if "turned" in names and image_size[0] != image_size[1]:
        rule = f"turns pictures, and these are not square ({image_size[0]} x {image_size[1]} pixels)"
        raise argument_error(where, "conditions", text, rule, "leave 'turned' out, or pass --input-size")
    return Conditions(tuple(names), tuple(strengths))


def _strength(text: str, name: str, given: str, where: str) -> float:
    if name not in _WITH_STRENGTH:
        rule = f"gives {name!r} a strength, which only {' and '.join(_WITH_STRENGTH)} have"
        raise argument_error(where, "conditions", text, rule, f"write {name}")
    try:
        strength = float(given)
    except ValueError:
        strength = 0.0
    if not 0 < strength <= 10:
        rule = f"gives {name!r} the strength {given!r}, which must lie above 0 and be at most 10"
        raise argument_error(where, "conditions", text, rule, f"write {name}:1.5 or {name}")
    return strength
