"""Notices where numbers first stop being finite, without making the device wait in every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NaNCheck:
    """An intervention for `condconv.override_routing` that changes nothing, and remembers the first step in which each
    layer's coefficients were NaN or infinite.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[Tensor] = []
        self._layers: tuple[str, ...] = ()
        self._since: Tensor | None = None

    def __call__(self, name: str, coefficients: Tensor) -> Tensor:
        """See one layer's coefficients (B, n) and return them."""
        self._names.append(name)
        self._sums.append(coefficients.detach().sum())  # NaN or infinite if one of them is
        return coefficients

    def step_done(self, step: int) -> None:
        """All layers have been seen in this step."""
        layers = tuple(self._names)
        finite = torch.stack(self._sums).isfinite()
        if self._since is None or layers != self._layers:
            self._layers, self._since = layers, torch.full((len(layers),), -1, device=finite.device)
        self._since = torch.where((self._since < 0) & ~finite, step, self._since)
        self._names.clear()
        self._sums.clear()

    def reset(self) -> None:
        """Begin anew."""
        self._since = None

    def first(self) -> tuple[str, int] | None:
        """The layer that went first, and in which step; None if all were finite. The device is waited for."""
        if self._since is None:
            return None
        since = self._since.tolist()
        steps = [step for step in since if step >= 0]
        return (self._layers[since.index(min(steps))], min(steps)) if steps else None


def router_of(network: nn.Module, layer: str) -> str:
    """Whose router a layer uses, in words."""
    scope = getattr(network.get_submodule(layer), "scope", None)
    return "its own router" if scope is None else f"the router of {scope.name or 'the network'}"
