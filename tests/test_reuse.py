"""A stream's kernels are reused while its coefficients stand still, and only then."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.banks import PackedBank
from tests.contract.cases import LAYERS, example_input, example_layer, name_of


def steps(layer: nn.Module, x: torch.Tensor, rows: list[list[float]], tolerance: float) -> str:
    """One letter for each step with these coefficients (the same for all examples): m mixed, r reused."""
    letters = ""
    with torch.no_grad(), condconv.reuse_kernels(layer, tolerance) as reuse:
        for row in rows:
            before = reuse.mixed[""]
            layer(x, torch.tensor(row).expand(x.shape[0], -1))
            letters += "m" if reuse.mixed[""] > before else "r"
    return letters


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cls", LAYERS, ids=name_of)
def test_reused_kernels_are_those_that_were_mixed(cls: Any, packed: bool) -> None:
    layer = example_layer(cls, num_experts=3).eval()
    if packed:
        layer.bank = PackedBank(layer.weight, layer.bias, torch.randn(12), 1, "int8")
    first, second, near = (example_input(cls, 2) for _ in range(3))
    alpha = torch.rand(2, 3)
    with torch.no_grad():
        expected = layer(second, alpha)
        with condconv.reuse_kernels(layer, 0.01) as reuse:
            torch.testing.assert_close(layer(first, alpha), layer(first, alpha + 0.009), atol=0, rtol=0)
            torch.testing.assert_close(layer(second, alpha - 0.009), expected, atol=1e-5, rtol=1e-5)
            moved = layer(near, alpha + 0.02)
        torch.testing.assert_close(moved, layer(near, alpha + 0.02), atol=1e-5, rtol=1e-5)
    assert (reuse.mixed[""], reuse.reused[""]) == (2, 2)
    assert reuse.share() == reuse.share("") == 0.5
    assert str(reuse) == "kernels reused in 2 of 4 calls, tolerance 0.01\n  (model): 2 of 4"


def test_distance_is_to_the_coefficients_that_were_mixed() -> None:
    layer, x = condconv.CondConv2d(4, 4, 3, num_experts=2), torch.randn(2, 4, 5, 5)
    creeping = [[0.5, 0.5], [0.52, 0.5], [0.5, 0.54], [0.56, 0.5], [0.58, 0.5], [0.62, 0.5]]
    assert steps(layer, x, creeping, tolerance=0.05) == "mrrmrm"
    assert steps(layer, x, [[0.5, 0.5]] * 3, tolerance=0) == "mrr"
    assert steps(layer, x, [[0.5, 0.5], [0.5, math.nan], [0.5, math.nan], [0.5, 0.5]], tolerance=9) == "mmmm"
    assert steps(layer, x, [[0.5, 0.5], [0.5, math.inf], [0.5, math.inf]], tolerance=9) == "mmm"


def test_another_batch_size_or_type_mixes_anew() -> None:
    layer = condconv.CondConv2d(4, 4, 3, num_experts=2)
    layer.bank = PackedBank(layer.weight, layer.bias, None, 1, "bf16")
    alpha = torch.full((3, 2), 0.5)
    with torch.no_grad(), condconv.reuse_kernels(layer, 0.1) as reuse:
        for batch in (3, 1, 0, 1, 3):
            assert layer(torch.randn(batch, 4, 5, 5), alpha[:batch]).shape[0] == batch
        assert (reuse.mixed[""], reuse.reused[""]) == (3, 1)  # a batch of none mixes nothing
        assert layer(torch.randn(3, 4, 5, 5).bfloat16(), alpha).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(torch.randn(3, 4, 5, 5), alpha)
    assert (reuse.mixed[""], reuse.reused[""]) == (5, 1)


def test_changed_experts_mix_anew() -> None:
    layer, x, alpha = condconv.CondConv2d(4, 4, 3, num_experts=2), torch.randn(1, 4, 5, 5), torch.rand(1, 2)

    def optimise() -> None:
        layer.weight.add_(1.0)

    def optimise_bias() -> None:
        assert layer.bias is not None
        layer.bias.mul_(2.0)

    def load() -> None:
        layer.load_state_dict({name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()})

    def replace() -> None:
        layer.bank.weight = nn.Parameter(torch.randn_like(layer.weight))

    with torch.no_grad(), condconv.reuse_kernels(layer, 0.1) as reuse:
        for change in (optimise, optimise_bias, load, replace, replace, lambda: layer.double()):
            before = layer(x, alpha)
            change()
            after = layer(x.to(layer.weight.dtype), alpha)
            assert not torch.equal(after, before)
            torch.testing.assert_close(after, layer.to_static(alpha[0])(x.to(layer.weight.dtype)).detach())
    assert reuse.reused[""] == 5


@pytest.mark.parametrize("optimised", [False, True], ids=["plain", "optimised"])
def test_a_video(optimised: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
    condconv.convert(model, num_experts=3, init="fresh")
    video: Any = condconv.optimize_for_inference(model, "int8") if optimised else model.eval()
    scene, cut = torch.rand(2, 1, 3, 12, 12)
    frames = [scene, scene + 1e-4 * torch.randn_like(scene), scene, cut, cut]
    with torch.no_grad(), condconv.reuse_kernels(video, 1e-3) as reuse:
        outputs = [video(frame) for frame in frames]
    for frame, output in zip(frames, outputs, strict=True):
        torch.testing.assert_close(output, video(frame).detach(), atol=1e-3, rtol=1e-3)
    assert set(reuse.mixed) == {"3", "4"}
    assert all(reuse.mixed[name] == 2 and reuse.reused[name] == 3 for name in reuse.mixed)
    assert reuse.share("3") == 0.6
    with torch.no_grad():
        video(scene)
    assert sum(reuse.reused.values()) == 6  # outside of the block nothing is reused, nor counted


def test_two_streams_in_two_threads_do_not_mix() -> None:
    layer = condconv.CondConv2d(4, 4, 3, num_experts=2)
    barrier, results = threading.Barrier(2), {}

    def stream(name: str, alpha: torch.Tensor) -> None:
        x = torch.randn(1, 4, 5, 5)
        with torch.no_grad(), condconv.reuse_kernels(layer, 1e-3) as reuse:
            for _ in range(5):
                barrier.wait(timeout=60)
                y = layer(x, alpha)
        results[name] = (reuse.mixed[""], reuse.reused[""], bool(torch.allclose(y, layer(x, alpha), atol=1e-5)))

    threads = [threading.Thread(target=stream, args=(str(i), torch.rand(1, 2))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"0": (1, 4, True), "1": (1, 4, True)}


def test_blocks_nest_and_end() -> None:
    one, two = (condconv.CondConv2d(4, 4, 3, num_experts=2) for _ in range(2))
    x, alpha = torch.randn(1, 4, 5, 5), torch.rand(1, 2)
    with torch.no_grad(), condconv.reuse_kernels(one, 0.1) as outer:
        with condconv.reuse_kernels(two, 0.1) as inner:
            for layer in (one, two, one, two):
                layer(x, alpha)
        two(x, alpha)
        one(x, alpha)
    assert (outer.reused[""], inner.reused[""]) == (2, 1)


def test_what_cannot_be_reused_is_refused() -> None:
    layer, x, alpha = condconv.CondConv2d(4, 4, 3, num_experts=2), torch.randn(1, 4, 5, 5), torch.rand(1, 2)
    with condconv.reuse_kernels(layer, 0.1):
        with pytest.raises(condconv.ArgumentError, match=r"the model is to be differentiated.* torch\.no_grad\(\)"):
            layer(x, alpha)
        layer.requires_grad_(False)
        layer(x, alpha)
        with pytest.raises(condconv.ArgumentError, match="is to be differentiated"):
            layer(x, alpha.requires_grad_())
    for tolerance in (-0.1, math.nan):
        refused = pytest.raises(condconv.ArgumentError, match=f"tolerance={tolerance} must be a number, at least 0")
        with refused, condconv.reuse_kernels(layer, tolerance):
            pass
    refused = pytest.raises(condconv.ArgumentError, match="reuse_kernels: model=Linear has no conditional layer")
    with refused, condconv.reuse_kernels(nn.Linear(2, 2), 0.1):
        pass
    with torch.inference_mode():
        made_inside = condconv.CondConv2d(4, 4, 3, num_experts=2)
        with condconv.reuse_kernels(layer, 0.1) as reuse:
            for _ in range(2):
                layer(x, alpha)
        refused = pytest.raises(condconv.ArgumentError, match=r"were made under torch\.inference_mode")
        with refused, condconv.reuse_kernels(made_inside, 0.1):
            made_inside(x, alpha)
    assert reuse.reused[""] == 1
