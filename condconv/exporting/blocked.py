"""ONNX Runtime's own memory layout for mixed kernels, which it gives to constant ones alone.

ONNX Runtime convolves in blocks of channels, and lays weights out for that when a session is made. Weights that are
mixed in the session stay as they are, and convolutions with them are slow: a depthwise one takes ten times as long.
Mixing goes element by element, so the experts can be laid out in blocks beforehand.

How the blocks are made, which depends on version and processor, need not be known: each mixed kernel is replaced by a
constant whose elements are numbered, ONNX Runtime optimises the graph, and where it put a number, there the element of
that number of every expert is put. What comes of it is used only where it computes what the portable graph does.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from condconv.exporting.about import KEY
from condconv.exporting.formats import TOLERANCE
from condconv.exporting.looped import of_one_image, over_images

_log = logging.getLogger("condconv")


class _Kernel(NamedTuple):
    """A mixed kernel: its coefficients and experts by their names, and the numbers of its elements, from 1 on."""

    coefficients: str
    experts: str
    first: int
    end: int


def onnx_session(path: str | Path) -> Any:
    """Return an `onnxruntime.InferenceSession` of a file of `condconv.export`, on as many threads as torch has.

    It mixes kernels in the layout that this processor convolves in. Where ONNX Runtime has none, or the outputs for
    random images then differ from those of the file as it is by more than 1e-4 of the largest, it runs the file as it
    is; which of the two is logged.

    Raises:
        Exception: whatever ONNX Runtime raises for a file that it cannot open.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    portable = _session(str(path), levels.ORT_ENABLE_ALL)
    if KEY not in portable.get_modelmeta().custom_metadata_map:
        return portable
    try:
        blocked = in_blocks(Path(path))
        # What has been laid out already is not to be optimised again.
        fast = None if blocked is None else _session(blocked.SerializeToString(), levels.ORT_ENABLE_BASIC)
        error = None if fast is None else _difference(fast, portable)
    except Exception as problem:  # Another version of the runtime may do anything to what is not its interface.
        _log.info("%s: runs as it is, for ONNX Runtime refuses kernels in blocks (%s)", path, problem)
        return portable
    if error is None or not error <= TOLERANCE:
        _log.info("%s: runs as it is; kernels in blocks: %s", path, "none" if error is None else f"error {error:.1e}")
        return portable
    _log.info("%s: mixes kernels in blocks; error %.1e", path, error)
    return fast


def in_blocks(path: Path) -> Any | None:
    """The model in a file with its experts laid out for this processor; None where no kernel is mixed or laid out."""
    import numpy
    import onnx
    from onnx import helper, numpy_helper

    whole = onnx.load(path)
    one, batch, names = of_one_image(whole)
    held = {constant.name: constant for constant in one.graph.initializer}
    kernels = _number(one.graph, held)
    optimised = _optimised(one, {kernel.coefficients for kernel in kernels})
    mixing: dict[str, list[Any]] = {}
    for constant in list(optimised.graph.initializer):
        kernel = None if constant.data_type != onnx.TensorProto.FLOAT else _laid_out(constant, kernels)
        if kernel is None:
            continue
        numbers = numpy_helper.to_array(constant).view(numpy.int32)
        experts = numpy_helper.to_array(held[kernel.experts])  # n |W|
        laid_out = numpy.pad(experts, ((0, 0), (1, 0)))[:, numpy.maximum(numbers.ravel() - kernel.first + 1, 0)]
        name = constant.name
        optimised.graph.initializer.remove(constant)
        shape = numpy.array(numbers.shape, dtype=numpy.int64)
        for part, value in ((f"{name}_experts", laid_out), (f"{name}_shape", shape)):
            optimised.graph.initializer.append(numpy_helper.from_array(value, part))
        mixing[name] = [
            helper.make_node("MatMul", [kernel.coefficients, f"{name}_experts"], [f"{name}_mixed"]),
            helper.make_node("Reshape", [f"{name}_mixed", f"{name}_shape"], [name]),
        ]
    if not mixing:
        return None
    if len(mixing) != len(kernels):
        raise ValueError(f"{len(mixing)} of {len(kernels)} mixed kernels are found again")
    nodes = list(optimised.graph.node)
    del optimised.graph.node[:]
    for node in nodes:
        for name in node.input:
            optimised.graph.node.extend(mixing.pop(name, ()))
        optimised.graph.node.append(node)
    return optimised if batch == 1 else over_images(optimised, batch, names)


def _number(graph: Any, held: dict[str, Any]) -> list[_Kernel]:
    """Put constants of numbered elements in the place of all mixed kernels of convolutions; say which they were."""
    import numpy
    from onnx import numpy_helper

    made_by = {output: node for node in graph.node for output in node.output}
    kernels, first = [], 1
    for node in graph.node:
        shaped = made_by.get(node.input[1]) if node.op_type == "Conv" else None
        if shaped is None or shaped.op_type != "Reshape":
            continue
        mixed = made_by[shaped.input[0]]
        shape = numpy_helper.to_array(held[shaped.input[1]])
        kernels.append(_Kernel(mixed.input[0], mixed.input[1], first, first + int(shape.prod())))
        # As bits of f32, which are moved about and never computed with.
        numbers = numpy.arange(first, kernels[-1].end, dtype=numpy.int32).view(numpy.float32).reshape(shape)
        first = kernels[-1].end
        graph.initializer.append(numpy_helper.from_array(numbers, f"{node.output[0]}_numbers"))
        node.input[1] = f"{node.output[0]}_numbers"
        graph.node.remove(shaped)
        graph.node.remove(mixed)
    return kernels


def _optimised(model: Any, wanted: set[str]) -> Any:
    """What ONNX Runtime makes of a model on this processor; the wanted tensors are still computed."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    own = len(model.graph.output)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(wanted))
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "optimised.onnx"))
        _session(model.SerializeToString(), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, out)
        made = onnx.load(out)
    del made.graph.output[own:]
    return made


def _laid_out(constant: Any, kernels: list[_Kernel]) -> _Kernel | None:
    """The kernel whose numbers, each once, and zeros are the elements of a constant."""
    import numpy
    from onnx import numpy_helper

    numbers = numpy_helper.to_array(constant).view(numpy.int32)
    some = numbers.max(initial=0)
    for kernel in kernels:
        if kernel.first <= some < kernel.end:
            found = numpy.sort(numbers[numbers != 0])
            return kernel if numpy.array_equal(found, numpy.arange(kernel.first, kernel.end)) else None
    return None


def _session(model: str | bytes, level: Any, write_to: str = "") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    if write_to:
        options.optimized_model_filepath = write_to
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _difference(one: Any, other: Any) -> float:
    """The largest difference of an output for random images, over the output's largest value."""
    taken = other.get_inputs()[0]
    batch, *sizes = taken.shape
    x = torch.randn(batch if isinstance(batch, int) else 2, *sizes, generator=torch.Generator().manual_seed(0)).numpy()
    pairs = zip(*(session.run(None, {taken.name: x}) for session in (one, other)), strict=True)
    return max(float(abs(a - b).max() / max(abs(b).max(), 1e-30)) for a, b in pairs)
