"""Many seeds of one network at once on a GPU: weights stacked, one batched pass over all of them.

python -m benchmarks.accuracy.many_seeds --data cifar10-jpeg --epochs 50 --seeds 8

Trains cifar_resnet20 (static, widened, eight experts, Dynamic Convolution with K = 4), an arm where it fits into what
is left of --seconds, and adds a row for each seed of an arm that is finished to results/many_seeds.csv.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from condconv.counting import count
from condconv.data import Source, open_source
from condconv.execution import use_strategy
from condconv.routers import SoftmaxGate
from condconv.tasks import task_of
from condconv.training.building import NetworkBuilder
from condconv.training.config import TrainConfig
from condconv.training.networks import matching_width

RESULTS = Path(__file__).resolve().parent / "results" / "many_seeds.csv"
COLUMNS = (
    "arm", "seed", "model", "data", "epochs", "params", "macs", "top1_pct", "train_loss", "wall_s", "machine", "torch",
)  # fmt: skip
ANNEALED = 10
"""Epochs in which the temperature of softmax gates goes from 30 to 1, at most half of the run."""
SHIFT = 4


class Stack:
    """Some seeds of one arm as one module with stacked weights.

    Args:
        config: the arm; its seed is replaced.
        source: the data set, for channels and classes.
        seeds: how many.
        device: where to train.
    """

    def __init__(self, config: TrainConfig, source: Source, seeds: int, device: torch.device) -> None:
        models = [_build(replace(config, seed=seed), source) for seed in range(seeds)]
        counted = count(models[0], (source.channels, *source.image_size))
        self.macs, self.params = counted.macs, counted.params
        self.gates = [name for name, module in models[0].named_modules() if isinstance(module, SoftmaxGate)]
        stacked = stack_module_state([model.to(device) for model in models])
        self.weights = {name: tensor.detach().requires_grad_() for name, tensor in stacked[0].items()}
        self.buffers = stacked[1]
        self.base = copy.deepcopy(models[0]).to("meta")
        for name in self.gates:  # `train` steps the temperature, and a warning would ask for its value
            cast(SoftmaxGate, self.base.get_submodule(name)).watch.warned = True

    def __call__(self, images: Tensor, train: bool) -> Tensor:
        """Logits (S, B, classes) of images (S, B, C, H, W)."""
        self.base.train(train)

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.base, (weights, buffers), (x,))
            return logits

        with use_strategy("grouped"):
            return vmap(one, randomness="different")(self.weights, self.buffers, images)

    def set_temperature(self, value: float) -> None:
        """Of all softmax gates."""
        for name in self.gates:
            self.buffers[f"{name}.temperature"].fill_(value)

    def optimizer(self, config: TrainConfig) -> torch.optim.SGD:
        """Decay on kernels and matrices alone: one dimension of each tensor is that of the seeds."""
        groups: list[list[Tensor]] = [[], []]
        for weight in self.weights.values():
            groups[weight.dim() > 2].append(weight)
        decays = (0.0, config.weight_decay)
        return torch.optim.SGD(
            [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True) if group],
            lr=config.lr, momentum=config.momentum, nesterov=True,
        )  # fmt: skip


def _build(config: TrainConfig, source: Source) -> nn.Module:
    builder = NetworkBuilder(task_of(config), source)
    return builder.static() if config.variant == "none" else builder.conditional()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips and shifts of images (S, B, C, H, W), one for each batch of a seed."""
    padded = F.pad(images, (SHIFT,) * 4)
    height, width = images.shape[-2:]
    out = torch.empty_like(images)
    for seed in range(len(images)):
        top, left, flip = torch.randint(2 * SHIFT + 1, (3,), generator=generator).tolist()
        crop = padded[seed, ..., top : top + height, left : left + width]
        out[seed] = crop.flip(-1) if flip % 2 else crop
    return out


