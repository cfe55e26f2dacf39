"""The verb: a network as the file of a runtime, which has to compute what the network does before it is handed out."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from condconv import arguments
from condconv.conversion.apply import conditional_layers, refuse_tiles
from condconv.errors import ArgumentError, CondConvError, ConversionError, argument_error
from condconv.exporting.about import About, describe
from condconv.exporting.formats import (
    FORMATS,
    TOLERANCE,
    Run,
    check_format,
    check_int8,
    quantiser,
    tensors,
    writer,
)
from condconv.exporting.rewriting import plain_form, static_form
from condconv.files import whole_files
from condconv.timing import measure

_SOME_BATCHES = (1, 2, 5)
_BURST_S = 0.06


class Beside(NamedTuple):
    """The file beside that of the static twin: size in bytes, median time of a call, and the ratio of the times."""

    bytes: int
    ms: float
    twin_bytes: int
    twin_ms: float
    ratio: float


class Quantised(NamedTuple):
    """The file before it became int8, and how the two differ over the calibration images."""

    bytes: int
    error: float
    """The largest difference of an output from the network's, over the output's largest value."""
    same_answer: float | None
    """Share of the images whose largest output is the same one; None where the output is no classification."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, how far it is from the network, and how it compares with its static twin."""

    path: Path
    format: str
    about: About
    error: float
    """The largest difference between an output of the file and of the network, over the output's largest value."""
    batches: tuple[int, ...]
    """At which it was compared."""
    bytes: int
    beside: Beside | None
    """None where the network is static, or the twin was not asked for."""
    int8: Quantised | None = None
    """None for a file in f32; `error` is then that of the file in f32."""

    def __str__(self) -> str:
        batch = "any batch" if self.about.batch is None else f"batch {self.about.batch}"
        size = "x".join(map(str, self.about.input_size))
        lines = [
            f"{self.path}: {self.format}, {batch}, images of {size}, {self.bytes / 1e6:.2f} MB",
            f"differs from the network by at most {self.error:.1e} of the largest output; compared at batch "
            f"{', '.join(map(str, self.batches))}",
        ]
        if self.int8 is not None:
            share = self.int8.same_answer
            same = "" if share is None else f"; {100 * share:.1f} % have the same answer"
            lines.append(
                f"then int8: {self.int8.bytes / 1e6:.2f} MB before; differs from the network by at most "
                f"{self.int8.error:.1e} of the largest output over the calibration images{same}"
            )
        if self.beside is not None:
            own, twin, call = self.beside, "static twin", f"ms, batch {self.about.batch or 1}"
            lines += [
                f"{'':<11} {'MB':>8} {call:>12}",
                f"{'this file':<11} {own.bytes / 1e6:>8.2f} {own.ms:>12.2f}",
                f"{twin:<11} {own.twin_bytes / 1e6:>8.2f} {own.twin_ms:>12.2f}",
                f"{'ratio':<11} {own.bytes / own.twin_bytes:>8.2f} {own.ratio:>12.2f}",
            ]
        return "\n".join(lines)


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    batch: int | Literal["dynamic"] = "dynamic",
    example: Tensor | None = None,
    about: About | None = None,
    twin: bool = False,
    int8: Tensor | None = None,
) -> Exported:
    """Write a network as the file of a runtime; run the file, and keep it only if it computes what the network does.

    Batch norm is folded, and each conditional layer becomes one product, which mixes its kernel, and one convolution.
    A batch is a loop over its examples, but for a fixed batch of a static network. A file of that name is replaced.

    Args:
        model: any network, conditional or static, that takes images (B, C, *space); unchanged.
        path: of the file: .onnx, .xml (with a .bin beside it), .pte or .pt2.
        format: "onnx", "openvino", "executorch" or "pt2"; read off the file's name where None.
        batch: images of a call: a number, or "dynamic" for any.
        example: images (B, C, *space) to compare with; random ones of the network's own size where None.
        about: what the file says about preparing images and about classes; None for what the network knows.
        twin: also export the static twin, in f32, and measure the time of both.
        int8: images (N, C, *space) by which the file is then quantised, weights and activations, by the runtime's own
            tool (onnx, openvino): some hundred, prepared as the network takes them. What that changes is said, not
            judged.

    Raises:
        ArgumentError: an argument has none of its values, the format's runtime is not installed, or the file cannot be
            written.
        ConversionError: the network cannot be exported, or the file computes something else: there is no file then.
    """
    where = "export"
    arguments.a_module(where, "model", model)
    arguments.boolean(where, "twin", twin)
    path = arguments.path(where, "path", path).expanduser()
    refuse_tiles(model, where)
    format = check_format(where, format, path)
    fixed = _fixed_batch(format, batch)
    if int8 is not None:
        check_int8(where, format, fixed)
        int8 = _calibration(int8)
    network = copy.deepcopy(model).cpu().float().eval()
    images = _images(network, example)
    reference = _eager(network, images)
    size = tuple(images.shape[1:])
    described = describe(network, size, reference.output) if about is None else about
    described = dataclasses.replace(described, batch=fixed, input_size=size)
    names, plain = _names(reference.output), plain_form(network)
    batches = _SOME_BATCHES if fixed is None else (fixed,)
    conditional = any(True for _ in conditional_layers(network))
    some = _repeated(images, fixed or 1)
    # Where all examples have the same kernels, a call takes them at once; the tools for int8 want one.
    whole = fixed is not None and not conditional and int8 is None
    first, loop = (some, 1) if whole else (images[:1], fixed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_files(path) as folder:
            file = folder / path.name
            run = _written(format, plain, first, loop, names, described.to_json(), file)
            error = max(_difference(run, reference.run, _repeated(images, number), format) for number in batches)
            own_bytes, beside, quantised = _bytes(file), None, None
            if int8 is not None:
                run, quantised = _quantised(format, file, int8, reference.run)
                own_bytes = _bytes(file)
            if twin and conditional:
                with tempfile.TemporaryDirectory() as other:
                    rival = _written(format, static_form(plain), some, 1, names, "", Path(other, path.name))
                    beside = _compare(run, own_bytes, rival, _bytes(Path(other, path.name)), some)
    except OSError as problem:
        raise ArgumentError(
            f"export: {path}: cannot be written ({problem.strerror or problem}); make room or pass another name"
        ) from problem
    return Exported(path, format, described, error, batches, own_bytes, beside, quantised)


class _Reference(NamedTuple):
    """The network in eager mode, and its output for one image."""

    run: Run
    output: Any


def _fixed_batch(format: str, batch: Any) -> int | None:
    """The number of images of a call, or None for any."""
    fixed = None if batch == "dynamic" else arguments.integer("export", "batch", batch, 1)
    if FORMATS[format].one_image and fixed != 1:
        rule = f"is not possible for format={format!r}, whose graph has one image"
        raise argument_error("export", "batch", batch, rule, "pass batch=1, and call the file once for each image")
    return fixed


def _images(network: nn.Module, example: Tensor | None) -> Tensor:
    """Images to compare with, f32 on the CPU."""
    if example is None:
        published = getattr(network, "pretrained_cfg", None) or {}
        size = tuple(published.get("input_size") or (3, 224, 224))
        return torch.randn(max(_SOME_BATCHES), *size, generator=torch.Generator().manual_seed(0))
    images = arguments.a_tensor("export", "example", example).detach().cpu().float()
    if images.dim() < 2 or images.shape[0] == 0:
        rule = "must be images (B, C, *space), one at least"
        raise argument_error("export", "example", tuple(images.shape), rule, "pass torch.rand(1, 3, 224, 224)")
    return images


def _eager(network: nn.Module, images: Tensor) -> _Reference:
    """The network to compare with; it must run, and say something of each image."""
    size = "x".join(map(str, images.shape[1:]))
    try:
        with torch.no_grad():
            output = network(images[:1])
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArgumentError(
            f"export: {type(network).__name__} does not run on images of {size}: {reason}; pass images as example="
        ) from error
    found = tensors(output)
    if not found or any(y.dim() == 0 or y.shape[0] != 1 or not y.is_floating_point() for y in found):
        raise ConversionError(
            f"export: {type(network).__name__} gives no tensors (B, …) of numbers for images (B, C, *space), and those "
            "alone can be exported; wrap it in a module that does"
        )
    return _Reference(torch.no_grad()(lambda x: tensors(network(x))), output)


def _names(output: Any) -> list[str]:
    """A name for each output: that of a field or a key, else a number."""
    if isinstance(output, Tensor):
        return ["output"]
    places, _ = pytree.tree_flatten_with_path(output)
    fields = getattr(output, "_fields", ())
    keys = ["_".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in place)
            for place, leaf in places if isinstance(leaf, Tensor)]  # fmt: skip
    return [fields[int(key)] if fields and key.isdigit() else f"output_{key}" if key.isdigit() else key for key in keys]


