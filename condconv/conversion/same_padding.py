"""TensorFlow's "SAME" padding: as much as makes the output ⌈size / stride⌉ long, computed from each input's own size.

timm's `tf_*` networks use it through `Conv2dSame`. It differs from torch's "same", which needs stride 1: the amounts
depend on the input, and the odd one goes to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.layers import ConditionalLayer

_PADS_SAME = frozenset({("timm.layers.conv2d_same", "Conv2dSame"), (__name__, "Conv2dSame")})


def pads_same(module: nn.Module) -> bool:
    """Whether a static layer is a convolution with padding "SAME", recognised without importing timm."""
    return (type(module).__module__, type(module).__name__) in _PADS_SAME


def pad_same(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Pad x (B, C, H, W) with zeros for "SAME"."""
    amounts: list[int] = []
    # F.pad wants the last dimension first.
    for size, k, s, d in reversed(list(zip(x.shape[-2:], kernel_size, stride, dilation, strict=True))):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        amounts += [total // 2, total - total // 2]
    return F.pad(x, amounts)


torch.fx.wrap("pad_same")


class Conv2dSame(nn.Conv2d):
    """What a conditional convolution with this padding becomes where it is made static."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, I, H, W) → (B, O, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return super().forward(pad_same(x, self.kernel_size, self.stride, self.dilation))


class _SamePadded:
    """Mixed into the class of a conditional convolution: routes on the input as it comes, then pads it."""

    def forward(self, x: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """Convolve x (B, I, H, W) → (B, O, ⌈H / stride⌉, ⌈W / stride⌉)."""
        layer: Any = self
        if coefficients is None and layer.scope is None and layer.router is not None:
            coefficients = layer.router(x)
        x = pad_same(x, layer.kernel_size, layer.stride, layer.dilation)
        return super().forward(x, coefficients)  # type: ignore[misc]

    def to_static(self, coefficients: Tensor) -> nn.Module:
        """Return the static layer that fixed coefficients (D,) amount to."""
        static: Any = super().to_static(coefficients)  # type: ignore[misc]
        static.__class__ = Conv2dSame
        return static

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The generated class cannot be found by name: pickle the class it was made from.
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, (type(self).__mro__[2],), *reduced[2:])


_classes: dict[type, Any] = {}


def same_padded(cls: type[ConditionalLayer]) -> type[ConditionalLayer]:
    """Return the class like `cls`, a 2-D conditional convolution, that pads its input for "SAME"."""
    if cls not in _classes:
        members = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        _classes[cls] = type(f"{cls.__name__}Same", (_SamePadded, cls), members)
    padded: type[ConditionalLayer] = _classes[cls]
    return padded


def is_same_padded(layer: ConditionalLayer) -> bool:
    """Whether a conditional convolution pads its input for "SAME"."""
    return isinstance(layer, _SamePadded)


def _new(cls: type[ConditionalLayer]) -> Any:
    padded = same_padded(cls)
    return padded.__new__(padded)
