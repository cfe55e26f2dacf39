"""WeightNet: a network of two layers makes the kernel; the second is grouped, so that it is factors of static kernels.

Ningning Ma, Xiangyu Zhang, Jiawei Huang, Jian Sun: "WeightNet: Revisiting the Design Space of Weight Networks", ECCV
2020, https://arxiv.org/abs/2007.11823; authors' code megvii-model/WeightNet.

    a = σ( W₂ W₁ GAP(x) ) ∈ R^(M·O),    W(x)[o, block g] = Σ_m a_mog V_m[o, block g],    m = 1 … M / G

The input channels of each filter are cut into G blocks; each has M / G static kernels V_m, whose weights are those of
this output channel and block. M = G = 1 scales output channels, as squeeze-and-excitation does; with M = G one static
kernel is scaled block by block, and nothing is mixed. A depthwise filter has one block, for its one channel.

Defaults: M = G = 2, at least 16 hidden channels, no activation between the two linear layers. Initialisation: V normal
with standard deviation G / (I k²), linear layers with 1 / fan-in, zero biases. Upcycling divides the kernel by the sum
of its weights, which is exact (1/2 each for zero logits), and spreads several V_m around it. Departures: the hidden
layer is each layer's own, not the block's; layers may have biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from condconv.arguments import integer
from condconv.assembled import Blocks
from condconv.banks import Affine, Bank, KernelBank, Packing, scale_outputs
from condconv.coefficients import Slice, Slices
from condconv.errors import ConversionError, SiteError
from condconv.layers import ConditionalConv1d, ConditionalConv2d, ConditionalConv3d, Design
from condconv.routers import Router, SigmoidGate
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants

BLOCKS = "blocks"
SMALLEST_HIDDEN = 16
SPREAD = 0.5
"""Standard deviation of the kernels around a static one, relative to its own."""


class BlockBank(KernelBank):
    """V, (n, O, I/g, *k), and a bias; n·O·G weights.

    Args:
        site: the place of the layer; not transposed.
        num_experts: n = M / G.
        blocks: G.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        SiteError: G does not divide the input channels of a group.
    """

    def __init__(
        self,
        site: ConvSite,
        num_experts: int,
        blocks: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels = site.kernel_shape[1]
        self.site, self.kernel_shape, self.blocks = site, site.kernel_shape, 1 if channels == 1 else blocks
        if channels % self.blocks:
            rule = f"{channels} input channels of a filter are no multiple of blocks={blocks}; leave it static"
            raise SiteError(f"{site.name or 'WeightNet'}: {rule}")
        self.slices = Slices((Slice(BLOCKS, (1.0,) * (num_experts * site.out_channels * self.blocks)),))
        self.weight = nn.Parameter(torch.empty((num_experts, *site.kernel_shape), device=device, dtype=dtype))
        if site.bias:
            self.bias = nn.Parameter(torch.zeros(site.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        nn.init.normal_(self.weight, std=self.blocks / math.prod(site.kernel_shape[1:]))

    def forward(self, coefficients: Tensor) -> Blocks:
        """Return the lowered form for coefficients (B, n·O·G)."""
        return Blocks(coefficients, self.weight, None if self.bias is None else self.bias.unsqueeze(0), self.blocks)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """See the module's docstring.

        Raises:
            ConversionError: weights that are zero, or differ between the kernels.
        """
        n = self.weight.shape[0]
        table = coefficients.double().reshape(n, self.kernel_shape[0], self.blocks)
        total = table.sum(dim=0)  # O G
        if coefficients.is_meta:
            return
        if not bool((total != 0).all()) or not bool((table == table[0]).all()):
            raise ConversionError(
                "init='upcycle' needs a gate that gives every kernel the same weight, not zero, for zero logits; use "
                "init='fresh', or another gate"
            )
        if weight.is_meta:
            return
        kernel = weight.double()
        around = torch.randn((n, *kernel.shape), dtype=kernel.dtype, device=kernel.device)
        around = (around - around.mean(dim=0)) * (SPREAD * float(kernel.std(correction=0)))  # None for n = 1.
        by_block = (kernel + around).flatten(2).reshape(n, kernel.shape[0], self.blocks, -1)
        self.weight.copy_((by_block / total.to(kernel.device).unsqueeze(2)).reshape(self.weight.shape))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """A multiplication for each element of the n kernels."""
        return self.weight.numel()

    @torch.no_grad()
    def pack(self, packing: Packing, norm: Affine | None) -> BlockBank:
        """The same with the norm's factor in the kernels.

        Raises:
            ConversionError: kernels are asked for in another storage than f32, or to be fewer.
        """
        if packing.storage != "f32" or packing.kernels:
            asked = f"experts={packing.storage!r} or fewer kernels"
            raise ConversionError(f"WeightNet has no inference form with {asked}; use experts='f32'")
        if norm is None:
            return self
        n, like = self.weight.shape[0], self.weight
        made = BlockBank(self.site.with_bias(), n, self.blocks, like.device, like.dtype)
        made.weight.copy_(scale_outputs(self.weight, norm.factor, self.site.groups, False))
        assert made.bias is not None
        made.bias.copy_(norm.shift if self.bias is None else norm.shift + norm.factor * self.bias.double())
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BlockBank:
        """Change dtype or device of the kernels as rows of a matrix: channels_last has no 5-D tensors."""
        return super()._apply(
            lambda t: fn(t.flatten(1)).unflatten(1, t.shape[1:]) if t.dim() > 1 else fn(t), recurse
        )


class LinearRouter(Router):
    """Pooling and two linear layers, with nothing between them."""

    def __init__(self, in_channels: int, slices: Slices, hidden: int) -> None:
        super().__init__(in_channels, slices, hidden_channels=hidden, gate=SigmoidGate())
        self.body = nn.Sequential(*self._linears)

    def reset_parameters(self) -> None:
        """Draw linear layers normal with standard deviation 1 / fan-in; zero biases."""
        for layer in self._linears:
            nn.init.normal_(layer.weight, std=1 / layer.in_features)
            nn.init.zeros_(layer.bias)


def _bank(
    site: ConvSite, num_experts: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    *, blocks: int,
) -> Bank:  # fmt: skip
    return BlockBank(site, num_experts, integer(site.name or "WeightNet", "blocks", blocks, 1), device, dtype)


def _router(site: ConvSite, slices: Slices) -> Router:
    return LinearRouter(site.in_channels, slices, max(site.in_channels // 16, SMALLEST_HIDDEN))


DESIGN = Design(bank=_bank, router=_router, num_experts=1, options={"blocks": 2})


class WeightNetConv1d(ConditionalConv1d):
    """WeightNet for `nn.Conv1d`: x (B, I, W) → (B, O, W')."""

    design = DESIGN


class WeightNetConv2d(ConditionalConv2d):
    """WeightNet for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W').

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: n = M / G, 1 where None.
        router: a factory (site, slices) → router; None for the paper's, False for no router, so that `forward` must be
            given coefficients.
        strategy: execution strategy, or "auto".
        blocks: G, into how many blocks the input channels of each filter are cut.

    >>> layer = WeightNetConv2d(16, 32, 3, padding=1)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class WeightNetConv3d(ConditionalConv3d):
    """WeightNet for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W')."""

    design = DESIGN


variants.register(
    "weightnet",
    Variant(
        name="weightnet",
        title="WeightNet: Revisiting the Design Space of Weight Networks (ECCV 2020)",
        url="https://arxiv.org/abs/2007.11823",
        equation="W(x)[o, block g] = Σ_m a_mog(x) V_m[o, block g]",
        design=DESIGN,
        layers=(WeightNetConv1d, WeightNetConv2d, WeightNetConv3d),
        share=None,
        placement="all_but_first",
    ),
)
