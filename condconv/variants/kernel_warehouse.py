"""KernelWarehouse: kernels are cut into cells, and every cell is mixed from a warehouse that many layers share.

Chao Li, Anbang Yao: "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024,
https://arxiv.org/abs/2406.07879; authors' code OSVAI/KernelWarehouse.

    W(x) = assemble( w₁(x), …, w_m(x) ),    w_c(x) = Σⱼ α_cj(x) e_j,    j = 1 … n

A kernel (O, I/g, *k) is cut into m cells (o, i) of one tap each. e_j are the n cells of the warehouse that serves the
layers of a stage: o and i are the greatest common divisors of their channels, with budgets below 1 halved where both
are 64 or more, and n is `budget` times the number of cells of all their kernels: with "1/2" a network can be smaller
than it was static.

    z = W₂ ReLU( BN( W₁ GAP(x) ) ) ∈ R^(m × (n + 1)),    α_cj = (1 − τ) z_cj / (Σⱼ |z_cj| + 0.001) + τ β_cj

The last logit of a cell belongs to a cell of zeros. α may be negative. β gives each cell of a kernel a cell of its own
in the warehouse (budgets below 1: to some, and the zeros to the others); τ is annealed 1 → 0 (`RoutingSchedule`).

Multiply-adds, which the paper does not state: mixing costs n·|W| for each layer and example, as in CondConv, but n is
tens to hundreds; it is one product of matrices (B·m, n) and (n, o·i).

Defaults: budget 1, reduction 16 with at least 16 hidden channels. Initialisation: the cells that β gives to a layer
normal with variance 2 / (their number · o), linear layers with variance 2 / fan-out, zero bias. Upcycling puts the
pieces of each static kernel into its own cells and starts the router at logits β, which is exact at τ = 1; it needs a
budget of 1 or more. Departures: τ is saved with the weights; the logits for cells of other layers are never made from a
smaller basis, as in the authors' ResNet-50 of budget 1/2; biases are static. The first layer of a warehouse holds it,
in the order of the network's modules, and the others refer to it: it is counted, saved and trained once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from condconv.arguments import choice, integer
from condconv.assembled import Cells
from condconv.banks import Affine, Bank, Packing
from condconv.coefficients import Slice, Slices
from condconv.errors import ConversionError, SiteError
from condconv.layers import (
    Common,
    ConditionalConv1d,
    ConditionalConv2d,
    ConditionalConv3d,
    ConditionalLinear,
    Design,
)
from condconv.lowered import Scaled
from condconv.routers import AnnealedGate, Router
from condconv.site import ConvSite
from condconv.variants.base import Variant, variants

BUDGETS = ("1/4", "1/2", "1", "2", "4")
CELLS = "cells"
SMALLEST_HIDDEN = 16
HALVED_FROM = 64
AGAINST_ZERO = 1e-3


class Warehouse(nn.Module):
    """The cells that several layers mix.

    Args:
        shape: (n, o, i).
        device: where they are made.
        dtype: of the cells.
    """

    def __init__(
        self, shape: Sequence[int], device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.cells = nn.Parameter(torch.empty(tuple(shape), device=device, dtype=dtype))

    def extra_repr(self) -> str:
        """Show how many cells there are, and of which size."""
        return f"{len(self.cells)} cells of {tuple(self.cells.shape[1:])}"


class Shelf(NamedTuple):
    """The part of a warehouse that β gives to one layer."""

    warehouse: Warehouse
    first: int
    """Its first cell; the layer whose first is 0 holds the warehouse."""
    own: tuple[int | None, ...]
    """The cell of each of the m cells of the layer's kernel, counted from the first; None for the zeros."""
    length: int
    """How many cells are its own."""


