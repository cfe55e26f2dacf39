"""ExecuTorch, for phones and boards: XNNPACK runs what it knows, portable kernels the rest; one image a call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.exporting.about import KEY
from condconv.exporting.formats import Opened
from condconv.exporting.rewriting import PlainLayer

PACKAGES = ("executorch",)


def write(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str, path: Path) -> None:
    """See `condconv.exporting.formats.Writer`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The libraries that it brings use what torch deprecates.
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(_with_products(plain), (example,))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods={KEY: about})
        path.write_bytes(edge.to_executorch().buffer)


def _with_products(plain: nn.Module) -> nn.Module:
    """The network with products, which XNNPACK has, in the place of pointwise convolutions with a mixed kernel."""
    made = copy.deepcopy(plain)
    for module in made.modules():
        if isinstance(module, PlainLayer):
            module.convolution.pointwise_as_product = not module.convolution.geometry.transposed
    return made


def open(path: Path) -> Opened:
    """See `condconv.exporting.formats.Writer`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It calls itself experimental.
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        forward = program.load_method("forward")
        about = program.load_method(KEY).execute([])[0] if KEY in program.method_names else None
    return Opened(about, lambda x: [y.clone() for y in forward.execute([x.contiguous()])])