def _written(
    format: str,
    plain: nn.Module,
    example: Tensor,
    batch: int | None,
    names: Sequence[str],
    about: str,
    file: Path,
) -> Run:
    """Write a file and open it in its runtime."""
    try:
        writer(format).write(plain, example, batch, names, about, file)
        return writer(format).open(file).run
    except (CondConvError, OSError):
        raise
    except Exception as error:  # Each exporter has errors of its own.
        reason = " ".join(str(error).split())[:500]
        others = ", ".join(name for name in FORMATS if name != format)
        raise ConversionError(
            f"export: {format} cannot express the network ({type(error).__name__}: {reason}); try {others}"
        ) from error


def _calibration(images: Tensor) -> Tensor:
    """Images to quantise by, f32 on the CPU."""
    images = arguments.a_tensor("export", "int8", images).detach().cpu().float()
    if images.dim() < 2 or len(images) == 0:
        rule = "must be images (N, C, *space), one at least"
        raise argument_error("export", "int8", tuple(images.shape), rule, "pass some hundred of the training set")
    return images


def _quantised(format: str, file: Path, images: Tensor, reference: Run) -> tuple[Run, Quantised]:
    """Quantise a file and open it again; how it differs from the network over the images."""
    before = _bytes(file)
    try:
        quantiser(format).quantise(file, images)
        run = writer(format).open(file).run
        pairs = [(reference(image), run(image)) for image in images.split(1)]
    except (CondConvError, OSError):
        raise
    except Exception as problem:  # Each tool has errors of its own.
        reason = " ".join(str(problem).split())[:500]
        raise ConversionError(
            f"export: {format} cannot be quantised ({type(problem).__name__}: {reason}); leave int8 out"
        ) from problem
    outputs = [torch.cat(parts) for parts in zip(*(expected for expected, _ in pairs), strict=True)]
    others = [torch.cat(parts) for parts in zip(*(got for _, got in pairs), strict=True)]
    error = max(_relative(a, b) for a, b in zip(outputs, others, strict=True))
    if error != error:
        raise ConversionError(f"export: {format} gives outputs that are NaN in int8; leave int8 out")
    scores = len(outputs) == 1 and outputs[0].dim() == 2
    same = float((outputs[0].argmax(1) == others[0].argmax(1)).float().mean()) if scores else None
    return run, Quantised(before, error, same)


