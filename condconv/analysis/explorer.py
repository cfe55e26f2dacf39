"""What the routing explorer of the report shows, as one JSON-able record: numbers in a byte each, images as thumbnails.

A mean or coefficient is stored as round(254 x / scale); 255 stands for "none". The tables have the exact numbers.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from condconv.analysis.drawing import COLOUR_MAP, COLOURS
from condconv.analysis.figures import TOP_CLASSES
from condconv.analysis.results import Analysis, ImageAccess
from condconv.errors import DataError

STEPS = 254
NONE = 255
THUMBNAIL_PIXELS = 48
MOST_THUMBNAILS = 2000
_COLOUR_STEPS = 32


def explorer_data(analysis: Analysis, images: ImageAccess | None) -> dict[str, Any]:
    """Return the record. Without `images` there are no thumbnails."""
    collection = analysis.collection
    experts = sum(group.num_experts for group in analysis.groups)
    budget = MOST_THUMBNAILS - len(collection.sample_places)
    top = max(1, min(collection.totals.of(analysis.groups[0].name).top_place.shape[1], budget // experts))
    layers = [_layer(analysis, index, top) for index in range(len(analysis.groups))]
    shown = {place for layer in layers for row in layer["top"] for place, _ in row}
    return {
        "classes": list(analysis.classes),
        "counts": _counts(analysis),
        "layers": layers,
        "samples": [
            {"place": place, "label": label, "name": _short(images.where(place)) if images else f"image {place}"}
            for place, label in zip(collection.sample_places, collection.sample_labels, strict=True)
        ],
        "images": thumbnails([*collection.sample_places, *sorted(shown - set(collection.sample_places))], images),
        "topClasses": TOP_CLASSES,
        "palette": [_hex(colour) for colour in colormaps[COLOUR_MAP](np.linspace(0, 1, _COLOUR_STEPS))],
        "pair": [COLOURS[0], COLOURS[1]],
    }


def _layer(analysis: Analysis, index: int, top: int) -> dict[str, Any]:
    group = analysis.groups[index]
    measures = analysis.measures[group.name]
    totals = analysis.collection.totals.of(group.name)
    sample = analysis.collection.sample_coefficients[group.name]
    # A byte has 254 steps from 0 to the largest value that is shown.
    scale = max(1e-6, *(float(values.nan_to_num(0, 0, 0).max()) for values in (measures.class_mean, sample)))
    return {
        "name": group.name,
        "layers": list(group.layers),
        "experts": group.num_experts,
        "scale": scale,
        "mean": _bytes(measures.class_mean, scale),
        "std": _bytes(measures.class_std, scale),
        "samples": _bytes(sample, scale),
        "top": [
            [[place, round(value, 4)] for place, value in zip(places, values, strict=True) if place >= 0][:top]
            for places, values in zip(totals.top_place.tolist(), totals.top_value.tolist(), strict=True)
        ],
        "dead": list(measures.dead),
        "alwaysOn": list(measures.always_on),
        "largest": [round(value, 4) if measures.images else None for value in measures.largest.tolist()],
    }


def _counts(analysis: Analysis) -> list[int]:
    """Images by class, the most that any routing decision saw."""
    return torch.stack([m.class_count for m in analysis.measures.values()]).amax(dim=0).tolist()


def _bytes(values: Tensor, scale: float) -> str:
    """A matrix in row order, one byte for each entry, base64."""
    finite = values.isfinite()
    steps = (values.nan_to_num() / scale * STEPS).round().clamp(0, STEPS)
    return base64.b64encode(steps.masked_fill(~finite, NONE).to(torch.uint8).numpy().tobytes()).decode("ascii")


def thumbnails(places: Iterable[int], images: ImageAccess | None) -> dict[int, str]:
    """Return small pictures as data URLs by place. One that cannot be read any more is left out."""
    made = {}
    for place in places if images is not None else ():
        try:
            made[place] = thumbnail(images.load(place)) if images else ""
        except DataError:
            continue
    return made


def thumbnail(pixels: Tensor) -> str:
    """Return uint8 pixels (ch, H, W) as a data URL, at most 48 pixels wide and high."""
    array = pixels.permute(1, 2, 0).squeeze(-1).numpy()
    picture = Image.fromarray(array)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _short(where: str) -> str:
    """The last two parts of a path: whose folders it lies in is nobody's business but its owner's."""
    return "/".join(where.split(os.sep)[-2:])


def _hex(colour: Iterable[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in list(colour)[:3])
