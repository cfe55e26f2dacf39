"""What was done to a picture: noise, blur, or packing as JPEG, of a strength that nobody says.

Which one, how strong, and its noise are a function of a seed alone. What comes out is a picture as a file holds it, of
8 bits, since that is what a trained network will be given.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from condconv.data.decoding import decode_image
from condconv.errors import ArgumentError, argument_error
from condconv.registry import Registry

LEVELS = 5
"""Into so many equal parts the range of a strength is cut, where results are reported by strength."""


@dataclass(frozen=True)
class Kind:
    """A way to degrade: picture uint8 (C, H, W), strength, generator → uint8; its range, and the widest one."""

    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    usual: tuple[float, float]
    widest: tuple[float, float]


kinds: Registry[Kind] = Registry("degradation")


def _noise(picture: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return (picture + strength * torch.randn(picture.shape, generator=generator)).round_().clamp_(0, 255).byte()


def _blur(picture: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if strength == 0:
        return picture
    side = 2 * min(round(3 * strength), (min(picture.shape[1:]) - 1) // 2) + 1
    return v2.functional.gaussian_blur(picture, [side, side], [strength, strength])


def _jpeg(picture: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    packed = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()).save(packed, "JPEG", quality=round(strength))
    return decode_image(packed.getvalue(), "a picture packed as JPEG", len(picture))


kinds.register("noise", Kind(_noise, (0.0, 75.0), (0.0, 255.0)))
kinds.register("blur", Kind(_blur, (0.0, 3.0), (0.0, 20.0)))
kinds.register("jpeg", Kind(_jpeg, (10.0, 90.0), (1.0, 100.0)))


@dataclass(frozen=True)
class Degradation:
    """One kind with its range of strengths."""

    name: str
    low: float
    high: float

    def levels(self) -> list[str]:
        """Names of the parts of the range."""
        edges = [self.low + i * (self.high - self.low) / LEVELS for i in range(LEVELS + 1)]
        return [f"{self.name} {low:g}–{high:g}" for low, high in zip(edges, edges[1:], strict=False)]

    def level_of(self, strength: float) -> int:
        """The part that a strength lies in."""
        share = (strength - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return min(int(LEVELS * share), LEVELS - 1)


@dataclass(frozen=True)
class Degraded:
    """A degraded picture uint8 (C, H, W), its group (see `Degradations.groups`), and the strength."""

    picture: Tensor
    group: int
    strength: float


@dataclass(frozen=True)
class Degradations:
    """Some degradations, of which each picture has one, each equally often."""

    each: tuple[Degradation, ...]

    def groups(self) -> tuple[str, ...]:
        """Each degradation at each level."""
        return tuple(level for one in self.each for level in one.levels())

    def __call__(self, picture: Tensor, seed: int) -> Degraded:
        """Degrade a picture, uint8 (C, H, W), as the seed says."""
        generator = torch.Generator().manual_seed(seed)
        which = int(torch.randint(len(self.each), (), generator=generator))
        one = self.each[which]
        strength = one.low + (one.high - one.low) * float(torch.rand((), generator=generator))
        degraded = kinds[one.name].apply(picture, strength, generator)
        return Degraded(degraded, which * LEVELS + one.level_of(strength), strength)


def parse_degradations(text: str) -> Degradations:
    """Read "noise:0-75,jpeg": names joined by commas, some with a range behind a colon.

    Raises:
        UnknownNameError: an unknown name; the message has the closest ones.
        ArgumentError: a name twice, or a range that is none or lies outside what the degradation can do.
    """
    found = []
    for word in text.split(","):
        name, _, given = word.strip().partition(":")
        kind = kinds[name]
        low, high = _range(text, name, given, kind) if given else kind.usual
        found.append(Degradation(name, low, high))
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise argument_error("train", "degradations", text, "has a name twice", "name each one once")
    return Degradations(tuple(found))


def _range(text: str, name: str, given: str, kind: Kind) -> tuple[float, float]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", given)
    least, most = kind.widest
    if match is not None:
        low, high = float(match[1]), float(match[2])
        if least <= low <= high <= most:
            return low, high
    usual = "{:g}-{:g}".format(*kind.usual)
    raise ArgumentError(
        f"train: degradations={text!r} gives {name!r} the range {given!r}, which must be two numbers from {least:g} to "
        f"{most:g}, the smaller one first; write {name}:{usual} or {name}"
    )
