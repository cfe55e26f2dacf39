"""What every conditional layer is made of: router + bank + geometry + strategy.

Shapes: B batch, n experts, O/I output/input channels, g groups, *k kernel, *space positions.

    coefficients = router(x)                       (B, n)
    W(x) = Σᵢ coefficientsᵢ Wᵢ                     (B, O, I/g, *k)
    y[b] = W(x)[b] * x[b] + b(x)[b]                (B, O, *space)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from condconv.arguments import MOST_ELEMENTS, a_module, a_tensor, flag, integer
from condconv.banks import DenseBank, PackedBank
from condconv.errors import RoutingError, ShapeError, argument_error
from condconv.execution import AUTO, Pins, check_strategy, choose, execute, pinned
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture, Packed
from condconv.reuse import reuse
from condconv.routers import Router, RoutingScope
from condconv.routing_hooks import run_hooks

RouterFactory = Callable[[int, int], Router]
"""(in_channels, num_experts) → router."""

RouterChoice = RouterFactory | Literal[False] | None
"""A factory, None for the variant's default router, or False for no router of its own."""

_CAST = (torch.float32, torch.bfloat16, torch.float16)
"""What autocast casts."""
_MIX_TYPES = ("native", "triton")
"""Strategies that multiply in f32, of whatever type input and experts are."""

Self = TypeVar("Self", bound="ConditionalLayer")


