"""The dense bank: n whole kernels, mixed by n scalars for each example: W(x) = Σᵢ αᵢ(x) Wᵢ, b(x) = Σᵢ αᵢ(x) bᵢ.

(CondConv, equation 1; Dynamic Convolution, equations 2 and 3: the bias is mixed with the same coefficients.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from condconv.banks.base import Bank
from condconv.lowered import Mixture


class DenseBank(Bank):
    """n experts, each with the shape of the kernel that it replaces.

    Args:
        num_experts: n ≥ 1.
        kernel_shape: (O, I/g, *k), or (I, O/g, *k) for a transposed convolution.
        bias_channels: O for experts with a bias, None for experts without.
        device: where the parameters are made.
        dtype: of the parameters.
    """

    def __init__(
        self,
        num_experts: int,
        kernel_shape: Sequence[int],
        bias_channels: int | None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty((num_experts, *kernel_shape), device=device, dtype=dtype))
        self.bias: nn.Parameter | None
        if bias_channels is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.empty((num_experts, bias_channels), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert by itself, as torch.nn does a kernel of that shape.

        On the stacked tensor the fan-in would be √C_out too large and every kernel that much too small.
        """
        for i, expert in enumerate(self.weight):
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
            if self.bias is not None:
                fan_in = math.prod(expert.shape[1:])
                bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0
                nn.init.uniform_(self.bias[i], -bound, bound)

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self.weight.shape[0]

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one expert."""
        return tuple(self.weight.shape[1:])

    def forward(self, coefficients: Tensor) -> Mixture:
        """Return the lowered form for coefficients (B, n)."""
        # An nn.Module finds its attributes slowly; parametrised ones are not among its parameters.
        held: dict[str, Any] = self._parameters
        if "weight" in held and "bias" in held:
            return Mixture(coefficients, held["weight"], held["bias"])
        return Mixture(coefficients, self.weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DenseBank:
        """Change dtype or device (`nn.Module.to` and its kin) of the experts as rows of a matrix (n, |W|).

        `model.to(memory_format=torch.channels_last)` would refuse a tensor (n, O, I/g, kh, kw), and mixing wants each
        expert in one piece in any case.
        """
        return super()._apply(lambda t: fn(t.flatten(1)).unflatten(1, t.shape[1:]), recurse)
