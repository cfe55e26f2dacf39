"""Dynamic channel fusion: a static kernel, its output channels scaled, and a matrix of low rank for each example.

Yunsheng Li, Yinpeng Chen, Xiyang Dai, Mengchen Liu, Dongdong Chen, Ye Yu, Lu Yuan, Zicheng Liu, Mei Chen, Nuno
Vasconcelos: "Revisiting Dynamic Convolution via Matrix Decomposition", ICLR 2021, https://arxiv.org/abs/2103.08756.

    W(x) = Λ(x) W₀ + P (Φ(x) + 1) Qᵀ

Λ (O, O) is diagonal ("output"), Φ (L, L) is whole ("latent"), P (O, L) and Qᵀ (L, I) are static, L ≪ I. The second term
is on one tap, the middle one. It runs on the maps or on the kernels, whichever are fewer multiply-adds, layer by layer.

    v = W pool(x),   z = heads( v ⊙ h(U v) ),   Λ = h(z),   Φ = z,   h(z) = relu6(z + 3) / 3, so that h(0) = 1

The sizes are those of three kinds of network: "basic" (residual blocks of two 3x3: pooling to 2x2, F = 4 I features,
L = ⌊√F⌋), "bottleneck" (F = I, L = ⌊√I⌋), both with max(F, L²) / squeeze hidden channels; and "mobile" (F = 4 I and
L = F / 8 where I < O, else F = I and L = F / 2; L at most O over the same, halved until L² ≤ 2 F, and at least 4).

Initialisation: W₀, P and Q normal with variance 2 / (k² O), linear layers normal with standard deviation 0.01.
Upcycling sets P to zero, which is exact. Departures: the two batch norms around Φ of the authors' released network are
left out (in evaluation they are factors of P and Q); the bias is added after Λ, also in a linear layer; the authors'
licence allows no commercial use, so that nothing but the equations is taken, and their weights are not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.arguments import choice, integer
from condconv.banks import Affine, Bank, Packing, ScaledBank, StaticBank
from condconv.coefficients import Slice, Slices
from condconv.errors import SiteError
from condconv.layers import ConditionalConv2d, ConditionalLinear, Design
from condconv.lowered import LowRank, matrix_macs, on_maps_macs
from condconv.routers import Gate, Router
from condconv.routers.router import linear
from condconv.routers.valid_area import area_of, average
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants

SIZES = ("basic", "bottleneck", "mobile")
LATENT = "latent"
OF_A_CLASSIFIER = 32
"""L, and hidden channels, of a linear layer."""


def pooled_side(site: ConvSite, sizes: str) -> int:
    """Side of the map that the router pools to: 2 or 1."""
    grows = sizes == "mobile" and site.in_channels < site.out_channels
    return 2 if site.kernel_size and (sizes == "basic" or grows) else 1


def rank_of(site: ConvSite, sizes: str) -> int:
    """L."""
    if not site.kernel_size:
        return OF_A_CLASSIFIER
    features = site.in_channels * pooled_side(site, sizes) ** 2
    if sizes != "mobile":
        return max(1, math.isqrt(features))
    reduction = 8 if site.in_channels < site.out_channels else 2
    rank = min(features, site.out_channels) // reduction
    while rank * rank > 2 * features:
        reduction *= 2
        rank = min(features, site.out_channels) // reduction
    return max(rank, 4)


class FusionBank(ScaledBank):
    """W₀ between Λ and the low-rank term.

    Args:
        site: the place of the layer; neither grouped nor transposed.
        rank: L.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        SiteError: a grouped or transposed convolution.
    """

    def __init__(
        self,
        site: ConvSite,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if site.groups > 1:
            rule = f"groups={site.groups}: a matrix from all channels to all has no grouped form; leave it static"
            raise SiteError(f"{site.name or 'DCD'}: {rule}")
        super().__init__(site, StaticBank(site, device, dtype), ["output"])
        minus_one = tuple(-1.0 if place % (rank + 1) == 0 else 0.0 for place in range(rank * rank))
        self.slices = Slices((*self.slices.parts, Slice(LATENT, minus_one)))
        self.reduce = nn.Parameter(torch.empty((rank, site.in_channels), device=device, dtype=dtype))
        self.expand = nn.Parameter(torch.empty((site.out_channels, rank), device=device, dtype=dtype))
        self._rest = slice(0, 0)
        self._channels = site.in_channels, site.out_channels
        self._tap = tuple((size - 1) // 2 for size in site.kernel_size)
        std = math.sqrt(2 / (site.taps * site.out_channels))
        self.draw(partial(nn.init.normal_, std=std), nn.init.zeros_)

    def _residual(self, coefficients: Tensor) -> LowRank:
        flat = coefficients[:, self.slices.span(LATENT)]
        rank = self.reduce.shape[0]
        core = flat.unflatten(1, (rank, rank)) + torch.eye(rank, dtype=flat.dtype, device=flat.device)
        return LowRank(self.reduce, core, self.expand, self._tap)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """Set P to zero and W₀ to the kernel over Λ."""
        self.expand.zero_()
        super().start_from(weight, bias, coefficients)

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """Λ and the low-rank term, on maps or on kernels."""
        positions, rank, (inputs, outputs) = math.prod(output_size), len(self.reduce), self._channels
        on_maps = outputs * positions + on_maps_macs(rank, inputs, outputs, positions)
        return min(on_maps, math.prod(self.kernel_shape) + matrix_macs(rank, inputs, outputs))

    @torch.no_grad()
    def draw(self, weight: Callable[[Tensor], object], bias: Callable[[Tensor], object] | None = None) -> None:
        """Fill W₀, P and Q, and the bias."""
        super().draw(weight, bias)
        weight(self.expand)
        weight(self.reduce)

    @torch.no_grad()
    def multiply(self, factor: float) -> None:
        """Multiply W₀ and P by a factor."""
        super().multiply(factor)
        self.expand.mul_(factor)

    @torch.no_grad()
    def pack(self, packing: Packing, norm: Affine | None) -> FusionBank:
        """The same with the norm's factor in W₀ and P."""
        if norm is None:
            return self
        made = FusionBank(self.site.with_bias(), self.reduce.shape[0], self.reduce.device, self.reduce.dtype)
        made.inner = self.inner.pack(packing, norm)
        made.reduce.copy_(self.reduce)
        made.expand.copy_(self.expand.double() * norm.factor[:, None])
        return made


