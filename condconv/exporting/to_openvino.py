"""OpenVINO, from the ONNX graph: FILE.xml and FILE.bin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.exporting import to_onnx
from condconv.exporting.about import KEY
from condconv.exporting.formats import Opened

PACKAGES = ("openvino", *to_onnx.PACKAGES)


def write(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str, path: Path) -> None:
    """See `condconv.exporting.formats.Writer`."""
    import openvino

    source = path.with_suffix(".onnx")
    to_onnx.write(plain, example, batch, names, about, source)
    model = openvino.convert_model(source)
    model.set_rt_info(about, [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)
    source.unlink()


def open(path: Path) -> Opened:
    """See `condconv.exporting.formats.Writer`."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    about = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    # Its own choice of precision is below f32 where the processor has one.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    compiled = core.compile_model(model, "CPU", settings)
    return Opened(about, lambda x: [torch.from_numpy(y.copy()) for y in compiled(x.numpy()).to_tuple()])
