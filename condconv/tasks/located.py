"""What a network locates in any images, written as JSON, as a table, and drawn into the images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condconv.evaluation.evaluate import evaluation_loader
from condconv.files import whole_folder
from condconv.safe_text import cells
from condconv.tasks.base import Request, Task
from condconv.tasks.outputs import output_names


class Answer(NamedTuple):
    """What is written of one image."""

    entries: list[dict[str, Any]]
    """Of the JSON; each gets the image's name."""
    rows: Iterable[Sequence[str]]
    """Of the table; each begins with the image's name."""
    picture: bytes
    """A PNG."""


@torch.inference_mode()
def locate_all(
    task: Task,
    request: Request,
    name: str,
    columns: Sequence[str],
    found: Callable[[Any, Sequence[Any]], Sequence[Any]],
    answer: Callable[[Tensor, Any], Answer],
) -> list[str]:
    """Locate in the validation images of a source and write the folder: whole, or not at all.

    Args:
        task: what the network was trained for.
        request: network, images and folder.
        name: of the two files.
        columns: of the table, after the image's name.
        found: (output, batch) → what was found in each image.
        answer: (image as stored, what was found in it) → what is written of it.

    Returns:
        The images that could not be decoded.

    Raises:
        ArgumentError: the folder cannot be written.
        DataError: an image cannot be decoded, and is not to be skipped.
    """
    source = request.source
    network = request.network.to(request.device).eval()
    names, damaged = output_names(source.val), []
    results: list[dict[str, Any]] = []
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", *columns))
    with whole_folder(request.out) as folder:
        view = task.view(source, train=False, skip_bad=request.skip_bad)
        for batch in evaluation_loader(view, task, request.batch_size, request.workers):
            images, _, places, decoded, *_ = batch
            output = task.run(network, [images.to(request.device), *batch[1:]])
            for place, whole, one in zip(places.tolist(), decoded.tolist(), found(output, batch), strict=True):
                where = source.val.where(place)
                if not whole:
                    damaged.append(where)
                    continue
                entries, rows, picture = answer(source.val.load(place), one)
                results += [{"file_name": where, **entry} for entry in entries]
                table.writerows(cells((where, *row)) for row in rows)
                (folder.path / names[place]).write_bytes(picture)
            request.progress(int(places[-1]) + 1, len(source.val))
        (folder.path / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
        (folder.path / f"{name}.csv").write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
    return damaged