class FusionGate(Gate):
    """Λ = h(z), Φ = z.

    Args:
        outputs: O, the length of Λ.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, logits: Tensor) -> Tensor:
        """Return the coefficients (B, D) of logits (B, D)."""
        return torch.cat([hard(logits[:, : self.outputs]), logits[:, self.outputs :]], dim=1)


class FusionRouter(Router):
    """Pooling to 1x1 or 2x2, a layer that gates itself, two heads in one; no biases.

    Args:
        in_channels: C of the input.
        slices: Λ and Φ.
        side: of the pooled map, 1 or 2.
        hidden: channels of the hidden layer.
    """

    def __init__(self, in_channels: int, slices: Slices, side: int, hidden: int) -> None:
        super().__init__(in_channels, slices, hidden_channels=hidden, gate=FusionGate(slices.length("output")))
        self.side = side
        widths = [(in_channels * side**2, hidden), (hidden, hidden), (hidden, slices.size)]
        self.body = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in widths))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the linear layers normal with standard deviation 0.01."""
        for layer in self._linears:
            nn.init.normal_(layer.weight, std=0.01)

    def _logits(self, x: Tensor, previous: Tensor | None) -> Tensor:
        reduce, gate, heads = self._linears
        v = linear(_pooled(x, self.side, reduce.weight), reduce.weight, None)
        return linear(v * hard(linear(v, gate.weight, None)), heads.weight, None)


def hard(z: Tensor) -> Tensor:
    """h(z) = relu6(z + 3) / 3."""
    return F.relu6(z + 3) / 3


def _pooled(x: Tensor, side: int, weight: Tensor) -> Tensor:
    """Means of x (B, C, *space) over space, or over the quarters of (B, C, H, W), in f32 at least."""
    x = x.to(torch.promote_types(weight.dtype, torch.float32))
    if side == 1:
        return x if x.dim() == 2 else average(x, x.dtype)
    area = area_of(x)
    if area is None:
        return F.adaptive_avg_pool2d(x, side).flatten(1)
    filled = torch.stack(area.on_map(x), dim=1).tolist()
    images = (image[:, :rows, :columns] for image, (rows, columns) in zip(x, filled, strict=True))
    return torch.stack([F.adaptive_avg_pool2d(image, side) for image in images]).flatten(1)


# FX records these as one call each: what they ask of dtypes and ranks cannot be traced through.
torch.fx.wrap("_pooled")
torch.fx.wrap("linear")


def _bank(
    site: ConvSite, num_experts: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    *, sizes: str,
) -> Bank:  # fmt: skip
    integer(site.name or "DCD", "num_experts", num_experts, 1, 1)
    choice(site.name or "DCD", "sizes", sizes, SIZES)
    return FusionBank(site, rank_of(site, sizes), device, dtype)


def _router(site: ConvSite, slices: Slices, sizes: str, squeeze: int) -> Router:
    side, squeeze = pooled_side(site, sizes), integer(site.name or "DCD", "squeeze", squeeze, 1)
    features = site.in_channels * side**2
    hidden = max(features, slices.length(LATENT)) // squeeze if site.kernel_size else OF_A_CLASSIFIER
    return FusionRouter(site.in_channels, slices, side, max(hidden, 4))


DESIGN = Design(bank=_bank, router=_router, num_experts=1, options={"sizes": "bottleneck", "squeeze": 16})


class DCDConv2d(ConditionalConv2d):
    """DCD for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W').

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: 1, for there is one kernel.
        router: a factory (site, slices) → router; None for the paper's, False for no router, so that `forward` must be
            given coefficients.
        strategy: execution strategy, or "auto".
        sizes: of L and the router: those of "bottleneck", "basic" or "mobile" networks.
        squeeze: divides the width of the router's hidden layer.

    >>> layer = DCDConv2d(16, 32, 3, padding=1)
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class DCDLinear(ConditionalLinear):
    """DCD for `nn.Linear`: x (B, *positions, I) → (B, *positions, O)."""

    design = DESIGN


variants.register(
    "dcd",
    Variant(
        name="dcd",
        title="Revisiting Dynamic Convolution via Matrix Decomposition (ICLR 2021)",
        url="https://arxiv.org/abs/2103.08756",
        equation="W(x) = Λ(x) W₀ + P (Φ(x) + 1) Qᵀ",
        design=DESIGN,
        layers=(DCDConv2d, DCDLinear),
        share=None,
        placement="all_but_first",
    ),
)
