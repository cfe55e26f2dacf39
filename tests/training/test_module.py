from __future__ import annotations

import pytest
import torch
from torch import nn

from condconv import ArgumentError, DynamicConv2d, record_routing
from condconv.data import Source, TensorImages
from condconv.runs.config import TrainConfig
from condconv.tasks import task_of
from condconv.training.module import TrainingModule

IMAGES = TensorImages(torch.zeros(4, 2, 5, 5, dtype=torch.uint8), torch.arange(4), "made up")
FOUR_CLASSES = Source("made up", IMAGES, IMAGES, tuple("abcd"), 2, (5, 5), True, False, (0.0,) * 2, (1.0,) * 2)


def module(**settings: object) -> TrainingModule:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), DynamicConv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    config = TrainConfig(data="digits", **settings)
    return TrainingModule(network, task_of(config), FOUR_CLASSES, steps_per_epoch=2, global_batch=3)


def batch() -> tuple[torch.Tensor, ...]:
    return torch.rand(3, 2, 5, 5), torch.tensor([0, 1, 3]), torch.arange(3), torch.ones(3, dtype=torch.bool)


def test_the_loss_of_a_blend_is_the_blend_of_the_losses() -> None:
    made, plain = module(label_smoothing=0.2), batch()
    made.eval()
    partners = torch.tensor([2, 2, 0])
    by_label = nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none")
    logits = made.network(plain[0])
    first, second = by_label(logits, plain[1]), by_label(logits, partners)
    for weight in (1.0, 0.7):
        weights = torch.full((3,), weight)
        found = made.training_step((*plain, partners, weights), 0)
        torch.testing.assert_close(found, (weight * first + (1 - weight) * second).mean())
    torch.testing.assert_close(made.training_step(plain, 0), first.mean())


def test_the_balance_loss_is_added_and_reaches_the_router() -> None:
    plain, balanced, x = module(), module(balance=0.5), batch()
    with torch.no_grad():
        for made in (plain, balanced):
            made.network[2].router.gate.anneal(1.0)
            made.network[2].router.body[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, -1.0]))
    with record_routing(plain.network) as routing:
        without = plain.training_step(x, 0)
    mass = routing["2"].sum(dim=0)
    with_it = balanced.training_step(x, 0)
    torch.testing.assert_close(with_it - without, 0.5 * mass.var(correction=0) / mass.mean() ** 2)
    assert balanced.train_loss.compute() == plain.train_loss.compute()
    (with_it - without).backward()
    bias = balanced.network[2].router.body[-1].bias.grad
    assert bias[0] > 0 > bias[3], "the most used expert goes down, the least used one up"
    assert balanced.eval().training_step(x, 0) == plain.eval().training_step(x, 0)
    with pytest.raises(ArgumentError, match="balance=0.5 does not go with --compile"):
        module(balance=0.5, compile=True)


def test_the_averaged_network_is_what_is_validated_and_kept() -> None:
    made = module(ema=0.5)
    assert made.average is not None and made.result is made.average.network
    with torch.no_grad():
        made.network[0].weight.add_(1)
    x = batch()[0]
    made.eval()
    assert torch.equal(made(x), made.result(x)) and not torch.equal(made(x), made.network(x))
    optimised = {id(p) for group in made.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in made.network.parameters()}


def test_compiled_code_is_another_way_to_run_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def compile(network: nn.Module) -> object:
        def run(x: torch.Tensor) -> torch.Tensor:
            runs.append(len(x))
            return network(x)

        return run

    plain = module()
    monkeypatch.setattr(torch, "compile", compile)
    compiled = module(compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    loss = [each.training_step(batch(), 0) for each in (plain, compiled)]
    assert runs == [3] and loss[0].shape == loss[1].shape == ()
    compiled.validation_step(batch(), 0)
    assert runs == [3] and compiled.routing is not None


def test_channels_last_reaches_images_and_kernels() -> None:
    made = module(channels_last=True)
    seen: list[bool] = []
    made.network[0].register_forward_pre_hook(
        lambda layer, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    made.training_step(batch(), 0)
    made.validation_step(batch(), 0)
    assert seen == [True, True]
    assert made.network[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_compiled_step_is_an_eager_one(precision: str) -> None:
    plain, compiled = module(channels_last=True), module(channels_last=True, compile=True)
    x = batch()
    losses = []
    for each in (plain, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses.append(each.training_step(x, 0))
        losses[-1].backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "32" else {"rtol": 3e-2, "atol": 3e-3}
    torch.testing.assert_close(losses[0], losses[1], **tolerance)
    for one, other in zip(plain.network.parameters(), compiled.network.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **tolerance)
