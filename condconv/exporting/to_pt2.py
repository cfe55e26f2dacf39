"""torch.export's own file, run by torch without this package: the graph of one example, mapped over a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.exporting.about import KEY
from condconv.exporting.formats import Opened, tensors

PACKAGES = ()


class _OverExamples(nn.Module):
    """A network for one example, over each of a batch.

    It takes the network as a graph: a routing scope that lends inside of the loop would be a side effect of it.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.graph = program.graph_module
        held = {**program.state_dict, **program.constants}
        targets = [spec.target for spec in program.graph_signature.input_specs if spec.target is not None]
        self.names = [target.replace(".", "_") for target in targets]
        for name, target in zip(self.names, targets, strict=True):
            self.register_buffer(name, held[target].detach())

    def forward(self, images: Tensor) -> Any:
        """Images (B, C, *space) → the outputs, (B, …) each."""
        from torch._higher_order_ops.map import map

        def of_one(image: Any, *weights: Any) -> list[Tensor]:
            return [y.squeeze(0) for y in self.graph(*weights, image.unsqueeze(0))]

        return map(of_one, images, *(getattr(self, name) for name in self.names))


def write(plain: nn.Module, example: Tensor, batch: int | None, names: Sequence[str], about: str, path: Path) -> None:
    """See `condconv.exporting.formats.Writer`."""
    program = torch.export.export(plain, (example,))
    if batch != 1:
        images = example.expand(batch or 2, *example.shape[1:]).clone()
        shapes = None if batch else ({0: torch.export.Dim("batch")},)
        program = torch.export.export(_OverExamples(program), (images,), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={KEY: about})


def open(path: Path) -> Opened:
    """See `condconv.exporting.formats.Writer`."""
    extra = {KEY: ""}
    network = torch.export.load(path, extra_files=extra).module()
    return Opened(extra[KEY] or None, lambda x: tensors(network(x)))
