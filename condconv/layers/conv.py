"""Conditional convolutions, drop-ins for `nn.Conv1d/2d/3d` and `nn.ConvTranspose2d`."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.arguments import MOST_ELEMENTS, a_tensor, choice, integer, integers
from condconv.errors import ShapeError, argument_error
from condconv.execution import AUTO, run
from condconv.geometry import ConvGeometry
from condconv.layers.base import ConditionalLayer, RouterChoice, check_static_type
from condconv.site import ConvSite

_FAR = 2**15

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Conv = TypeVar("Conv", bound="_ConditionalConv")


class _ConditionalConv(ConditionalLayer):
    """Convolutions of rank 1 to 3, transposed ones included."""

    rank: ClassVar[int]
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...],
        padding: str | int | tuple[int, ...],
        output_padding: int | tuple[int, ...],
        dilation: int | tuple[int, ...],
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        num_experts: int | None,
        router: RouterChoice,
        strategy: str,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        where, rank = self._where(), self.rank
        in_channels = integer(where, "in_channels", in_channels, 1)
        out_channels = integer(where, "out_channels", out_channels, 1)
        groups = integer(where, "groups", groups, 1)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value % groups:
                raise argument_error(where, "groups", groups, f"must divide {name}={value}", "choose a common divisor")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = integers(where, "kernel_size", kernel_size, rank, 1)
        self.stride = integers(where, "stride", stride, rank, 1)
        self.dilation = integers(where, "dilation", dilation, rank, 1)
        self.output_padding = integers(where, "output_padding", output_padding, rank, 0)
        self.padding_mode = choice(where, "padding_mode", padding_mode, PADDING_MODES)
        self.padding = padding if isinstance(padding, str) else integers(where, "padding", padding, rank, 0)
        self._check_padding(where)
        before, after = self._padding_amounts()
        self._prepad = [] if padding_mode == "zeros" and before == after else self._pad_list(before, after)
        zeros = (0,) * rank if self._prepad else before
        self.geometry = ConvGeometry(
            self.stride, zeros, self.dilation, groups, self.transposed, self.output_padding if self.transposed else ()
        )
        enlarging = (*self.stride, *self.dilation, *self.output_padding) if self.transposed else ()
        self._enlarges = max(*before, *after, *enlarging) > _FAR
        self._smallest = tuple(self._smallest_size(i) for i in range(rank))
        site = ConvSite(in_channels, out_channels, self.kernel_size, self.geometry, bias)
        self._set_up(site, num_experts, router, strategy, device, dtype, options)

    def _check_padding(self, where: str) -> None:
        """Refuse what torch.nn refuses, in the same places."""
        if self.transposed:
            if self.padding_mode != "zeros":
                rule = "must be 'zeros' for a transposed convolution"
                raise argument_error(where, "padding_mode", self.padding_mode, rule, "pad its input yourself")
            for o, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True):
                if o >= max(s, d):
                    rule = "must be smaller than stride or dilation"
                    raise argument_error(where, "output_padding", self.output_padding, rule, "reduce it")
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid") or self.transposed:
                rule = "must be a number" if self.transposed else "must be 'same', 'valid' or a number"
                raise argument_error(where, "padding", self.padding, rule, "pass the number of positions on each side")
            if self.padding == "same" and any(s != 1 for s in self.stride):
                rule = f"needs stride 1, not {self.stride}"
                raise argument_error(where, "padding", self.padding, rule, "pass the padding as a number")

    def _padding_amounts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Padding before and after each spatial dimension."""
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        both = (0,) * self.rank if self.padding == "valid" else cast("tuple[int, ...]", self.padding)
        return both, both

    @staticmethod
    def _pad_list(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
        """In the order of `F.pad`: last dimension first. All-zero padding is none."""
        amounts = [a for pair in zip(reversed(before), reversed(after), strict=True) for a in pair]
        return amounts if any(amounts) else []

    def _check_input(self, x: Tensor) -> None:
        """Refuse an input of the wrong rank, channels or size before torch does."""
        shape: Sequence[int] = x.shape if isinstance(x, Tensor) and not self._enlarges else ()
        if len(shape) == self.rank + 2 and shape[1] == self.in_channels and self._is_large(shape[2:]):
            return
        a_tensor(self._where(), "input", x)
        if x.dim() not in (self.rank + 1, self.rank + 2):
            raise ShapeError(
                f"{self._where()}: input of shape {tuple(x.shape)} has {x.dim()} dimensions; it must "
                f"have {self.rank + 2} (batched) or {self.rank + 1} (one example)"
            )
        if x.shape[-self.rank - 1] != self.in_channels:
            raise ShapeError(
                f"{self._where()}: input of shape {tuple(x.shape)} has {x.shape[-self.rank - 1]} channels; "
                f"in_channels={self.in_channels}"
            )
        if torch.compiler.is_compiling():
            return
        if not self._is_large(x.shape[-self.rank :]):
            self._refuse_small(x)
        if self._enlarges:
            self._refuse_large(x)

    def _refuse_large(self, x: Tensor) -> None:
        """Refuse an output, or a padded input, whose bytes 64 bits cannot count: allocators and operators overflow."""
        padded = [size + sum(self._prepadding(i)) for i, size in enumerate(x.shape[-self.rank :])]
        outputs = self.geometry.output_size(padded, self.kernel_size)
        batch = x.shape[0] if x.dim() == self.rank + 2 else 1
        for channels, sizes in ((self.in_channels, padded), (self.out_channels, outputs)):
            if batch * channels * math.prod(sizes) > MOST_ELEMENTS:
                raise ShapeError(
                    f"{self._where()}: an input of shape {tuple(x.shape)} would become one of "
                    f"{(batch, channels, *sizes)}, more than a tensor can have; reduce padding={self.padding}, "
                    f"stride={self.stride} or dilation={self.dilation}"
                )

    def _refuse_small(self, x: Tensor) -> None:
        """Say why an input that has no output has none."""
        for i, size in enumerate(x.shape[-self.rank :]):
            limit = self._padding_limit(size)
            if max(self._prepadding(i)) > limit:
                raise ShapeError(
                    f"{self._where()}: {self.padding_mode} padding of {max(self._prepadding(i))} on an input of shape "
                    f"{tuple(x.shape)}: it may be at most {limit} there; pad less or use larger inputs"
                )
        raise ShapeError(
            f"{self._where()}: input of shape {tuple(x.shape)} is too small for kernel_size={self.kernel_size}, "
            f"padding={self.padding}, dilation={self.dilation}; use larger inputs or more padding"
        )

    def _is_large(self, sizes: Sequence[int]) -> bool:
        """Whether an image of such sizes has an output; compiled code finds that out by itself."""
        return torch.compiler.is_compiling() or all(map(operator.ge, sizes, self._smallest))

    def _prepadding(self, i: int) -> tuple[int, int]:
        """What the layer itself pads before and after a spatial dimension."""
        low, high = self._prepad[2 * (self.rank - 1 - i) : 2 * (self.rank - i)] or (0, 0)
        return low, high

    def _padding_limit(self, size: int) -> float:
        """How much may be padded to a dimension of that size."""
        return {"reflect": size - 1, "circular": size}.get(self.padding_mode, math.inf)

    def _smallest_size(self, i: int) -> int:
        """The smallest size of a spatial dimension that has an output."""
        low, high = self._prepadding(i)
        paddable = {"reflect": max(low, high) + 1, "circular": max(low, high)}.get(self.padding_mode, 1)
        return max(1, paddable, self.geometry.smallest_input(i, self.kernel_size[i]) - low - high)

    def forward(self, x: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """Convolve each example with its own kernel.

        Args:
            x: (B, I, *space), or (I, *space) for one example.
            coefficients: (B, D), or (D,) for one example; computed by the router where None.

        Returns:
            (B, O, *space), or (O, *space) for one example.

        Raises:
            ShapeError: x or coefficients have the wrong shape.
            RoutingError: there are no coefficients, no router and no running scope.
        """
        return self._forward(x, coefficients, self.geometry)

    def _forward(self, x: Tensor, coefficients: Tensor | None, geometry: ConvGeometry) -> Tensor:
        if (known := self._knows(x, geometry)) is not None:
            if coefficients is None:
                coefficients = self._own_coefficients(x)
            if type(coefficients) is Tensor and coefficients.shape == (x.shape[0], self.num_coefficients):
                if self._last_strategy != known.strategy:  # An nn.Module sets them slowly.
                    self._last_strategy = known.strategy
                bank: Any = self._modules["bank"]
                if known.road is not None and known.still(bank):
                    return known.road(x, coefficients)
                lowered = self._lower(coefficients)
                if lowered.form == known.form:
                    return run(x, lowered, geometry, known.strategy)
        tracing = isinstance(x, torch.fx.Proxy)
        if not tracing:
            self._check_input(x)
        single = not tracing and x.dim() == self.rank + 1
        if single:
            x = x.unsqueeze(0)
            if coefficients is not None and coefficients.dim() == 1:
                coefficients = coefficients.unsqueeze(0)
        coefficients = self._route(x, coefficients, None if tracing else x.shape[0])
        lowered, padded = self._lower(coefficients), x
        if self._prepad:
            padded = F.pad(x, self._prepad, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        y = self._convolve(padded, lowered, geometry)
        if padded is x and not single:
            self._remember(x, coefficients, lowered, geometry)
        return y.squeeze(0) if single else y

    @classmethod
    def from_static(
        cls: type[Conv],
        layer: nn.Module,
        num_experts: int | None = None,
        *,
        router: RouterChoice = None,
        strategy: str = AUTO,
        **options: Any,
    ) -> Conv:
        """Return a freshly initialised conditional layer with the arguments, device, dtype and mode of a static one."""
        check_static_type(cls, layer)
        conv = cast(Any, layer)
        arguments: dict[str, Any] = {"output_padding": conv.output_padding} if cls.transposed else {}
        made = cast(Any, cls)(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            num_experts=num_experts,
            router=router,
            strategy=strategy,
            **arguments,
            **options,
        )
        return cast(Conv, made.train(layer.training))

    def _empty_static(self, like: Tensor, bias: bool) -> Any:
        arguments: dict[str, Any] = {"output_padding": self.output_padding} if self.transposed else {}
        return cast(Any, self.static_type)(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=bias,
            padding_mode=self.padding_mode,
            device=like.device,
            dtype=like.dtype,
            **arguments,
        )

    def extra_repr(self) -> str:
        """Show the arguments that differ from their defaults, as torch.nn does."""
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, default in (
            ("padding", zeros),
            ("output_padding", zeros),
            ("dilation", ones),
            ("groups", 1),
            ("padding_mode", "zeros"),
        ):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        parts += [] if self.site.bias else ["bias=False"]
        parts.append(f"num_experts={self.num_experts}")
        parts += [f"{name}={value!r}" for name, value in self.options.items()]
        parts += [f"routed by {self.scope.name or 'the network'!r}"] if self.scope is not None else []
        return ", ".join(parts)


class _ForwardConv(_ConditionalConv):
    """Gives the ordinary convolutions the signature of `nn.Conv*d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        num_experts: int | None = None,
        *,
        router: RouterChoice = None,
        strategy: str = AUTO,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups, bias, padding_mode, device,
            dtype, num_experts, router, strategy, options,
        )  # fmt: skip


class ConditionalConv1d(_ForwardConv):
    """Per-example kernels for `nn.Conv1d`: x (B, I, W) → (B, O, W')."""

    rank = 1
    static_type = nn.Conv1d


class ConditionalConv2d(_ForwardConv):
    """Per-example kernels for `nn.Conv2d`: x (B, I, H, W) → (B, O, H', W')."""

    rank = 2
    static_type = nn.Conv2d


class ConditionalConv3d(_ForwardConv):
    """Per-example kernels for `nn.Conv3d`: x (B, I, D, H, W) → (B, O, D', H', W')."""

    rank = 3
    static_type = nn.Conv3d


class ConditionalConvTranspose2d(_ConditionalConv):
    """Per-example kernels for `nn.ConvTranspose2d`: x (B, I, H, W) → (B, O, H', W'); experts (n, I, O/g, kh, kw)."""

    rank = 2
    static_type = nn.ConvTranspose2d
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        num_experts: int | None = None,
        *,
        router: RouterChoice = None,
        strategy: str = AUTO,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups, bias,
            padding_mode, device, dtype, num_experts, router, strategy, options,
        )  # fmt: skip

    def forward(
        self, x: Tensor, coefficients: Tensor | None = None, *, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Convolve each example with its own kernel; see `ConditionalConv2d.forward`.

        Args:
            x: (B, I, H, W), or (I, H, W) for one example.
            coefficients: (B, D), or (D,) for one example; computed by the router where None.
            output_size: the spatial size wanted, where stride leaves more than one possible; as in
                `nn.ConvTranspose2d`, leading batch and channel sizes are ignored.

        Raises:
            ArgumentError: the output size cannot be had.
        """
        if output_size is None:
            return self._forward(x, coefficients, self.geometry)
        wanted = tuple(output_size)[-self.rank :]
        smallest = dataclasses.replace(self.geometry, output_padding=(0,) * self.rank)
        least = smallest.output_size(x.shape[-self.rank :], self.kernel_size)
        extra = tuple(w - size for w, size in zip(wanted, least, strict=True))
        if any(not 0 <= e < max(s, d) for e, s, d in zip(extra, self.stride, self.dilation, strict=True)):
            most = tuple(size + max(s, d) - 1 for size, s, d in zip(least, self.stride, self.dilation, strict=True))
            rule = f"must lie between {least} and {most} for an input of shape {tuple(x.shape)}"
            raise argument_error(self._where(), "output_size", tuple(output_size), rule, "choose one in that range")
        return self._forward(x, coefficients, dataclasses.replace(self.geometry, output_padding=extra))
