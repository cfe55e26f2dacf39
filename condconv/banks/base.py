"""What a bank answers for itself, so that nobody else has to know its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from condconv.coefficients import Slices
from condconv.errors import ConversionError
from condconv.lowered import Lowered, kernels_of


class Affine(NamedTuple):
    """What is left of a batch norm behind a convolution: y → factor · y + shift, for each output channel."""

    factor: Tensor
    """(O,) f64."""
    shift: Tensor
    """(O,) f64."""


class Packing(NamedTuple):
    """How an inference form stores kernels."""

    storage: str
    """"f32", "bf16", "int8", or "int4" for principal kernels."""
    threshold: float = 0.0
    """Experts with |coefficient| <= threshold are left out."""
    kernels: int | None = None
    """Into how many principal kernels the experts go (`condconv.banks.principal`); None for the experts themselves."""
    coefficients: Tensor | None = None
    """(N, D), of the data over which kernels are principal; None makes kernels of zeros, to be loaded."""


class Bank(nn.Module):
    """The learned kernels of a layer: coefficients (B, D) → lowered form.

    A bank has `slices`, what its coefficients mean, and `kernel_shape`, the shape of the static kernel in its place.
    """

    slices: Slices
    kernel_shape: tuple[int, ...]

    def forward(self, coefficients: Tensor) -> Lowered:
        """Return the lowered form for coefficients (B, D)."""
        raise NotImplementedError

    def start_from(self, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> None:
        """Set the parameters so that the coefficients (D,) stand for exactly this static kernel and bias.

        Raises:
            ConversionError: there are no such parameters.
        """
        raise NotImplementedError

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """Return the multiply-adds of one example beside the convolution itself, for spatial sizes."""
        raise NotImplementedError

    def draw(self, weight: Callable[[Tensor], object], bias: Callable[[Tensor], object] | None = None) -> None:
        """Draw the kernels anew: `weight` and `bias` fill, in place, a tensor of kernels and one of biases."""
        raise NotImplementedError

    def multiply(self, factor: float) -> None:
        """Multiply the kernels by a factor."""
        raise NotImplementedError

    def pack(self, packing: Packing, norm: Affine | None) -> Bank:
        """Return the bank of the inference form, with a batch norm behind the layer folded in.

        Raises:
            ConversionError: it has none.
        """
        raise ConversionError(f"{type(self).__name__} has no inference form; collapse the network, or run it as it is")

    def plain(self) -> Bank:
        """Return the same for one example, (1, D), in operators that every exporter has; of an inference form, f32."""
        return self

    @torch.no_grad()
    def collapse(self, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the one kernel and bias that fixed coefficients (D,) stand for."""
        lowered = self(coefficients.unsqueeze(0).to(self.like.device))
        bias = lowered.bias
        return kernels_of(lowered, self.like.dtype)[0], None if bias is None else bias[0]

    @property
    def identity(self) -> Tensor:
        """The coefficients (D,) with which the bank stands for one static kernel."""
        return torch.tensor(self.slices.identity, device=self.like.device)

    @property
    def like(self) -> Tensor:
        """One of its tensors: where it is, and of which type."""
        return next(itertools.chain(self.learned(), self.buffers()))

    def experts(self) -> Tensor | None:
        """The kernels (n, *kernel_shape) that it mixes, or None where there are none."""
        return None

    def held(self) -> tuple[Tensor | None, ...]:
        """All tensors of its own; none where a hook sees it run, which may change what they stand for."""
        if self._forward_hooks or self._forward_pre_hooks:
            return ()
        return *self._parameters.values(), *self._buffers.values()

    def common(self) -> nn.Module | None:
        """The module that it shares with the banks of other layers, or None."""
        return None

    def learned(self) -> Iterator[Tensor]:
        """Yield the parameters that decide its kernels, those that it shares with other banks included."""
        yield from self.parameters()

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Identity and number of elements of what counts as its own parameters."""
        for parameter in self.parameters(recurse=False):
            yield id(parameter), parameter.numel()

    def require_gradients(self, weight: bool, bias: bool) -> None:
        """Let kernels and biases be trained, or not."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(bias if name.rpartition(".")[2] == "bias" else weight)


class KernelBank(Bank):
    """A bank whose kernels are one parameter, and its biases another, or None."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    @torch.no_grad()
    def draw(self, weight: Callable[[Tensor], object], bias: Callable[[Tensor], object] | None = None) -> None:
        """Fill the kernels and the biases."""
        weight(self.weight)
        if bias is not None and self.bias is not None:
            bias(self.bias)

    @torch.no_grad()
    def multiply(self, factor: float) -> None:
        """Multiply the kernels by a factor; the biases stay."""
        self.weight.mul_(factor)
