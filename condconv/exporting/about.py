"""What an exported file says of itself: the images that it takes, how they are prepared, and what its classes are."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import condconv
from condconv.models.build import origin_of
from condconv.models.trained_on import noted_images
from condconv.reading import parse_json

KEY = "condconv"
"""Under which name every format keeps it."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class About:
    """Kept as JSON in the file itself."""

    name: str
    batch: int | None
    """Images of a call; None for any number."""
    input_size: tuple[int, ...]
    """(C, *space)."""
    mean: tuple[float, ...]
    """Of each channel on [0, 1], to be subtracted, before `std` divides."""
    std: tuple[float, ...]
    classes: tuple[str, ...]
    """Empty where the output is no classification."""
    native: bool = False
    """Whether images of another size are refused, not resized."""

    def to_json(self) -> str:
        """As text."""
        versions = {"format_version": FORMAT_VERSION, "condconv_version": condconv.__version__}
        return json.dumps(versions | dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> About:
        """From text; `ValueError` where it is not what `to_json` writes."""
        found = parse_json(text)
        if not isinstance(found, dict) or not isinstance(found.get("format_version"), int):
            raise ValueError("no format_version")
        if found["format_version"] > FORMAT_VERSION:
            raise ValueError(f"written by condconv {found.get('condconv_version')}, which is newer; upgrade condconv")
        try:
            values: dict[str, Any] = {field.name: found[field.name] for field in dataclasses.fields(About)}
        except KeyError as error:
            raise ValueError(f"no {error.args[0]}") from None
        given: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return About(**given)


def describe(model: nn.Module, input_size: tuple[int, ...], output: Any) -> About:
    """What is known of a network: its normalisation and its classes; numbers where they have no names.

    Args:
        model: the network.
        input_size: (C, *space) of its images.
        output: for one image.
    """
    published = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (tuple(published.get(name) or (0.5,) * input_size[0]) for name in ("mean", "std"))
    scores = isinstance(output, Tensor) and output.dim() == 2
    noted = noted_images(model) or {}
    numbers = tuple(str(label) for label in range(output.shape[1])) if scores else ()
    origin = origin_of(model)
    name = (origin.name if origin else None) or type(model).__name__
    return About(name, None, input_size, mean, std, noted.get("label_names", numbers), noted.get("native", False))
