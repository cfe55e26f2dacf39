"""The contract of the variants of blocks, drawn from their registry: gate 1 is the block, gate 0 the way around."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.variants import block_variants
from tests.conversion.small import Residual

CHANNELS = 6
EVERY = pytest.mark.parametrize("cls", [block_variants[name].block for name in block_variants])


def made(cls: Any) -> Any:
    """A block in eval mode whose gate is open for some examples of `inputs`, and shut for others."""
    torch.manual_seed(0)
    layer = cls(Residual(CHANNELS), CHANNELS).eval()
    with torch.no_grad():
        last = layer.router._linears[-1]
        last.bias.sub_(layer.router._logits(inputs(), None).mean())
    gates = layer.router(inputs())
    assert 0 < gates.sum() < len(gates)
    return layer


def inputs() -> Tensor:
    return torch.randn(5, CHANNELS, 7, 7, generator=torch.Generator().manual_seed(1))


@EVERY
def test_gate_1_equals_the_block_and_gate_0_the_input(cls: Any) -> None:
    for training in (False, True):
        layer, x = made(cls).train(training), inputs()
        block = copy.deepcopy(layer.block)
        assert torch.equal(layer(x, torch.ones(5, 1)), block(x))
        assert torch.equal(layer(x, torch.zeros(5, 1)), x)


@EVERY
@torch.no_grad()
def test_what_is_left_out_does_not_run(cls: Any) -> None:
    layer, x = made(cls), inputs()
    gate = layer.router(x)
    expected = gate.reshape(-1, 1, 1, 1) * layer.block(x) + (1 - gate.reshape(-1, 1, 1, 1)) * x
    seen: list[int] = []
    layer.block.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-6)
    assert seen == [int(gate.sum())]
    for one, open in zip(x, gate.flatten(), strict=True):
        seen.clear()
        layer(one[None])
        assert len(seen) == int(open)
    assert layer(x[:0]).shape == x[:0].shape


@EVERY
def test_the_step_has_the_gradient_of_its_probability(cls: Any) -> None:
    layer, x = made(cls).train(), inputs()
    layer(x).square().mean().backward()
    mine = [p.grad.clone() for p in layer.router.parameters()]
    layer.zero_grad()
    gate = layer.router(x).detach()
    p = torch.sigmoid(layer.router._logits(x, None))
    layer(x, gate + p - p.detach()).square().mean().backward()
    for a, b in zip(mine, layer.router.parameters(), strict=True):
        assert float(a.abs().max()) > 0
        torch.testing.assert_close(a, b.grad)


@EVERY
def test_in_a_graph_it_computes_the_same_for_any_gate(cls: Any) -> None:
    layer, x = made(cls), inputs()
    expected = layer(x)
    torch._dynamo.reset()
    graphs = [torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.fx.symbolic_trace(nn.Sequential(layer))]
    shapes = ({0: torch.export.Dim("batch")},)
    graphs.append(torch.export.export(layer, (x[:2],), dynamic_shapes=shapes).module())
    for graph in graphs:
        torch.testing.assert_close(graph(x), expected, atol=1e-5, rtol=1e-5)


@EVERY
def test_it_is_copied_recorded_and_overridden(cls: Any) -> None:
    layer, x = made(cls), inputs()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    with condconv.record_routing(layer, "gate") as routing:
        layer(x)
    assert torch.equal(routing[""], layer.router(x))
    other = layer(x, 1 - layer.router(x))
    with condconv.override_routing(layer, lambda _, gate: 1 - gate, "gate"):
        assert torch.equal(layer(x), other)
    with pytest.raises(condconv.ShapeError, match=r"must have shape \(B, gate 1\) = \(5, 1\)"):
        layer(x, torch.ones(5, 2))
