"""The dense bank: n whole kernels, mixed by n scalars for each example: W(x) = Σᵢ αᵢ(x) Wᵢ, b(x) = Σᵢ αᵢ(x) bᵢ.

(CondConv, equation 1; Dynamic Convolution, equations 2 and 3: the bias is mixed with the same coefficients.)

Exact upcycling. With constant coefficients α, equal for all experts,

    Σᵢ α Wᵢ = W   for   Wᵢ = c (W + δᵢ),   Σᵢ δᵢ = 0,   c = 1 / Σᵢ α

so c = 1 for a softmax at any temperature and 2/n for a sigmoid; biases are c·b. The δᵢ break the symmetry: with equal
experts a softmax router gets no gradient at all, and behind batch norm (where ⟨∂L/∂W, W⟩ = 0) no router gets any.

How large? Each δᵢ has half the standard deviation of the layer's kernel, so that two experts' kernels correlate with
1 / (1 + ¼) = 0.8: far enough apart for the router's gradient ⟨∂L/∂W, δᵢ⟩ to be of the size of a weight gradient, near
enough that coefficients which move by 10 % move an eight-expert kernel by under 4 % of its norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from condconv.arguments import MOST_ELEMENTS, experts
from condconv.banks.base import Affine, KernelBank, Packing
from condconv.banks.folding import scale_outputs
from condconv.banks.packed import PackedBank
from condconv.banks.principal import principal_kernels
from condconv.coefficients import mixing
from condconv.errors import ConversionError, argument_error
from condconv.lowered import Mixture
from condconv.packing import INT4, all_finite
from condconv.site import ConvSite

RELATIVE_SCALE = 0.5
"""Standard deviation of δ, relative to the kernel's own."""


class DenseBank(KernelBank):
    """n experts, each with the shape of the kernel that it replaces.

    Args:
        site: the place of the layer.
        num_experts: n ≥ 1.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ArgumentError: no expert, or more elements than a tensor can have.
    """

    def __init__(
        self,
        site: ConvSite,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        n, where = experts("DenseBank", num_experts), site.name or "DenseBank"
        if math.prod((n, *site.kernel_shape)) > MOST_ELEMENTS:
            rule = f"makes experts of shape {(n, *site.kernel_shape)}, more than a tensor can have"
            raise argument_error(where, "num_experts", n, rule, "reduce it, the channels or the kernel")
        self.site = site
        self.slices, self.kernel_shape = mixing(n), site.kernel_shape
        self.weight = nn.Parameter(torch.empty((n, *site.kernel_shape), device=device, dtype=dtype))
        if site.bias:
            self.bias = nn.Parameter(torch.empty((n, site.out_channels), device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert by itself, as torch.nn does a kernel of that shape.

        On the stacked tensor the fan-in would be √C_out too large and every kernel that much too small.
        """
        for i, expert in enumerate(self.weight):
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
            if self.bias is not None:
                fan_in = math.prod(expert.shape[1:])
                bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0
                nn.init.uniform_(self.bias[i], -bound, bound)

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self.weight.shape[0]

    def experts(self) -> Tensor:
        """The kernels that it mixes."""
        return self.weight

    def forward(self, coefficients: Tensor) -> Mixture:
        """Return the lowered form for coefficients (B, n)."""
        # An nn.Module finds its attributes slowly; parametrised ones are not among its parameters.
        held: dict[str, Any] = self._parameters
        if "weight" in held and "bias" in held:
            return Mixture(coefficients, held["weight"], held["bias"])
        return Mixture(coefficients, self.weight, self.bias)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """See the module's docstring; `coefficients` (n,) must be equal and positive."""
        if coefficients.is_meta:
            return
        if not bool((coefficients == coefficients[0]).all()) or not float(coefficients[0]) > 0:
            raise ConversionError(
                "init='upcycle' needs a gate that gives every expert the same coefficient for zero logits; upcycle "
                "with the inner gate of a top-k gate and add that one after training has begun, or use init='fresh'"
            )
        scale = 1.0 / float(coefficients.double().sum())
        if weight.is_meta:
            return
        # In f64, so that rounding to the parameters' dtype happens once.
        kernel = weight.detach().double()
        self.weight.copy_(scale * (kernel + _differences(self.num_experts, kernel)))
        if self.bias is not None and bias is not None:
            self.bias.copy_(scale * bias.detach().double().expand_as(self.bias))

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """Mixing, n·|W|."""
        return self.weight.numel()

    @torch.no_grad()
    def pack(self, packing: Packing, norm: Affine | None) -> PackedBank:
        """Pack the experts, or their principal kernels, the norm's factor multiplied into each."""
        experts: Tensor = self.weight
        bias: Tensor | None = self.bias
        shift: Tensor | None = None
        whole = packing.storage in ("int8", INT4)
        if (whole or packing.kernels or packing.threshold > 0) and not all_finite(experts):
            needs = f"{packing.storage} experts" if whole else f"skip_below={packing.threshold:g}"
            if packing.kernels:
                needs = "fewer kernels"
            raise ConversionError(
                f"has experts that are NaN or infinite, which {needs} would hide; look for what spoiled them "
                "(condconv.detect_nonfinite)"
            )
        if norm is not None:
            experts = scale_outputs(experts, norm.factor, self.site.groups, self.site.geometry.transposed)
            bias, shift = None if bias is None else bias.double() * norm.factor, norm.shift
        projection: Tensor | None = None
        if packing.kernels is not None:
            projection, experts, bias = principal_kernels(experts, bias, packing.coefficients, packing.kernels)
        return PackedBank(experts, bias, shift, self.site.groups, packing.storage, packing.threshold, projection)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DenseBank:
        """Change dtype or device (`nn.Module.to` and its kin) of the experts as rows of a matrix (n, |W|).

        `model.to(memory_format=torch.channels_last)` would refuse a tensor (n, O, I/g, kh, kw), and mixing wants each
        expert in one piece in any case.
        """
        return super()._apply(lambda t: fn(t.flatten(1)).unflatten(1, t.shape[1:]), recurse)


def _differences(n: int, kernel: Tensor) -> Tensor:
    """Return δ (n, *kernel): random, summing to zero over the experts; zero for one expert."""
    if n == 1:
        return kernel.new_zeros((n, *kernel.shape))
    spread = float(kernel.std(correction=0))
    if spread == 0:
        # A constant kernel: its own size, or for an all-zero one that of a freshly drawn kernel.
        spread = float(kernel.abs().mean()) or 1 / math.sqrt(max(1, math.prod(kernel.shape[1:])))
    delta = torch.randn((n, *kernel.shape), dtype=kernel.dtype, device=kernel.device)
    delta -= delta.mean(dim=0)
    # Taking the mean off has shrunk the standard deviation by √((n − 1) / n).
    return delta * (RELATIVE_SCALE * spread * math.sqrt(n / (n - 1)))
