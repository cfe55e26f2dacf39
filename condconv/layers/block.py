"""A block of a network that runs for some examples and is left out for the others: router + block, no bank.

    y[b] = g(x[b]) F(x[b]) + (1 − g(x[b])) x[b]

In training F sees all examples, so that batch norms have the statistics of all and the router has a gradient. Where
nothing is differentiated, F sees those alone whose g is not 0: for the others it costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from condconv.coefficients import Slice, Slices
from condconv.errors import ShapeError
from condconv.func_transforms import transformed
from condconv.routers import Router
from condconv.routing_hooks import run_hooks

GATE = "gate"


class ConditionalBlock(nn.Module):
    """A block, and the router of its gate.

    Args:
        block: F, one tensor (B, C, *space) → another of the same shape.
        in_channels: C.
    """

    slices = Slices((Slice(GATE, (1.0,)),))
    num_coefficients = 1

    def __init__(self, block: nn.Module, in_channels: int) -> None:
        super().__init__()
        self.block = block
        self.router = self.default_router(in_channels, self.slices)

    def default_router(self, in_channels: int, slices: Slices) -> Router:
        """Return the variant's router."""
        raise NotImplementedError

    def forward(self, x: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """Return y (B, C, *space).

        Args:
            x: (B, C, *space).
            coefficients: g, (B, 1); the router's where None.

        Raises:
            ShapeError: g of another shape.
        """
        gate = self.router(x) if coefficients is None else coefficients
        if isinstance(x, torch.fx.Proxy):
            return self._gated(x, gate)
        if gate.shape != (x.shape[0], 1):
            rule = f"they must have shape (B, {self.slices}) = ({x.shape[0]}, 1)"
            raise ShapeError(f"{type(self).__name__}: coefficients of shape {tuple(gate.shape)}; {rule}")
        gate = run_hooks(self, gate)
        if self.training or not _decides(gate):
            return self._gated(x, gate)
        running = gate.flatten().nonzero().flatten()
        if len(running) == len(x) > 0:
            return self._gated(x, gate)
        y = self._gated(x[running], gate[running]) if len(running) else x[running]
        return x.to(y.dtype).index_copy(0, running, y)

    def _gated(self, x: Tensor, gate: Tensor) -> Tensor:
        """y, with F for all examples."""
        return _between(gate, self.block(x), x)


def _between(gate: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return g y + (1 − g) x for gates (B, 1)."""
    g = gate.to(y.dtype).reshape(-1, *[1] * (y.dim() - 1))
    return g * y + (1 - g) * x


def _decides(gate: Tensor) -> bool:
    """Whether the gate may decide which examples run: in plain inference, not where a graph is made."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed():
        return False
    return not (torch.is_grad_enabled() and gate.requires_grad) and gate.device.type != "meta"


# FX records it as one call: it asks for the rank.
torch.fx.wrap("_between")
