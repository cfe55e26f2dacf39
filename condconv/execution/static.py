"""One convolution with one kernel for the whole batch: what is left where only factors differ between examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from condconv.execution.closed_forms import batch_of
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Static


class StaticKernel:
    """The convolution of torch.nn; the factors around it are `condconv.execution.scaled`'s."""

    name = "static"
    adds_bias = False

    @staticmethod
    def macs(lowered: Lowered, geometry: ConvGeometry, input_size: Sequence[int]) -> tuple[int, int]:
        """Nothing is mixed."""
        return 0, batch_of(lowered) * geometry.macs(lowered.kernel_shape, input_size)

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None."""
        return None if isinstance(lowered, Static) else "every example has a kernel of its own; it needs one for all"

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, *space) of x (B, I, *space), bias left out."""
        assert isinstance(lowered, Static)
        return geometry.convolve(x, lowered.weight)
