"""The strategy whose depthwise convolutions run in Triton kernels on a GPU."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from condconv import func_transforms
from condconv.execution.closed_forms import mixed_kernel_macs
from condconv.execution.native.triton_ops import DTYPES, INTERPRETED, depthwise
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Mixture

_INSTALLED = importlib.util.find_spec("triton") is not None


class Triton:
    """Depthwise 2-D convolutions on CUDA devices; with TRITON_INTERPRET=1 on any, for tests."""

    name = "triton"
    macs = staticmethod(mixed_kernel_macs)
    adds_bias = False

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None."""
        if not isinstance(lowered, Mixture):
            return "it needs experts as banks hold them, not mixed yet"
        experts = lowered.experts
        channels = experts.shape[1:3]  # O, I/g
        if geometry.rank != 2 or geometry.transposed or channels != (geometry.groups, 1):
            return "it needs a depthwise 2-D convolution that is not transposed"
        if experts.dtype not in DTYPES:
            return f"the experts are {experts.dtype}; it needs f32, bf16 or f16"
        if not _INSTALLED:
            return "Triton is not installed"
        if not (experts.is_cuda or INTERPRETED):
            return f"the experts are on {experts.device}; it needs a CUDA device"
        return func_transforms.REFUSAL if func_transforms.transformed() else None

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, H', W'), channels_last, of x (B, I, H, W) with O = I, bias left out."""
        assert isinstance(lowered, Mixture)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # The experts stay as they are: they are mixed in f32.
        stride, padding, dilation = (list(pair) for pair in (geometry.stride, geometry.padding, geometry.dilation))
        return depthwise(x, lowered.coefficients, lowered.experts, stride, padding, dilation)
