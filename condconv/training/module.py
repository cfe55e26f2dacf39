"""The Lightning side of training a network: a step, what follows from it, and what an exact resume needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from condconv.data import Source
from condconv.errors import CheckpointError, NonFiniteError
from condconv.evaluation.routing import RoutingStatistics, experts_by_layer
from condconv.routing_hooks import override_routing, record_routing
from condconv.tasks.base import Batch, Task
from condconv.training.activation_checkpointing import checkpoint_activations
from condconv.training.annealing import annealing
from condconv.training.ema import EMA
from condconv.training.nan_check import NaNCheck, router_of
from condconv.training.optimization import learning_rate_factor, make_optimizer, peak_learning_rate

_FINITE_CHECK_STEPS = 50
"""On a GPU: how many passes between two looks at numbers that make the program wait for the device."""


class TrainingModule(pl.LightningModule):
    """Trains a network for a task as the settings say.

    Args:
        network: what is trained.
        task: what it is trained for, with the settings.
        source: the data.
        steps_per_epoch: optimiser steps of an epoch.
        global_batch: images of one step, all processes together.
        factor: what the peak learning rate is multiplied with at each step; the settings' schedule where None.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        source: Source,
        *,
        steps_per_epoch: int,
        global_batch: int,
        factor: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.config = config = task.config
        if config.activation_checkpointing:
            checkpoint_activations(network)
        self.network = network.to(memory_format=self.memory_format)
        # No child: compiled code is another way to run the same network, which is watched and saved uncompiled.
        self._run: Callable[..., Any]
        object.__setattr__(self, "_run", torch.compile(network) if config.compile else network)
        self.lr = peak_learning_rate(config, global_batch)
        self.factor = factor or partial(learning_rate_factor, config, steps_per_epoch=steps_per_epoch)
        self.temperature = annealing(network, config, steps_per_epoch)
        self.average = EMA(network, config.ema) if config.ema else None
        # By default NaN would be left out of the means. So set, weights are not looked at: values are repeated instead.
        self.train_loss = MeanMetric(nan_strategy="disable")
        for name in task.training_columns:
            setattr(self, name, MeanMetric())
        self.gradient_norm = MeanMetric(nan_strategy="disable")
        self.meter = task.meter(source)
        layers = experts_by_layer(network)
        self.routing = RoutingStatistics(layers, len(task.groups(source))) if layers else None
        # Compiled code runs no hooks.
        self.nan_check = NaNCheck() if layers and not config.compile else None
        self._restored: dict[str, Any] | None = None

    @property
    def memory_format(self) -> torch.memory_format:
        """Of images and kernels."""
        return torch.channels_last if self.config.channels_last else torch.contiguous_format

    @property
    def result(self) -> nn.Module:
        """What is validated and kept: the averaged network where there is one."""
        return self.network if self.average is None else self.average.network

    @property
    def training_metrics(self) -> dict[str, MeanMetric]:
        """The running means of an epoch, by name."""
        return {name: getattr(self, name) for name in ("train_loss", *self.task.training_columns, "gradient_norm")}

    def forward(self, images: Tensor) -> Any:
        """What the network makes of images."""
        return self.result(images)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The settings' optimiser; its learning rate follows `factor`, step by step."""
        optimizer = make_optimizer(self.network, self.config, self.lr)
        schedule = LambdaLR(optimizer, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """One step, then what follows from it: temperature first, so that the average copies the new one."""
        super().optimizer_step(*arguments, **named)
        if self.temperature is not None:
            self.temperature.step()
        if self.average is not None:
            self.average.update(self.network)

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's running means anew."""
        for metric in self.training_metrics.values():
            metric.reset()
        if self.nan_check is not None:
            self.nan_check.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        batch = self._in_format(batch)
        output = self._watched(batch, batch_idx)
        loss = self.task.loss(output, batch)
        self.train_loss.update(loss.detach().expand(len(batch[0])))
        with torch.no_grad():
            for name, values in self.task.measured(output, batch).items():
                self.training_metrics[name].update(values)
        if self.device.type == "cpu" or batch_idx % _FINITE_CHECK_STEPS == 0:
            self.require_finite(batch_idx)
        return loss

    def _in_format(self, batch: Batch) -> Batch:
        return [batch[0].to(memory_format=self.memory_format), *batch[1:]]

    def _watched(self, batch: Batch, batch_idx: int) -> Any:
        if self.nan_check is None:
            return self.task.run(self._run, batch)
        with override_routing(self.network, self.nan_check):
            output = self.task.run(self._run, batch)
        self.nan_check.step_done(batch_idx)
        return output

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient's norm as the settings say, and keep its mean."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip or float("inf"))
        if self.config.precision == "16":
            # Steps that overflow are expected, and the scaler skips them.
            self.gradient_norm.update(norm[norm.isfinite()])
        else:
            self.gradient_norm.update(norm)

    def require_finite(self, batch_idx: int) -> None:
        """Raise `NonFiniteError` if loss, gradient or coefficients of this epoch have become NaN or infinite.

        The message names the first layer whose coefficients did, and its router.
        """
        first = self.nan_check.first() if self.nan_check is not None else None
        loss, norm = bool(self.train_loss.mean_value.isfinite()), bool(self.gradient_norm.mean_value.isfinite())
        if loss and norm and first is None:
            return
        what = "loss" if not loss else "gradient" if not norm else "routing"
        place = ""
        if first is not None:
            layer, step = first
            router = router_of(self.network, layer)
            place = f"; the coefficients of {layer}, from {router}, were the first to go, in batch {step + 1}"
        raise NonFiniteError(
            f"the training {what} is not finite in epoch {self.current_epoch + 1}, by batch {batch_idx + 1} of it"
            f"{place}; lower --lr (now {self.lr:g}) or --grad-clip, and check the images for NaN. The last checkpoint "
            "is from before"
        )

    def on_validation_epoch_start(self) -> None:
        """Begin the running means anew."""
        self.meter.reset()
        if self.routing is not None:
            self.routing.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The task's columns, and routing, of one batch."""
        batch = self._in_format(batch)
        if self.routing is None:
            output = self.task.run(self.result, batch)
        else:
            with record_routing(self.result) as routing:
                output = self.task.run(self.result, batch)
            self.routing.update(routing.parts(len(batch[0])), self.task.group_of(batch))
        self.meter.update(output, batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what belongs to each process: generators and running means."""
        mine: dict[str, Any] = {
            "cpu_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            **{name: _metric_state(metric) for name, metric in self.training_metrics.items()},
        }
        checkpoint["temperature"] = self.temperature.state_dict() if self.temperature is not None else None
        everyone: list[Any] = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        checkpoint["processes"] = everyone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember this process's part until training starts."""
        everyone = checkpoint["processes"]
        if len(everyone) != self.trainer.world_size:
            raise CheckpointError(
                f"the checkpoint was written by {len(everyone)} processes and this run has {self.trainer.world_size}; "
                "an exact resume needs the same number"
            )
        self._restored = everyone[self.global_rank]
        if self.temperature is not None:
            self.temperature.load_state_dict(checkpoint["temperature"])

    def on_train_start(self) -> None:
        """Put generators and running means back; nothing draws random numbers between here and the first step."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu_generator"])
        if self._restored["cuda_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._restored["cuda_generator"])
        for name, metric in self.training_metrics.items():
            _load_metric_state(metric, self._restored[name], self.device)
        self._restored = None


def _metric_state(metric: MeanMetric) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value).detach().cpu().clone() for name, value in metric.metric_state.items()}


def _load_metric_state(metric: MeanMetric, state: dict[str, Tensor], device: torch.device) -> None:
    for name, value in state.items():
        setattr(metric, name, value.to(device))