class ConditionalLayer(nn.Module):
    """What all conditional layers share: routing, checks, and the road from coefficients to output.

    `coefficients` come from, in this order: the caller, the routing scope that the layer belongs to, its own router.
    """

    static_type: ClassVar[type[nn.Module]]
    default_num_experts: ClassVar[int]

    bank: DenseBank | PackedBank
    router: Router | None
    scope: RoutingScope | None
    geometry: ConvGeometry
    in_channels: int
    out_channels: int

    @staticmethod
    def default_router(in_channels: int, num_experts: int) -> Router:
        """Return the variant's router."""
        raise NotImplementedError

    def _set_up(
        self,
        num_experts: int | None,
        router: RouterChoice,
        strategy: str,
        kernel_shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make bank and router; the geometry is known by now."""
        n = self.default_num_experts if num_experts is None else integer(self._where(), "num_experts", num_experts, 1)
        flag(self._where(), "bias", bias)
        if not (router is None or router is False or callable(router)):
            rule = "must be a function (in_channels, num_experts) → router, None or False"
            raise argument_error(self._where(), "router", router, rule, "pass None for the variant's default")
        if math.prod((n, *kernel_shape)) > MOST_ELEMENTS:
            rule = f"makes experts of shape {(n, *kernel_shape)}, more than a tensor can have"
            raise argument_error(self._where(), "num_experts", n, rule, "reduce it, the channels or the kernel")
        self.num_experts = n
        self.strategy = check_strategy(strategy)
        self.pins: Pins = {}  # What `condconv.tune` measured; heeded where strategy is "auto".
        self.path = ""
        self.scope = None
        self._last_strategy: str | None = None
        self.bank = DenseBank(n, kernel_shape, self.out_channels if bias else None, device, dtype)
        if router is False:
            self.router = None
        else:
            made = made_router(self._where(), router or self.default_router, self.in_channels, n)
            if made.num_experts != n:
                rule = f"makes {made.num_experts} coefficients, not the layer's {n}"
                raise argument_error(self._where(), "router", type(made).__name__, rule, "use what it is given")
            self.router = made.to(device=device, dtype=dtype)

    @property
    def weight(self) -> Tensor:
        """The experts, (n, *shape of the static layer's weight): a parameter, but in an inference form."""
        return self.bank.weight

    @property
    def bias(self) -> Tensor | None:
        """The experts' biases, (n, O), or None."""
        return self.bank.bias

    def _where(self) -> str:
        return f"{self.path} ({type(self).__name__})" if getattr(self, "path", "") else type(self).__name__

    def _route(self, x: Tensor, coefficients: Tensor | None, batch: int | None) -> Tensor:
        """Return the coefficients (B, n) for x (B, C, *space); `batch` is B, or None while FX traces."""
        if batch is not None and not (x.dtype.is_floating_point and x.layout is torch.strided):
            given, rule = f"{x.dtype}, {x.layout}", "is no dense tensor of real floating-point numbers"
            raise argument_error(self._where(), "input", given, rule, "convert the input, as by x.to_dense().float()")
        if coefficients is not None:
            a_tensor(self._where(), "coefficients", coefficients)
        else:
            if self.scope is not None:
                coefficients = self.scope.borrow(self._where())
            elif self.router is not None:
                coefficients = self.router(x)
            else:
                raise RoutingError(
                    f"{self._where()}: has no router; pass coefficients= of shape (B, {self.num_experts}), or build it "
                    "with a router"
                )
        if batch is None:
            return coefficients
        if coefficients.shape != (batch, self.num_experts):
            raise ShapeError(
                f"{self._where()}: coefficients of shape {tuple(coefficients.shape)} for an input of {batch} examples; "
                f"they must have shape (B, n) = ({batch}, {self.num_experts})"
                + ("; a block that regroups its batch needs share=None" if self.scope is not None else "")
            )
        return run_hooks(self, coefficients)

    def _lower(self, coefficients: Tensor) -> Any:
        """Return what the bank makes of coefficients (B, n)."""
        bank: Any = self._modules["bank"]  # An nn.Module finds its attributes slowly.
        return bank(coefficients)

    def _convolve(self, x: Tensor, lowered: Mixture | Packed, geometry: ConvGeometry) -> Tensor:
        """X (B, I, *space), already padded → y (B, O, *space); remembers which strategy ran."""
        if isinstance(x, torch.fx.Proxy):
            return _planned(x, lowered, geometry, self.strategy, self._where())
        kernels, asked, compiling = reuse(self, lowered, x), self.strategy, torch.compiler.is_compiling()
        if not compiling and self.pins and asked == AUTO:  # Compiled code is another matter: it is planned.
            asked = pinned(self.pins, x, kernels)
        strategy = choose(x, kernels, geometry, asked, self._where())
        if isinstance(lowered, Mixture) and x.dtype != lowered.experts.dtype and strategy not in _MIX_TYPES:
            self._require_autocast(x, lowered.experts.dtype)
        if not compiling and strategy != self._last_strategy:  # An nn.Module sets them slowly.
            self._last_strategy = strategy
        return execute(x, kernels, geometry, strategy)

    def _require_autocast(self, x: Tensor, dtype: torch.dtype) -> None:
        """Refuse an input of another type than the experts, unless torch casts them."""
        if x.dtype not in _CAST or not torch.is_autocast_enabled(x.device.type):
            rule = f"is of another type than the experts, {dtype}"
            raise argument_error(self._where(), "input", x.dtype, rule, "convert the input or the layer")

    @classmethod
    def from_static(
        cls: type[Self],
        layer: nn.Module,
        num_experts: int | None = None,
        *,
        router: RouterChoice = None,
        strategy: str = AUTO,
    ) -> Self:
        """Return a freshly initialised conditional layer with the arguments, device, dtype and mode of a static one."""
        raise NotImplementedError

    def to_static(self, coefficients: Tensor) -> nn.Module:
        """Return the static layer that fixed coefficients (n,) amount to."""
        if tuple(a_tensor(self._where(), "coefficients", coefficients).shape) != (self.num_experts,):
            rule = f"must have shape ({self.num_experts},)"
            raise argument_error(self._where(), "coefficients", tuple(coefficients.shape), rule, "pass one each")
        weight, bias = self.bank.collapse(coefficients)
        static = self._empty_static(weight, bias is not None)
        with torch.no_grad():
            static.weight.copy_(weight)
            if bias is not None:
                static.bias.copy_(bias)
        return static.train(self.training)

    def _empty_static(self, like: Tensor, bias: bool) -> Any:
        """A static layer with this layer's arguments, on the device and in the dtype of `like`."""
        raise NotImplementedError


def made_router(where: str, factory: Any, in_channels: int, num_experts: int) -> Router:
    """What a factory of routers makes; `ArgumentError` where it cannot be called as one, or makes something else."""
    try:
        made = factory(in_channels, num_experts)
    except TypeError as error:
        rule = f"cannot be called as router(in_channels, num_experts): {error}"
        raise argument_error(where, "router", factory, rule, "pass a function that returns a router") from error
    router: Router = a_module(where, "router", made, Router)
    return router


def check_static_type(cls: type[ConditionalLayer], layer: nn.Module) -> None:
    """Refuse to make a `cls` out of anything but the static layer that it replaces."""
    if not isinstance(layer, cls.static_type):
        rule = f"is not a torch.nn.{cls.static_type.__name__}"
        raise argument_error(f"{cls.__name__}.from_static", "layer", type(layer).__name__, rule, "pass one")


def last_strategy(layer: ConditionalLayer) -> str | None:
    """Return the name of the strategy that the layer's last forward used, or None before the first.

    Compiled and exported code leaves no trace: what the planner chose while it was traced is part of the graph.
    """
    found: ConditionalLayer = a_module("last_strategy", "layer", layer, ConditionalLayer)
    return found._last_strategy


def _planned(x: Tensor, lowered: Mixture | Packed, geometry: ConvGeometry, strategy: str, where: str) -> Tensor:
    """What FX records of a layer: one call, which chooses its strategy when the graph runs."""
    return execute(x, lowered, geometry, choose(x, lowered, geometry, strategy, where))


torch.fx.wrap("_planned")
