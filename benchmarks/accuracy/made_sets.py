"""What the made sets share: styles of drawing, and a folder with annotations in COCO's JSON.

A small static network needs a filter for a dark edge on light ground and another for a light one on dark ground; a
conditional one can have the filter that the image needs. The seed is the set: it is drawn anew wherever it is needed.
Each image's entry says its `style`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

STYLES = ("filled", "inverted", "outline", "hatched", "noisy", "dim")
BACKGROUND = 60
"""The grey of the ground; light in the style "inverted"."""
Points = list[tuple[float, float]]


class Made(NamedTuple):
    """An image, its style, and an entry of the annotations for each thing in it."""

    image: Image.Image
    style: str
    annotations: list[dict[str, Any]]


def draw(image: Image.Image, outline: Points, style: str, grey: int) -> None:
    """Draw one shape on an image."""
    canvas = ImageDraw.Draw(image)
    if style == "outline":
        canvas.line([*outline, outline[0]], fill=grey, width=2)
    elif style == "hatched":
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).polygon(outline, fill=255)
        lines = Image.new("L", image.size)
        hatch = ImageDraw.Draw(lines)
        for offset in range(-image.height, image.width, 5):
            hatch.line([(offset, 0), (offset + image.height, image.height)], fill=255, width=2)
        image.paste(grey, mask=Image.fromarray(np.minimum(np.asarray(mask), np.asarray(lines))))
    else:
        canvas.polygon(outline, fill=grey)


def finished(image: Image.Image, style: str, random: np.random.Generator) -> Image.Image:
    """What a style does to the whole image."""
    if style == "dim":
        image = image.filter(ImageFilter.GaussianBlur(2.0))
    pixels = np.asarray(image, dtype=np.float64)
    if style == "inverted":
        pixels = 255 - pixels
    if style == "dim":
        pixels = 0.35 * pixels
    pixels = pixels + random.normal(0.0, 45.0 if style == "noisy" else 6.0, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_set(
    folder: Path, annotations: str, categories: Sequence[Mapping[str, Any]], counts: Mapping[str, int], seed: int,
    make: Callable[[np.random.Generator], Made],
) -> None:  # fmt: skip
    """Write a folder, which must not exist.

    Args:
        folder: where.
        annotations: the file of a half in it, such as "{}.json".
        categories: the list of categories.
        counts: images of each half.
        seed: from which all is drawn.
        make: draws an image.
    """
    for number, (half, count) in enumerate(counts.items()):
        (folder / half).mkdir(parents=True)
        random = np.random.default_rng((seed, number))
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": list(categories)}
        for image_id in range(1, count + 1):
            image, style, found = make(random)
            name = f"{image_id:05d}.png"
            image.save(folder / half / name)
            content["images"].append(
                {"id": image_id, "file_name": name, "width": image.width, "height": image.height, "style": style}
            )
            for each in found:
                place = {"id": len(content["annotations"]) + 1, "image_id": image_id, "iscrowd": 0}
                content["annotations"].append(place | each)
        path = folder / annotations.format(half)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that the made sets have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--val", type=int, default=500)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--seed", type=int, default=0)
    return parser
