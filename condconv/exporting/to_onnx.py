"""ONNX, run by ONNX Runtime: the graph of one image, and a loop over the images of a batch.

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
from condconv.exporting.blocked import onnx_session
from condconv.exporting.formats import Opened
from condconv.exporting.looped import over_images

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


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


def open(path: Path) -> Opened:
    """See `condconv.exporting.formats.Writer`."""
    session = onnx_session(path)
    about = session.get_modelmeta().custom_metadata_map.get(KEY)
    name = session.get_inputs()[0].name
    return Opened(about, lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})])
