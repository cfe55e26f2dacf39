"""OpenVINO, from the ONNX graph: FILE.xml and FILE.bin."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.exporting import to_onnx
from condconv.exporting.about import KEY
from condconv.exporting.formats import Opened, quiet

PACKAGES = ("openvino", *to_onnx.PACKAGES)
QUANTISED_BY = "nncf"


def write(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str, path: Path) -> None:
    """See `condconv.exporting.formats.Writer`."""
    import openvino

    source = path.with_suffix(".onnx")
    to_onnx.write(plain, example, batch, names, about, source)
    model = openvino.convert_model(source)
    model.set_rt_info(about, [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)
    source.unlink()


def quantise(path: Path, images: Tensor) -> None:
    """See `condconv.exporting.formats.Quantiser`: NNCF's quantisation after training."""
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    about = model.get_rt_info([KEY]).astype(str)
    with quiet():
        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([image.numpy() for image in images.split(1)])
        made = nncf.quantize(model, data, subset_size=len(images))
    made.set_rt_info(about, [KEY])
    # Not written over: whoever has opened the file reads its weights where they lie.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder, path.name)
        openvino.save_model(made, written, compress_to_fp16=False)
        for part in (written.with_suffix(".bin"), written):
            os.replace(part, path.with_name(part.name))


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
