"""Many runs at once: networks of one shape with their weights stacked, so that a step of all is one batched pass.

A small network leaves a GPU idle: most of a step is spent on starting its kernels. S networks side by side start the
same number of kernels as one (`torch.func.vmap`), and the whole step is captured as a CUDA graph. Each network keeps
its own seed, order of images, learning rate, decay and temperature, and never sees the others.

What cannot be done for all at once on the device is refused: learned augmentation, Mixup, dropout of any kind, averaged
weights, other optimisers than SGD.

Shapes: S networks, B images of each in a step, P parameters of one network, N training images.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from condconv.data import EpochSampler, Source
from condconv.data.sampling import sample_seed
from condconv.data.transforms import crop_padding, val_transform
from condconv.errors import argument_error
from condconv.execution import execute
from condconv.geometry import ConvGeometry
from condconv.layers import ConditionalLayer
from condconv.lowered import Kernels
from condconv.routers.gates import SoftmaxGate
from condconv.training.annealing import annealing_steps
from condconv.training.callbacks import Row
from condconv.training.config import TrainConfig
from condconv.training.files import write_bytes
from condconv.training.interruption import StopRequest
from condconv.training.optimization import learning_rate_factor, parameter_groups, peak_learning_rate

OF_EACH_RUN = (
    "seed", "name", "lr", "base_batch", "router_lr_factor", "router_init_scale", "expert_init_scale", "upcycle_from",
    "weight_decay", "decay_biases", "schedule", "warmup_epochs", "decay_epochs", "decay_factor", "grad_clip",
    "temperature_start", "temperature_end", "temperature_epochs",
)  # fmt: skip
"""Settings in which runs that are trained together may differ."""

_NOT_TOGETHER = (
    "auto_augment", "mixup", "skip_bad_images", "dropout", "drop_path", "expert_dropout", "ema", "accumulate",
    "optimizer", "precision", "compile", "activation_checkpointing", "twin", "input_size",
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainConfig)}
_EAGER_STEPS = 3
_IMAGES_OF_A_PASS = 32768


def require_side_by_side(config: TrainConfig, source: Source) -> None:
    """Raise `ArgumentError` for settings with which a run on this data can only be trained by itself."""
    wanted = {name: _DEFAULTS[name] for name in _NOT_TOGETHER}
    if not source.native:
        wanted["random_crop"] = False  # Crops would be of all sizes.
    for name, value in wanted.items():
        if getattr(config, name) != value:
            rule = "cannot be done for many networks at once"
            remedy = f"set {name}: {json.dumps(value)} in the study, or leave out --side-by-side"
            raise argument_error("sweep", name, getattr(config, name), rule, remedy)


def shape_of(config: TrainConfig) -> TrainConfig:
    """What two runs have in common that can be trained together: their settings without what may differ."""
    return replace(config, **{name: _DEFAULTS[name] for name in OF_EACH_RUN})


class Images(NamedTuple):
    """A set on the device: what the networks get, (N, C, H, W), and labels (N,).

    Images of which random crops are to be taken have a border of `padding` pixels.
    """

    images: Tensor
    labels: Tensor
    padding: int = 0

    def take(self, indices: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
        """Images (S, B, C, H, W) by index (S, B), from their corner (S, B, 2) on, mirrored (S, B) or not."""
        channels, height, width = self.images.shape[1:]

        def places(axis: int, size: int) -> Tensor:
            return corners[..., axis, None] + torch.arange(size - 2 * self.padding, device=corners.device)

        rows, columns = places(0, height), places(1, width)
        columns = torch.where(mirrored[..., None], columns.flip(-1), columns)
        channel = torch.arange(channels, device=corners.device)[:, None, None]
        return self.images[
            indices[..., None, None, None], channel, rows[:, :, None, :, None], columns[:, :, None, None]
        ]


def load_images(source: Source, *, train: bool, random_crop: bool, device: torch.device) -> Images:
    """All images of one half of a source, as validation sees them, or with the border of which crops are taken."""
    half, transform = source.train if train else source.val, val_transform(source)
    padding = crop_padding(source) if random_crop else 0
    images = torch.stack([transform(F.pad(half.load(index), [padding] * 4)) for index in range(len(half))])
    return Images(images.to(device), half.labels.to(device), padding)


class SideBySide:
    """Runs of one shape, trained together.

    Args:
        configs: their settings; equal but for `OF_EACH_RUN`.
        networks: the network of each, freshly built.
        train: what all of them are trained on; its device is where they are trained.
        val: what they are validated on.
        flip: whether a random half of the training images of each epoch is mirrored.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        networks: Sequence[nn.Module],
        train: Images,
        val: Images,
        *,
        flip: bool,
    ) -> None:
        self.configs = configs
        self.networks = networks
        self.train = train
        self.val = val
        self.flip = flip
        self.device = device = train.images.device
        self.batch = min(configs[0].batch_size, len(train.labels))
        self.steps = len(train.labels) // self.batch
        parameters, buffers = stack_module_state(list(networks))
        flat = [parameter.detach().flatten(1) for parameter in parameters.values()]
        self.weights = torch.cat(flat, dim=1).to(device)  # S P
        self.momentum = torch.zeros_like(self.weights)
        self.parameters = self._views(parameters)
        self.buffers = {name: buffer.to(device) for name, buffer in buffers.items()}
        pairs = [_rates(network, config) for network, config in zip(networks, configs, strict=True)]
        self.rates = torch.stack([rate for rate, _ in pairs]).to(self.weights)  # S P
        self.decay = torch.stack([decay for _, decay in pairs]).to(self.weights)  # S P
        self.clip = self.weights.new_tensor([[config.grad_clip or float("inf")] for config in configs])  # S 1
        total = self.steps * configs[0].epochs
        self.factors = self._table(self._factor, total)  # steps S
        self.temperatures = self._table(self._temperature, total + 1)
        self.gates = [name for name in self.buffers if name.endswith("gate.temperature")]
        template = copy.deepcopy(networks[0]).to(device)
        _serve_together(template)
        self.template = {True: template.train(), False: copy.deepcopy(template).eval()}
        # What a step reads; a captured step reads it from the same places.
        count = len(configs)
        self.chosen = [torch.zeros_like(part[0]) for part in self._order(0)]  # indices, corners, mirrored
        self.factor = self.weights.new_zeros(count, 1)
        self.totals = self.weights.new_zeros(3, count)  # of an epoch: loss, correct images, norm of the gradient
        self.rows: list[list[Row]] = [[] for _ in configs]
        self.taken = 0
        self._replay: Callable[[], None] | None = None

    def _views(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each parameter (S, *shape) as a part of `weights`."""
        views, begin = {}, 0
        for name, parameter in parameters.items():
            size = parameter[0].numel()
            part = self.weights[:, begin : begin + size].view(parameter.shape)
            views[name] = part.detach().requires_grad_()
            begin += size
        return views

    def _table(self, value: Callable[[TrainConfig, int], float], steps: int) -> Tensor:
        columns = [[value(config, step) for step in range(steps)] for config in self.configs]
        return self.weights.new_tensor(columns).T.contiguous()

    def _factor(self, config: TrainConfig, step: int) -> float:
        return learning_rate_factor(config, step, self.steps)

    def _temperature(self, config: TrainConfig, step: int) -> float:
        left = max(0.0, 1 - step / annealing_steps(config, self.steps))
        return config.temperature_end + (config.temperature_start - config.temperature_end) * left

    def fit(self, kept: Path, stop: StopRequest, progress: Callable[[int, int], None]) -> list[list[Row]]:
        """Train all epochs, and return the rows of each run.

        The state is written to `kept` after each epoch, and gone on with where the file is there already.
        """
        epochs = self.configs[0].epochs
        first = self._restore(kept) if kept.exists() else 0
        for epoch in range(first, epochs):
            stop.check()
            progress(epoch, epochs)
            started = time.perf_counter()
            self._train_epoch(epoch)
            loss, accuracy = self._validate()
            self._add_rows(epoch, loss, accuracy, time.perf_counter() - started)
            self._keep(kept, epoch + 1)
        self._write_back()
        return self.rows

    def _train_epoch(self, epoch: int) -> None:
        chosen = self._order(epoch)
        self.totals.zero_()
        for step in range(self.steps):
            for kept, of_epoch in zip(self.chosen, chosen, strict=True):
                kept.copy_(of_epoch[step])
            self.factor.copy_(self.factors[epoch * self.steps + step].unsqueeze(1))
            self._set_temperature(epoch * self.steps + step)
            self._run_step()
        self._set_temperature((epoch + 1) * self.steps)

    def _set_temperature(self, steps: int) -> None:
        for name in self.gates:
            self.buffers[name].copy_(self.temperatures[steps])

    def _order(self, epoch: int) -> list[Tensor]:
        """Which images each network sees in each step (steps, S, B), from which corner on (steps, S, B, 2), and which
        of them mirrored (steps, S, B).
        """
        return [torch.stack(parts, dim=1).to(self.device) for parts in zip(*self._orders(epoch), strict=True)]

    def _orders(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """The same for each network by itself."""
        size, shape = len(self.train.labels), (self.steps, self.batch)
        for config in self.configs:
            sampler = EpochSampler(size, shuffle=True, seed=config.seed, multiple_of=self.batch)
            sampler.set_epoch(epoch)
            places = torch.tensor([key.place for key in sampler]).view(shape)
            # Not a seed of an image (they end with its index), nor that of the order (it ends with their number).
            generator = torch.Generator().manual_seed(sample_seed(config.seed, epoch, size + 1))
            corners = torch.randint(2 * self.train.padding + 1, (*shape, 2), generator=generator)
            yield places, corners, torch.rand(shape, generator=generator) < 0.5 * self.flip

    def _run_step(self) -> None:
        """One step: on a GPU the first ones as usual, then a captured one again and again."""
        if self._replay is not None:
            self._replay()
            return
        self.taken += 1
        if self.device.type != "cuda":
            self._step()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        if self.taken == _EAGER_STEPS:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._replay = graph.replay

    def _forward(
        self, training: bool, parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor
    ) -> Tensor:
        logits: Tensor = functional_call(self.template[training], (parameters, buffers), (images,))
        return logits

    def _step(self) -> None:
        labels = self.train.labels[self.chosen[0]]  # S B
        images = self.train.take(*self.chosen)  # S B C H W
        logits = vmap(partial(self._forward, True))(self.parameters, self.buffers, images)  # S B classes
        loss = _cross_entropy(logits, labels, self.configs[0].label_smoothing).mean(dim=1)  # S
        gradients = torch.autograd.grad(loss.sum(), list(self.parameters.values()))
        with torch.no_grad():
            gradient = torch.cat([part.flatten(1) for part in gradients], dim=1)  # S P
            norm = gradient.norm(dim=1, keepdim=True)  # S 1
            gradient *= (self.clip / (norm + 1e-6)).clamp(max=1)
            gradient += self.decay * self.weights
            momentum = self.configs[0].momentum
            self.momentum.mul_(momentum).add_(gradient)
            self.weights -= self.factor * self.rates * (gradient + momentum * self.momentum)  # Nesterov
            correct = (logits.argmax(dim=2) == labels).sum(dim=1)
            self.totals += torch.stack([loss, correct, norm[:, 0]])

    @torch.no_grad()
    def _validate(self) -> tuple[list[float], list[float]]:
        """Loss and accuracy of each network on the validation images."""
        loss, correct = self.weights.new_zeros(2, len(self.configs))
        evaluate = vmap(partial(self._forward, False), in_dims=(0, 0, None))
        size = max(1, _IMAGES_OF_A_PASS // len(self.configs))
        for images, labels in zip(self.val.images.split(size), self.val.labels.split(size), strict=True):
            logits = evaluate(self.parameters, self.buffers, images)  # S B classes
            repeated = labels.expand(len(self.configs), -1)
            loss += _cross_entropy(logits, repeated, 0.0).sum(dim=1)
            correct += (logits.argmax(dim=2) == repeated).sum(dim=1)
        images_in_all = len(self.val.labels)
        return (loss / images_in_all).tolist(), (correct / images_in_all).tolist()

    def _add_rows(self, epoch: int, loss: Sequence[float], accuracy: Sequence[float], seconds: float) -> None:
        train_loss, correct, norm = self.totals.tolist()
        last = (epoch + 1) * self.steps - 1
        for index, (rows, config) in enumerate(zip(self.rows, self.configs, strict=True)):
            rows.append({
                "epoch": epoch + 1,
                "train_loss": train_loss[index] / self.steps,
                "train_accuracy": correct[index] / (self.steps * self.batch),
                "val_loss": loss[index],
                "val_accuracy": accuracy[index],
                "learning_rate": peak_learning_rate(config, self.batch) * float(self.factors[last, index]),
                "temperature": float(self.temperatures[last + 1, index]) if self.gates else "",
                "gradient_norm": norm[index] / self.steps,
                # One run's share of what all of them took.
                "seconds": seconds / len(self.configs),
            })  # fmt: skip

    def _keep(self, path: Path, epochs: int) -> None:
        state = {"weights": self.weights, "momentum": self.momentum}
        state |= {f"buffers.{name}": buffer for name, buffer in self.buffers.items()}
        metadata = {"epochs": str(epochs), "rows": json.dumps(self.rows)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_bytes(path, safetensors.torch.save(tensors, {"format": "pt", **metadata}))

    def _restore(self, path: Path) -> int:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            self.weights.copy_(file.get_tensor("weights"))
            self.momentum.copy_(file.get_tensor("momentum"))
            for name, buffer in self.buffers.items():
                buffer.copy_(file.get_tensor(f"buffers.{name}"))
        self.rows = json.loads(metadata["rows"])
        return int(metadata["epochs"])

    def _write_back(self) -> None:
        """Give each network its trained weights."""
        state = {**self.parameters, **self.buffers}
        for index, network in enumerate(self.networks):
            network.load_state_dict({name: tensor[index] for name, tensor in state.items()}, strict=False)


def _rates(network: nn.Module, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Peak learning rate and decay of every single parameter of a network: (P,) each."""
    groups: dict[int, dict[str, Any]] = {
        id(parameter): group
        for group in parameter_groups(network, config, peak_learning_rate(config, config.batch_size))
        for parameter in group["params"]
    }
    parameters = [parameter for _, parameter in network.named_parameters()]

    def spread(key: str) -> Tensor:
        return torch.cat([torch.full((p.numel(),), float(groups[id(p)][key]), dtype=torch.float64) for p in parameters])

    return spread("lr"), spread("weight_decay")


class _ProductConv2d(nn.Conv2d):
    """A convolution as matrix products: vmap would make a grouped convolution of one, which is slow."""

    def forward(self, x: Tensor) -> Tensor:
        """X (B, I, H, W) → (B, O, H, W)."""
        assert not isinstance(self.padding, str)
        kernels = Kernels(self.weight.expand(x.shape[0], *self.weight.shape), None)
        return execute(x, kernels, ConvGeometry(self.stride, self.padding, self.dilation), "batched_gemm")


def _serve_together(network: nn.Module) -> None:
    """Operators that vmap batches well; and temperatures that come from outside."""
    for module in network.modules():
        if isinstance(module, ConditionalLayer):
            module.strategy = "batched_gemm" if module.geometry.groups == 1 else "grouped"
        elif type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = _ProductConv2d
        elif isinstance(module, SoftmaxGate):
            module.watch.warned = True


def _is_plain(conv: nn.Conv2d) -> bool:
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.groups == 1 and conv.bias is None


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """(S, B, classes), (S, B) → (S, B)."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="none")
    return loss.view(labels.shape)
