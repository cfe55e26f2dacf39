from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConv2d
from condconv.data import Source, TensorImages
from condconv.errors import NonFiniteError
from condconv.evaluation.routing import RoutingStatistics, normalised_entropy, routed_together
from condconv.routers import attach_scope
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of
from condconv.training.callbacks import EpochRows, router_columns
from condconv.training.health import HealthWarnings
from condconv.training.module import TrainingModule


def test_statistics_equal_a_naive_computation() -> None:
    coefficients, labels = torch.rand(60, 4), torch.randint(0, 3, (60,))
    labels[5] = -1
    streaming = RoutingStatistics({"a": 4, "b": 4}, num_classes=3)
    for batch in torch.arange(60).split(7):
        streaming.update({"a": coefficients[batch], "b": coefficients[batch] * 2}, labels[batch])
    means, entropy, health = streaming.compute()
    seen = coefficients[labels >= 0]
    for label in range(3):
        assert torch.allclose(means["a"][label], coefficients[labels == label].mean(dim=0))
    shares = seen / seen.sum(dim=1, keepdim=True)
    naive = -(shares * shares.log()).sum(dim=1).mean() / torch.tensor(4.0).log()
    assert entropy == pytest.approx(float(naive), abs=1e-6)
    assert health["a"].entropy == health["b"].entropy == pytest.approx(float(naive), abs=1e-6)
    assert health["a"].bimodality == pytest.approx(2 * min(float((seen < 0.05).float().mean()),
                                                           float((seen > 0.95).float().mean())))  # fmt: skip


def test_dead_and_always_on_experts_and_two_modes() -> None:
    health = RoutingStatistics({"a": 4}, num_classes=2)
    halves = (torch.arange(2000) % 2).float()
    dead, on = torch.full((2000,), 0.01), torch.full((2000,), 0.99)
    dead[0], on[0] = 1.0, 0.0  # one image in 2,000 does not count
    health.update({"a": torch.stack([dead, on, halves, 1 - halves], dim=1)}, torch.zeros(2000, dtype=torch.int64))
    found = health.compute().health["a"]
    assert (found.dead, found.always_on, found.experts) == ((0,), (1,), 4)
    assert found.bimodality == pytest.approx(1.0, abs=1e-3)


def test_a_softmax_over_many_experts_is_not_dead_from_the_start() -> None:
    health = RoutingStatistics({"a": 32}, num_classes=2)
    health.update({"a": torch.full((5, 32), 1 / 32)}, torch.zeros(5, dtype=torch.int64))
    assert health.compute().health["a"].dead == ()


def test_entropy_is_normalised() -> None:
    rows = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.2]])
    assert normalised_entropy(rows).tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert normalised_entropy(torch.ones(3, 1)).tolist() == [0.0] * 3


class Block(nn.Module):
    """Two layers with a shared router, one with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = CondConv2d(2, 2, 1, num_experts=3)
        self.second = CondConv2d(2, 2, 1, num_experts=3)
        self.third = CondConv2d(2, 4, 1, num_experts=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x))).mean(dim=(2, 3))


IMAGES = TensorImages(torch.zeros(4, 2, 5, 5, dtype=torch.uint8), torch.arange(4), "made up")
FOUR_CLASSES = Source("made up", IMAGES, IMAGES, tuple("abcd"), 2, (5, 5), True, False, (0.0,) * 2, (1.0,) * 2)


def module(**settings: object) -> TrainingModule:
    torch.manual_seed(0)
    network = nn.Sequential(Block())
    router = network[0].first.router
    attach_scope(network, "0", [network[0].first, network[0].second], router)
    config = TrainConfig(data="digits", lr=0.5, **settings)
    return TrainingModule(network, task_of(config), FOUR_CLASSES, steps_per_epoch=3, global_batch=2)


def batch(value: float = 1.0) -> tuple[Tensor, ...]:
    return torch.full((2, 2, 3, 3), value), torch.tensor([0, 1]), torch.arange(2), torch.ones(2, dtype=torch.bool)


def test_layers_that_share_a_router_count_once() -> None:
    made = module()
    assert routed_together(made.network) == {"0.first": ("0.first", "0.second"), "0.third": ("0.third",)}
    made.network.eval()
    made.validation_step(batch(), 0)
    with torch.no_grad():
        made.network[0].router.body[-1].bias.fill_(-50.0)
    made.routing.reset()
    made.validation_step(batch(), 0)
    assert router_columns(made)["dead_experts"] == 3


def test_a_warning_names_the_layer_once() -> None:
    made = module()
    with torch.no_grad():
        made.network[0].router.body[-1].bias.copy_(torch.tensor([-50.0, 0.0, 50.0]))
    made.validation_step(batch(), 0)
    said: list[str] = []
    tables: list[int] = []
    epochs = EpochRows("conditional", lambda rows: None)
    epochs.rows.append({"epoch": 1, "loading_share": 0.5})
    watch = HealthWarnings(epochs, lambda rows: tables.append(len(rows)), said.append, workers=3)
    for _ in range(2):
        watch.on_train_epoch_end(None, made)
    assert tables == [2, 4]
    assert len(said) == 3
    assert "warning: 0.first and 1 more (the router of 0): 1 of 3 experts are dead (0)" in said[0]
    assert "1 of 3 experts are always on (2): coefficient above 0.95" in said[1]
    assert "50% of the training time went by waiting for images; raise --workers (now 3)" in said[2]
    again = HealthWarnings(epochs, lambda rows: None, said.append, workers=3)
    again.load_state_dict(watch.state_dict())
    again.on_train_epoch_end(None, made)
    assert len(said) == 3 and len(again.rows) == 6


def test_what_is_not_finite_is_named() -> None:
    made = module()
    made.training_step(batch(), 0)
    with torch.no_grad():
        made.network[0].third.router.body[-1].weight.fill_(float("nan"))
    message = (
        r"the training loss is not finite in epoch 1, by batch 3 of it; the coefficients of 0.third, from its own "
        r"router, were the first to go, in batch 3; lower --lr \(now 0.5\)"
    )
    with pytest.raises(NonFiniteError, match=message):
        made.training_step(batch(), 2)
    made = module()
    with pytest.raises(NonFiniteError, match="coefficients of 0.first, from the router of 0, were the first to go"):
        made.training_step(batch(float("nan")), 0)


def test_the_first_layer_to_go_is_remembered() -> None:
    made = module()
    watch = made.nan_check
    assert watch is not None
    for step, values in enumerate(((1.0, 1.0), (1.0, float("inf")), (float("nan"), float("nan")))):
        for name, value in zip(("0.first", "0.third"), values, strict=True):
            watch(name, torch.tensor([[value, 1.0]]))
        watch.step_done(step)
    assert watch.first() == ("0.third", 1)
    watch.reset()
    assert watch.first() is None


def test_a_gradient_that_is_not_finite_is_found_before_it_is_saved() -> None:
    made = module(grad_clip=1.0)
    made.training_step(batch(), 0).backward()
    made.configure_gradient_clipping(None)
    norm = torch.stack([p.grad.norm() for p in made.network.parameters()]).norm()
    assert float(norm) <= 1.0001
    made.require_finite(0)
    next(made.network.parameters()).grad[:] = float("nan")
    made.configure_gradient_clipping(None)
    with pytest.raises(NonFiniteError, match="the training gradient is not finite"):
        made.require_finite(0)
    # In float16 the scaler meets such steps on purpose, and skips them.
    half = module(precision="16")
    half.training_step(batch(), 0).backward()
    next(half.network.parameters()).grad[:] = float("inf")
    half.configure_gradient_clipping(None)
    half.require_finite(0)
