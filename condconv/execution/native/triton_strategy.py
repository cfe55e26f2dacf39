"""The strategy that mixes and multiplies in one pass on a GPU: no example's kernel is ever in memory."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from condconv.execution.closed_forms import mixed_kernel_macs
from condconv.execution.native.triton_ops import DTYPES, INTERPRETED, conv2d
from condconv.geometry import ConvGeometry
from condconv.lowered import Lowered, Mixture

_INSTALLED = importlib.util.find_spec("triton") is not None


class Triton:
    """Dense and depthwise 2-D convolutions on CUDA devices; with TRITON_INTERPRET=1 on any, for tests."""

    name = "triton"
    macs = staticmethod(mixed_kernel_macs)
    adds_bias = False

    def supports(self, lowered: Lowered, geometry: ConvGeometry) -> str | None:
        """Return why this strategy cannot serve, or None."""
        if not isinstance(lowered, Mixture):
            return "it needs experts as banks hold them, not mixed yet"
        experts = lowered.experts
        depthwise = experts.shape[2] == 1 and experts.shape[1] == geometry.groups
        if geometry.rank != 2 or geometry.transposed or not (geometry.groups == 1 or depthwise):
            return "it needs a dense or depthwise 2-D convolution that is not transposed"
        if experts.dtype not in DTYPES:
            return f"the experts are {experts.dtype}; it needs f32, bf16 or f16"
        if not _INSTALLED:
            return "Triton is not installed"
        if not (experts.is_cuda or INTERPRETED):
            return f"the experts are on {experts.device}; it needs a CUDA device"
        return None

    def __call__(self, x: Tensor, lowered: Lowered, geometry: ConvGeometry) -> Tensor:
        """Return y (B, O, H', W'), channels_last, of x (B, I, H, W), bias left out."""
        assert isinstance(lowered, Mixture)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # The experts stay as they are: they are mixed in f32.
        stride, padding, dilation = (list(pair) for pair in (geometry.stride, geometry.padding, geometry.dilation))
        return conv2d(x, lowered.coefficients, lowered.experts, stride, padding, dilation, geometry.groups)
