"""`condconv shard`: an image folder as WebDataset tar shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from condconv.cli.parser import Parser
from condconv.errors import argument_error
from condconv.progress import progress_bar


def make_parser() -> Parser:
    """The flags of `condconv shard`."""
    parser = Parser(prog="condconv shard", description="Turn an image folder into WebDataset tar shards.")
    parser.add_argument("folder", type=str, help="image folder: train/<class>/… and val/<class>/…")
    parser.add_argument("--out", type=str, default=None, help="folder of the shards (default: FOLDER-shards)")
    parser.add_argument("--shard-size", type=int, default=5000, help="images in a shard")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one for each core; 0: this one)")
    parser.add_argument("--skip-bad-images", action="store_true", default=False, help="leave out damaged images")
    parser.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Write what is not written yet, and say what there is."""
    settings = make_parser().parse_args(list(arguments))
    workers = (os.cpu_count() or 1) if settings.workers is None else settings.workers
    if settings.shard_size < 1:
        raise argument_error("shard", "--shard-size", settings.shard_size, "must be at least 1", "the default is 5000")
    if workers < 0:
        raise argument_error("shard", "--workers", workers, "must not be negative", "pass 0 or more")
    folder = Path(settings.folder).expanduser()
    out = Path(f"{folder}-shards" if settings.out is None else settings.out).expanduser()

    from condconv.data.sharding import write_shards  # here: --help answers without loading torch

    with progress_bar("images") as progress:
        manifest = write_shards(
            folder, out, shard_size=settings.shard_size, workers=workers, skip_bad=settings.skip_bad_images,
            progress=progress,
        )  # fmt: skip
    for half, shards in (("train", manifest.train), ("val", manifest.val)):
        print(f"{half}: {sum(shard.samples or 0 for shard in shards):,} images in {len(shards)} shards")
    for name in manifest.skipped:
        print(f"notice: left out {name}: cannot be decoded")
    if manifest.skipped:
        print(f"notice: left out {len(manifest.skipped)} damaged images")
    print(f"shards: {out}")
    return 0
