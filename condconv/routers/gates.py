"""Gates: a router's logits (B, n) → coefficients (B, n).

* `SigmoidGate`: σ(z), each expert by itself (CondConv, NeurIPS 2019, equation 2);
* `SoftmaxGate`: softmax(z / T), which sums to one (Dynamic Convolution, CVPR 2020, equation 3 and section 3.3);
* `TopKGate`: keeps the k largest coefficients of another gate.

An `AnnealedGate` has a value that training moves, such as the softmax's T.

`renormalises` tells expert dropping how a gate keeps its scale: sum-to-one gates are renormalised, others rescaled.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from condconv.arguments import a_module, integer, number


class Gate(nn.Module):
    """Base of the gates."""

    renormalises: bool = False
    fused: ClassVar[int] = 0
    """Its number in the native operator `pooled_linear`, or 0 where that does not know it."""

    def __init_subclass__(cls) -> None:
        """What computes something else is another gate."""
        if "forward" in vars(cls) and "fused" not in vars(cls):
            cls.fused = 0

    @property
    def divisor(self) -> Tensor | None:
        """What logits are divided by first, a scalar."""
        return None

    def forward(self, logits: Tensor) -> Tensor:
        """Return the coefficients (B, n) of logits (B, n)."""
        raise NotImplementedError


class SigmoidGate(Gate):
    """α = σ(z); not normalised, so coefficients start near 1/2 and sum to about n/2."""

    fused = 1

    def forward(self, logits: Tensor) -> Tensor:
        """Return σ(logits), (B, n)."""
        return torch.sigmoid(logits)


class StepWatch:
    """Notices that an annealed gate is trained away from its end while nobody steps a schedule, and says so once.

    All gates of a converted network share one watch, so that a network warns once, not once a layer.
    """

    PATIENCE = 1000
    """Training passes through one gate without a step after which an attached schedule counts as forgotten."""

    def __init__(self) -> None:
        self.scheduled = False
        self.warned = False

    def notice(self, gate: AnnealedGate) -> None:
        """Warn once if a gate has made too many training passes since the last step, and is not at its end."""
        gate._passes += 1
        allowed = self.PATIENCE if self.scheduled else 1
        if self.warned or gate._passes <= allowed or gate._known <= gate.end:
            return
        self.warned = True
        warnings.warn(
            f"training at {gate.called} {gate._known:g} and nothing steps it down: create "
            "schedule = condconv.RoutingSchedule(model, steps=10 * len(loader)) and call schedule.step() after each "
            f"optimiser step, or create condconv.RoutingSchedule(model, steps=1, start={gate.end:g}) alone to train "
            "without annealing",
            stacklevel=2,
        )


class AnnealedGate(Gate):
    """A gate with a value that training moves from `start` down to `end`; `RoutingSchedule` does it.

    The value is a buffer, so it is saved with the weights.

    Args:
        value: where it stands now.
    """

    start: float
    end: float
    called: str
    """The value's name, in words."""
    buffer: str
    """The name of its buffer."""
    least: float = -1e30
    """The smallest value that is allowed."""

    def __init__(self, value: float) -> None:
        super().__init__()
        # What the buffer holds: to read it would wait for the device, and break a CUDA graph.
        self._known = self._checked(value)
        self.register_buffer(self.buffer, torch.tensor(self._known))
        self.watch = StepWatch()
        self._passes = 0

    @property
    def value(self) -> float:
        """Where it stands now."""
        return self._known

    def notice(self) -> None:
        """To be called in each forward: whoever trains and never steps a schedule is told."""
        if self.training and not torch.compiler.is_compiling() and torch.is_grad_enabled():
            self.watch.notice(self)

    def anneal(self, value: float) -> None:
        """Set the value in place; a schedule calls this after each optimiser step."""
        self._known = self._checked(value)
        getattr(self, self.buffer).fill_(self._known)
        self._passes = 0

    def _checked(self, value: float) -> float:
        remedy = f"pass {self.start:g} or {self.end:g}"
        return number(type(self).__name__, self.buffer, value, minimum=self.least, maximum=1e30, remedy=remedy)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Take the value over with the weights."""
        super()._load_from_state_dict(*args, **kwargs)
        held = self._buffers[self.buffer]
        if held is not None and not held.is_meta:
            self._known = float(held)

    def extra_repr(self) -> str:
        """Show the current value."""
        return f"{self.buffer}={self._known:g}"


class SoftmaxGate(AnnealedGate):
    """α = softmax(z / T). T is a buffer, so it is saved with the weights; `RoutingSchedule` anneals it.

    Args:
        temperature: T > 0. Large: near-uniform coefficients, so that all experts learn early in training.
    """

    renormalises = True
    fused = 2
    start, end, least = 30.0, 1.0, 1e-30
    called, buffer = "softmax temperature", "temperature"
    temperature: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)

    @property
    def divisor(self) -> Tensor:
        """T."""
        return self.temperature

    def forward(self, logits: Tensor) -> Tensor:
        """Return softmax(logits / T) over the experts, (B, n)."""
        self.notice()
        return torch.softmax(logits / self.temperature.to(logits.dtype), dim=1)


class TopKGate(Gate):
    """Keeps the k largest coefficients of `gate` and sets the rest to zero (ties: the lowest index is kept).

    Args:
        gate: a `SigmoidGate` or `SoftmaxGate`; a softmax gate's kept coefficients are renormalised to sum to one, and
            the only one of k = 1 learns straight through that.
        k: how many coefficients stay, 1 ≤ k; k ≥ n keeps all.
        noise_std: standard deviation of Gaussian noise added to the logits in training.
    """

    def __init__(self, gate: Gate, k: int, noise_std: float = 0.0) -> None:
        super().__init__()
        self.gate = a_module("TopKGate", "gate", gate, Gate)
        self.k = integer("TopKGate", "k", k, 1)
        self.noise_std = number("TopKGate", "noise_std", noise_std, minimum=0, remedy="pass 0 for no noise")
        self.renormalises = gate.renormalises

    def forward(self, logits: Tensor) -> Tensor:
        """Return the gated coefficients, (B, n), at most k of them non-zero."""
        if self.training and self.noise_std > 0:
            logits = logits + self.noise_std * torch.randn_like(logits)
        coefficients = self.gate(logits)
        kept = _keep_largest(coefficients, self.k)
        if not self.renormalises:
            return kept
        total = kept.sum(dim=1, keepdim=True)
        # A coefficient over itself is 1 and has no gradient: with k = 1 it gets that of its logarithm.
        return kept / (total.detach() if self.k == 1 and self.training else total)

    def extra_repr(self) -> str:
        """Show k and the noise."""
        return f"k={self.k}" + (f", noise_std={self.noise_std:g}" if self.noise_std else "")


def _keep_largest(coefficients: Tensor, k: int) -> Tensor:
    """Zero all but the k largest coefficients (B, n) of each example; of equal ones the lower index comes first."""
    # before[b, i, j]: does j come before i? A sort would do, but not every exporter keeps its stability.
    mine, other = coefficients.unsqueeze(2), coefficients.unsqueeze(1)
    index = torch.arange(coefficients.shape[1], device=coefficients.device)
    before = (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))
    return coefficients * (before.sum(dim=2) < k)


def drop_experts(coefficients: Tensor, p: float, renormalise: bool) -> Tensor:
    """Zero each coefficient independently with probability p, keeping at least one for each example.

    Sum-to-one coefficients are renormalised, others scaled by 1/(1−p), so that a mixed kernel keeps its scale.
    (CondConv, section 4: experts are dropped at random to regularise the largest models.)

    Args:
        coefficients: (B, n).
        p: 0 < p < 1.
        renormalise: whether the kept coefficients are divided by their sum.
    """
    # Among the coefficients that are not zero already (top-k), the largest draw is kept whatever p is: it is the last
    # one that a growing p would drop.
    draw = torch.rand_like(coefficients).masked_fill(coefficients == 0, -1)
    kept = coefficients * ((draw >= p) | (draw == draw.amax(dim=1, keepdim=True)))
    return kept / kept.sum(dim=1, keepdim=True) if renormalise else kept / (1 - p)


# FX records it as one call: the number of experts is not known while it traces.
torch.fx.wrap("_keep_largest")
