"""One router for several layers: the same function in every mode that PyTorch runs a model in."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import condconv
from condconv.routers import RoutingScope, attach_scope, detach_scopes
from condconv.routers.scope import _loans
from tests.contract.cases import MIXTURES, Block, layer_of, shared_router

VARIANTS = pytest.mark.parametrize("variant", MIXTURES)
COMPILED = pytest.mark.parametrize(
    "variant", [MIXTURES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MIXTURES[1:])]
)
"""What compilers take long for: they see the routers of all variants in the same way."""
INSIDE = functools.partial(checkpoint, use_reentrant=False)


def layers_of(block: nn.Module) -> list[nn.Module]:
    return [block.expand, block.depthwise, block.project]


def network(variant: str, inside: Any = None, channels: int = 4) -> Any:
    """Stem, two blocks with a router each, head."""
    torch.manual_seed(0)
    layer = layer_of(variant, nn.Conv2d)
    blocks = [Block(layer, channels, 3, inside) for _ in range(2)]
    net = nn.Sequential(
        nn.Conv2d(3, channels, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)
    )
    for i, block in enumerate(blocks, start=1):
        members = layers_of(block)
        router = shared_router(members, channels)
        nn.init.normal_(router.body[-1].weight)  # Some start at zero, and then route all inputs alike.
        attach_scope(net, str(i), members, router)
    return net.double()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(net: Any, run: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    (run or net)(images()).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters()}


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-12, rtol=1e-10, msg=name)


@VARIANTS
def test_layers_of_a_block_use_the_router_of_its_input(variant: str) -> None:
    net = network(variant).eval()
    inputs: dict[int, Tensor] = {}
    for i in (1, 2):
        net[i].register_forward_pre_hook(lambda m, args, i=i: inputs.__setitem__(i, args[0]))
    with condconv.record_routing(net) as routing:
        net(images())
    for i in (1, 2):
        for name in ("expand", "depthwise", "project"):
            assert torch.equal(routing[f"{i}.{name}"], net[i].router(inputs[i]))
    assert not torch.equal(routing["1.expand"], routing["2.expand"])


@VARIANTS
def test_names_and_keys_of_the_block_stay(variant: str) -> None:
    net = network(variant)
    assert isinstance(net[1], Block) and type(net[1]).__name__ == "RoutedBlock"
    routers = [key for key in net.state_dict() if "router" in key]
    assert routers and all(key.startswith(("1.router.", "2.router.")) for key in routers)
    detach_scopes(net)
    assert type(net[1]) is Block and not [key for key in net.state_dict() if "router" in key]


@VARIANTS
@pytest.mark.parametrize("where", ["inside", "around", "both"])
def test_activation_checkpointing_gives_the_plain_gradients(variant: str, where: str) -> None:
    net = network(variant, INSIDE if where != "around" else None)

    def around(x: Tensor) -> Tensor:
        return net[3:](INSIDE(net[2], INSIDE(net[1], net[0](x))))

    assert_same(gradients(net, None if where == "inside" else around), gradients(network(variant)))


def test_reentrant_checkpointing_around_a_block_works_and_inside_is_refused() -> None:
    net = network("condconv")

    def around(x: Tensor) -> Tensor:
        return net[3:](checkpoint(net[2], checkpoint(net[1], net[0](x), use_reentrant=True), use_reentrant=True))

    assert_same(gradients(net, around), gradients(network("condconv")))
    with pytest.raises(condconv.RoutingError, match="use_reentrant=False"):
        gradients(network("condconv", functools.partial(checkpoint, use_reentrant=True)))


def test_a_checkpoint_finds_the_loan_of_its_own_call() -> None:
    """A block that runs twice lends twice; each recomputation must find its own loan, not the last one."""
    plain, recomputed = network("condconv"), network("condconv", INSIDE)
    for net in (plain, recomputed):
        del net[2]
    run = [lambda x, net=net: net[2:](net[1](net[1](net[0](x)) * 3)) for net in (plain, recomputed)]
    assert_same(gradients(recomputed, run[1]), gradients(plain, run[0]))


@VARIANTS
def test_deepcopy_and_pickle_are_independent_networks(variant: str) -> None:
    net = network(variant).eval()
    x = images()
    y = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), y)
        assert twin[1].expand.scope is twin[1].routed_scope is not net[1].routed_scope
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert torch.equal(net(x), y)


@COMPILED
@pytest.mark.parametrize("inside", [None, INSIDE], ids=["plain", "checkpoint"])
def test_torch_compile_fullgraph_gives_the_same_gradients(variant: str, inside: Any) -> None:
    torch._dynamo.reset()
    net = network(variant, inside)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_same(gradients(net, compiled), gradients(network(variant)))
    assert net[1].routed_scope._traced is None


@COMPILED
def test_torch_export_and_onnx_with_dynamic_batch(variant: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = network(variant).float().eval()
    x = images().float()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.onnx.export(program, dynamo=True, verbose=False).save(file)
    session = ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (2, 3):
        torch.testing.assert_close(program.module()(x[:batch]), net(x[:batch]), atol=1e-5, rtol=1e-5)
        (y,) = session.run(None, {session.get_inputs()[0].name: x[:batch].numpy()})
        torch.testing.assert_close(torch.from_numpy(y), net(x[:batch]), atol=1e-5, rtol=1e-5)


@VARIANTS
def test_fx_traces_the_network_and_a_single_block(variant: str) -> None:
    net = network(variant).eval()
    assert torch.equal(torch.fx.symbolic_trace(net)(images()), net(images()))
    h = net[0](images())
    assert torch.equal(torch.fx.symbolic_trace(net[1])(h), net[1](h))
    assert not _loans.get()


@VARIANTS
@torch.no_grad()
def test_eight_threads_share_a_model(variant: str) -> None:
    net = network(variant).eval()
    inputs = [images() * (i + 1) for i in range(8)]
    expected = [net(x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(40):
                if not torch.equal(net(inputs[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("spans_blocks", [False, True])
def test_an_exception_inside_leaves_nothing_behind(spans_blocks: bool) -> None:
    net = network("condconv")
    detach_scopes(net)
    members = [*layers_of(net[1]), *layers_of(net[2])]
    attach_scope(net, "1", members, condconv.PooledLinear(4, 3).double(), spans_blocks=spans_blocks)
    if spans_blocks:
        net.insert(2, Fails())
    else:
        net[1].norm = Fails()
    with pytest.raises(KeyboardInterrupt):
        net(images())
    assert not _loans.get()


def test_one_router_for_several_blocks() -> None:
    net = network("condconv").eval()
    detach_scopes(net)
    members = [*layers_of(net[1]), *layers_of(net[2])]
    scope = attach_scope(net, "1", members, condconv.PooledLinear(4, 3).double(), spans_blocks=True)
    with condconv.record_routing(net) as routing:
        y = net(images())
    assert len(routing) == 6 and all(torch.equal(r, routing["1.expand"]) for r in routing.values())
    assert not _loans.get() and isinstance(scope, RoutingScope)
    assert torch.equal(pickle.loads(pickle.dumps(net))(images()), y)
    assert torch.equal(torch.fx.symbolic_trace(net)(images()), y)
    program = torch.export.export(net, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images(3)), net(images(3)))


def test_hierarchical_scopes_see_the_previous_coefficients() -> None:
    net = network("condconv").eval()
    detach_scopes(net)
    first = attach_scope(net, "1", layers_of(net[1]), condconv.PooledLinear(4, 3).double(), spans_blocks=True)
    router = condconv.PooledLinear(4, 3, previous_experts=3).double()
    attach_scope(net, "2", layers_of(net[2]), router, previous=first)
    seen: list[Tensor] = []
    net[2].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with condconv.record_routing(net) as routing:
        net(images())
    assert torch.equal(routing["2.expand"], router(seen[0], routing["1.expand"]))
    assert not _loans.get()


def test_errors_name_the_layer_and_the_block() -> None:
    net = network("condconv")
    net[2].expand.path = "2.expand"
    with pytest.raises(
        condconv.RoutingError, match=r"^2\.expand \(CondConv2d\): shares the routing of '2', which is not"
    ):
        net[2].expand(torch.randn(1, 4, 5, 5, dtype=torch.float64))
    with pytest.raises(condconv.ArgumentError, match="1: already has a `router`"):
        attach_scope(net, "1", [], condconv.PooledLinear(4, 3))
    with pytest.raises(condconv.RoutingError, match="1: its first argument is list, not a tensor"):
        net[1]([images()])


class Regroups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = condconv.CondConv2d(4, 4, 1, num_experts=3, router=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1))


def test_a_block_that_regroups_its_batch_is_told_so() -> None:
    net = nn.Sequential(Regroups())
    attach_scope(net, "0", [net[0].conv], condconv.PooledLinear(4, 3))
    with pytest.raises(condconv.ShapeError, match="a block that regroups its batch needs share=None"):
        net(torch.randn(2, 4, 6, 6))


def test_a_block_takes_one_example_without_batch_dimension() -> None:
    net = nn.Sequential(nn.Sequential(condconv.CondConv2d(4, 6, 3, num_experts=3, router=False)))
    attach_scope(net, "0", [net[0][0]], condconv.PooledLinear(4, 3))
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(net(x[0]), net(x)[0])