def shelves(
    sites: Sequence[ConvSite],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    budget: str,
) -> list[Shelf]:
    """Make the warehouse of some layers, and return the shelf of each.

    Raises:
        ArgumentError: no such budget.
        SiteError: the channels have no common divisor.
    """
    ratio = Fraction(choice(sites[0].name or "KernelWarehouse", "budget", budget, BUDGETS))
    cell = [_divisor([site.kernel_shape[side] for site in sites], side) for side in (0, 1)]
    if ratio < 1 and min(cell) >= HALVED_FROM and not any(channels % 2 for channels in cell):
        cell = [channels // 2 for channels in cell]
    counts = [math.prod(site.kernel_shape) // math.prod(cell) for site in sites]
    owned = [_own_cells(count, ratio) for count in counts]
    lengths = [own if ratio < 1 else count * int(ratio) for own, count in zip(map(_given, owned), counts, strict=True)]
    warehouse = Warehouse((max(int(sum(counts) * ratio), sum(lengths)), *cell), device, dtype)
    firsts = [sum(lengths[:place]) for place in range(len(sites))]
    return [Shelf(warehouse, *rest) for rest in zip(firsts, owned, lengths, strict=True)]


def _divisor(channels: Sequence[int], side: int) -> int:
    """The greatest common divisor of the layers' output channels (side 0), or input channels."""
    divisor = math.gcd(*channels)
    if divisor == 1 and max(channels) > 1:
        listed = ", ".join(map(str, sorted(set(channels))))
        what = ("output channels", "input channels (of a group)")[side]
        rule = f"have {listed} {what}, which have no common divisor"
        raise SiteError(f"kernel_warehouse: the layers of its warehouse {rule}; leave some static, or put them apart")
    return divisor


def _own_cells(count: int, ratio: Fraction) -> tuple[int | None, ...]:
    """The cell that β gives to each of a kernel's cells."""
    if ratio >= 1:
        return tuple(place * int(ratio) for place in range(count))
    every = int(1 / ratio)
    given: list[int | None] = []
    for place in range(count):
        mine = place % every == place // every % every
        given.append(_given(given) if mine else None)
    return tuple(given)


def _given(own: Sequence[int | None]) -> int:
    """How many are not the zeros."""
    return sum(place is not None for place in own)


@dataclass(frozen=True)
class CellSlices(Slices):
    """One slice: n coefficients for each of m cells."""

    mixtures: int
    """The m."""


class WarehouseBank(Bank):
    """A layer's kernels, mixed cell by cell.

    Args:
        site: the place of the layer; not transposed.
        shelf: its part of the warehouse.
        device: where the bias is made.
        dtype: of the bias.
    """

    factor: Tensor | None

    def __init__(
        self,
        site: ConvSite,
        shelf: Shelf,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.site, self.kernel_shape, self.shelf_place = site, site.kernel_shape, shelf[1:]
        if shelf.first == 0:
            self.warehouse = shelf.warehouse
        else:  # Not a child: one layer holds it.
            object.__setattr__(self, "warehouse", shelf.warehouse)
        n, m = len(shelf.warehouse.cells), len(shelf.own)
        ones = {place * n + shelf.first + own for place, own in enumerate(shelf.own) if own is not None}
        identity = tuple(float(place in ones) for place in range(m * n))
        self.slices = CellSlices((Slice(CELLS, identity),), m)
        if site.bias:
            self.bias = nn.Parameter(torch.zeros(site.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.register_buffer("factor", None)

    @property
    def shelf(self) -> Shelf:
        """Its part of the warehouse."""
        return Shelf(self.warehouse, *self.shelf_place)

    def forward(self, coefficients: Tensor) -> Cells | Scaled:
        """Return the lowered form for coefficients (B, m·n)."""
        bias = None if self.bias is None else self.bias.unsqueeze(0)
        cells = Cells(coefficients, self.warehouse.cells, bias, self.kernel_shape)
        if self.factor is None:
            return cells
        return Scaled(cells.without_bias(), None, self.factor.unsqueeze(0), None, None, bias)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """Put the kernel's pieces into its own cells; see the module's docstring.

        Raises:
            ConversionError: a budget below 1, or coefficients (m·n,) that mix more than a layer's own cells.
        """
        _, _, own, _ = shelf = self.shelf
        if None in own:
            rule = "init='upcycle' needs a cell for each of a kernel's cells: a budget of at least 1"
            raise ConversionError(f"{rule}; use budget='1' or more, or init='fresh'")
        if coefficients.is_meta:
            return
        table = coefficients.double().reshape(len(own), -1)
        mine = torch.tensor([shelf.first + place for place in own if place is not None], device=table.device)
        used = table.gather(1, mine.unsqueeze(1))  # m 1
        if not bool((used != 0).all()) or int((table != 0).sum()) != len(own):
            rule = "init='upcycle' needs a router that starts with each layer's own cells"
            raise ConversionError(f"{rule}; use the paper's, or init='fresh'")
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        if weight.is_meta:
            return
        pieces = self._cut(weight.double()) / used.unsqueeze(2).to(weight.device)
        self.warehouse.cells[mine.to(weight.device)] = pieces.to(self.warehouse.cells.dtype)

    def _cut(self, kernel: Tensor) -> Tensor:
        """Return the cells (m, o, i) of a kernel (O, I/g, *k)."""
        _, o, i = self.warehouse.cells.shape
        parts = kernel.reshape(kernel.shape[0] // o, o, kernel.shape[1] // i, i, -1)  # O/o o I/i i K
        return parts.permute(4, 0, 2, 1, 3).reshape(-1, o, i)

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """Mixing, n·|W|."""
        return len(self.warehouse.cells) * math.prod(self.kernel_shape)

    def learned(self) -> Iterator[Tensor]:
        """The warehouse's cells and the bias."""
        yield self.warehouse.cells
        if self.bias is not None:
            yield self.bias

    def common(self) -> nn.Module:
        """The warehouse."""
        return self.warehouse

    @torch.no_grad()
    def draw(self, weight: Callable[[Tensor], object], bias: Callable[[Tensor], object] | None = None) -> None:
        """Fill the layer's own cells, and its bias."""
        weight(self._own())
        if bias is not None and self.bias is not None:
            bias(self.bias)

    @torch.no_grad()
    def multiply(self, factor: float) -> None:
        """Multiply the layer's own cells by a factor."""
        self._own().mul_(factor)

    def _own(self) -> Tensor:
        _, first, _, length = self.shelf
        return self.warehouse.cells[first : first + length]

    @torch.no_grad()
    def pack(self, packing: Packing, norm: Affine | None) -> WarehouseBank:
        """The same with the norm as a factor behind: the cells are those of other layers too.

        Raises:
            ConversionError: cells are asked for in another storage than f32, to be fewer, or to be skipped.
        """
        if packing.storage != "f32" or packing.threshold or packing.kernels:
            asked = f"experts={packing.storage!r}, skip_below={packing.threshold:g} or fewer kernels"
            raise ConversionError(f"a warehouse has no inference form with {asked}; use experts='f32', skip_below=0")
        if norm is None:
            return self
        like = self.warehouse.cells
        made = WarehouseBank(self.site.with_bias(), self.shelf, like.device, like.dtype)
        made.factor = norm.factor.to(like)
        made.bias.copy_(norm.shift if self.bias is None else norm.shift + norm.factor * self.bias.double())
        return made


class ContrastingGate(AnnealedGate):
    """α = (1 − τ) z / (Σ |z| + 0.001) + τ β for each cell of a kernel, without the last, that of the zeros.

    Args:
        prior: β, (m, n + 1).
    """

    start, end, least = 1.0, 0.0, 0.0
    called, buffer = "interpolation", "interpolation"
    interpolation: Tensor
    prior: Tensor

    def __init__(self, prior: Tensor) -> None:
        super().__init__(self.start)
        self.register_buffer("prior", prior, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the coefficients (B, m·n) of logits (B, m·(n + 1))."""
        self.notice()
        z = logits.unflatten(1, tuple(self.prior.shape))  # B m n+1
        shares = z / (z.abs().sum(dim=2, keepdim=True) + AGAINST_ZERO)
        tau = self.interpolation.to(logits.dtype)
        return ((1 - tau) * shares + tau * self.prior.to(logits.dtype))[:, :, :-1].flatten(1)


class WarehouseRouter(Router):
    """Pooling, a hidden layer with its norm, n + 1 logits for each cell of the layer's kernel."""

    gate: ContrastingGate

    def reset_parameters(self) -> None:
        """Draw linear layers normal with variance 2 / fan-out; zero biases."""
        for layer in self._linears:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _constant_logits(self) -> Tensor:
        """β, which gives every example the layer's own cells."""
        return self.gate.prior.flatten()


def _bank(
    site: ConvSite,
    num_experts: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    common: Shelf,
) -> Bank:
    integer(site.name or "KernelWarehouse", "num_experts", num_experts, 1, 1)
    bank = WarehouseBank(site, common, device, dtype)
    std = math.sqrt(2 / (common.length * common.warehouse.cells.shape[1]))
    bank.draw(lambda cells: nn.init.normal_(cells, std=std), nn.init.zeros_)
    return bank


def _router(
    site: ConvSite, slices: Slices, *, reduction: int, norm: Literal["batch", "layer"] | None
) -> Router:
    assert isinstance(slices, CellSlices)
    prior = torch.tensor(slices.identity).reshape(slices.mixtures, -1)  # m n
    prior = torch.cat([prior, 1 - prior.sum(dim=1, keepdim=True)], dim=1)
    hidden = max(site.in_channels // integer("KernelWarehouse", "reduction", reduction, 1), SMALLEST_HIDDEN)
    gate = ContrastingGate(prior)
    return WarehouseRouter(
        site.in_channels, slices, hidden_channels=hidden, gate=gate, norm=norm, logits=prior.numel()
    )


DESIGN = Design(
    bank=_bank,
    router=_router,
    num_experts=1,
    options={"budget": "1", "reduction": 16, "norm": "batch"},
    common=Common(shelves, "warehouses"),
)


class KernelWarehouseConv1d(ConditionalConv1d):
    """KernelWarehouse for `nn.Conv1d`: x (B, I, W) → (B, O, W')."""

    design = DESIGN


class KernelWarehouseConv2d(ConditionalConv2d):
    """KernelWarehouse for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W').

    Takes the arguments of `nn.Conv2d` in their order, then:

    Args:
        num_experts: 1: `budget` says how many cells there are.
        router: a factory (site, slices) → router; None for the paper's, False for no router, so that `forward` must be
            given coefficients.
        strategy: execution strategy, or "auto".
        budget: "1/4", "1/2", "1", "2" or "4": cells of the warehouse over cells of the kernels.
        reduction: divides I to the width of the router's hidden layer.
        norm: of the hidden layer: "batch", "layer" or None.

    A layer made here has a warehouse of its own; `condconv.convert` makes one for the layers of each stage.

    >>> layer = KernelWarehouseConv2d(16, 32, 3, padding=1, norm="layer")
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    design = DESIGN


class KernelWarehouseConv3d(ConditionalConv3d):
    """KernelWarehouse for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W')."""

    design = DESIGN


class KernelWarehouseLinear(ConditionalLinear):
    """KernelWarehouse for `nn.Linear`: x (B, *positions, I) → (B, *positions, O)."""

    design = DESIGN


variants.register(
    "kernel_warehouse",
    Variant(
        name="kernel_warehouse",
        title="KernelWarehouse: Rethinking the Design of Dynamic Convolution (ICML 2024)",
        url="https://arxiv.org/abs/2406.07879",
        equation="w_c(x) = Σⱼ α_cj(x) e_j, a kernel W(x) of m cells w_c",
        design=DESIGN,
        layers=(KernelWarehouseConv1d, KernelWarehouseConv2d, KernelWarehouseConv3d, KernelWarehouseLinear),
        share=None,
        placement="all_but_first",
    ),
)
