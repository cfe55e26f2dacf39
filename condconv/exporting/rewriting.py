"""A network in the form that exporters take: batch norm folded, one example at a time, nothing but plain torch.

    W(x) = Σᵢ αᵢ(x) Wᵢ          one product (1, n) · (n, |W|)
    y = W(x) * x + b(x)         one convolution, with the mixed kernel as its weight

A batch is a loop over its examples, for each has kernels of its own: how to loop is the format's business. Folding the
batch into groups would make its size a constant of the graph.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from condconv.banks import PackedBank
from condconv.conversion.apply import conditional_layers, replace_layer
from condconv.conversion.same_padding import is_same_padded, pad_same
from condconv.errors import ConversionError
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
        if not isinstance(layer.bank, PackedBank):
            raise ConversionError(
                f"export: {name or 'the model'} is a {type(layer).__name__}, and only mixtures of whole kernels are "
                "written; export the network that condconv.collapse makes of it"
            )
        made = replace_layer(made, layer, PlainLayer(layer))
    for module in list(made.modules()):
        if isinstance(module, Router):
            made = replace_layer(made, module, PlainRouter(module))
    return made.to(memory_format=torch.contiguous_format)  # Exporters want weights as they are written down.


def static_form(plain: nn.Module) -> nn.Module:
    """Return the static twin of a `plain_form`, with the first expert of each layer; of no use but to be compared."""
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

    experts: Tensor
    expert_bias: Tensor | None
    shift: Tensor | None

    def __init__(self, layer: ConditionalLayer) -> None:
        super().__init__()
        bank = layer.bank
        assert isinstance(bank, PackedBank)
        self.path = layer.path
        self.scope: RoutingScope | None = layer.scope
        self.router = layer.router
        self.convolution = Convolution(layer)
        self.kernel_shape = bank.kernel_shape
        experts, expert_bias, shift = bank.unpacked()
        self.register_buffer("experts", experts.flatten(1))  # n |W|
        self.register_buffer("expert_bias", expert_bias)  # n O
        self.register_buffer("shift", shift)  # O

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.scope is not None:
            coefficients = self.scope.borrow(self.path)
        else:
            assert self.router is not None
            coefficients = self.router(x.movedim(-1, 1) if self.convolution.linear else x)
        kernel = torch.mm(coefficients, self.experts).reshape(self.kernel_shape)
        return self.convolution(x, kernel, self._bias(coefficients))

    def _bias(self, coefficients: Tensor) -> Tensor | None:
        """The bias (O,)."""
        if self.expert_bias is None:
            return self.shift
        mixed = torch.mm(coefficients, self.expert_bias).reshape(-1)
        return mixed if self.shift is None else mixed + self.shift


class StaticLayer(nn.Module):
    """The static layer with the first expert of a `PlainLayer`."""

    kernel: Tensor
    bias: Tensor | None

    def __init__(self, layer: PlainLayer) -> None:
        super().__init__()
        self.convolution = layer.convolution
        self.register_buffer("kernel", layer.experts[0].reshape(layer.kernel_shape).clone())
        self.register_buffer("bias", layer.shift if layer.expert_bias is None else layer.expert_bias[0].clone())

    def forward(self, x: Tensor) -> Tensor:
        """As a static layer does."""
        return self.convolution(x, self.kernel, self.bias)


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

    def forward(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """X (B, I, *space), or (B, *positions, I) of a linear layer, with one kernel for all examples."""
        if self.linear:
            return F.linear(x, kernel, bias)
        if self.same is not None:
            x = pad_same(x, *self.same)
        if self.prepad:
            x = F.pad(x, self.prepad, mode=self.mode)
        if self.pointwise_as_product and self.geometry.is_pointwise(kernel.shape):
            y = (kernel.flatten(1) @ x.flatten(2)).unflatten(2, x.shape[2:])  # B O *space
            return y if bias is None else y + bias.reshape(-1, *[1] * self.geometry.rank)
        return self.geometry.convolve(x, kernel, bias)
