"""Routers whose pooled input is normalised."""

from __future__ import annotations

import copy

import pytest
import torch

import condconv
from condconv.routers import PooledLinear, PooledNorm, Router, SqueezeExcite


@pytest.mark.parametrize("kind", [PooledLinear, SqueezeExcite])
def test_a_common_mean_no_longer_hides_the_differences(kind: type[Router]) -> None:
    torch.manual_seed(0)
    x = 5 + 0.05 * torch.randn(64, 16, 1, 1).expand(-1, -1, 4, 4)
    plain, normalised = kind(16, 4), kind(16, 4, normalise=True)  # type: ignore[call-arg]
    normalised.body.load_state_dict(plain.body.state_dict())
    if kind is SqueezeExcite:
        for router in (plain, normalised):
            router.gate = condconv.SoftmaxGate(1.0)
    assert normalised(x).std(dim=0).mean() > 5 * plain(x).std(dim=0).mean()


def test_evaluation_uses_running_statistics_and_a_batch_of_one_trains() -> None:
    norm = PooledNorm(3)
    data = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.1]) + 4
    for batch in data.split(20):
        out = norm(batch)
        assert torch.allclose(out.mean(dim=0), torch.zeros(3), atol=1e-4)
    before = norm.mean.clone()
    single = norm(data[:1])
    assert torch.equal(norm.mean, before)
    norm.eval()
    assert torch.equal(norm(data[:1]), single)
    out = norm(data)
    assert out.mean(dim=0).abs().max() < 0.3 and (out.std(dim=0) - 1).abs().max() < 0.2


def test_the_norm_folds_into_the_first_linear_layer() -> None:
    router = PooledLinear(6, 3, normalise=True, hidden_channels=4)
    x = torch.randn(32, 6, 5, 5) + 2
    for _ in range(20):
        router(x)
    router.eval()
    folded = copy.deepcopy(router)
    folded.fold_norm()
    assert folded.norm is None
    torch.testing.assert_close(folded(x), router(x))
    assert set(router.state_dict()) == {"norm.mean", "norm.variance", *folded.state_dict()}


def test_it_is_traced_exported_and_served() -> None:
    layer = condconv.CondConv2d(
        4, 4, 3, padding=1, num_experts=2, router=lambda site, slices: PooledLinear(4, slices.size, normalise=True)
    )
    x = torch.randn(5, 4, 8, 8)
    layer(x)
    layer.eval()
    expected = layer(x)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(program.module()(x), expected)
    optimised = condconv.optimize_for_inference(torch.nn.Sequential(copy.deepcopy(layer)))
    torch.testing.assert_close(optimised(x), expected, atol=1e-5, rtol=1e-5)
