"""A network in the form that exporters take: batch norm folded, one example at a time, nothing but plain torch.

    W(x) = Σᵢ αᵢ(x) Wᵢ          one product (1, n) · (n, |W|)
    y = W(x) * x + b(x)         one convolution, with the mixed kernel as its weight

Other banks say how they are written (`Bank.plain`).

A batch is a loop over its examples, for each has kernels of its own: how to loop is the format's business. Folding the
batch into groups would make its size a constant of the graph.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.conversion.apply import conditional_layers, replace_layer
from condconv.conversion.same_padding import is_same_padded, pad_same
from condconv.errors import ConversionError
from condconv.execution import convolve_one, kernel_of_one, multiply_one
from condconv.inference import optimize_for_inference
from condconv.layers import ConditionalLayer
from condconv.routers import Router, RoutingScope, SoftmaxGate, detach_scopes


def plain_form(model: nn.Module) -> nn.Module:
    """Return a copy of a network that computes the same for one example, (1, C, *space), in f32 and on the CPU.

    Raises:
        ConversionError: `optimize_for_inference` refuses the network, or a layer has no router.
    """
    made = optimize_for_inference(model)
    for name, layer in list(conditional_layers(made)):
        if layer.scope is None and layer.router is None:
            raise ConversionError(
                f"export: {name or 'the model'} has no router, and an exported network takes its image alone; build "
                "the layer with a router"
            )
        made = replace_layer(made, layer, PlainLayer(layer))
    for module in list(made.modules()):
        if isinstance(module, Router) and module.is_sequence:
            made = replace_layer(made, module, PlainRouter(module))
    return made.to(memory_format=torch.contiguous_format)  # Exporters want weights as they are written down.


def static_form(plain: nn.Module) -> nn.Module:
    """Return the static twin of a `plain_form`, with the kernel of its identity; of no use but to be compared."""
    static = copy.deepcopy(plain)
    detach_scopes(static)
    for module in list(static.modules()):
        if isinstance(module, PlainLayer):
            static = replace_layer(static, module, StaticLayer(module))
    return static


class PlainRouter(nn.Module):
    """What a router computes in eval mode, in as few steps as there are: average, linear layers, gate."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.body = copy.deepcopy(router.body)
        self.gate: nn.Module = router.gate
        if isinstance(router.gate, SoftmaxGate):  # The temperature goes into the last linear layer.
            last: Any = self.body[-1]
            temperature = float(router.gate.temperature)
            last.weight = nn.Parameter(last.weight / temperature, requires_grad=False)
            last.bias = nn.Parameter(last.bias / temperature, requires_grad=False)
            self.gate = nn.Softmax(dim=1)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """X (B, C, *space), and the previous routing's coefficients where there are → coefficients (B, n)."""
        z = x.mean(dim=tuple(range(2, x.dim()))) if x.dim() > 2 else x
        if previous is not None:
            z = torch.cat([z, previous], dim=1)
        coefficients: Tensor = self.gate(self.body(z))
        return coefficients


class PlainLayer(nn.Module):
    """A conditional layer for one example: x (1, I, *space) → (1, O, *space); x (1, *positions, I) of a linear one.

    Args:
        layer: of an inference form.
    """

    def __init__(self, layer: ConditionalLayer) -> None:
        super().__init__()
        self.path = layer.path
        self.scope: RoutingScope | None = layer.scope
        self.router = layer.router
        self.convolution = Convolution(layer)
        self.bank: Any = layer.bank.plain()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.scope is not None:
            coefficients = self.scope.borrow(self.path)
        else:
            assert self.router is not None
            coefficients = self.router(x.movedim(-1, 1) if self.convolution.linear else x)
        return self.convolution(x, self.bank(coefficients))


class StaticLayer(nn.Module):
    """The static layer that the identity coefficients of a `PlainLayer` stand for."""

    kernel: Tensor
    bias: Tensor | None

    def __init__(self, layer: PlainLayer) -> None:
        super().__init__()
        self.convolution = layer.convolution
        lowered = layer.bank(layer.bank.identity.unsqueeze(0))
        self.register_buffer("kernel", kernel_of_one(lowered).clone())
        self.register_buffer("bias", None if lowered.bias is None else lowered.bias.reshape(-1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """As a static layer does."""
        return self.convolution.with_kernel(x, self.kernel, self.bias)


class Convolution(nn.Module):
    """What a conditional layer does with a kernel, its padding included."""

    def __init__(self, layer: ConditionalLayer) -> None:
        super().__init__()
        of: Any = layer
        self.linear = layer.static_type is nn.Linear
        self.geometry = layer.geometry
        self.prepad = [] if self.linear else of._prepad
        self.mode = "constant" if self.linear or of.padding_mode == "zeros" else of.padding_mode
        self.same = (of.kernel_size, of.stride, of.dilation) if is_same_padded(layer) else None
        self.pointwise_as_product = False
        """For runtimes that are slow where the weight of a convolution is no constant."""

    def forward(self, x: Tensor, lowered: Any) -> Tensor:
        """X (1, I, *space), or (1, *positions, I) of a linear layer, with what its bank lowers to."""
        if self.linear:
            return multiply_one(x, lowered)
        return convolve_one(self._padded(x), lowered, self.geometry, self._convolve)

    def with_kernel(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """X (B, I, *space), or (B, *positions, I) of a linear layer, with one kernel for all examples."""
        return F.linear(x, kernel, bias) if self.linear else self._convolve(self._padded(x), kernel, bias)

    def _padded(self, x: Tensor) -> Tensor:
        if self.same is not None:
            x = pad_same(x, *self.same)
        return F.pad(x, self.prepad, mode=self.mode) if self.prepad else x

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        if self.pointwise_as_product and self.geometry.is_pointwise(kernel.shape):
            y = (kernel.flatten(1) @ x.flatten(2)).unflatten(2, x.shape[2:])  # B O *space
            return y if bias is None else y + bias.reshape(-1, *[1] * self.geometry.rank)
        return self.geometry.convolve(x, kernel, bias)
