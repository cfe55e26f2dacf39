"""What the tests on whole networks share: how a network is made telling, and what must hold of its conversion."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import condconv
from condconv.conversion import Plan
from condconv.conversion.apply import conditional_layers
from condconv.conversion.blocks import has_weights

Build = Callable[[], nn.Module]
Loss = Callable[[Any], Tensor]

_SCALES = ("gamma", "scale", "ls1", "ls2", "lambda", "gain")


class CannotFail(AssertionError):
    """A comparison of outputs would not notice a wrong conversion of these layers."""


def tensors(value: Any) -> list[Tensor]:
    """All floating-point tensors in nested outputs."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def difference(got: Any, expected: Any) -> float:
    """max|Δ| / max|y|, the largest over the outputs; infinite where their shapes differ."""
    pairs = list(zip(tensors(got), tensors(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return math.inf
    largest = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs if b.numel()]
    assert largest and all(math.isfinite(value) for value in largest)
    return max(largest)


def make_telling(net: nn.Module, inputs: Any) -> None:
    """Draw norm weights and layer scales from U(0.5, 1.5), give a zero-initialised head weights, set BN statistics.

    Randomness other than initialisation is switched off: dropout masks follow the memory layout of their input.
    """
    for module in net.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        for name, parameter in module.named_parameters(recurse=False):
            if has_weights(module):
                if parameter.dim() > 1 and not parameter.any():
                    nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif "bias" not in name and _is_scale(name, parameter):
                nn.init.uniform_(parameter, 0.5, 1.5)
    # The mean over the two passes: with the usual momentum the statistics would stay near their initial 0 and 1, and
    # signals would fade on the way to the output.
    norms = {m: m.momentum for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(*inputs)
    for norm, momentum in norms.items():
        norm.momentum = momentum


def _is_scale(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 1 or (
        parameter.numel() == max(parameter.shape, default=1) and any(word in name for word in _SCALES)
    )


def run(net: nn.Module, inputs: Any, training: bool) -> Any:
    """The outputs of a copy, so that batch norm's statistics stay as they are."""
    net = copy.deepcopy(net).train(training)
    torch.manual_seed(1)
    with torch.no_grad():
        return net(*inputs)


def check_conversion(net: nn.Module, inputs: Sequence[Any], **how: Any) -> Plan:
    """Convert, compare in both modes, run forward and backward, revert; the network must be telling already.

    As matrix products: torch convolves f64 with many groups one group at a time, which takes minutes.
    """
    with condconv.use_strategy("batched_gemm"):
        return _check_conversion(net, inputs, **how)


def _check_conversion(
    net: nn.Module,
    inputs: Sequence[Any],
    *,
    tolerance: float,
    variant: str = "condconv",
    input_size: Any = None,
    train_inputs: Sequence[Any] | None = None,
    output: Callable[[nn.Module, Any, bool], Any] = run,
    loss: Loss | None = None,
    num_experts: int = 3,
    **how: Any,
) -> Plan:
    train_inputs = inputs if train_inputs is None else train_inputs
    batches = {False: inputs, True: train_inputs}
    expected = {training: output(net, batches[training], training) for training in (False, True)}
    state = copy.deepcopy(net.state_dict())
    objects = dict(net.named_modules())
    alive = _layers_with_gradient(net, train_inputs, loss)
    gradients_wanted = {name: p.requires_grad for name, p in net.named_parameters()}

    plan = condconv.plan(net, variant, input_size=input_size, num_experts=num_experts, **how)
    assert_same(net, state)
    assert dict(net.named_modules()) == objects
    net = plan.apply(net)

    if not _moves(net, inputs, expected[False], output):
        raise CannotFail("no converted layer, scaled by 1.5, moves the output by more than 1e-2")
    for training in (False, True):
        assert difference(output(net, batches[training], training), expected[training]) <= tolerance
    _check_gradients(net, train_inputs, loss, alive)

    net = condconv.revert(net)
    # A training step has moved batch norm's statistics; they are no business of the conversion.
    assert_same(net, state, besides=("running_mean", "running_var", "num_batches_tracked"))
    assert all(module is objects[name] and type(module) is type(objects[name]) for name, module in net.named_modules())
    assert {name: p.requires_grad for name, p in net.named_parameters()} == gradients_wanted
    return plan


def assert_same(net: nn.Module, state: dict[str, Tensor], besides: tuple[str, ...] = ()) -> None:
    """The same keys in the same order, the same bits."""
    now = net.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[key], state[key]) for key in state if not key.endswith(besides or "\0"))


def _moves(net: nn.Module, inputs: Any, expected: Any, output: Callable[[nn.Module, Any, bool], Any]) -> bool:
    """Scaling one layer's experts by 1.5 moves the output by more than 1e-2.

    Any one layer that does so proves it; a layer in front of a layer norm does not, its scale is normalised away.
    """
    layers = [layer for _, layer in conditional_layers(net)]
    for layer in [layers[0], layers[-1], *layers[1:-1]]:
        with torch.no_grad():
            before = layer.weight.clone()
            layer.weight.mul_(1.5)
            moved = difference(output(net, inputs, False), expected)
            layer.weight.copy_(before)
        if moved > 1e-2:
            return True
    return False


def _backward(net: nn.Module, inputs: Any, loss: Loss | None) -> None:
    result = net.train()(*inputs)
    value = loss(result) if loss is not None else sum(t.square().mean() for t in tensors(result) if t.requires_grad)
    value.backward()


def _layers_with_gradient(net: nn.Module, inputs: Any, loss: Loss | None) -> set[str]:
    """Layers of the static network whose weights get a gradient; small inputs can leave some without."""
    net = copy.deepcopy(net)
    _backward(net, inputs, loss)
    weights = ((name, getattr(module, "weight", None)) for name, module in net.named_modules())
    return {name for name, weight in weights if weight is not None and weight.grad is not None and weight.grad.any()}


def _check_gradients(net: nn.Module, inputs: Any, loss: Loss | None, alive: set[str]) -> None:
    """Routers get gradients at step 0, although they are constant; and experts wherever the static kernel gets some."""
    _backward(net, inputs, loss)
    layers = [(layer.router, layer.scope) for name, layer in conditional_layers(net) if name in alive]
    own = [router for router, _ in layers if router is not None]
    scopes = {scope for _, scope in layers}
    routers = own + [m.router for m in net.modules() if getattr(m, "routed_scope", None) in scopes - {None}]
    moved = [[bool(p.grad is not None and p.grad.any()) for p in router.body[-1].parameters()] for router in routers]
    # A bottleneck of a few hidden units may be dead for all of a small batch: then the bias alone moves at first.
    assert routers and all(any(parts) for parts in moved)
    assert sum(weight for weight, _ in moved) > len(routers) / 2
    assert all(layer.weight.grad.any() for name, layer in conditional_layers(net) if name in alive)
    net.zero_grad(set_to_none=True)
