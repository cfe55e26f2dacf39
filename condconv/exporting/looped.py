"""An ONNX graph of one image, and the same over the images of a batch: the body of a `Scan`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_AXIS = "batch_axis"


def over_images(model: Any, batch: int | None, names: Sequence[str]) -> Any:
    """The model whose graph of one image becomes the body of a loop over a batch.

    Args:
        model: of one image: input (1, C, *space), outputs (1, …).
        batch: images of a call; None for any number.
        names: of the input and the outputs; the model has others.
    """
    import numpy
    from onnx import GraphProto, helper, numpy_helper

    one = model.graph
    sizes = [_sizes(value)[1:] for value in (*one.input, *one.output)]
    slices = [f"{name}_slice" for name in names]
    body = GraphProto(name="one_image")
    body.initializer.extend([*one.initializer, numpy_helper.from_array(numpy.array([0]), _AXIS)])
    body.node.append(helper.make_node("Unsqueeze", [slices[0], _AXIS], [one.input[0].name]))
    body.node.extend(one.node)
    for output, name in zip(one.output, slices[1:], strict=True):
        body.node.append(helper.make_node("Squeeze", [output.name, _AXIS], [name]))
    within = [_tensor(name, *size) for name, size in zip(slices, sizes, strict=True)]
    body.input.extend(within[:1])
    body.output.extend(within[1:])
    loop = helper.make_node("Scan", names[:1], names[1:], body=body, num_scan_inputs=1)
    outside = [_tensor(name, batch or "batch", *size) for name, size in zip(names, sizes, strict=True)]
    return _model(helper.make_graph([loop], "images", outside[:1], outside[1:]), model)


def of_one_image(model: Any) -> tuple[Any, int | None, list[str]]:
    """What `over_images` was called with; a model without that loop, with a batch of 1."""
    from onnx import helper

    graph = model.graph
    names = [value.name for value in (*graph.input, *graph.output)]
    if [node.op_type for node in graph.node] != ["Scan"]:
        return model, 1, names
    body = next(attribute.g for attribute in graph.node[0].attribute if attribute.name == "body")
    outputs = len(body.output)
    first, nodes, last = body.node[0], body.node[1:-outputs], body.node[-outputs:]
    inside = [first.output[0], *(node.input[0] for node in last)]
    values = [_tensor(name, 1, *_sizes(v)) for name, v in zip(inside, (*body.input, *body.output), strict=True)]
    constants = [constant for constant in body.initializer if constant.name != _AXIS]
    one = helper.make_graph(nodes, "one_image", values[:1], values[1:], constants)
    batch = _sizes(graph.input[0])[0]
    return _model(one, model), batch or None, names


def _model(graph: Any, like: Any) -> Any:
    """A model of a graph, with the versions and metadata of another."""
    from onnx import helper

    made = helper.make_model(
        graph, opset_imports=like.opset_import, ir_version=like.ir_version, producer_name=like.producer_name
    )
    made.metadata_props.extend(like.metadata_props)
    return made


def _tensor(name: str, *sizes: Any) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)


def _sizes(value: Any) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
