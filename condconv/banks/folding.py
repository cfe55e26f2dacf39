"""Factors of the output channels, multiplied into kernels."""

from __future__ import annotations

from torch import Tensor


def scale_outputs(kernels: Tensor, factor: Tensor, groups: int, transposed: bool) -> Tensor:
    """Return kernels (n, O, I/g, *k), or (n, I, O/g, *k) transposed, with output channels times factor (O,); in f64."""
    ones = [1] * (kernels.dim() - 3)
    if not transposed:
        return kernels.double() * factor.reshape(-1, 1, *ones)
    by_group = kernels.double().unflatten(1, (groups, -1))  # n g I/g O/g *k
    return (by_group * factor.reshape(groups, 1, -1, *ones)).flatten(1, 2)
