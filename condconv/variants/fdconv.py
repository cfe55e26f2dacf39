"""FDConv: the parts of a kernel's spectrum, from low to high frequencies, are weighted for each example.

Linwei Chen, Lin Gu, Liang Li, Chenggang Yan, Ying Fu: "Frequency Dynamic Convolution for Dense Image Prediction", CVPR
2025, https://arxiv.org/abs/2503.18783; authors' code Linwei-Chen/FDConv.

    y = α_f ⊙ ((α_s ⊙ W(x)) * (α_c ⊙ x)) + b,    W(x) = F⁻¹( Σᵢ α_wᵢ Pᵢ ),    i = 1 … n

P is the Fourier transform of the kernel as a matrix (kh·O, kw·I), one half of it; the Pᵢ are n parts of equal size of
its coefficients in the order of their frequency, so that n costs no parameters ("mixing" are the α_w). The factors of
input channels ("input"), output channels ("output") and kernel positions ("taps") are the paper's global modulation:

    z = head( s ReLU( BN( W GAP(x) ) )² + t ),    α = 2 σ(z),    for all four kinds alike

The hidden layer has max(⌊I / reduction⌋, 16) channels. α_s is left out where the kernel has one position.

Multiply-adds: the transform of one example's kernel of |W| weights is counted as 1.25·|W|·log₂|W|. It runs in f32.
There is no inference form: a batch norm behind the layer does not commute with the weights of the parts.

Defaults: n = 64 as in the authors' configurations, reduction 16. Initialisation: the spectrum of a kernel as torch.nn
draws one; W with variance 2 / fan-out; heads normal with standard deviation 1e-6, so that all factors start at 1.
Upcycling transforms the static kernel, which is exact. Departures: neither the local modulation, a factor for every
weight, nor the modulated bands of the input, which make no kernel; the transform is orthonormal, where the authors
divide the spectrum by half of the channels and multiply by it again; n need not divide the number of frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from condconv.arguments import integer
from condconv.assembled import Spectrum
from condconv.banks import Bank, ScaledBank, StaticBank
from condconv.coefficients import MIXING, Slice, Slices
from condconv.errors import ConversionError, SiteError
from condconv.layers import ConditionalConv2d, Design
from condconv.routers import Gate, Router
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants

SMALLEST_HIDDEN = 16


class SpectrumBank(Bank):
    """A kernel as its spectrum P, (kh·O, kw·I // 2 + 1, 2) in real and imaginary parts, and a bias.

    Args:
        site: the place of the layer; not grouped.
        num_experts: n, into how many parts the spectrum is cut.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        SiteError: a grouped layer, or one with fewer frequencies than parts.
    """

    parts: Tensor

    def __init__(
        self,
        site: ConvSite,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = site.name or "FDConv"
        if site.groups > 1:
            rule = "a matrix of all output and input channels has no grouped form; leave it static"
            raise SiteError(f"{where}: groups={site.groups}: {rule}")
        self.kernel_shape, self.slices = site.kernel_shape, Slices((Slice(MIXING, (1.0,) * num_experts),))
        rows, columns = _matrix_shape(site.kernel_shape)
        size = (rows, columns // 2 + 1)
        if num_experts > size[0] * size[1]:
            rule = f"cannot cut {size[0] * size[1]} frequencies into so many parts; use fewer, or leave it static"
            raise SiteError(f"{where}: num_experts={num_experts} {rule}")
        self.spectrum = nn.Parameter(torch.empty((*size, 2), device=device, dtype=dtype))
        if site.bias:
            self.bias = nn.Parameter(torch.empty(site.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        frequency = torch.hypot(torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)[None])
        order = frequency.flatten().sort(stable=True).indices
        parts = torch.empty_like(order)
        parts[order] = torch.arange(len(order)) * num_experts // len(order)
        self.register_buffer("parts", parts.reshape(size).to(device), persistent=False)
        fresh = StaticBank(site, device, dtype)
        self._set(fresh.weight, fresh.bias)

    def forward(self, coefficients: Tensor) -> Spectrum:
        """Return the lowered form for coefficients (B, n)."""
        bias = None if self.bias is None else self.bias.unsqueeze(0)
        return Spectrum(coefficients, self.spectrum, self.parts, bias, self.kernel_shape)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """Transform the kernel, and divide each part by its weight.

        Raises:
            ConversionError: a weight is zero.
        """
        if not coefficients.is_meta and not bool((coefficients != 0).all()):
            rule = "init='upcycle' needs weights that are not zero for zero logits"
            raise ConversionError(f"{rule}; use init='fresh', or another gate")
        self._set(weight, bias)
        self.spectrum.div_(coefficients.to(self.spectrum)[self.parts].unsqueeze(2))

    @torch.no_grad()
    def _set(self, weight: Tensor, bias: Tensor | None) -> None:
        """Fill the spectrum from a kernel, and the bias."""
        if not weight.is_meta:
            matrix = weight.double().permute(2, 0, 3, 1).reshape(_matrix_shape(self.kernel_shape))
            self.spectrum.copy_(torch.view_as_real(torch.fft.rfft2(matrix, norm="ortho")))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """Weighting the parts, and the transform."""
        return Spectrum.macs_of(self.kernel_shape, self.spectrum.numel())

    @torch.no_grad()
    def draw(self, weight: Callable[[Tensor], object], bias: Callable[[Tensor], object] | None = None) -> None:
        """Transform a kernel that is filled, and fill the bias."""
        kernel = self.spectrum.new_empty(self.kernel_shape)
        weight(kernel)
        self._set(kernel, None)
        if bias is not None and self.bias is not None:
            bias(self.bias)

    @torch.no_grad()
    def multiply(self, factor: float) -> None:
        """Multiply the kernel by a factor."""
        self.spectrum.mul_(factor)


def _matrix_shape(kernel_shape: Sequence[int]) -> tuple[int, int]:
    outputs, inputs, height, width = kernel_shape
    return height * outputs, width * inputs


class DoubleSigmoidGate(Gate):
    """α = 2 σ(z), which is 1 for z = 0."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return the coefficients (B, D) of logits (B, D)."""
        return 2 * torch.sigmoid(logits)


class StarReLU(nn.Module):
    """Return s ReLU(z)² + t with learned s and t (MetaFormer baselines, https://arxiv.org/abs/2210.13452)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.scale * torch.relu(z).square() + self.shift


class SpectrumRouter(Router):
    """Pooling, a hidden layer with its norm and StarReLU, and heads that start near zero."""

    def __init__(self, in_channels: int, slices: Slices, hidden: int, norm: Literal["batch", "layer"] | None) -> None:
        super().__init__(in_channels, slices, hidden_channels=hidden, gate=DoubleSigmoidGate(), norm=norm)
        self.body[-2] = StarReLU()

    def reset_parameters(self) -> None:
        """Draw the first linear layer with variance 2 / fan-out, the heads with standard deviation 1e-6; no biases."""
        first, heads = self._linears
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(heads.weight, std=1e-6)
        for layer in (first, heads):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _bank(
    site: ConvSite, num_experts: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Bank:
    factors = ["input", "output", *(["taps"] if site.taps > 1 else [])]
    return ScaledBank(site, SpectrumBank(site, num_experts, device, dtype), factors)


def _router(site: ConvSite, slices: Slices, reduction: int, norm: Literal["batch", "layer"] | None) -> Router:
    hidden = max(site.in_channels // integer("FDConv", "reduction", reduction, 1), SMALLEST_HIDDEN)
    return SpectrumRouter(site.in_channels, slices, hidden, norm)


DESIGN = Design(bank=_bank, router=_router, num_experts=64, options={"reduction": 16, "norm": "batch"})


class FDConv2d(ConditionalConv2d):
    """FDConv for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W').

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: n, parts of the spectrum, 64 where None.
        router: a factory (site, slices) → router; None for the paper's, False for no router, so that `forward` must be
            given coefficients.
        strategy: execution strategy, or "auto".
        reduction: divides I to the width of the router's hidden layer.
        norm: of the hidden layer: "batch", "layer" or None.

    >>> layer = FDConv2d(16, 32, 3, padding=1, norm="layer")
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


variants.register(
    "fdconv",
    Variant(
        name="fdconv",
        title="Frequency Dynamic Convolution for Dense Image Prediction (CVPR 2025)",
        url="https://arxiv.org/abs/2503.18783",
        equation="y = α_f ⊙ ((α_s ⊙ F⁻¹(Σᵢ α_wᵢ Pᵢ)) * (α_c ⊙ x))",
        design=DESIGN,
        layers=(FDConv2d,),
        share=None,
        placement="all_but_first",
    ),
)
