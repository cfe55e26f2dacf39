"""One kernel for all examples: what is left where only factors around the convolution differ between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from condconv.banks.base import Affine, KernelBank, Packing
from condconv.banks.folding import scale_outputs
from condconv.coefficients import Slices
from condconv.lowered import Static
from condconv.site import ConvSite


class StaticBank(KernelBank):
    """A kernel and a bias, no coefficients; to be the inner bank of a `ScaledBank`.

    Args:
        site: the place of the layer; not transposed.
        device: where the parameters are made.
        dtype: of the parameters.
    """

    def __init__(
        self, site: ConvSite, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.site, self.slices, self.kernel_shape = site, Slices(()), site.kernel_shape
        self.weight = nn.Parameter(torch.empty(site.kernel_shape, device=device, dtype=dtype))
        if site.bias:
            self.bias = nn.Parameter(torch.empty(site.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as torch.nn does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.kernel_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, coefficients: Tensor) -> Static:
        """Return the lowered form for coefficients (B, 0)."""
        bias = self.bias
        return Static(self.weight, None if bias is None else bias.unsqueeze(0), coefficients.shape[0])

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """Copy the kernel and the bias."""
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """Nothing beside the convolution."""
        return 0

    @torch.no_grad()
    def pack(self, packing: Packing, norm: Affine | None) -> StaticBank:
        """The same with the norm folded in: there are no experts to be stored in another way."""
        if norm is None:
            return self
        made = StaticBank(self.site.with_bias(), self.weight.device, self.weight.dtype)
        made.weight.copy_(scale_outputs(self.weight.unsqueeze(0), norm.factor, self.site.groups, False)[0])
        bias = norm.shift if self.bias is None else norm.shift + norm.factor * self.bias.double()
        assert made.bias is not None
        made.bias.copy_(bias)
        return made
