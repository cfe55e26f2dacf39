"""`condconv data check`: what is wrong in a data set, before a training finds out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv.cli.parser import Parser


def make_parser() -> Parser:
    """The arguments of `condconv data`."""
    parser = Parser(prog="condconv data", description="List what is wrong in annotations; exit code 2 if anything is.")
    parser.add_argument("action", type=str, choices=["check"], help="check")
    parser.add_argument("data", type=str, help="folder of train.json and val.json, or of annotations/")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Read both halves, print each problem and what there is."""
    settings = make_parser().parse_args(list(arguments))

    # Imported here, so that --help answers at once.
    from condconv.tasks.detect.opening import read_half

    problems = 0
    for half in ("train", "val"):
        found = read_half(Path(settings.data).expanduser(), half)
        objects = sum(len(each.labels) for each in found.images.objects)
        empty = sum(not len(each.labels) for each in found.images.objects)
        for problem in found.problems:
            print(f"{half}: {problem}")
        problems += len(found.problems)
        print(
            f"{half}: {len(found.images):,} images, {empty:,} of them without objects; {objects:,} objects of "
            f"{len(found.classes)} classes; {len(found.problems)} problems"
        )
    return 2 if problems else 0