def _relative(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-30))


def _difference(run: Run, reference: Run, images: Tensor, format: str) -> float:
    """How far the file's outputs are from the network's, over the largest output; it must be within `TOLERANCE`."""
    expected, got = reference(images), run(images)
    shapes = [[tuple(y.shape) for y in outputs] for outputs in (expected, got)]
    if shapes[0] != shapes[1]:
        raise ConversionError(
            f"export: {format} gives outputs of shapes {shapes[1]} for {len(images)} images, the network {shapes[0]}; "
            "nothing was written"
        )
    error = max(_relative(a, b) for a, b in zip(expected, got, strict=True))
    if not error <= TOLERANCE:  # NaN is not.
        raise ConversionError(
            f"export: {format} differs from the network by {error:.1e} of the largest output for {len(images)} images, "
            f"more than {TOLERANCE:g}; nothing was written"
        )
    return error


def _compare(run: Run, own_bytes: int, twin: Run, twin_bytes: int, images: Tensor) -> Beside:
    """Time the file and its static twin, which takes the whole batch at once."""
    calls: dict[str, Callable[[], object]] = {"own": lambda: run(images), "twin": lambda: twin(images)}
    timings = measure(calls, _BURST_S)
    own, other = timings["own"], timings["twin"]
    return Beside(own_bytes, own.ms.median, twin_bytes, other.ms.median, own.over(other).median)


def _repeated(images: Tensor, number: int) -> Tensor:
    """That many images, the given ones over and over."""
    return images[torch.arange(number) % len(images)].contiguous()


def _bytes(file: Path) -> int:
    """Of a file and those of the same stem beside it."""
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.stem}.*"))
