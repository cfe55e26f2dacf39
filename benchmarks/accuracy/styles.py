"""Makes a detection set in which routing can matter: the same shapes, drawn in one of several styles.

Annotations are COCO's JSON, `train.json` and `val.json`.

    python -m benchmarks.accuracy.styles styles                 # a style for each image, which global pooling can see
    python -m benchmarks.accuracy.styles mixed --per object     # a style for each object, which it cannot
    python -m benchmarks.accuracy.styles plain --styles filled  # one style alone: nothing to route by
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.accuracy.made_sets import BACKGROUND, Made, Points, draw, finished, make_parser, write_set

SHAPES = ("disc", "square", "triangle", "cross")


def corners(shape: str, x: float, y: float, radius: float, angle: float) -> Points:
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


def make_image(random: np.random.Generator, size: int, styles: Sequence[str], per_object: bool) -> Made:
    """Shapes with their boxes."""
    style = styles[int(random.integers(len(styles)))]
    image = Image.new("L", (size, size), BACKGROUND)
    found = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(random.integers(1, 5)):
        radius = float(random.uniform(size / 9, size / 5))
        x, y = (float(value) for value in random.uniform(radius, size - radius, 2))
        if any(math.hypot(x - a, y - b) < radius + r for a, b, r in taken):
            continue
        taken.append((x, y, radius))
        shape = int(random.integers(len(SHAPES)))
        outline = corners(SHAPES[shape], x, y, radius, float(random.uniform(0, 2 * math.pi)))
        own = styles[int(random.integers(len(styles)))] if per_object else style
        draw(image, outline, own, int(random.integers(140, 220)))
        left, top = (max(0.0, min(point[axis] for point in outline)) for axis in (0, 1))
        right, bottom = (min(float(size), max(point[axis] for point in outline)) for axis in (0, 1))
        width, height = right - left, bottom - top
        found.append({"category_id": shape + 1, "bbox": [left, top, width, height], "area": width * height})
    if per_object:
        return Made(finished(image, "filled", random), "mixed", found)
    return Made(finished(image, style, random), style, found)


def main(arguments: list[str] | None = None) -> None:
    """Parse, and make the set."""
    parser = make_parser(__doc__)
    parser.add_argument("--per", choices=("image", "object"), default="image")
    given = parser.parse_args(arguments)
    categories = [{"id": place, "name": name} for place, name in enumerate(SHAPES, 1)]
    counts = {"train": given.train, "val": given.val}
    write_set(
        given.out, "{}.json", categories, counts, given.seed,
        lambda random: make_image(random, given.size, given.styles, given.per == "object"),
    )  # fmt: skip
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
