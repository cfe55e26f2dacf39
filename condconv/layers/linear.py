"""The conditional linear layer, a drop-in for `nn.Linear` (Dynamic Convolution, section 3.1: "dynamic perceptron")."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from condconv.arguments import a_tensor, integer
from condconv.errors import ShapeError
from condconv.execution import AUTO
from condconv.layers.base import POINTWISE, ConditionalLayer, RouterChoice, Self, check_static_type
from condconv.lowered import as_pointwise
from condconv.site import ConvSite


class ConditionalLinear(ConditionalLayer):
    """Per-example matrices: x (B, *positions, I) → (B, *positions, O).

    The first dimension is the example; all positions of an example share one matrix, and the router pools over them.
    A 1-D input is one example. Experts: weight (n, O, I), bias (n, O).

    Args:
        in_features: I.
        out_features: O.
        bias: whether each expert has a bias.
        device: where the parameters are made.
        dtype: of the parameters.
        num_experts: n; the variant's default where None.
        router: a factory (site, slices) → router, None for the variant's default, False for none.
        strategy: execution strategy, or "auto".
        options: what is special to the paper.
    """

    static_type: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        num_experts: int | None = None,
        *,
        router: RouterChoice = None,
        strategy: str = AUTO,
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_features = self.in_channels = integer(self._where(), "in_features", in_features, 1)
        self.out_features = self.out_channels = integer(self._where(), "out_features", out_features, 1)
        self.geometry = POINTWISE
        site = ConvSite(self.in_features, self.out_features, (), POINTWISE, bias)
        self._set_up(site, num_experts, router, strategy, device, dtype, options)

    def forward(self, x: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """Multiply each example by its own matrix.

        Args:
            x: (B, *positions, I), or (I,) for one example.
            coefficients: (B, D), or (D,) for one example; computed by the router where None.

        Returns:
            (B, *positions, O), or (O,) for one example.

        Raises:
            ShapeError: x or coefficients have the wrong shape.
            RoutingError: there are no coefficients, no router and no running scope.
        """
        tracing = isinstance(x, torch.fx.Proxy)
        a_tensor(self._where(), "input", x)
        if not tracing and (x.dim() < 1 or x.shape[-1] != self.in_features):
            raise ShapeError(
                f"{self._where()}: input of shape {tuple(x.shape)} does not end in in_features={self.in_features}"
            )
        single = not tracing and x.dim() == 1
        if single:
            x = x.unsqueeze(0)
            if coefficients is not None and coefficients.dim() == 1:
                coefficients = coefficients.unsqueeze(0)
        columns = _to_columns(x)  # B I P
        coefficients = self._route(columns, coefficients, None if tracing else x.shape[0])
        y = self._convolve(columns, as_pointwise(self._lower(coefficients)), self.geometry)  # B O P
        y = _from_columns(y, x)
        return y.squeeze(0) if single else y

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
        check_static_type(cls, layer)
        linear = cast(Any, layer)
        made = cast(Any, cls)(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
            num_experts=num_experts,
            router=router,
            strategy=strategy,
            **options,
        )
        return cast(Self, made.train(layer.training))

    def _empty_static(self, like: Tensor, bias: bool) -> Any:
        return nn.Linear(self.in_features, self.out_features, bias, like.device, like.dtype)

    def extra_repr(self) -> str:
        """Show the arguments, as torch.nn does."""
        shown = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.site.bias}"
        scope = f", routed by {self.scope.name or 'the network'!r}" if self.scope is not None else ""
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{shown}, num_experts={self.num_experts}{options}{scope}"


def _to_columns(x: Tensor) -> Tensor:
    """X (B, *positions, I) → (B, I, P), a view: P = 1 where there are no positions."""
    return x.unsqueeze(2) if x.dim() == 2 else x.flatten(1, -2).transpose(1, 2)


def _from_columns(y: Tensor, x: Tensor) -> Tensor:
    """Y (B, O, P) → (B, *positions, O), with the positions of x."""
    return y.transpose(1, 2).reshape(*x.shape[:-1], y.shape[1])


torch.fx.wrap("_to_columns")
torch.fx.wrap("_from_columns")
