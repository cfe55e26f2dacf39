"""The inference form: same outputs, an untouched argument, small files, and clear refusals."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.banks import PackedBank
from condconv.conversion.apply import conditional_layers
from condconv.models import load_weights
from condconv.models.specs import SPECS
from condconv.models.timm_weights import to_timm_state_dict
from condconv.routers import Router
from tests.contract.cases import MIXTURES
from tests.conversion.networks import difference, make_telling
from tests.conversion.small import Residual

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

VARIANT = pytest.mark.parametrize("variant", MIXTURES)
X = (2, 3, 64, 64)


def network(variant: str = "condconv", seed: int = 0, **how: Any) -> nn.Module:
    """A small conditional network with routing scopes, squeeze-excite, depthwise and pointwise layers; in eval mode."""
    return copy.deepcopy(_network(variant, seed, **how))


@functools.cache
def _network(variant: str, seed: int, **how: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=10)
    model = condconv.convert(model, variant, num_experts=3, init="fresh", input_size=X[1:], **how)
    make_telling(model, (torch.randn(16, *X[1:]),))
    for module in model.modules():
        if isinstance(module, condconv.SoftmaxGate):
            module.anneal(1.0)
    return model.eval()


@VARIANT
@pytest.mark.parametrize("share", ["block", "network", None])
def test_f32_keeps_the_outputs(variant: str, share: Any) -> None:
    model = network(variant, share=share)
    made = condconv.optimize_for_inference(model)
    form: Any = made.inference_form
    assert len(form.packed) == len(list(conditional_layers(model))) > 5 and not form.left
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    for batch in (1, 2, 7):
        x = torch.randn(batch, *X[1:])
        assert difference(made(x), model(x)) <= 1e-5
    assert made(torch.randn(0, *X[1:])).shape == (0, 10)


@pytest.mark.parametrize("variant", [name for name in MIXTURES if name != "sparse_moe"])  # Rounding turns its choices.
@pytest.mark.parametrize(("experts", "rest"), [("bf16", "f32"), ("int8", "f32"), ("f32", "bf16"), ("int8", "bf16")])
def test_smaller_forms_are_near(variant: str, experts: Any, rest: Any) -> None:
    model = network(variant)
    made = condconv.optimize_for_inference(model, experts, rest)
    x = torch.randn(*X)
    y = made(x)
    assert y.dtype == torch.float32 and x.dtype == torch.float32
    # Random networks amplify rounding; they show what it amounts to when all of the network is in bf16.
    unit = difference(copy.deepcopy(model).bfloat16()(x.bfloat16()).float(), model(x))
    assert 1e-4 < difference(y, model(x)) <= (4 if experts == "int8" else 2) * unit < 0.8
    for layer in (layer for _, layer in conditional_layers(made)):
        assert isinstance(layer.bank, PackedBank) and layer.bank.storage == experts
    assert made.conv_stem.weight.dtype == (torch.bfloat16 if rest == "bf16" else torch.float32)
    routers = [module for module in made.modules() if isinstance(module, Router)]
    assert routers and all(p.dtype == torch.float32 for router in routers for p in router.parameters())


def test_the_argument_is_not_touched() -> None:
    model = network().train()
    model.conv_stem.weight.requires_grad_(False)
    model(torch.randn(*X)).sum().backward()
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = {name: (module, type(module), module.training) for name, module in model.named_modules()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    attributes = set(vars(model))
    made = condconv.optimize_for_inference(model, "int8", "bf16")
    made(torch.randn(*X))
    assert len(seen) == 1  # the hook was copied, and sees the copy's output
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    now = {name: (module, type(module), module.training) for name, module in model.named_modules()}
    assert now == objects
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert set(vars(model)) == attributes and len(model._forward_hooks) == 1 and not model._forward_pre_hooks
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    assert all(p.grad is None for p in made.parameters())
    mine = {p.data_ptr() for p in model.parameters()}
    assert not mine & {p.data_ptr() for p in made.parameters()}


def test_a_static_network_gets_the_same_treatment() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    make_telling(model, (torch.randn(16, *X[1:]),))
    made = condconv.optimize_for_inference(model)
    x = torch.randn(*X)
    assert difference(made(x), model.eval()(x)) <= 1e-5
    convolutions = [module for module in made.modules() if isinstance(module, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) and c.bias is not None for c in convolutions)
    folded = len(made.inference_form.folded)
    assert f"experts of 0 layers; {folded} of {folded} batch norms folded" in str(made.inference_form)


def test_a_layer_alone_and_other_types() -> None:
    layer = condconv.CondConv2d(4, 6, 3, num_experts=3).double()
    x = torch.randn(2, 4, 5, 5)
    made = condconv.optimize_for_inference(layer, "bf16")
    assert isinstance(made.bank, PackedBank) and isinstance(layer.bank, condconv.banks.DenseBank)
    assert made(x).dtype == torch.float32
    assert difference(made(x), layer.float()(x)) <= 0.01
    video = nn.Sequential(condconv.CondConv3d(2, 4, 3, num_experts=2), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1))
    clip = torch.randn(1, 2, 4, 5, 5)
    assert difference(condconv.optimize_for_inference(video)(clip), video.eval()(clip)) <= 1e-5


def test_norms_that_stay_run_in_bf16_networks() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), condconv.CondConv2d(4, 6, 3, num_experts=2), nn.ReLU())
    make_telling(model, (torch.randn(4, 4, 8, 8),))
    made = condconv.optimize_for_inference(model, "int8", "bf16")
    assert made.inference_form.left == ("0",)
    x = torch.randn(2, 4, 8, 8)
    assert difference(made(x), model.eval()(x)) <= 0.03
    frozen = pytest.importorskip("torchvision.ops").FrozenBatchNorm2d(4)
    made = condconv.optimize_for_inference(nn.Sequential(frozen, *model[1:]), rest="bf16")
    assert made.inference_form.left == ("0",) and made(x).isfinite().all()


def test_nested_outputs_come_back_in_f32() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, *, extra: dict[str, Tensor]) -> dict[str, Any]:
            return {"maps": [self.conv(x), self.conv(extra["x"])], "index": extra["i"]}

    made = condconv.optimize_for_inference(Two(), rest="bf16")
    x = torch.randn(1, 3, 5, 5)
    output = made(x, extra={"x": x, "i": torch.tensor([3])})
    assert [y.dtype for y in output["maps"]] == [torch.float32] * 2 and output["index"].dtype == torch.int64


def test_skipping() -> None:
    model = network()
    x = torch.randn(*X)
    made = condconv.optimize_for_inference(model, skip_below=1.0)  # sigmoid coefficients: all experts
    assert difference(made(x), model(x)) > 0.1
    with condconv.override_routing(model, lambda name, a: a * (a > 0.5)):
        expected = model(x)
    assert difference(condconv.optimize_for_inference(model, skip_below=0.5)(x), expected) <= 1e-5


def check_compiled_and_exported(made: Any, size: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    # An exported graph has another strategy, and each rounds to bf16 in its own places.
    tolerance = 0.1 if made.inference_form.rest == "bf16" else 1e-4
    x, more = torch.randn(2, *size), torch.randn(5, *size)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert difference(compiled(x), made(x)) <= tolerance
    program = torch.export.export(made, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert difference(program.module()(more), made(more)) <= tolerance


def test_compiled_and_exported() -> None:
    model = condconv.convert(nn.Sequential(Residual(4), Residual(4)), num_experts=2, targets=["pointwise", "dense"])
    assert all(layer.scope is not None for _, layer in conditional_layers(model))
    check_compiled_and_exported(condconv.optimize_for_inference(model[0], "int8", "bf16"), (4, 6, 6))


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "rest"), [("f32", "f32"), ("bf16", "f32"), ("int8", "bf16")])
def test_a_real_network_compiled_and_exported(experts: Any, rest: Any) -> None:
    check_compiled_and_exported(condconv.optimize_for_inference(network(), experts, rest), X[1:])


def test_copies_and_threads() -> None:
    made = condconv.optimize_for_inference(network(), "int8", "bf16")
    x = torch.randn(*X)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(twin(x), made(x))
    inputs = [torch.randn(*X) for _ in range(4)]
    expected, got = [made(i) for i in inputs], [torch.empty(0)] * 4

    def work(k: int) -> None:
        for _ in range(3):
            got[k] = made(inputs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_saved_weights_load_into_a_fresh_form(tmp_path: Path) -> None:
    experts, rest = "int8", "bf16"
    made = condconv.optimize_for_inference(network(seed=1), experts, rest)
    safetensors.save_model(made, tmp_path / "net.safetensors")
    x = torch.randn(*X)
    fresh = condconv.optimize_for_inference(network(seed=2), experts, rest)
    assert not torch.equal(fresh(x), made(x))
    safetensors.load_model(fresh, tmp_path / "net.safetensors")
    assert torch.equal(fresh(x), made(x))
    with torch.device("meta"):
        empty = condconv.convert(
            timm.create_model("test_efficientnet", pretrained=False, num_classes=10), num_experts=3, init="fresh"
        )
    again = condconv.optimize_for_inference(empty, experts, rest).to_empty(device="cpu")
    load_weights(again, tmp_path / "net.safetensors")
    assert torch.equal(again(x), made(x))
    other = condconv.optimize_for_inference(network(), "bf16")
    with pytest.raises(condconv.CheckpointError, match=rf"holds {experts} experts, the network bf16 ones"):
        safetensors.load_model(other, tmp_path / "net.safetensors", strict=False)


SIZES: list[tuple[Any, Any, float]] = [
    ("f32", "f32", 96.0),
    ("bf16", "f32", 53.2),
    ("int8", "f32", 32.3),
    ("int8", "bf16", 27.1),
]


def test_sizes_of_efficientnet() -> None:
    with torch.device("meta"):
        model = condconv.create_model("condconv_efficientnet_b0_8e")
    for experts, rest, megabytes in SIZES[::3]:
        state = condconv.optimize_for_inference(model, experts, rest).state_dict()
        assert sum(t.numel() * t.element_size() for t in state.values()) / 1e6 == pytest.approx(megabytes, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "rest", "megabytes"), SIZES)
def test_size_of_efficientnets_file(experts: Any, rest: Any, megabytes: float, tmp_path: Path) -> None:
    model = condconv.create_model("condconv_efficientnet_b0_8e")
    made = condconv.optimize_for_inference(model, experts, rest)
    safetensors.save_model(made, tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_size / 1e6 == pytest.approx(megabytes, abs=0.4)
    x = torch.rand(1, 3, 224, 224)
    assert difference(made(x), model.eval()(x)) <= (1e-5 if experts == rest == "f32" else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SPECS))
def test_the_papers_networks(name: str) -> None:
    model = condconv.create_model(name, num_experts=2 if SPECS[name].num_experts > 1 else None)
    x = torch.randn(4, 3, 96, 96)
    make_telling(model, (x,))
    made = condconv.optimize_for_inference(model.eval())
    assert not made.inference_form.left
    rounding = difference(model(x), copy.deepcopy(model).double()(x.double()))
    assert difference(made(x), model(x)) <= max(1e-5, 3 * rounding)


def test_an_inference_form_is_refused_by_what_would_change_it() -> None:
    for model in (network(), timm.create_model("test_resnet", pretrained=False)):
        made = condconv.optimize_for_inference(model, "int8")
        for verb, call in {
            "optimize_for_inference": condconv.optimize_for_inference,
            "plan": condconv.plan,
            "revert": condconv.revert,
            "collapse": lambda m: condconv.collapse(m, [torch.randn(*X)]),
        }.items():
            for target in (made, nn.Sequential(made)):
                message = rf"^{verb}: the model is an inference form .* use the network that it was made from"
                with pytest.raises(condconv.ConversionError, match=message):
                    call(target)
        with pytest.raises(condconv.ConversionError, match=r"is an inference form, .* call .eval\(\), or train"):
            made.train()(torch.randn(*X))
        made.eval()(torch.randn(*X))
    layer = condconv.optimize_for_inference(condconv.CondConv2d(4, 4, 3), "f32")
    for target in (layer, layer.bank):
        with pytest.raises(condconv.ConversionError, match="quantising twice would round twice"):
            condconv.optimize_for_inference(target, "int8")
    with pytest.raises(condconv.ConversionError, match="^to_timm_state_dict: the model is an inference form"):
        to_timm_state_dict(layer)


def test_bad_arguments_are_named() -> None:
    model = network()
    for arguments, message in (
        ({"experts": "int4"}, "experts='int4' must be one of f32, bf16, int8"),
        ({"rest": "int8"}, "rest='int8' must be one of f32, bf16"),
        ({"skip_below": -0.1}, "skip_below=-0.1 must be a number, at least 0"),
        ({"skip_below": math.nan}, "skip_below=nan must be a number, at least 0"),
    ):
        with pytest.raises(condconv.ArgumentError, match=message):
            condconv.optimize_for_inference(model, **arguments)
    with pytest.raises(condconv.ConversionError, match="model is a OptimizedModule, whose modules cannot be replaced"):
        condconv.optimize_for_inference(torch.compile(model))
    with pytest.raises(condconv.ConversionError, match=r"0\.weight, 0\.bias are not initialised yet \(lazy\)"):
        condconv.optimize_for_inference(nn.Sequential(nn.LazyConv2d(4, 3)))
    name, layer = next(conditional_layers(model))
    with torch.no_grad():
        layer.weight.view(-1)[0] = math.inf
    for arguments in ({"experts": "int8"}, {"skip_below": 0.1}):
        with pytest.raises(condconv.ConversionError, match=f"{name}: has experts that are NaN or infinite"):
            condconv.optimize_for_inference(model, **arguments)
    condconv.optimize_for_inference(model, "bf16")
