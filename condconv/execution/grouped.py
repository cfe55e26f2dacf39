"""The batch folded into the groups of one convolution: x (1, B·I, *space), groups = B·g (the form that timm uses)."""

from __future__ import annotations

from torch import Tensor

from condconv.execution.closed_forms import mixed_kernel_macs
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, kernels_of


class Grouped:
    """One grouped convolution for the whole batch.

    Cannot be exported with a dynamic batch: the number of groups is a constant of the graph.
    """

    name = "grouped"
    macs = staticmethod(mixed_kernel_macs)
    adds_bias = False

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None: it always can."""
        return None

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, *space) of x (B, I, *space), bias left out."""
        kernels = kernels_of(lowered, x.dtype)  # B O I/g *k
        batch = x.shape[0]
        folded = x.reshape(1, -1, *x.shape[2:])  # 1 B·I *space
        y = geometry.convolve(folded, kernels.flatten(0, 1), groups=batch * geometry.groups)  # 1 B·O *space
        return y.reshape(batch, -1, *y.shape[2:])
