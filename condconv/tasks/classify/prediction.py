"""Classifying images of any origin into a table, one row each, in their order; an interrupted call goes on.

While it grows, the table is a file of JSON lines beside its final name: the first says what is computed, each other one
is the answer for one image. A line that was cut by a kill is computed again. The table itself appears when it is whole.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.data import Source
from condconv.errors import ArgumentError
from condconv.evaluation.evaluate import evaluation_loader, mirrored_too
from condconv.evaluation.identity import weights_digest
from condconv.files import Lock, whole_file
from condconv.safe_text import write_csv
from condconv.tasks.base import Request, Task
from condconv.tasks.classify.evaluator import require_logits
from condconv.tasks.outputs import kept_so_far

FORMATS = (".csv", ".parquet")
_ROWS_AT_ONCE = 10_000

Answer = list[tuple[str, float]]
"""The likeliest classes of one image with their probabilities, the likeliest first; empty where it is damaged."""


def check_format(out: Path) -> None:
    """Raise `ArgumentError` unless a new table of that name can be written here."""
    if out.suffix.lower() not in FORMATS:
        raise ArgumentError(f"--out {out}: unknown kind of table; its name must end in {' or '.join(FORMATS)}")
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ArgumentError(
            f"--out {out}: Parquet needs the package pyarrow; install it with: pip install pyarrow, or write a .csv"
        )
    # A table beside its growing form was finished by a call that was killed before it removed that.
    if out.exists() and not _growing(out).exists():
        raise ArgumentError(f"--out {out}: is there already; move it away, or pass another name")


def _growing(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def predict(task: Task, request: Request, probabilities: Callable[[Tensor], Tensor]) -> list[str]:
    """Classify the validation images of a source and write the table: `image`, then `class_1`, `probability_1`, …

    Labels are not looked at. An image that cannot be decoded has an empty row, where it is to be skipped.

    Args:
        task: classification.
        request: `out` is the table, .csv or .parquet; `top_k` is cut to the number of classes.
        probabilities: logits (B, classes) → probabilities.

    Returns:
        The images that could not be decoded.

    Raises:
        ArgumentError: the table cannot be written, or what is there was begun with another network or other images.
        DataError: an image cannot be decoded; the rows before it are kept.
        BusyError: another process is writing this table.
    """
    source, out = request.source, request.out
    request.network.to(request.device).eval()
    top_k = min(request.top_k, len(source.classes))
    growing = _growing(out)
    with kept_so_far(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with Lock(out.with_name(f".{out.name}.lock"), f"--out {out}"):
            check_format(out)
            first = _begin(growing, _identity(request.network, source, top_k, request.tta))
            with growing.open("a", encoding="utf-8") as file:
                request.progress(first, len(source.val))
                for answers in _answers(task, request, first, top_k, probabilities):
                    file.writelines(f"{json.dumps(answer)}\n" for answer in answers)
                    file.flush()
                    first += len(answers)
                    request.progress(first, len(source.val))
            damaged = [source.val.where(place) for place, answer in enumerate(_read(growing)) if not answer]
            with whole_file(out) as temporary:
                (_write_parquet if out.suffix.lower() == ".parquet" else _write_csv)(temporary, growing, source, top_k)
            growing.unlink()
    return damaged


@torch.inference_mode()
def _answers(
    task: Task, request: Request, first: int, top_k: int, probabilities: Callable[[Tensor], Tensor]
) -> Iterator[list[Answer]]:
    """Batch by batch, from the image numbered `first` on."""
    source = request.source
    view = task.view(source, train=False, skip_bad=request.skip_bad)
    for images, _, _, decoded in evaluation_loader(view, task, request.batch_size, request.workers, first):
        images = images.to(request.device)
        logits = request.network(images).float()
        require_logits(logits, source)
        if request.tta:
            logits = mirrored_too(task, request.network, [images], logits)
        likeliest, classes = probabilities(logits).topk(top_k, dim=1)
        rows = zip(classes.tolist(), likeliest.tolist(), decoded.tolist(), strict=True)
        yield [
            [(source.classes[label], round(p, 6)) for label, p in zip(labels, ps, strict=True)] if whole else []
            for labels, ps, whole in rows
        ]


def _identity(network: nn.Module, source: Source, top_k: int, tta: bool) -> str:
    """What is computed: by which weights, over which images, how many classes for each, with their mirror images."""
    images = hashlib.sha256()
    for place in range(len(source.val)):
        images.update(f"{source.val.where(place)}\n".encode("utf-8", "surrogateescape"))
    prepared = (source.image_size, source.native, source.mean, source.std)
    mirrored = ["tta"] if tta else []
    return json.dumps([weights_digest(network), images.hexdigest(), repr(prepared), top_k, *mirrored])


def _begin(growing: Path, identity: str) -> int:
    """Make the growing table, or find out how many answers it has; a line that was cut is cut off."""
    if not growing.exists():
        with whole_file(growing) as temporary:
            temporary.write_text(f"{identity}\n", encoding="utf-8")
        return 0
    lines = whole = 0
    begun = ""
    with growing.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            begun = begun or line.decode("utf-8", "replace").rstrip("\n")
            lines, whole = lines + 1, whole + len(line)
    if begun != identity:
        raise ArgumentError(
            f"{growing}: was begun with another network, other images or another --top-k or --tta; repeat that call, "
            "pass another --out, or remove the file"
        )
    os.truncate(growing, whole)
    return lines - 1


def _read(growing: Path) -> Iterator[Answer]:
    with growing.open(encoding="utf-8") as file:
        for line in islice(file, 1, None):
            yield [(name, p) for name, p in json.loads(line)]


def _rows(growing: Path, source: Source, top_k: int) -> Iterator[list[str | float | None]]:
    """The rows of the table, with empty cells for a damaged image."""
    for place, answer in enumerate(_read(growing)):
        row: list[str | float | None] = [source.val.where(place)]
        for name, p in answer:
            row += [name, p]
        yield row if answer else row + [None] * (2 * top_k)


def _columns(top_k: int) -> list[str]:
    return ["image", *(f"{what}_{rank}" for rank in range(1, top_k + 1) for what in ("class", "probability"))]


def _write_csv(path: Path, growing: Path, source: Source, top_k: int) -> None:
    write_csv(path, _columns(top_k), _rows(growing, source, top_k))


def _write_parquet(path: Path, growing: Path, source: Source, top_k: int) -> None:
    import pyarrow
    from pyarrow import parquet

    names = _columns(top_k)
    kinds = [pyarrow.float32() if name.startswith("probability") else pyarrow.string() for name in names]
    schema = pyarrow.schema(list(zip(names, kinds, strict=True)))
    rows = _rows(growing, source, top_k)
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            columns = [
                pyarrow.array(column, kind) for column, kind in zip(zip(*chunk, strict=True), kinds, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
