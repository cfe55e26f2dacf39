"""Many runs at once: networks of one shape with their weights stacked, so that a step of all is one batched pass.

A small network leaves a GPU idle: most of a step is spent on starting its kernels. S networks side by side start the
same number of kernels as one (`torch.func.vmap`), and the whole step is captured as a CUDA graph. Each network keeps
its own seed, order of images, learning rate, decay and temperature, and never sees the others: it is trained as by
itself, but that crops and mirrored images are drawn for a whole epoch on the device, and so are other ones.

What cannot be done for all at once on the device is refused: learned augmentation, Mixup, dropout of any kind, averaged
weights, other optimisers than SGD.

Shapes: S networks, B images of each in a step, P parameters of one network, N training images.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torchvision.transforms import v2

from condconv.data import EpochSampler, Source
from condconv.data.sampling import sample_seed
from condconv.data.transforms import crop_padding, val_transform
from condconv.errors import CheckpointError, argument_error
from condconv.layers import ConditionalLayer
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
    "temperature_start", "temperature_end", "temperature_epochs", "channels_last", "workers",
)  # fmt: skip
"""Settings in which runs that are trained together may differ; the last two make no difference here."""

NOT_TOGETHER = (
    "auto_augment", "mixup", "skip_bad_images", "dropout", "drop_path", "expert_dropout", "ema", "accumulate",
    "optimizer", "precision", "compile", "activation_checkpointing", "input_size",
)  # fmt: skip
"""Settings that must be the defaults."""

_EPOCHS = "epochs"
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainConfig)}
_STEPS_BEFORE_CAPTURE = 3
_IMAGES_OF_A_PASS = 32768


def require_side_by_side(config: TrainConfig, source: Source) -> None:
    """Raise `ArgumentError` for settings with which a run on this data can only be trained by itself."""
    wanted = {name: _DEFAULTS[name] for name in NOT_TOGETHER}
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
    """A set on the device: images (N, C, H, W), normalised, and labels (N,).

    H and W include a border of `padding` pixels on each side, where random crops are to be taken.
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

    def image(index: int) -> Tensor:
        stored = half.load(index)
        if source.native:
            stored = v2.functional.resize(stored, list(source.image_size), antialias=True)  # of stray sizes
        return transform(F.pad(stored, [padding] * 4))

    return Images(torch.stack([image(index) for index in range(len(half))]).to(device), half.labels.to(device), padding)


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
        pairs = [_rates(network, config, self.batch) for network, config in zip(networks, configs, strict=True)]
        self.rates = torch.stack([rate for rate, _ in pairs]).to(self.weights)  # S P
        self.decay = torch.stack([decay for _, decay in pairs]).to(self.weights)  # S P
        self.clip = self.weights.new_tensor([[config.grad_clip or float("inf")] for config in configs])  # S 1
        self.factors = self._table(partial(learning_rate_factor, steps_per_epoch=self.steps))
        self.temperatures = self._table(self._temperature)
        self.gates = [name for name in self.buffers if name.endswith("gate.temperature")]
        template = copy.deepcopy(networks[0]).to(device)
        _serve_together(template)
        self.template = {True: template.train(), False: copy.deepcopy(template).eval()}
        # What a step reads; a captured step reads it from the same places.
        shape = len(configs), self.batch
        self.indices = torch.zeros(shape, dtype=torch.int64, device=device)
        self.corners = torch.zeros((*shape, 2), dtype=torch.int64, device=device)
        self.mirrored = torch.zeros(shape, dtype=torch.bool, device=device)
        self.factor = self.weights.new_zeros(len(configs), 1)
        self.totals = self.weights.new_zeros(3, len(configs))  # of an epoch: loss, correct images, norm of the gradient
        self.rows: list[list[Row]] = [[] for _ in configs]
        self._eager_steps = 0
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

    def _table(self, value: Callable[[TrainConfig, int], float]) -> Tensor:
        """A value of each run before every step, and after the last: (steps + 1, S)."""
        steps = range(self.steps * self.configs[0].epochs + 1)
        return self.weights.new_tensor([[value(config, step) for config in self.configs] for step in steps])

    def _temperature(self, config: TrainConfig, step: int) -> float:
        left = max(0.0, 1 - step / annealing_steps(config, self.steps))
        return config.temperature_end + (config.temperature_start - config.temperature_end) * left

    def fit(self, states: Sequence[Path], stop: StopRequest, progress: Callable[[int, int], None]) -> list[list[Row]]:
        """Train all epochs, and return the rows of each run.

        After each epoch the state of each run is written to its path among `states`; a stack goes on where these files
        say, which must all be of the same epoch (`epochs_done`).
        """
        epochs = self.configs[0].epochs
        for epoch in range(self._restore(states), epochs):
            stop.check()
            progress(epoch, epochs)
            started = time.perf_counter()
            self._train_epoch(epoch)
            loss, accuracy = self._validate()
            self._add_rows(epoch, loss, accuracy, time.perf_counter() - started)
            self._keep(states, epoch + 1)
        state = {**self.parameters, **self.buffers}
        for index, network in enumerate(self.networks):
            network.load_state_dict({name: tensor[index] for name, tensor in state.items()}, strict=False)
        return self.rows

    def _train_epoch(self, epoch: int) -> None:
        indices, corners, mirrored = (part.to(self.device) for part in self.choices(epoch))
        self.totals.zero_()
        for step in range(self.steps):
            self.indices.copy_(indices[step])
            self.corners.copy_(corners[step])
            self.mirrored.copy_(mirrored[step])
            self.factor.copy_(self.factors[epoch * self.steps + step].unsqueeze(1))
            self._set_temperature(epoch * self.steps + step)
            self._run_step()
        self._set_temperature((epoch + 1) * self.steps)

    def _set_temperature(self, step: int) -> None:
        for name in self.gates:
            self.buffers[name].copy_(self.temperatures[step])

    def choices(self, epoch: int) -> list[Tensor]:
        """Which images each network sees in each step (steps, S, B), from which corner on (steps, S, B, 2), and which
        of them mirrored (steps, S, B).
        """
        each = [self._choices_of(config, epoch) for config in self.configs]
        return [torch.stack(parts, dim=1) for parts in zip(*each, strict=True)]

    def _choices_of(self, config: TrainConfig, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        size, shape = len(self.train.labels), (self.steps, self.batch)
        sampler = EpochSampler(size, shuffle=True, seed=config.seed, multiple_of=self.batch)
        sampler.set_epoch(epoch)
        places = torch.tensor([key.place for key in sampler]).view(shape)
        # Not a seed of an image (they end with its index), nor that of the order (it ends with their number).
        generator = torch.Generator().manual_seed(sample_seed(config.seed, epoch, size + 1))
        corners = torch.randint(2 * self.train.padding + 1, (*shape, 2), generator=generator)
        return places, corners, torch.rand(shape, generator=generator) < 0.5 * self.flip

    def _run_step(self) -> None:
        """One step: on a GPU the first ones as usual, then a captured one again and again."""
        if self._replay is not None:
            self._replay()
            return
        self._eager_steps += 1
        if self.device.type != "cuda":
            self._step()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        if self._eager_steps == _STEPS_BEFORE_CAPTURE:
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
        labels = self.train.labels[self.indices]  # S B
        images = self.train.take(self.indices, self.corners, self.mirrored)  # S B C H W
        logits = vmap(partial(self._forward, True))(self.parameters, self.buffers, images)  # S B classes
        loss = _cross_entropy(logits, labels, self.configs[0].label_smoothing).mean(dim=1)  # S
        gradients = torch.autograd.grad(loss.sum(), list(self.parameters.values()), materialize_grads=True)
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
        after = (epoch + 1) * self.steps
        for index, (rows, config) in enumerate(zip(self.rows, self.configs, strict=True)):
            rows.append({
                "epoch": epoch + 1,
                "train_loss": train_loss[index] / self.steps,
                "train_accuracy": correct[index] / (self.steps * self.batch),
                "val_loss": loss[index],
                "val_accuracy": accuracy[index],
                "learning_rate": peak_learning_rate(config, self.batch) * float(self.factors[after, index]),
                "temperature": float(self.temperatures[after, index]) if self.gates else "",
                "gradient_norm": norm[index] / self.steps,
                # One run's share of what all of them took.
                "seconds": seconds / len(self.configs),
            })  # fmt: skip

    def _keep(self, states: Sequence[Path], epochs: int) -> None:
        state = {name: tensor.detach().cpu() for name, tensor in self._state().items()}
        for index, (path, rows) in enumerate(zip(states, self.rows, strict=True)):
            mine = {name: tensor[index].contiguous() for name, tensor in state.items()}
            metadata = {"format": "pt", _EPOCHS: str(epochs), "rows": json.dumps(rows)}
            write_bytes(path, safetensors.torch.save(mine, metadata))

    def _state(self) -> dict[str, Tensor]:
        """What a stack goes on from: each tensor (S, …)."""
        named = {f"buffer.{name}": buffer for name, buffer in self.buffers.items()}
        return {"weights": self.weights, "momentum": self.momentum, **named}

    def _restore(self, states: Sequence[Path]) -> int:
        """Go on from the states that are there; return the epochs that they have behind them."""
        done = epochs_done(states[0])
        if done == 0:
            return 0
        for index, path in enumerate(states):
            with _opened(path) as file:
                self.rows[index] = json.loads(file.metadata()["rows"])
                for name, tensor in self._state().items():
                    tensor[index].copy_(file.get_tensor(name))
        return done


def epochs_done(state: Path) -> int:
    """How many epochs the state of a run has behind it; 0 where there is none. `CheckpointError` for a damaged one."""
    if not state.exists():
        return 0
    with _opened(state) as file:
        return int(file.metadata()[_EPOCHS])


@contextmanager
def _opened(state: Path) -> Iterator[Any]:
    try:
        with safe_open(state, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{state}: not the state of this run ({error}); remove it, and it begins anew") from error


def _rates(network: nn.Module, config: TrainConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Peak learning rate and decay of every single parameter of a network: (P,) each."""
    groups: dict[int, dict[str, Any]] = {
        id(parameter): group
        for group in parameter_groups(network, config, peak_learning_rate(config, batch))
        for parameter in group["params"]
    }
    parameters = [parameter for _, parameter in network.named_parameters()]

    def spread(key: str) -> Tensor:
        return torch.cat([torch.full((p.numel(),), float(groups[id(p)][key]), dtype=torch.float64) for p in parameters])

    return spread("lr"), spread("weight_decay")


def _serve_together(network: nn.Module) -> None:
    """Operators that vmap batches well; and temperatures that come from outside."""
    for module in network.modules():
        if isinstance(module, ConditionalLayer):
            module.strategy = "batched_gemm" if module.geometry.groups == 1 else "grouped"
        elif isinstance(module, SoftmaxGate):
            module.watch.warned = True


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """(S, B, classes), (S, B) → (S, B)."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="none")
    return loss.view(labels.shape)
