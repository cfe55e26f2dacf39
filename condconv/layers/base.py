"""What every conditional layer is made of: router + bank + geometry + strategy.

Shapes: B batch, D coefficients, O/I output/input channels, g groups, *k kernel, *space positions.

    coefficients = router(x)                       (B, D)
    W(x), b(x) = bank(coefficients)                (B, O, I/g, *k), (B, O)
    y[b] = W(x)[b] * x[b] + b(x)[b]                (B, O, *space)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from condconv.arguments import a_module, a_tensor, boolean, experts
from condconv.banks import Bank
from condconv.coefficients import MIXING, Slices
from condconv.context import only_runs
from condconv.errors import RoutingError, ShapeError, argument_error
from condconv.execution import AUTO, Pins, check_strategy, choose, execute, pinned
from condconv.geometry import ConvGeometry
from condconv.layers.design import Design, RouterFactory, made_router
from condconv.layers.known import Known, known
from condconv.reuse import reuse
from condconv.routers import Router, RoutingScope
from condconv.routing_hooks import run_hooks
from condconv.site import ConvSite

RouterChoice = RouterFactory | Literal[False] | None
"""A factory (site, slices) → router, None for the variant's default router, or False for no router of its own."""

POINTWISE = ConvGeometry(stride=(1,), padding=(0,), dilation=(1,))
"""That of a linear layer: its positions are one dimension, its matrix is a kernel of one tap."""

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
    design: ClassVar[Design]

    bank: Bank
    router: Router | None
    scope: RoutingScope | None
    geometry: ConvGeometry
    site: ConvSite
    in_channels: int
    out_channels: int
    _known: Known | None = None

    def _set_up(
        self,
        site: ConvSite,
        num_experts: int | None,
        router: RouterChoice,
        strategy: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        options: dict[str, Any],
    ) -> None:
        """Make bank and router."""
        where, design = self._where(), self.design
        n = design.num_experts if num_experts is None else experts(where, num_experts)
        boolean(where, "bias", site.bias)
        if not (router is None or router is False or callable(router)):
            rule = "must be a function (site, slices) → router, None or False"
            raise argument_error(where, "router", router, rule, "pass None for the variant's default")
        common = options.pop("common", None) if design.common is not None else None
        design.check_options(where, options)
        self.site, self.options = site, options
        self.strategy = check_strategy(strategy)
        self.pins: Pins = {}  # What `condconv.tune` measured; heeded where strategy is "auto".
        self.path = ""
        self.scope = None
        self._last_strategy: str | None = None
        named = dataclasses.replace(site, name=where)
        self.bank = design.make_bank(named, n, options, device, dtype, common)
        self.num_experts = self.slices.length(MIXING) or 1
        self.num_coefficients = self.slices.size
        if router is False:
            self.router = None
        else:
            made = made_router(where, router or self.default_router, named, self.slices)
            self.router = made.to(device=device, dtype=dtype)

    def default_router(self, site: ConvSite, slices: Slices) -> Router:
        """Return the variant's router, as this layer's options make it."""
        return self.design.make_router(site, slices, self.options)

    @property
    def slices(self) -> Slices:
        """What its coefficients mean."""
        return self.bank.slices

    @property
    def weight(self) -> Tensor:
        """The experts of a dense bank, (n, *shape of the static layer's weight): `layer.bank.weight`."""
        bank: Any = self.bank
        weight: Tensor = bank.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The experts' biases of a dense bank, (n, O), or None: `layer.bank.bias`."""
        bank: Any = self.bank
        bias: Tensor | None = bank.bias
        return bias

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse what pruning and weight normalisation would put beside the bank's own parameters."""
        if name.startswith(("weight", "bias")):
            rule = "is a parameter of layer.bank, and only read here"
            remedy = "apply it to layer.bank, by the names of layer.bank.named_parameters()"
            raise argument_error(self._where(), "name", name.partition("_")[0], rule, remedy)
        super().register_parameter(name, param)

    def _where(self) -> str:
        return f"{self.path} ({type(self).__name__})" if getattr(self, "path", "") else type(self).__name__

    def _route(self, x: Tensor, coefficients: Tensor | None, batch: int | None) -> Tensor:
        """Return the coefficients (B, D) for x (B, C, *space); `batch` is B, or None while FX traces."""
        if batch is not None and not (x.dtype.is_floating_point and x.layout is torch.strided):
            given, rule = f"{x.dtype}, {x.layout}", "is no dense tensor of real floating-point numbers"
            raise argument_error(self._where(), "input", given, rule, "convert the input, as by x.to_dense().float()")
        if coefficients is None:
            coefficients = self._own_coefficients(x)
        else:
            a_tensor(self._where(), "coefficients", coefficients)
        if batch is None:
            return coefficients
        if coefficients.shape != (batch, self.num_coefficients):
            raise ShapeError(
                f"{self._where()}: coefficients of shape {tuple(coefficients.shape)} for an input of {batch} examples; "
                f"they must have shape (B, {self.slices}) = ({batch}, {self.num_coefficients})"
                + ("; a block that regroups its batch needs share=None" if self.scope is not None else "")
            )
        return run_hooks(self, coefficients)

    def _own_coefficients(self, x: Tensor) -> Tensor:
        """The coefficients (B, D) that the scope lends, or that the layer's router makes of x (B, C, *space)."""
        if self.scope is not None:
            lent = self.scope.lent()
            return self.scope.borrow(self._where()) if lent is None else lent
        if self.router is None:
            raise RoutingError(
                f"{self._where()}: has no router; pass coefficients= of shape (B, {self.num_coefficients}), or "
                "build it with a router"
            )
        try:
            coefficients: Tensor = self.router(x)
        except ShapeError as error:  # What a router says of a batch gets the layer's name.
            raise ShapeError(f"{self._where()}: {error}") from None
        return coefficients

    def _knows(self, x: Tensor, geometry: ConvGeometry) -> Known | None:
        """What is known of a forward pass with such an input where nothing else happens here."""
        known = self._known
        fits = known is not None and only_runs() and known.fits(x, geometry, self.strategy) and not self.pins
        return known if fits else None

    def _remember(self, x: Tensor, coefficients: Tensor, lowered: Any, geometry: ConvGeometry) -> None:
        """Know the next time what has just run, where that is all there is to know."""
        if type(x) is Tensor and x.shape[0] > 0 and not self.pins and only_runs():
            strategy = self._last_strategy
            assert strategy is not None
            self._known = known(x, coefficients, lowered, self.bank, geometry, self.strategy, strategy)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle what it is, not what it remembers: that is made of its own tensors."""
        return {name: value for name, value in self.__dict__.items() if name != "_known"}

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Change dtype or device (`nn.Module.to` and its kin): what was known holds no longer."""
        self._known = None
        return super()._apply(fn, recurse)

    def _lower(self, coefficients: Tensor) -> Any:
        """Return what the bank makes of coefficients (B, D)."""
        bank: Any = self._modules["bank"]  # An nn.Module finds its attributes slowly.
        return bank(coefficients)

    def _convolve(self, x: Tensor, lowered: Any, geometry: ConvGeometry) -> Tensor:
        """X (B, I, *space), already padded → y (B, O, *space); remembers which strategy ran."""
        if isinstance(x, torch.fx.Proxy):
            return _planned(x, lowered, geometry, self.strategy, self._where())
        kernels, asked, compiling = reuse(self, lowered, x), self.strategy, torch.compiler.is_compiling()
        if not compiling and self.pins and asked == AUTO:  # Compiled code is another matter: it is planned.
            asked = pinned(self.pins, x, kernels)
        strategy = choose(x, kernels, geometry, asked, self._where())
        experts: Tensor | None = getattr(lowered, "experts", None)  # Of a mixture: others bring no type of their own.
        if experts is not None and x.dtype != experts.dtype and strategy not in _MIX_TYPES:
            self._require_autocast(x, experts.dtype)
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
        **options: Any,
    ) -> Self:
        """Return a freshly initialised conditional layer with the arguments, device, dtype and mode of a static one."""
        raise NotImplementedError

    def to_static(self, coefficients: Tensor) -> nn.Module:
        """Return the static layer that fixed coefficients (D,) amount to."""
        if tuple(a_tensor(self._where(), "coefficients", coefficients).shape) != (self.num_coefficients,):
            rule = f"must have shape ({self.num_coefficients},)"
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


def site_of(layer: nn.Module, name: str = "", block: str | None = None) -> ConvSite:
    """Return the place of a static convolution or linear layer of torch.nn."""
    static: Any = layer
    if isinstance(layer, nn.Linear):
        return ConvSite(layer.in_features, layer.out_features, (), POINTWISE, layer.bias is not None, name, block)
    rank, transposed = len(static.kernel_size), static.transposed
    padding = (0,) * rank if isinstance(static.padding, str) else tuple(static.padding)
    geometry = ConvGeometry(
        tuple(static.stride), padding, tuple(static.dilation), static.groups, transposed,
        tuple(static.output_padding) if transposed else (),
    )  # fmt: skip
    channels, kernel_size = (static.in_channels, static.out_channels), tuple(static.kernel_size)
    return ConvSite(*channels, kernel_size, geometry, static.bias is not None, name, block)


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


def _planned(x: Tensor, lowered: Any, geometry: ConvGeometry, strategy: str, where: str) -> Tensor:
    """What FX records of a layer: one call, which chooses its strategy when the graph runs."""
    return execute(x, lowered, geometry, choose(x, lowered, geometry, strategy, where))


torch.fx.wrap("_planned")
