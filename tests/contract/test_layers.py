"""Properties of every layer of every registered variant."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.variants import variants
from tests.contract.cases import CONVOLUTIONS, LAYERS, MIXTURES, TWO_D, compiled, example_input, example_layer, name_of

EVERY = pytest.mark.parametrize("cls", LAYERS, ids=name_of)


@EVERY
def test_one_expert_with_coefficient_one_is_the_static_layer(cls: Any) -> None:
    layer = example_layer(cls, num_experts=1, dtype=torch.float64)
    x = example_input(cls, 3, dtype=torch.float64)
    static = layer.to_static(torch.ones(1, dtype=torch.float64))
    assert type(static) is cls.static_type
    torch.testing.assert_close(layer(x, torch.ones(3, 1)), static(x), atol=1e-12, rtol=1e-12)


@EVERY
def test_to_static_mixes_with_fixed_coefficients(cls: Any) -> None:
    layer = example_layer(cls, num_experts=3, dtype=torch.float64)
    x = example_input(cls, 3, dtype=torch.float64)
    alpha = torch.tensor([0.2, 1.5, -0.3], dtype=torch.float64)
    torch.testing.assert_close(layer(x, alpha.expand(3, 3)), layer.to_static(alpha)(x), atol=1e-12, rtol=1e-12)
    with pytest.raises(condconv.ArgumentError, match=r"coefficients=\(2,\).*must have shape \(3,\)"):
        layer.to_static(alpha[:2])


@EVERY
def test_permuting_the_batch_permutes_the_output(cls: Any) -> None:
    layer = example_layer(cls, dtype=torch.float64).train()
    x = example_input(cls, 7, dtype=torch.float64)
    order = torch.randperm(7)
    torch.testing.assert_close(layer(x[order]), layer(x)[order], atol=1e-12, rtol=1e-12)


@EVERY
def test_examples_do_not_leak_into_each_other(cls: Any) -> None:
    layer = example_layer(cls)
    x = example_input(cls, 3)
    spoiled = x.clone()
    spoiled[1] = math.nan
    y, z = layer(x), layer(spoiled)
    assert torch.isnan(z[1]).any()
    torch.testing.assert_close(z[[0, 2]], y[[0, 2]])


@EVERY
def test_one_example_without_a_batch_dimension(cls: Any) -> None:
    layer = example_layer(cls, num_experts=3)
    x = example_input(cls, 2)
    if cls.static_type is nn.Linear:
        x = x[:, 0]
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    alpha = torch.rand(3)
    torch.testing.assert_close(layer(x[0], alpha), layer(x, alpha.expand(2, 3))[0])


@EVERY
def test_experts_are_initialised_one_by_one(cls: Any) -> None:
    torch.manual_seed(1)
    layer = cls(64, 48, num_experts=3) if cls.static_type is nn.Linear else cls(64, 48, 1, num_experts=3)
    static = cls.static_type(64, 48) if cls.static_type is nn.Linear else cls.static_type(64, 48, 1)
    for i, expert in enumerate(layer.weight):
        assert expert.shape == static.weight.shape
        assert abs(float((expert.std() / static.weight.std()).detach()) - 1) < 0.1
        assert bool(layer.bias[i].abs().max() <= static.bias.abs().max() * 1.2)
    assert not torch.equal(layer.weight[0], layer.weight[1])


@EVERY
def test_state_dict_deepcopy_and_pickle_round_trip(cls: Any) -> None:
    layer, other = example_layer(cls), example_layer(cls)
    x = example_input(cls, 2)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@EVERY
def test_training_with_one_example_moves_every_parameter(cls: Any) -> None:
    layer = example_layer(cls)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(2):  # the second step moves what a zero-initialised layer in front of it held still
        optimizer.zero_grad()
        layer(example_input(cls, 1)).square().mean().backward()
        optimizer.step()
        for module in layer.modules():
            if isinstance(module, condconv.SoftmaxGate):
                module.anneal(1.0)
    assert all(not torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))


@EVERY
def test_bf16_autocast_routes_in_f32(cls: Any) -> None:
    layer = example_layer(cls).eval()
    x = example_input(cls, 2)
    with condconv.record_routing(layer) as plain:
        y = layer(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16), condconv.record_routing(layer) as mixed:
        z = layer(x).detach()
    assert z.dtype == torch.bfloat16
    assert mixed[""].dtype == torch.float32
    assert torch.equal(mixed[""], plain[""])
    assert float((z.float() - y).abs().max()) < 0.05 * float(y.abs().max()) + 0.05


@EVERY
def test_a_bf16_layer_routes_in_f32(cls: Any) -> None:
    layer = example_layer(cls, dtype=torch.bfloat16)
    with condconv.record_routing(layer) as routing:
        assert layer(example_input(cls, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert routing[""].dtype == torch.float32


@compiled(LAYERS, nn.Conv2d, nn.Linear)
def test_torch_compile_fullgraph_agrees(cls: Any) -> None:
    torch._dynamo.reset()
    layer = example_layer(cls)
    x = example_input(cls, 3)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(x), layer(x), atol=1e-5, rtol=1e-5)


@compiled(TWO_D, nn.Conv2d)
def test_inductor_compiles_forward_and_backward(cls: Any) -> None:
    torch._dynamo.reset()
    layer = example_layer(cls)
    x = example_input(cls, 3)
    torch.compile(layer, fullgraph=True)(x).square().sum().backward()
    mine = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    for a, b in zip(mine, layer.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, atol=1e-3, rtol=1e-3)


@compiled(LAYERS, nn.Conv2d, nn.Linear)
def test_torch_export_with_dynamic_batch_agrees(cls: Any) -> None:
    layer = example_layer(cls).eval()
    program = torch.export.export(layer, (example_input(cls, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (2, 5):
        x = example_input(cls, batch)
        torch.testing.assert_close(program.module()(x), layer(x), atol=1e-5, rtol=1e-5)


@compiled([c for c in LAYERS if c.static_type in (nn.Conv2d, nn.Linear)], nn.Conv2d)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_with_dynamic_batch_agrees(cls: Any) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = example_layer(cls).eval()
    file = io.BytesIO()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(layer, (example_input(cls, 2),), dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(file)
    session = ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = example_input(cls, batch)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(x), atol=1e-5, rtol=1e-5)


@EVERY
def test_fx_traces_and_agrees(cls: Any) -> None:
    model = nn.Sequential(example_layer(cls))
    x = example_input(cls, 3)
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(graph))(x), model(x))


@EVERY
def test_moving_and_casting_a_layer(cls: Any) -> None:
    layer = example_layer(cls)
    x = example_input(cls, 2)
    y = layer(x)
    if x.dim() == 4:
        layer.to(memory_format=torch.channels_last)
        torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), y)
    assert layer.weight.is_contiguous() and layer.weight.shape[0] == layer.num_experts
    layer(x).sum().backward()
    layer.double()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float64
    torch.testing.assert_close(layer(x.double()), y.double(), atol=1e-5, rtol=1e-5)
    empty = example_layer(cls, device="meta").to_empty(device="cpu")
    empty.load_state_dict(layer.float().state_dict())
    assert torch.equal(empty(x), layer(x))


@EVERY
def test_meta_device_needs_no_memory(cls: Any) -> None:
    layer = example_layer(cls, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer(example_input(cls, 2, device="meta")).device.type == "meta"


@pytest.mark.parametrize("cls", CONVOLUTIONS, ids=name_of)
def test_from_static_keeps_every_argument(cls: Any) -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2, "bias": False}
    options |= {"output_padding": 1} if cls.transposed else {"padding_mode": "circular"}
    static = cls.static_type(4, 6, 3, **options, dtype=torch.float64).eval()
    layer = cls.from_static(static, 5)
    x = example_input(cls, 2, channels=4, dtype=torch.float64)
    assert layer.num_experts == 5 and not layer.training and layer.weight.dtype == torch.float64
    back = layer.to_static(torch.ones(5))
    assert repr(back) == repr(static)
    assert back(x).shape == static(x).shape == layer(x).shape


@pytest.mark.parametrize("cls", [c for c in CONVOLUTIONS if c.transposed], ids=name_of)
def test_output_size_as_in_torch(cls: Any) -> None:
    layer = cls(4, 6, 3, stride=3, padding=1, num_experts=1, dtype=torch.float64)
    static = layer.to_static(torch.ones(1))
    x, one = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.ones(2, 1)
    for size in [(13, 16), (14, 18), (15, 17)]:
        torch.testing.assert_close(layer(x, one, output_size=size), static(x, size), atol=1e-12, rtol=1e-12)
    with pytest.raises(
        condconv.ArgumentError, match=r"output_size=\(16, 16\) must lie between \(13, 16\) and \(15, 18\)"
    ):
        layer(x, output_size=(16, 16))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_variant_is_documented_and_complete(name: str) -> None:
    variant = variants[name]
    assert variant.name == name and variant.url.startswith("https://")
    assert {layer.static_type for layer in variant.layers} >= {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear}
    for layer in variant.layers:
        assert layer.__doc__ and getattr(condconv, layer.__name__) is layer


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"num_experts": 0}, "num_experts=0 must be at least 1"),
    ({"num_experts": -3}, "num_experts=-3 must be at least 1"),
    ({"groups": 3}, "groups=3 must divide in_channels=8"),
    ({"groups": 0}, "groups=0 must be at least 1"),
    ({"stride": 0}, "stride=0 must be an integer of at least 1"),
    ({"dilation": (1, 1, 1, 1)}, r"dilation=\(1, 1, 1, 1\) must be an integer of at least 1, or"),
    ({"padding": -1}, "padding=-1 must be an integer of at least 0"),
    ({"padding_mode": "mirror"}, "padding_mode='mirror' must be"),
    ({"strategy": "groupd"}, "unknown strategy 'groupd'; did you mean 'grouped'"),
    ({"router": lambda site, slices: condconv.PooledLinear(site.in_channels, 9)}, "router='PooledLinear' makes 9"),
]


@pytest.mark.parametrize("cls", [c for c in CONVOLUTIONS if not c.transposed], ids=name_of)
@pytest.mark.parametrize("arguments, message", BAD_ARGUMENTS, ids=[next(iter(a)) for a, _ in BAD_ARGUMENTS])
def test_bad_arguments_are_named(cls: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(condconv.ArgumentError, match=message) as error:
        cls(8, 8, 3, **{"num_experts": 8, **arguments})
    assert cls.__name__ in str(error.value) or "strategy" in arguments


@EVERY
def test_bad_inputs_are_named(cls: Any) -> None:
    layer = example_layer(cls, num_experts=3)
    x = example_input(cls, 2)
    with pytest.raises(
        condconv.ShapeError, match=f"{cls.__name__}: input of shape .*in_features=8|channels; in_channels=8"
    ):
        layer(example_input(cls, 2, channels=7))
    with pytest.raises(condconv.ShapeError, match=r"coefficients of shape \(2, 4\).*\(B, mixing 3\) = \(2, 3\)"):
        layer(x, torch.rand(2, 4))
    with pytest.raises(condconv.ShapeError, match=r"coefficients of shape \(1, 3\).*\(B, mixing 3\) = \(2, 3\)"):
        layer(x, torch.rand(1, 3))
    layer.path = "blocks.3.conv"
    with pytest.raises(condconv.ShapeError, match=r"^blocks\.3\.conv \("):
        layer(x, torch.rand(2, 4))


@pytest.mark.parametrize("cls", [c for c in CONVOLUTIONS if not c.transposed], ids=name_of)
def test_inputs_that_torch_would_choke_on_are_named(cls: Any) -> None:
    with pytest.raises(condconv.ShapeError, match="must have .* .batched. or .* .one example."):
        cls(8, 8, 3)(torch.randn(2, 8, *[5] * (cls.rank + 1)))
    with pytest.raises(condconv.ShapeError, match="too small for kernel_size"):
        cls(8, 8, 5)(example_input(cls, 2, size=3))
    with pytest.raises(condconv.ShapeError, match="too small for kernel_size"):
        cls(8, 8, 1, padding=1)(example_input(cls, 2, size=0))
    with pytest.raises(condconv.ShapeError, match="reflect padding of 4 .* at most 2"):
        cls(8, 8, 3, padding=4, padding_mode="reflect")(example_input(cls, 2, size=3))


@EVERY
def test_a_layer_without_router_asks_for_coefficients(cls: Any) -> None:
    layer = example_layer(cls, router=False, num_experts=3)
    assert not any("router" in key for key in layer.state_dict())
    with pytest.raises(condconv.RoutingError, match=r"has no router; pass coefficients= of shape \(B, 3\)"):
        layer(example_input(cls, 2))
    layer(example_input(cls, 2), torch.rand(2, 3))
