"""`condconv data check`: what is wrong in a data set, before a training finds out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv.cli.parser import Parser


def make_parser() -> Parser:
    """The arguments of `condconv data`."""
    parser = Parser(prog="condconv data", description="List what is wrong in annotations; exit code 2 if anything is.")
    parser.add_argument("action", type=str, choices=["check"], help="check")
    parser.add_argument("data", type=str, help="folder of annotated images, as `condconv train --data` takes it")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Read both halves, print each problem and what there is."""
    settings = make_parser().parse_args(list(arguments))

    # Imported here, so that --help answers at once.
    from condconv.tasks import task_named_by

    described = _joints if task_named_by(settings.data) == "keypoints" else _objects
    problems = 0
    for half in ("train", "val"):
        found, wrong = described(Path(settings.data).expanduser(), half)
        for problem in wrong:
            print(f"{half}: {problem}")
        problems += len(wrong)
        print(f"{half}: {found}; {len(wrong)} problems")
    return 2 if problems else 0


def _objects(folder: Path, half: str) -> tuple[str, list[str]]:
    """What a half has, in words, and what is wrong in it."""
    from condconv.tasks.detect.opening import read_half

    found = read_half(folder, half)
    objects = sum(len(each.labels) for each in found.images.objects)
    empty = sum(not len(each.labels) for each in found.images.objects)
    number, classes = len(found.images), len(found.classes)
    said = f"{number:,} images, {empty:,} of them without objects; {objects:,} objects of {classes} classes"
    return said, found.problems


def _joints(folder: Path, half: str) -> tuple[str, list[str]]:
    """The same of a set of keypoints."""
    from condconv.tasks.keypoints.opening import read_half

    found = read_half(folder, half)
    labelled = sum(int((each.joints[:, 2] > 0).sum()) for each in found.images.instances)
    images = len({each.image for each in found.images.instances})
    number, names = len(found.images), len(found.joints)
    said = f"{number:,} instances in {images:,} images; {labelled:,} labelled joints of {names} names"
    return said, found.problems
