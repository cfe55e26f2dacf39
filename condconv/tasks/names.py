"""Names of the files that are made of images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from condconv.data import ImageSet


def output_names(images: ImageSet) -> list[str]:
    """The stem of each picture's name with .png; numbered where several are called the same."""
    stems = [Path(images.where(place).rpartition(", sample ")[2]).stem for place in range(len(images))]
    seen: Counter[str] = Counter()
    names = []
    for stem in stems:
        seen[stem] += 1
        names.append(f"{stem}.png" if seen[stem] == 1 else f"{stem}-{seen[stem]}.png")
    return names
