"""ONNX, run by ONNX Runtime: the graph of one example, and a `Scan` over the examples of a batch.

The loop costs next to nothing: on a CPU a convolution of eight images takes as long as eight of one image, and where
each image has a kernel of its own there is no convolution of eight.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.exporting.about import KEY
from condconv.exporting.formats import Opened

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_IMAGES, _ONE, _AXIS = "images", "of_one_image", "batch_axis"


def write(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str, path: Path) -> None:
    """See `condconv.exporting.formats.Writer`."""
    path.write_bytes(graph(plain, example, batch, names, about).SerializeToString())


def graph(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str) -> Any:
    """The model of `onnx`; see `condconv.exporting.formats.Writer`."""
    names = [_IMAGES, *names]
    inside = names if batch == 1 else [f"{name}_{_ONE}" for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter uses what it says is deprecated.
        program = torch.onnx.export(
            plain, (example,), dynamo=True, verbose=False, input_names=inside[:1], output_names=inside[1:]
        )
    assert program is not None
    model = program.model_proto
    if batch != 1:
        model = _over_examples(model, batch, names)
    model.metadata_props.add(key=KEY, value=about)
    return model


def open(path: Path) -> Opened:
    """See `condconv.exporting.formats.Writer`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map.get(KEY)
    name = session.get_inputs()[0].name
    return Opened(about, lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})])


def _over_examples(model: Any, batch: int | None, names: Sequence[str]) -> Any:
    """The model whose graph of one example becomes the body of a loop over a batch."""
    import numpy
    from onnx import GraphProto, TensorProto, helper, numpy_helper

    def tensor(name: str, *sizes: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    one = model.graph
    sizes = [_sizes(value)[1:] for value in (*one.input, *one.output)]
    slices = [f"{name}_slice" for name in names]
    body = GraphProto(name="one_image")
    body.initializer.extend([*one.initializer, numpy_helper.from_array(numpy.array([0]), _AXIS)])
    body.node.append(helper.make_node("Unsqueeze", [slices[0], _AXIS], [one.input[0].name]))
    body.node.extend(one.node)
    for output, name in zip(one.output, slices[1:], strict=True):
        body.node.append(helper.make_node("Squeeze", [output.name, _AXIS], [name]))
    within = [tensor(name, *size) for name, size in zip(slices, sizes, strict=True)]
    body.input.extend(within[:1])
    body.output.extend(within[1:])
    loop = helper.make_node("Scan", names[:1], names[1:], body=body, num_scan_inputs=1)
    outside = [tensor(name, batch or "batch", *size) for name, size in zip(names, sizes, strict=True)]
    return helper.make_model(
        helper.make_graph([loop], "images", outside[:1], outside[1:]),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
    )


def _sizes(value: Any) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
