"""The contract of the variants that are more than n kernels and n scalars: factors, residuals, shared parameters.

They are drawn from the registry: a layer class brings its own site, bank and router.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import condconv
from condconv.counting import count
from condconv.counting.executed import DispatchCount, WatchExecution
from condconv.counting.trace import Recorder
from condconv.errors import ConversionError
from condconv.routing_hooks import interventions
from condconv.variants import variants
from tests.contract.cases import (
    LAYERS,
    MIXTURES,
    OTHERS,
    compiled,
    example_input,
    example_layer,
    name_of,
    serving,
)

EVERY = pytest.mark.parametrize("cls", OTHERS, ids=name_of)
F64 = {"dtype": torch.float64}
NAMES = [name for name in variants if name not in MIXTURES]


def small(cls: Any, **options: Any) -> Any:
    """A layer in eval mode, where no batch statistics tie its examples together."""
    torch.manual_seed(0)
    return example_layer(cls, **options).eval()


def sites(cls: Any) -> list[dict[str, Any]]:
    """Arguments of layers of several kinds: kernels of one and more positions, strides, dilation, groups."""
    if cls.static_type is nn.Linear:
        return [{"in_features": 6, "out_features": 5}, {"in_features": 6, "out_features": 5, "bias": False}]
    kinds: list[dict[str, Any]] = [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 0, "bias": False},
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 1, "groups": 6, "padding_mode": "circular"},
    ]
    return [{"in_channels": 6, "out_channels": 6, **kind} for kind in kinds]


def made(cls: Any, num_experts: int | None = None) -> list[Any]:
    """A layer for each of these sites that the variant can serve."""
    layers = []
    for arguments in sites(cls):
        try:
            layers.append(cls(**arguments, num_experts=num_experts, **F64).eval())
        except condconv.SiteError:
            continue
    assert layers
    return layers


def experts_of(cls: Any) -> list[int | None]:
    """Numbers of experts to try: the default, and three where the variant mixes."""
    try:
        several = example_layer(cls, num_experts=3, device="meta").num_experts == 3
    except condconv.ArgumentError:
        several = False
    return [None, 3] if several else [None]


def inputs_of(layer: Any, batch: int = 3) -> Tensor:
    return example_input(type(layer), batch, channels=6, size=7, **F64)


def coefficients_of(layer: Any, batch: int = 3) -> Tensor:
    return torch.rand(batch, layer.num_coefficients, dtype=torch.float64) + 0.25


@EVERY
def test_every_strategy_equals_the_definition_in_value_and_gradient(cls: Any) -> None:
    for num_experts in experts_of(cls):
        for layer in made(cls, num_experts):
            x, coefficients = inputs_of(layer), coefficients_of(layer)
            for strategy in serving(layer, x):
                x_, c_ = x.clone().requires_grad_(), coefficients.clone().requires_grad_()
                leaves = [x_, c_, *layer.bank.learned()]
                with condconv.use_strategy(strategy):
                    y = layer(x_, c_)
                weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
                mine = torch.autograd.grad((y * weights).sum(), leaves)
                if strategy == "reference":
                    pairs = zip(x, coefficients, strict=True)
                    expected = torch.cat([layer.to_static(c)(one[None]) for one, c in pairs])
                    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)
                    theirs = mine
                for a, b in zip((y, *mine), (expected, *theirs), strict=True):
                    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@EVERY
def test_its_identity_coefficients_are_a_static_layer_and_it_starts_from_one(cls: Any) -> None:
    for layer in made(cls):
        x = inputs_of(layer)
        identity = layer.bank.identity.double()
        static = layer.to_static(identity)
        assert type(static) is cls.static_type
        torch.testing.assert_close(layer(x, identity.expand(3, -1)), static(x), atol=1e-12, rtol=1e-12)
        layer.router.double()
        layer.bank.start_from(static.weight, static.bias, layer.router.reset_to_constant())
        torch.testing.assert_close(layer(x), static(x), atol=1e-6, rtol=1e-6)


@EVERY
def test_examples_stay_apart(cls: Any) -> None:
    layer, x = small(cls, **F64), example_input(cls, 7, **F64)
    order = torch.randperm(7)
    y = layer(x)
    torch.testing.assert_close(layer(x[order]), y[order], atol=1e-12, rtol=1e-12)
    spoiled = x.clone()
    spoiled[1] = torch.nan
    z = layer(spoiled)
    assert torch.isnan(z[1]).any()
    torch.testing.assert_close(z[[0, 2, 3]], y[[0, 2, 3]])
    single = x[2, 0] if cls.static_type is nn.Linear else x[2]
    several = x[:, 0] if cls.static_type is nn.Linear else x
    torch.testing.assert_close(layer(single), layer(several)[2])


@EVERY
def test_an_empty_batch_gives_an_empty_output(cls: Any) -> None:
    layer = small(cls)
    y = layer(example_input(cls, 0))
    assert y.shape == (0, *layer(example_input(cls, 2)).shape[1:])
    y.sum().backward()


@EVERY
def test_state_dict_deepcopy_and_pickle_round_trip(cls: Any) -> None:
    layer, x = small(cls), example_input(cls, 2)
    torch.manual_seed(1)
    other = example_layer(cls).eval()
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@EVERY
def test_all_of_it_learns(cls: Any) -> None:
    layer = small(cls).train()
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        for gate in condconv.routers.annealed_gates(layer):
            gate.anneal(gate.end)
        optimizer.zero_grad()
        layer(example_input(cls, 4)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))


@EVERY
def test_low_precision_routes_in_f32(cls: Any) -> None:
    layer, x = small(cls), example_input(cls, 2)
    y = layer(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16), condconv.record_routing(layer) as routing:
        mixed = layer(x).detach()
    low = copy.deepcopy(layer).bfloat16()
    with condconv.record_routing(low) as lower:
        z = low(x.bfloat16()).detach()
    assert routing[""].dtype == lower[""].dtype == torch.float32
    for other in (mixed, z):
        assert other.dtype == torch.bfloat16
        assert float((other.float() - y).abs().max()) < 0.05 * float(y.abs().max()) + 0.05


@compiled(OTHERS, nn.Conv2d)
def test_compiled_and_exported_it_computes_the_same(cls: Any) -> None:
    torch._dynamo.reset()
    layer, x = small(cls), example_input(cls, 3)
    expected = layer(x)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(x), expected, atol=1e-5, rtol=1e-5)
    program = torch.export.export(layer, (example_input(cls, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x), expected, atol=1e-5, rtol=1e-5)


@EVERY
def test_traced_it_computes_the_same(cls: Any) -> None:
    layer, x = small(cls), example_input(cls, 3)
    graph = torch.fx.symbolic_trace(nn.Sequential(layer))
    torch.testing.assert_close(graph(x), layer(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("cls", [*LAYERS, *OTHERS], ids=name_of)
def test_a_trace_of_torch_jit_serves_other_batches(cls: Any) -> None:
    layer = small(cls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and it warns of each check of a shape.
        traced = torch.jit.trace(layer, example_input(cls, 2), check_trace=False)
    x = example_input(cls, 3)
    torch.testing.assert_close(traced(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", [*LAYERS, *OTHERS], ids=name_of)
def test_pruning_and_reparametrising_take_the_banks_parameters_by_their_names(cls: Any) -> None:
    plain, x = small(cls), example_input(cls, 2)
    with torch.no_grad():
        for parameter in plain.bank.parameters():
            parameter.add_(0.1)  # Biases of zero have no norm, and cannot be pruned.
    expected = plain(x)
    for name, parameter in plain.bank.named_parameters():
        owner, _, leaf = name.rpartition(".")
        layer = copy.deepcopy(plain)
        prune.l1_unstructured(layer.bank.get_submodule(owner), leaf, amount=parameter.numel() - 1)
        assert not torch.equal(layer(x), expected)
        layer = copy.deepcopy(plain)
        parametrizations.weight_norm(layer.bank.get_submodule(owner), leaf)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
        held = dict(layer.bank.get_submodule(owner).named_parameters(recurse=True))
        layer(x).square().mean().backward()
        assert all(held[f"parametrizations.{leaf}.original{i}"].grad is not None for i in (0, 1))


@EVERY
def test_closed_forms_equal_the_dispatched_count(cls: Any) -> None:
    for num_experts in experts_of(cls):
        for layer in made(cls, num_experts):
            x = inputs_of(layer)
            for strategy in serving(layer, x):
                recorder = Recorder(layer)
                dispatched, declared = DispatchCount(recorder), WatchExecution(recorder)
                with torch.no_grad(), condconv.use_strategy(strategy), recorder, declared, dispatched:
                    layer(x, coefficients_of(layer))
                assert dispatched.macs[""] == declared.declared[""] > 0, (layer, strategy)


@EVERY
def test_channels_last_and_the_meta_device(cls: Any) -> None:
    layer, x = small(cls), example_input(cls, 2)
    if x.dim() == 4:
        last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), layer(x), atol=1e-5, rtol=1e-5)
    empty = example_layer(cls, device="meta").eval()
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert empty(example_input(cls, 2, device="meta")).device.type == "meta"


@EVERY
def test_wrong_coefficients_and_arguments_are_named(cls: Any) -> None:
    layer, x = small(cls), example_input(cls, 2)
    with pytest.raises(condconv.ShapeError, match=rf"must have shape \(B, .*\) = \(2, {layer.num_coefficients}\)"):
        layer(x, torch.rand(2, layer.num_coefficients + 1))
    with pytest.raises(condconv.ArgumentError, match="unknown argument 'colour'"):
        example_layer(cls, colour="blue")
    unknown = pytest.raises(condconv.ArgumentError, match="unknown part 'nonsense'")
    with unknown, condconv.record_routing(layer, "nonsense"):
        pass
    part = layer.slices.names[0]
    with condconv.override_routing(layer, lambda _, given: given * 0, part), condconv.record_routing(layer) as routing:
        layer(x)
    for how in interventions:
        with condconv.override_routing(layer, how):
            assert layer(x).isfinite().all()
    span = layer.slices.span(part)
    assert not routing[""][:, span].any() and routing[""].shape[1] == layer.num_coefficients


def network(cls: Any, channels: int = 8) -> nn.Module:
    """Two static layers with a batch norm between them, statistics not the fresh ones."""
    torch.manual_seed(0)
    rank = getattr(cls, "rank", 2)
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][rank - 1]
    if cls.static_type is nn.Linear:
        net = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 5))
    else:
        net = nn.Sequential(
            cls.static_type(channels, channels, 3, padding=1, bias=False), norm(channels), nn.ReLU(),
            cls.static_type(channels, 6, 1),
        )  # fmt: skip
    with torch.no_grad():
        net(example_input(cls, 8))
    return net.eval()


@pytest.mark.parametrize("cls", [c for c in OTHERS if c.static_type in (nn.Conv2d, nn.Linear)], ids=name_of)
def test_conversion_keeps_the_function_and_is_undone(cls: Any) -> None:
    name = next(name for name in variants if cls in variants[name].layers)
    net, x = network(cls), example_input(cls, 4)
    expected = net(x).detach()
    params = sum(p.numel() for p in net.parameters())
    size = tuple(x.shape[1:])
    planned = condconv.plan(copy.deepcopy(net), name, targets=".*", input_size=size)
    before = copy.deepcopy(net.state_dict())
    converted = condconv.convert(net, name, targets=".*", input_size=size)
    torch.testing.assert_close(converted(x), expected, atol=1e-5, rtol=1e-5)
    counted = count(converted, size)
    assert (counted.params, counted.macs) == (planned.params_after, planned.macs_after)
    assert counted.params > params
    static = condconv.collapse(converted, [x])
    torch.testing.assert_close(static(x), expected, atol=1e-5, rtol=1e-5)
    restored = condconv.revert(converted).state_dict()
    assert all(torch.equal(restored[key], value) for key, value in before.items())


@pytest.mark.parametrize("cls", [c for c in OTHERS if c.static_type is nn.Conv2d], ids=name_of)
@pytest.mark.parametrize("experts", ["f32", "int8"])
def test_the_inference_form_computes_the_same_or_is_refused(cls: Any, experts: Any) -> None:
    name = next(name for name in variants if cls in variants[name].layers)
    net, x = condconv.convert(network(cls), name, targets=".*").eval(), example_input(cls, 4)
    with torch.no_grad():
        for layer in net.modules():  # Away from the constant routing of the start.
            if isinstance(layer, condconv.routers.Router):
                layer.reset_parameters()
    expected = net(x).detach()
    try:
        form = condconv.optimize_for_inference(net, experts=experts)
    except ConversionError as refusal:
        assert "has no inference form" in str(refusal)
        return
    tolerance = 1e-5 if experts == "f32" else 0.03 * float(expected.abs().max())
    torch.testing.assert_close(form(x), expected, atol=tolerance, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in form.modules())


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_documented(name: str) -> None:
    variant = variants[name]
    assert variant.name == name and variant.url.startswith("https://") and variant.equation
    for layer in variant.layers:
        assert layer.__doc__ and getattr(condconv, layer.__name__) is layer and layer.design is variant.design
