"""Makes a detection set in which routing can matter: the same shapes, drawn in one of several styles.

    python -m benchmarks.accuracy.styles styles                 # a style for each image, which global pooling can see
    python -m benchmarks.accuracy.styles mixed --per object     # a style for each object, which it cannot
    python -m benchmarks.accuracy.styles plain --styles filled  # one style alone: nothing to route by

A small static network needs a filter for a dark edge on light ground and another for a light one on dark ground; a
conditional one can have the filter that the image needs. The seed is the set: it is drawn anew wherever it is needed.
Annotations are COCO's JSON, `train.json` and `val.json`; each image's entry says its `style`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAPES = ("disc", "square", "triangle", "cross")
STYLES = ("filled", "inverted", "outline", "hatched", "noisy", "dim")
_BACKGROUND = 60
"""The grey of the ground; light in the style "inverted"."""


def corners(shape: str, x: float, y: float, radius: float, angle: float) -> list[tuple[float, float]]:
    """The outline of a shape about (x, y)."""
    if shape == "cross":
        third, whole = 1 / 3, 1.0
        plan = [(third, whole), (third, third), (whole, third), (whole, -third), (third, -third), (third, -whole)]
        plan += [(-px, -py) for px, py in plan]
    else:
        sides = {"disc": 40, "square": 4, "triangle": 3}[shape]
        plan = [(math.sin(2 * math.pi * k / sides), math.cos(2 * math.pi * k / sides)) for k in range(sides)]
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + radius * (cos * px - sin * py), y + radius * (sin * px + cos * py)) for px, py in plan]


def draw(image: Image.Image, outline: list[tuple[float, float]], style: str, grey: int) -> None:
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


def make_image(
    random: np.random.Generator, size: int, styles: tuple[str, ...], per_object: bool
) -> tuple[Image.Image, str, list[tuple[int, list[float]]]]:
    """An image, its style, and the shapes in it: number of the shape, and its box x, y, width, height."""
    style = styles[random.integers(len(styles))]
    image = Image.new("L", (size, size), _BACKGROUND)
    found: list[tuple[int, list[float]]] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(random.integers(1, 5)):
        radius = float(random.uniform(size / 9, size / 5))
        x, y = (float(value) for value in random.uniform(radius, size - radius, 2))
        if any(math.hypot(x - a, y - b) < radius + r for a, b, r in taken):
            continue
        taken.append((x, y, radius))
        shape = int(random.integers(len(SHAPES)))
        outline = corners(SHAPES[shape], x, y, radius, float(random.uniform(0, 2 * math.pi)))
        own = styles[random.integers(len(styles))] if per_object else style
        draw(image, outline, own, int(random.integers(140, 220)))
        left, top = (max(0.0, min(point[axis] for point in outline)) for axis in (0, 1))
        right, bottom = (min(float(size), max(point[axis] for point in outline)) for axis in (0, 1))
        found.append((shape, [left, top, right - left, bottom - top]))
    return finished(image, "filled" if per_object else style, random), "mixed" if per_object else style, found


def make_set(
    folder: Path, counts: dict[str, int], size: int, styles: tuple[str, ...], per_object: bool, seed: int
) -> None:
    """Write a folder, which must not exist."""
    for number, (half, count) in enumerate(counts.items()):
        (folder / half).mkdir(parents=True)
        random = np.random.default_rng((seed, number))
        content: dict[str, Any] = {
            "images": [], "annotations": [],
            "categories": [{"id": place, "name": name} for place, name in enumerate(SHAPES, 1)],
        }  # fmt: skip
        for image_id in range(1, count + 1):
            image, style, found = make_image(random, size, styles, per_object)
            name = f"{image_id:05d}.png"
            image.save(folder / half / name)
            content["images"].append(
                {"id": image_id, "file_name": name, "width": size, "height": size, "style": style}
            )
            for shape, box in found:
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": shape + 1, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        (folder / f"{half}.json").write_text(json.dumps(content), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Parse, and make the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--val", type=int, default=500)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--per", choices=("image", "object"), default="image")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    counts = {"train": given.train, "val": given.val}
    make_set(given.out, counts, given.size, tuple(given.styles), given.per == "object", given.seed)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
