"""A router: x (B, C, *space) → coefficients (B, D), one routing decision for each example.

    α(x) = drop( gate( body( [GAP(x), α_previous] ) ) )

The pieces are exchangeable: `body` maps the pooled features to logits, `gate` maps logits to coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.arguments import MOST_ELEMENTS, a_module, choice, integer, probability
from condconv.coefficients import MIXING, Slices
from condconv.context import only_runs
from condconv.errors import argument_error
from condconv.func_transforms import transformed
from condconv.operators import available
from condconv.routers.gates import Gate, drop_experts
from condconv.routers.normalisation import HiddenBatchNorm, hidden_norm
from condconv.routers.valid_area import area_of, average


class Router(nn.Module):
    """Global average pooling, a small network, a gate.

    Args:
        in_channels: C of the input.
        slices: what its coefficients mean, and how many there are.
        hidden_channels: width of a hidden layer with ReLU between pooling and logits; None for a single linear layer.
        gate: logits → coefficients.
        dropout: probability with which a pooled feature is dropped in training.
        expert_dropout: probability with which an expert's coefficient is zeroed in training, for each example apart.
        previous_experts: length of the previous routing's coefficients, which are concatenated to the pooled input
            (hierarchical routing, CondConv table 4); 0 where there is none.
        norm: "batch" or "layer" for a normalised hidden layer, whose linear layer then has no bias; None for neither.
        logits: how many the gate makes its coefficients of; None for one each.

    Raises:
        ArgumentError: a count below one, or a probability outside [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        slices: Slices,
        *,
        hidden_channels: int | None,
        gate: Gate,
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
        previous_experts: int = 0,
        norm: Literal["batch", "layer"] | None = None,
        logits: int | None = None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        self.in_channels = integer(where, "in_channels", in_channels, 1)
        self.slices = slices
        self.previous_experts = integer(where, "previous_experts", previous_experts, 0)
        self.dropout = probability(where, "dropout", dropout)
        self.expert_dropout = probability(where, "expert_dropout", expert_dropout)
        hidden = None if hidden_channels is None else integer(where, "hidden_channels", hidden_channels, 1)
        gate = a_module(where, "gate", gate, Gate)
        if norm is not None:
            choice(where, "norm", norm, ("batch", "layer"))
        size = slices.size if logits is None else integer(where, "logits", logits, 1)
        features = self.in_channels + self.previous_experts
        if max(features, size) * (hidden or min(features, size)) > MOST_ELEMENTS:
            rule = f"makes a matrix for {features} features and {size} logits, more than a tensor can have"
            raise argument_error(where, "hidden_channels", hidden, rule, "reduce one of the three")
        if hidden is None:
            self.body = nn.Sequential(nn.Linear(features, size))
        else:
            first = nn.Linear(features, hidden, bias=norm is None)
            self.body = nn.Sequential(first, *hidden_norm(norm, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.gate = gate
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw linear layers Glorot-uniform with zero bias, as the CondConv authors' code does."""
        for layer in self._linears:
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    @property
    def is_sequence(self) -> bool:
        """Whether its logits are its body's of the pooled input, and nothing else is computed."""
        return type(self)._logits is Router._logits

    @property
    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.body if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def fold_norm(self) -> None:
        """Fold the running statistics of a normalised hidden layer into the first linear layer, for evaluation."""
        norm = self.body[1] if len(self.body) > 1 else None
        if not isinstance(norm, HiddenBatchNorm):
            return
        first, (factor, shift) = self._linears[0], norm.factor_and_shift()
        folded = nn.Linear(first.in_features, first.out_features, device=first.weight.device, dtype=first.weight.dtype)
        folded.weight.copy_(first.weight.double() * factor[:, None])
        folded.bias.copy_(shift)
        self.body = nn.Sequential(folded, *self.body[2:])

    @torch.no_grad()
    def reset_to_constant(self) -> Tensor:
        """Give every example the same coefficients, until training moves the last linear layer, whose weight is zero.

        Returns:
            Those coefficients (D,), expert dropping and noise left out.
        """
        last = self._linears[-1]
        nn.init.zeros_(last.weight)
        logits = self._constant_logits()
        if last.bias is not None:
            last.bias.copy_(logits)
        was_training = self.gate.training
        self.gate.eval()
        dtype = _compute_dtype(last.weight)
        coefficients: Tensor = self.gate(logits.to(last.weight.device, dtype).unsqueeze(0))
        self.gate.train(was_training)
        return coefficients[0]

    def _constant_logits(self) -> Tensor:
        """The logits with which `reset_to_constant` starts: zeros, or what the last linear layer's bias can hold."""
        return torch.zeros(self._linears[-1].out_features)

    def multiply(self, factor: float) -> None:
        """Multiply the weights of the last linear layer by a factor."""
        with torch.no_grad():
            self._linears[-1].weight.mul_(factor)

    def macs(self, input_size: Sequence[int]) -> dict[str, int]:
        """Return the multiply-adds of one example: `pool` (one for each input element) and `linear`."""
        multiplied = sum(layer.weight.numel() for layer in self._linears)
        return {"pool": self.in_channels * math.prod(input_size), "linear": multiplied}

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """Return the coefficients (B, D).

        Args:
            x: (B, C, *space), any number of spatial dimensions, none included.
            previous: (B, m), the previous routing's coefficients, for a hierarchical router.
        """
        operands = self._operands(x) if previous is None else None
        if operands is None:
            coefficients = self.gate(self._logits(x, previous))
        else:
            gate: Any = self._modules["gate"]
            if gate.fused and not self.training and not gate._forward_hooks and not torch.compiler.is_compiling():
                fused: Tensor = torch.ops.condconv.pooled_linear.default(*operands, gate.fused, gate.divisor)
                return fused
            coefficients = gate(torch.ops.condconv.pooled_linear.default(*operands))
        if self.training and self.expert_dropout > 0:
            coefficients = self._drop(coefficients)
        return coefficients

    def _drop(self, coefficients: Tensor) -> Tensor:
        """Drop experts: only the slice of mixing weights has any."""
        span, renormalise = self.slices.span(MIXING), self.gate.renormalises
        if not span.stop:
            return coefficients
        kept = drop_experts(coefficients[:, span], self.expert_dropout, renormalise)
        return torch.cat([coefficients[:, : span.start], kept, coefficients[:, span.stop :]], dim=1)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What the native operator makes logits of in one pass: x, matrix and bias; None where it cannot serve."""
        # An nn.Module finds its attributes slowly; quantised and parametrised ones are not among its parameters.
        body: Any = self._modules["body"]
        if len(body._modules) != 1 or (self.training and self.dropout):
            return None
        held = next(iter(body._modules.values()))._parameters
        weight, bias = held.get("weight"), held.get("bias")
        return (x, weight, bias) if weight is not None and bias is not None and _fuses(x, weight, bias) else None

    def _logits(self, x: Tensor, previous: Tensor | None) -> Tensor:
        body = self.body
        first: Any = next(iter(body))  # The linear layer that sees the pooled input.
        weight = torch.empty(0) if type(first.weight) is MethodType else first.weight  # Quantised, it takes f32.
        z = _global_average(x, weight)
        if previous is not None:
            z = torch.cat([z, previous.to(z.dtype)], dim=1)
        z = F.dropout(z, self.dropout, self.training)
        for layer in body:
            z = linear(z, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(z)
        return z

    def extra_repr(self) -> str:
        """Show what the sub-modules do not."""
        shown = {"dropout": self.dropout, "expert_dropout": self.expert_dropout, "previous": self.previous_experts}
        return ", ".join([f"{self.in_channels}, {self.slices}", *(f"{k}={v}" for k, v in shown.items() if v)])


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """f32, or f64 for f64 parameters: bf16 logits would quantise the coefficients."""
    return torch.promote_types(weight.dtype, torch.float32)


def _global_average(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of x (B, C, *space) over its valid area, (B, C), accumulated in the dtype that goes with the weights."""
    dtype = _compute_dtype(weight)
    return x.to(dtype) if x.dim() == 2 else average(x, dtype)


def linear(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer in the dtype of z (B, C), under autocast too."""
    device = z.device.type
    bias = None if bias is None else bias.to(z.dtype)
    if device == "meta" or not torch.is_autocast_enabled(device):  # "meta" has none.
        return F.linear(z, weight.to(z.dtype), bias)
    with torch.autocast(device, enabled=False):
        return F.linear(z, weight.to(z.dtype), bias)


def _fuses(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether one native operator can pool x and multiply: in f32 on a CPU, for inference."""
    if isinstance(x, torch.fx.Proxy) or not (x.is_cpu and x.dim() == 4 and x.dtype == weight.dtype == torch.float32):
        return False
    if only_runs():
        return available()
    if area_of(x) is not None or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if torch.autograd.forward_ad._current_level >= 0 or transformed():
        return False
    differentiated = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad)
    return available() and not differentiated


# FX records these as one call each: what they ask of dtypes and ranks cannot be traced through.
torch.fx.wrap("_global_average")
torch.fx.wrap("linear")
torch.fx.wrap("drop_experts")
