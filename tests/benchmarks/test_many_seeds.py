"""Many seeds at once: the stacked networks compute what each would alone, and learn."""

from __future__ import annotations

import pytest
import torch

from benchmarks.accuracy.many_seeds import Stack, accuracies, arms, on_device, train
from condconv.data import open_source
from condconv.tasks import task_of
from condconv.training.building import NetworkBuilder
from condconv.training.config import TrainConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("arm", ["static", "condconv8", "dynamic4"])
def test_stacked_seeds_are_the_seeds_alone_and_learn(arm: str) -> None:
    source = open_source("digits").limited(64, 40)
    common = TrainConfig(
        data="digits", model="cifar_resnet8", output_stride=1, width=0.5, targets="layer", variant="none", epochs=2,
        batch_size=16, warmup_epochs=1,
    )  # fmt: skip
    config = arms(common, source)[arm]
    halves = on_device(source, CPU)
    stack = Stack(config, source, 2, CPU)
    images = halves[1][0][:6]
    builder = NetworkBuilder(task_of(config), source)
    alone = builder.static() if arm == "static" else builder.conditional()
    with torch.no_grad():
        expected = alone.eval()(images)
        found = stack(images.expand(2, *images.shape), train=False)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[1])
    before = {name: weight.detach().clone() for name, weight in stack.weights.items()}
    losses = [loss for _, loss in train(stack, config, halves[0], 2)]
    assert len(losses) == 2 and all(torch.tensor(loss).isfinite().all() for loss in losses)
    # A router's hidden unit may be off for every image.
    still = [name for name, weight in stack.weights.items() if torch.equal(before[name], weight)]
    assert all(".router." in name for name in still)
    assert all(0 <= share <= 1 for share in accuracies(stack, halves[1], 2))
