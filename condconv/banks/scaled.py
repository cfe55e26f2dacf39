"""Factors around another bank's kernels, for each example: of input channels, output channels and kernel positions.

    y = α_out ⊙ ((α_taps ⊙ W(x)) * (α_in ⊙ x)) + b(x)

Exact upcycling: with constant factors the inner bank starts from the static kernel divided by them.

A batch norm behind, s·y + t, is α_out ⊙ ((α_taps ⊙ s W) * …) + s b + t: s goes into the inner kernels, t is added last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from condconv.banks.base import Affine, Bank, Packing
from condconv.coefficients import Slice, Slices
from condconv.errors import ConversionError, SiteError
from condconv.lowered import LowRank, Scaled, scale
from condconv.site import ConvSite

FACTORS = ("input", "output", "taps")


class ScaledBank(Bank):
    """Another bank between factors.

    Args:
        site: the place of the layer.
        inner: the bank of the kernels; its coefficients come behind the factors.
        factors: which there are: some of "input", "output", "taps".

    Raises:
        SiteError: a transposed convolution.
    """

    def __init__(self, site: ConvSite, inner: Bank, factors: Sequence[str]) -> None:
        super().__init__()
        if site.geometry.transposed:
            raise SiteError(f"{site.name or 'layer'}: a transposed convolution has no factors here; leave it static")
        lengths = {"input": site.in_channels, "output": site.out_channels, "taps": site.taps}
        own = tuple(Slice(name, (1.0,) * lengths[name]) for name in FACTORS if name in factors)
        self.site, self.inner = site, inner
        self.slices = Slices((*own, *inner.slices.parts))
        self.kernel_shape = site.kernel_shape
        self._rest = slice(sum(part.length for part in own), self.slices.size)

    def forward(self, coefficients: Tensor) -> Scaled:
        """Return the lowered form for coefficients (B, D)."""
        lowered: Any = self.inner(coefficients[:, self._rest])
        input, output, taps = (self.slices.of(coefficients, name) for name in FACTORS)
        return Scaled(lowered.without_bias(), input, output, taps, self._residual(coefficients), lowered.bias)

    def experts(self) -> Tensor | None:
        """Those of the inner bank."""
        return self.inner.experts()

    def _residual(self, coefficients: Tensor) -> LowRank | None:
        """What a paper adds beside the scaled convolution."""
        return None

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """See the module's docstring; no factor of `coefficients` (D,) may be zero."""
        flat = coefficients.double().unsqueeze(0)
        factors = [self.slices.of(flat, name) for name in FACTORS]
        if not flat.is_meta and any(factor is not None and not bool((factor != 0).all()) for factor in factors):
            raise ConversionError(
                "init='upcycle' needs factors that are not zero for zero logits; use init='fresh', or another gate"
            )
        inverse = [None if factor is None else 1 / factor.to(weight.device) for factor in factors]
        kernel = scale(weight.double().unsqueeze(0), *inverse)[0]
        self.inner.start_from(kernel, bias, coefficients[self._rest])

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """The inner bank's, and one for each element that a factor meets."""
        site, names = self.site, self.slices.names
        inputs = site.in_channels * math.prod(input_size) if "input" in names else 0
        outputs = site.out_channels * math.prod(output_size) if "output" in names else 0
        taps = math.prod(self.kernel_shape) if "taps" in names else 0
        return self.inner.macs(input_size, output_size) + inputs + outputs + taps

    def draw(self, weight: Callable[[Tensor], object], bias: Callable[[Tensor], object] | None = None) -> None:
        """Fill the inner kernels and biases."""
        self.inner.draw(weight, bias)

    def multiply(self, factor: float) -> None:
        """Multiply the inner kernels by a factor."""
        self.inner.multiply(factor)

    def pack(self, packing: Packing, norm: Affine | None) -> ScaledBank:
        """Pack the inner bank; see the module's docstring."""
        if packing.coefficients is not None:
            packing = packing._replace(coefficients=packing.coefficients[:, self._rest])
        return ScaledBank(self.site, self.inner.pack(packing, norm), self.slices.names)

    def plain(self) -> Bank:
        """The factors around the inner bank's."""
        self.inner = self.inner.plain()
        return self
