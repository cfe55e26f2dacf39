"""ONNX, run by ONNX Runtime: the graph of one image, and a loop over the images of a batch.

The loop costs next to nothing: on a CPU a convolution of eight images takes as long as eight of one image, and where
each image has a kernel of its own there is no convolution of eight.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.exporting.about import KEY
from condconv.exporting.blocked import onnx_session
from condconv.exporting.formats import Opened, quiet
from condconv.exporting.looped import of_one_image, over_images

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
QUANTISED_BY = "onnxruntime"


def write(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str, path: Path) -> None:
    """See `condconv.exporting.formats.Writer`."""
    path.write_bytes(graph(plain, example, batch, names, about).SerializeToString())


def graph(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str) -> Any:
    """The model of `onnx`; see `condconv.exporting.formats.Writer`."""
    names = ["images", *names]
    inside = names if batch == 1 else [f"{name}_of_one_image" for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter uses what it says is deprecated.
        program = torch.onnx.export(
            plain, (example,), dynamo=True, verbose=False, input_names=inside[:1], output_names=inside[1:]
        )
    assert program is not None
    model = program.model_proto if batch == 1 else over_images(program.model_proto, batch, names)
    model.metadata_props.add(key=KEY, value=about)
    return model


def quantise(path: Path, images: Tensor) -> None:
    """See `condconv.exporting.formats.Quantiser`: ONNX Runtime's static quantisation, a scale for each channel.

    The experts of a layer have one scale: with one for each column, which is an element of a kernel, mixing takes ten
    times as long.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    one, batch, names = of_one_image(onnx.load(path))
    name = one.graph.input[0].name

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images.split(1))

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {name: image.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        before, after = Path(folder, "f32.onnx"), Path(folder, "int8.onnx")
        onnx.save(one, before)
        one_scale = {experts: [{"quant_type": QuantType.QInt8}] for experts in _experts(one.graph)}
        options = {"TensorQuantOverrides": one_scale}
        quantize_static(before, after, Images(), per_channel=True, extra_options=options)
        made = onnx.load(after)
    del made.metadata_props[:]
    made.metadata_props.extend(one.metadata_props)
    path.write_bytes((made if batch == 1 else over_images(made, batch, names)).SerializeToString())


def _experts(graph: Any) -> list[str]:
    """Names of the experts of all mixed kernels."""
    made_by = {output: node for node in graph.node for output in node.output}
    shaped = [made_by.get(name) for node in graph.node if node.op_type in ("Conv", "Gemm") for name in node.input[1:2]]
    mixed = [made_by.get(node.input[0]) for node in shaped if node is not None and node.op_type == "Reshape"]
    return [node.input[1] for node in mixed if node is not None and node.op_type == "MatMul"]


def open(path: Path) -> Opened:
    """See `condconv.exporting.formats.Writer`."""
    session = onnx_session(path)
    about = session.get_modelmeta().custom_metadata_map.get(KEY)
    name = session.get_inputs()[0].name
    return Opened(about, lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})])
