"""Dynamic Convolution's attention: π(x) = softmax( W₂ ReLU(W₁ GAP(x)) / T ).

Yinpeng Chen, Xiyang Dai, Mengchen Liu, Dongdong Chen, Lu Yuan, Zicheng Liu: "Dynamic Convolution: Attention over
Convolution Kernels", CVPR 2020, https://arxiv.org/abs/1912.03458, section 3.2 and figure 3. T is annealed from 30
to 1 over the first ten epochs (section 3.3): see `RoutingSchedule`.
"""

from __future__ import annotations

from condconv.arguments import experts, integer
from condconv.coefficients import mixing
from condconv.routers.gates import Gate, SoftmaxGate
from condconv.routers.router import Router


class SqueezeExcite(Router):
    """Global average pooling → max(1, C // reduction) → ReLU → K → softmax(z / T); the default of Dynamic Convolution.

    Args:
        in_channels: C of the input.
        num_experts: K.
        reduction: divides C to the width of the hidden layer.
        gate: `SoftmaxGate(30.0)` where None.
        dropout: dropout on the pooled input, in training.
        expert_dropout: random dropping of experts, in training.
        previous_experts: length of the previous routing's coefficients (hierarchical routing), or 0.
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        reduction: int = 4,
        gate: Gate | None = None,
        dropout: float = 0.0,
        expert_dropout: float = 0.0,
        previous_experts: int = 0,
    ) -> None:
        reduction = integer("SqueezeExcite", "reduction", reduction, 1)
        in_channels = integer("SqueezeExcite", "in_channels", in_channels, 1)
        super().__init__(
            in_channels,
            mixing(experts(type(self).__name__, num_experts)),
            hidden_channels=max(1, in_channels // reduction),
            gate=SoftmaxGate(30.0) if gate is None else gate,
            dropout=dropout,
            expert_dropout=expert_dropout,
            previous_experts=previous_experts,
        )
