"""One network on a device, trained for one seed after another by a step that a GPU replays from a CUDA graph.

A step is that of `condconv.training.TrainingModule`: cross-entropy, gradient clipping, the settings' SGD,
learning rate and temperature by step. What changes from step to step lies in tensors, so that the host only says
"again".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.execution import use_strategy
from condconv.routers import SoftmaxGate
from condconv.routing_hooks import override_routing
from condconv.runs.config import TrainConfig
from condconv.training.annealing import annealing
from condconv.training.optimization import learning_rate_factor, parameter_groups

STRATEGY = "batched_gemm"
"""Of conditional layers in training: the fastest on an H100 for batches (benchmarks/results/gpu.csv)."""
WARM_UP = 3
"""Steps before the capture: they make what is made once."""


class CapturedNetwork:
    """Trains a network (B, C, H, W) → logits (B, classes) on epochs that lie on the device.

    Args:
        network: of any seed, on the CPU; `begin` gives it other weights.
        config: the settings; SGD with momentum, nothing that draws random numbers in the network.
        epoch: images (steps, B, C, H, W) and labels (steps, B) of any epoch, for their shapes.
        validation: images (batches, B, C, H, W) and labels (batches, B); they must stay where they are.
    """

    def __init__(
        self, network: nn.Module, config: TrainConfig, epoch: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
    ) -> None:
        if config.optimizer != "sgd" or config.ema or config.dropout or config.drop_path or config.expert_dropout:
            raise ValueError("only SGD is captured, without averaging and dropout")
        self.device = epoch[0].device
        self.config, self.steps, total = config, len(epoch[1]), len(epoch[1]) * config.epochs
        schedule = annealing(network, config, self.steps)
        temperatures = []
        for _ in range(total + 1):
            temperatures.append(1.0 if schedule is None else schedule.value)
            if schedule is not None:
                schedule.step()
        factors = [learning_rate_factor(config, step, self.steps) for step in range(total)]
        self.network = network.to(self.device)
        self.temperatures, self.factors = (torch.tensor(v, device=self.device) for v in (temperatures, factors))
        self.gates = [module for module in network.modules() if isinstance(module, SoftmaxGate)]
        groups = parameter_groups(network, config, config.lr)
        self.rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=True, fused=True)
        self.epoch = tuple(torch.empty_like(part) for part in epoch)
        self.own = validation[0]
        self.validation = validation[0].clone(), validation[1]
        zero = partial(torch.zeros, device=self.device)
        self.place, self.step, self.batch = (zero(1, dtype=torch.int64) for _ in range(3))
        self.loss_sum = zero(())
        self.losses, self.right = zero(len(validation[1])), zero(len(validation[1]))
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.load(epoch)
        self._train = self._captured(self._train_step, train=True)
        self._validate = self._captured(self._validation_step, train=False)

    def begin(self, weights: nn.Module) -> None:
        """Begin a run with the weights and buffers of another network of the same kind."""
        self.network.load_state_dict(weights.state_dict())
        for gate in self.gates:
            gate.temperature.copy_(self.temperatures[0])
        for state in self.optimizer.state.values():
            state["momentum_buffer"].zero_()
        self.step.zero_()

    def load(self, epoch: tuple[Tensor, Tensor]) -> None:
        """Take the pictures of an epoch."""
        for mine, given in zip(self.epoch, epoch, strict=True):
            mine.copy_(given)
        for counter in (self.place, self.loss_sum):
            counter.zero_()
        self._wait_for_host()

    def train_epoch(self) -> torch.cuda.Event | None:
        """Train on the loaded epoch, then validate; on a GPU an event that tells when that is done."""
        with self._in_stream():
            for _ in range(self.steps):
                self._train()
            self._validate_all()
            return self._recorded()

    def outcome(self) -> tuple[float, float, float]:
        """Of the last epoch, when it is done: training loss, validation loss, share of validation images right."""
        right = self.right.sum() / self.validation[1].numel()
        return float(self.loss_sum / self.steps), float(self.losses.mean()), float(right)

    def validate_on(self, sets: Sequence[Tensor]) -> tuple[Tensor, torch.cuda.Event | None]:
        """The share of images right (len(sets),) in sets of other validation images of the same labels, when done."""
        shares = torch.zeros(len(sets), device=self.device)
        self._wait_for_host()
        with self._in_stream():
            for place, images in enumerate((*sets, self.own)):  # its own again at last
                self.validation[0].copy_(images)
                self._validate_all()
                if place < len(sets):
                    shares[place] = self.right.sum() / self.validation[1].numel()
            return shares, self._recorded()

    @torch.no_grad()
    def share_right(self, images: int, changed: str | None = None) -> float:
        """The share right of the first validation images, with coefficients changed as `override_routing` names it."""
        self.network.eval()
        seen, right = 0, 0
        for batch, labels in zip(*self.validation, strict=True):
            if seen >= images:
                break
            with use_strategy(STRATEGY), override_routing(self.network, changed) if changed else nullcontext():
                right += int((self.network(batch).argmax(dim=1) == labels).sum())
            seen += len(labels)
        return right / seen

    def _in_stream(self) -> contextlib.AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _wait_for_host(self) -> None:
        """Let the stream wait for what was written outside of it."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())

    def _recorded(self) -> torch.cuda.Event | None:
        return None if self.stream is None else self.stream.record_event()

    def _validate_all(self) -> None:
        self.batch.zero_()
        for _ in range(len(self.validation[1])):
            self._validate()

    def _captured(self, work: Callable[[], None], train: bool) -> Callable[[], None]:
        """`work`, or on a GPU a graph of it."""

        def in_mode() -> None:
            self.network.train(train)
            with use_strategy(STRATEGY):
                work()

        if self.stream is None:
            return in_mode
        with self._in_stream():
            for _ in range(WARM_UP):
                in_mode()
            self.stream.synchronize()
            # Not `torch.cuda.graph`, which waits for the whole device and frees its memory: others are training.
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                in_mode()
            finally:
                graph.capture_end()
        return graph.replay

    def _train_step(self) -> None:
        images, labels = (part.index_select(0, self.place).squeeze(0) for part in self.epoch)
        loss = F.cross_entropy(self.network(images), labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip or float("inf"))
        factor = self.factors.index_select(0, self.step).squeeze(0)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"].copy_(factor * rate)
        self.optimizer.step()
        self.step += 1
        self.place += 1
        for gate in self.gates:
            gate.temperature.copy_(self.temperatures.index_select(0, self.step).squeeze(0))
        self.loss_sum += loss.detach()

    @torch.no_grad()
    def _validation_step(self) -> None:
        images, labels = (part.index_select(0, self.batch).squeeze(0) for part in self.validation)
        logits = self.network(images)
        self.losses.index_copy_(0, self.batch, F.cross_entropy(logits, labels).reshape(1))
        self.right.index_copy_(0, self.batch, (logits.argmax(dim=1) == labels).sum().float().reshape(1))
        self.batch += 1