def train(
    stack: Stack, config: TrainConfig, data: tuple[Tensor, Tensor], seeds: int
) -> Iterator[tuple[int, list[float]]]:
    """Train for the epochs of the settings; after each one its number and the mean loss of each seed."""
    images, labels = data
    steps = len(labels) // config.batch_size
    total, warm_up = steps * config.epochs, round((config.warmup_epochs or 1) * steps)
    optimizer, generator = stack.optimizer(config), torch.Generator().manual_seed(0)
    annealing = min(ANNEALED, max(1, config.epochs // 2)) * steps
    for epoch in range(config.epochs):
        order = torch.stack([torch.randperm(len(labels), generator=generator) for _ in range(seeds)]).to(labels.device)
        losses = torch.zeros(seeds, device=labels.device)
        for place in range(steps):
            step = epoch * steps + place
            cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / max(1, total - warm_up)))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * ((step + 1) / (warm_up + 1) if step < warm_up else cosine)
            stack.set_temperature(30 + (1 - 30) * min(1.0, step / annealing))
            chosen = order[:, place * config.batch_size : (place + 1) * config.batch_size]
            logits = stack(augmented(images[chosen], generator), train=True)
            each = F.cross_entropy(logits.flatten(0, 1), labels[chosen].flatten(), reduction="none")
            each = each.reshape(seeds, -1).mean(dim=1)
            optimizer.zero_grad()
            each.sum().backward()
            optimizer.step()
            losses += each.detach()
        yield epoch, (losses / steps).tolist()


@torch.no_grad()
def accuracies(stack: Stack, data: tuple[Tensor, Tensor], seeds: int, batch: int = 500) -> list[float]:
    """The share of right images of each seed."""
    right = torch.zeros(seeds, device=data[1].device)
    for images, labels in zip(data[0].split(batch), data[1].split(batch), strict=True):
        logits = stack(images.expand(seeds, *images.shape), train=False)
        right += (logits.argmax(dim=2) == labels).float().sum(dim=1)
    return (right / len(data[1])).tolist()


def on_device(source: Source, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Normalised images (N, C, H, W) and labels of both halves."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
    halves = []
    for half in (source.train, source.val):
        images = torch.stack([half.load(index) for index in range(len(half))])
        halves.append((((images.float() / 255 - mean) / std).to(device), half.labels.to(device)))
    return halves


def arms(common: TrainConfig, source: Source) -> dict[str, TrainConfig]:
    """The settings of each arm."""
    experts = replace(common, variant="condconv", num_experts=8, share="block")
    return {
        "static": common,
        "condconv8": experts,
        "widened": replace(common, width=matching_width(task_of(experts), source)),
        "dynamic4": replace(common, variant="dynamic_convolution", num_experts=4),
    }


def main() -> None:
    """Train what fits into the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--output-stride", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=480)
    given = parser.parse_args()
    device, started = torch.device("cuda" if torch.cuda.is_available() else "cpu"), time.monotonic()
    source = open_source(given.data)
    train_half, val_half = on_device(source, device)
    common = TrainConfig(
        data=given.data, model=given.model, output_stride=given.output_stride, targets="layer", variant="none",
        epochs=given.epochs, batch_size=given.batch_size, lr=0.1, weight_decay=5e-4, warmup_epochs=1,
    )  # fmt: skip
    for arm, config in arms(common, source).items():
        stack, begun, losses = Stack(config, source, given.seeds, device), time.monotonic(), []
        for epoch, loss in train(stack, config, train_half, given.seeds):
            losses.append(loss)
            each = (time.monotonic() - begun) / (epoch + 1)
            if time.monotonic() - started + each * (given.epochs - epoch - 1) > given.seconds:
                print(f"{arm}: does not fit into {given.seconds:.0f} s ({each:.1f} s an epoch)", flush=True)
                break
        else:
            write(arm, config, stack, accuracies(stack, val_half, given.seeds), losses[-1], time.monotonic() - begun)


def write(
    arm: str, config: TrainConfig, stack: Stack, right: list[float], loss: list[float], wall_s: float
) -> None:
    """Add the rows of a finished arm."""
    new = not RESULTS.exists()
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    with RESULTS.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        for seed, (share, last) in enumerate(zip(right, loss, strict=True)):
            about = (config.model, Path(config.data).name, config.epochs, stack.params, stack.macs)
            numbers = (f"{100 * share:.2f}", f"{last:.4f}", f"{wall_s:.0f}")
            writer.writerow([arm, seed, *about, *numbers, machine, torch.__version__])
    print(f"{arm}: {', '.join(f'{100 * share:.2f}' for share in right)} %, {wall_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
