"""CondConv's routing function: α(x) = σ( GAP(x) R ).

Brandon Yang, Gabriel Bender, Quoc V. Le, Jiquan Ngiam: "CondConv: Conditionally Parameterized Convolutions for
Efficient Inference", NeurIPS 2019, https://arxiv.org/abs/1904.04971, equation 2. R has a bias, as in the authors' code.

The ablations of the paper (table 4) are options: a hidden layer ("small" C/8, "medium" C, "large" 8C), softmax in the
place of σ, and hierarchical routing. The initial R is Glorot-uniform with zero bias, as in the authors' code.
"""

from __future__ import annotations

from condconv.arguments import experts
from condconv.coefficients import mixing
from condconv.routers.gates import Gate, SigmoidGate
from condconv.routers.router import Router


class PooledLinear(Router):
    """Global average pooling → linear (with bias) → sigmoid; the default of CondConv. See `Router` for the shapes.

    Args:
        in_channels: C of the input.
        num_experts: n.
        hidden_channels: width of a hidden layer: None (none), C // 8 (small), C (medium) or 8 * C (large) in the paper.
        gate: `SigmoidGate()` where None.
        dropout: dropout on the pooled input, in training.
        expert_dropout: random dropping of experts, in training.
        previous_experts: length of the previous routing's coefficients (hierarchical routing), or 0.
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        hidden_channels: int | None = None,
        gate: Gate | None = None,
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
        previous_experts: int = 0,
    ) -> None:
        super().__init__(
            in_channels,
            mixing(experts(type(self).__name__, num_experts)),
            hidden_channels=hidden_channels,
            gate=SigmoidGate() if gate is None else gate,
            dropout=dropout,
            expert_dropout=expert_dropout,
            previous_experts=previous_experts,
        )
