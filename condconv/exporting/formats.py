"""The formats by name: one file each, `condconv.exporting.to_<name>`, which is imported when it is used."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

from torch import Tensor, nn

from condconv.errors import ArgumentError, CheckpointError, argument_error
from condconv.registry import unknown_name_message

TOLERANCE = 1e-4
"""Of an output, over its largest value: f32 in another order of summation."""

Run = Callable[[Tensor], list[Tensor]]
"""Images (B, C, *space) → the outputs, in the order of the network's own."""


class Opened(NamedTuple):
    """An exported file in its runtime."""

    about: str | None
    """What it says of itself, or None where it says nothing."""
    run: Run


class Writer(Protocol):
    """What each format's module has."""

    PACKAGES: Sequence[str]
    """That it needs, by the names of their modules."""

    def write(
        self, plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str, path: Path
    ) -> None:
        """Write a network to a file.

        Args:
            plain: a network for one example.
            example: (1, C, *space).
            batch: how many examples of a call; None for any number.
            names: of the outputs.
            about: to be kept in the file.
            path: the file; others of the same stem may be written beside it.
        """

    def open(self, path: Path) -> Opened:
        """Open a file in its runtime, on as many threads as torch has; whatever the runtime raises comes as it is."""


class Quantiser(Protocol):
    """What the modules of formats with int8 have too."""

    QUANTISED_BY: str
    """The package, by the name of its module."""

    def quantise(self, path: Path, images: Tensor) -> None:
        """Turn a file of `Writer.write` into int8, weights and activations, by the runtime's own tool.

        Args:
            path: the file, which is replaced.
            images: (N, C, *space), whose activations say how large they become.
        """


Int8 = Literal["batch 1", "any batch"]


class Kind(NamedTuple):
    """What is known of a format before its module is imported."""

    suffix: str
    runtime: str
    """The package that runs it."""
    one_image: bool
    """Whether a call takes one image, and never more."""
    int8: Int8 | None = None
    """For which batches it can be quantised."""


FORMATS = {
    "onnx": Kind(".onnx", "onnxruntime", False, "any batch"),
    "openvino": Kind(".xml", "openvino", False, "batch 1"),
    "executorch": Kind(".pte", "executorch", True),
    "pt2": Kind(".pt2", "torch", False),
}
_ELSEWHERE = {
    "tflite": "convert the .onnx file of --format onnx --batch 1 with onnx2tf, in an environment of its own",
    "tensorrt": "give the .onnx file of --format onnx --batch 1 to trtexec, on the machine that it will run on",
}


def check_format(where: str, format: str | None, path: Path) -> str:
    """Return the name of a format, read off the file's name where it is None.

    Raises:
        ArgumentError: no such format, one that is written elsewhere, another suffix, or a package is missing.
    """
    if format is None:
        format = next((name for name, kind in FORMATS.items() if kind.suffix == path.suffix), None)
        if format is None:
            known = ", ".join(kind.suffix for kind in FORMATS.values())
            raise argument_error(where, "path", str(path), "has no suffix of a known format", f"use one of {known}")
    if format in _ELSEWHERE:
        remedy = f"{_ELSEWHERE[format]} (docs/deployment.md)"
        raise argument_error(where, "format", format, "is not written here", remedy)
    if format not in FORMATS:
        raise ArgumentError(f"{where}: {unknown_name_message('format', format, [*FORMATS, *_ELSEWHERE])}")
    if path.suffix != FORMATS[format].suffix:
        rule = f"does not end in {FORMATS[format].suffix}, as files of format={format!r} do"
        raise argument_error(where, "path", str(path), rule, "name it so")
    require_packages(where, format)
    return format


def require_packages(where: str, format: str) -> None:
    """Raise `ArgumentError` where a format's runtime is not installed."""
    missing = [package for package in writer(format).PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        rule = f"needs the package {missing[0]}, which is not installed"
        raise argument_error(where, "format", format, rule, "install it with: pip install 'condconv[export]'")


def check_int8(where: str, format: str, batch: int | None) -> None:
    """Raise `ArgumentError` where a format has no int8, not for that batch, or its tool is not installed."""
    allowed = FORMATS[format].int8
    if allowed is None:
        known = " or ".join(name for name, kind in FORMATS.items() if kind.int8)
        raise argument_error(where, "int8", format, "is a format without int8 here", f"use {known}")
    if allowed == "batch 1" and batch != 1:
        rule = f"cannot be had in int8 by {format}, whose tool leaves loops as they are"
        raise argument_error(where, "batch", batch or "dynamic", rule, "pass batch=1")
    package = quantiser(format).QUANTISED_BY
    if importlib.util.find_spec(package) is None:
        rule = f"needs the package {package}, which is not installed"
        raise argument_error(where, "int8", format, rule, "install it with: pip install 'condconv[export]'")


def quantiser(format: str) -> Quantiser:
    """The module of a format that has int8."""
    return cast(Quantiser, importlib.import_module(f"condconv.exporting.to_{format}"))


def writer(format: str) -> Writer:
    """The module of a format."""
    return cast(Writer, importlib.import_module(f"condconv.exporting.to_{format}"))


def is_exported(path: Path) -> bool:
    """Whether a file of that name is one of a runtime."""
    return any(path.suffix == kind.suffix for kind in FORMATS.values())


def open_exported(path: Path) -> Opened:
    """Open an exported file in its runtime.

    Raises:
        ArgumentError: the runtime is not installed.
        CheckpointError: there is no such file, or the runtime cannot open it.
    """
    format = next(name for name, kind in FORMATS.items() if kind.suffix == path.suffix)
    require_packages(str(path), format)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; export one with: condconv export MODEL --out {path}")
    try:
        return writer(format).open(path)
    except Exception as error:  # Every runtime has errors of its own.
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path}: is no file that {format} can open, or a part of one ({type(error).__name__}: {reason}); copy or "
            "export it again"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what tools print and log to themselves; their errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a network's output, in the order in which exporters hand them out."""
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
