"""What `condconv predict` makes of images: names of files, and what is said where they cannot be written."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from condconv.data import ImageSet
from condconv.errors import ArgumentError
from condconv.files import require_writable


def output_names(images: ImageSet) -> list[str]:
    """The stem of each picture's name with .png; numbered where several are called the same."""
    stems = [Path(images.where(place).rpartition(", sample ")[2]).stem for place in range(len(images))]
    seen: Counter[str] = Counter()
    names = []
    for stem in stems:
        seen[stem] += 1
        names.append(f"{stem}.png" if seen[stem] == 1 else f"{stem}-{seen[stem]}.png")
    return names


def check_new_folder(out: Path) -> None:
    """Raise `ArgumentError` unless a new folder can be made there."""
    if out.exists():
        raise ArgumentError(f"--out {out}: is there already; move it away, or pass another name")
    require_writable(out)


@contextlib.contextmanager
def kept_so_far(out: Path) -> Iterator[None]:
    """Turn an `OSError` into an `ArgumentError` that says how to go on: what is done is kept."""
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            f"--out {out}: cannot be written ({error.strerror or error}); make room or pass another name, then go on "
            "with the same command"
        ) from error
