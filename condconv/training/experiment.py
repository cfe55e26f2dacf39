"""One run from settings to summary: each network in turn, from the same seed and data order, resumable at any step."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from condconv.analysis.collect import Collector
from condconv.data import Source, default_workers
from condconv.devices import resolve_device
from condconv.errors import ArgumentError, DataError
from condconv.evaluation.evaluate import evaluate
from condconv.evaluation.latency import latencies_ms
from condconv.evaluation.routing import experts_by_layer
from condconv.runs.config import PRECISIONS, TrainConfig
from condconv.runs.folder import RunFolder
from condconv.runs.metrics import EpochRow, columns
from condconv.runs.networks import NetworkSpec, first_start, overhead_advice, plan_networks
from condconv.runs.routing_report import routing_report
from condconv.runs.starting import about_start, as_the_start
from condconv.runs.summary import NetworkResult, save_weights, write_summary
from condconv.signals import StopRequest
from condconv.tasks import task_of
from condconv.training.best import BestEpoch
from condconv.training.callbacks import DamagedImages, EpochRows
from condconv.training.checkpoint import AtomicCheckpointIO, CheckpointKeeper, read_checkpoint, require_same_run
from condconv.training.console import RunConsole
from condconv.training.datamodule import SourceDataModule
from condconv.training.epoch_bar import EpochBar
from condconv.training.health import HEALTH_COLUMNS, HealthWarnings
from condconv.training.loggers import EpochLogger, require_logger
from condconv.training.module import TrainingModule
from condconv.training.optimization import peak_learning_rate
from condconv.training.routing_images import RoutingImages
from condconv.training.tuned import TuneOnce

# These change nothing about the results, so a checkpoint may be resumed with others.
FREE_TO_CHANGE = frozenset({"name", "out", "workers", "device", "report", "tensorboard", "logger"})


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, as torchrun says in the environment."""

    rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> Processes:
        """One process where torchrun says nothing."""
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        return cls(int(os.environ.get("RANK", 0)), world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))


@dataclass
class Trained:
    """A network after its last epoch."""

    network: nn.Module
    rows: Sequence[EpochRow]
    damaged: DamagedImages


class Experiment:
    """Trains the networks of one configuration, and writes the run folder (in the first process).

    `source`: the data set of the settings where it is open already.
    """

    def __init__(
        self, config: TrainConfig, stop: StopRequest, console: RunConsole, source: Source | None = None
    ) -> None:
        require_logger(config.logger)
        self.stop = stop
        self.console = console
        self.processes = Processes.from_environment()
        self.device = resolve_device(config.device, config.precision)
        self.task = task_of(config)
        self.source = source or self.task.open(config.data, skip_bad=config.skip_bad_images)
        require_class_count(config, self.source)
        self.source = self.task.prepared(self.source)
        start = first_start(self.task, self.source)
        self.source = as_the_start(self.source, start)
        for line in about_start(start, self.source):
            console.notice(line)
        self.config = config
        self.batch_size = self._fitting_batch_size()
        workers = config.workers if config.workers is not None else default_workers(self.source)
        self.workers = workers
        self.specs = plan_networks(self.task, self.source)
        self._health: list[EpochRow] = []
        for notice in (*self.task.notices(self.source), *overhead_advice(self.task, self.source, self.specs)):
            console.notice(notice)
        if config.base_batch is not None:
            peak = peak_learning_rate(config, self.global_batch)
            console.notice(
                f"learning rate: {config.lr:g} for {config.base_batch} images a step, "
                f"so {peak:g} for {self.global_batch}"
            )

    def _fitting_batch_size(self) -> int:
        images = len(self.source.train)
        shares = self.processes.world_size * self.config.accumulate
        most = images // shares
        if most < 1:
            raise DataError(
                f"{self.source.name}: {images} training images for {self.processes.world_size} processes and "
                f"--accumulate {self.config.accumulate}; each pass needs at least one"
            )
        if self.config.batch_size > most:
            each = "" if shares == 1 else f" for {shares} passes a step"
            self.console.notice(
                f"notice: --batch-size {self.config.batch_size} is larger than the training set of {images} images"
                f"{each}; reduced to {most}"
            )
        return min(self.config.batch_size, most)

    @property
    def global_batch(self) -> int:
        """Images of one step, all processes together."""
        return self.batch_size * self.config.accumulate * self.processes.world_size

    def module(self, network: nn.Module, factor: Callable[[int], float] | None = None) -> TrainingModule:
        """What Lightning trains."""
        return TrainingModule(
            network,
            self.task,
            self.source,
            steps_per_epoch=len(self.source.train) // self.global_batch,
            global_batch=self.global_batch,
            factor=factor,
        )

    def data(self) -> SourceDataModule:
        """What it is trained on."""
        return SourceDataModule(self.source, self.task, batch_size=self.batch_size, workers=self.workers)

    def run(self, folder: RunFolder) -> str:
        """Train, report, and return the results table ("" in processes other than the first)."""
        silence_lightning()
        done: list[EpochRow] = []
        trained: list[Trained] = []
        for spec in self.specs:
            self.stop.check()
            trained.append(self._train(spec, folder, done))
            done += trained[-1].rows
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        return self._report(folder, trained) if self.processes.rank == 0 else ""

    def _train(self, spec: NetworkSpec, folder: RunFolder, done: Sequence[EpochRow]) -> Trained:
        network = spec.build()
        module = self.module(network)

        def on_row(rows: list[EpochRow]) -> None:
            if self.processes.rank == 0:
                folder.write_table("metrics.csv", columns(self.task), [*done, *rows])
                self.console.epoch(rows, self.config.epochs, self.task.score)

        def on_health(rows: list[EpochRow]) -> None:
            if self.processes.rank == 0:
                folder.write_table("router_health.csv", HEALTH_COLUMNS, [*self._health, *rows])

        rows, damaged = EpochRows(spec.name, on_row), DamagedImages()
        health = HealthWarnings(rows, on_health, self.console.notice, self.workers)
        def keep(network: nn.Module) -> None:
            if self.processes.rank == 0:
                save_weights(folder, spec, network, self.task, self.source, best=True)

        best = BestEpoch(rows, self.task.score, self.config.early_stopping, keep, self.console.notice)
        callbacks: list[pl.Callback] = [rows, health, damaged, best]
        if self.config.logger != "csv" and self.processes.rank == 0:
            callbacks.append(EpochLogger(self.config, folder.path, rows, self.console.notice))
        if self.processes.rank == 0:
            callbacks.append(EpochBar(self.console.console))
        if self.config.tensorboard is not None and experts_by_layer(network) and self.processes.rank == 0:
            images = folder.path / "tensorboard" / spec.name
            # First, so that its time counts as part of the epoch's and not of the next one's training.
            callbacks.insert(0, RoutingImages(self.task, self.source, images, self.config.tensorboard))
        if self.config.tune and experts_by_layer(network):
            shape = (self.batch_size, self.source.channels, *self.source.image_size)
            # First, so that its time is not the first epoch's.
            callbacks.insert(0, TuneOnce(shape, self.stop, self.console.table))
        path, identity = folder.checkpoint(spec.name), self._identity(spec)
        callbacks.append(CheckpointKeeper(path, identity, self.stop))
        resuming = path.exists()
        if resuming:
            checkpoint = read_checkpoint(path)
            require_same_run(path, checkpoint, identity, module)
        torch.manual_seed(self.config.seed + self.processes.rank)
        trainer = self.trainer(callbacks, max_epochs=self.config.epochs)
        trainer.fit(module, datamodule=self.data(), ckpt_path=str(path) if resuming else None, weights_only=True)
        self._health += health.rows
        return Trained(module.result, rows.rows, damaged)

    def _identity(self, spec: NetworkSpec) -> dict[str, Any]:
        settings = {name: value for name, value in self.config.to_dict().items() if name not in FREE_TO_CHANGE}
        classes = len(self.source.classes)
        return {**settings, "network": spec.name, "processes": self.processes.world_size, "classes": classes}

    def trainer(self, callbacks: list[pl.Callback], **limits: Any) -> pl.Trainer:
        """Lightning's trainer, without anything that it would write or print itself."""
        distributed = self.processes.world_size > 1
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        return pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else self.device.type,
            devices=self.processes.local_world_size if distributed else 1,
            num_nodes=self.processes.world_size // self.processes.local_world_size,
            strategy=DDPStrategy(process_group_backend=backend) if distributed else "auto",
            precision=PRECISIONS[self.config.precision],
            accumulate_grad_batches=self.config.accumulate,
            callbacks=callbacks,
            # Said, not found out: Lightning would take a job of SLURM for one of its own.
            plugins=[AtomicCheckpointIO(), TorchElasticEnvironment() if distributed else LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **limits,
        )

    def _report(self, folder: RunFolder, trained: Sequence[Trained]) -> str:
        networks, evaluations, routing = {}, [], None
        for spec, one in zip(self.specs, trained, strict=True):
            self.stop.check()
            one.network.to(self.device)
            wanted = self.config.report and routing is None and bool(experts_by_layer(one.network))
            collector = Collector(one.network, len(self.task.groups(self.source))) if wanted else None
            with self.console.progress(f"evaluating {spec.name}") as progress:
                found = evaluate(
                    one.network, self.source, self.task, batch_size=self.batch_size, workers=self.workers,
                    device=self.device, skip_bad=self.config.skip_bad_images, shuffle=wanted, collector=collector,
                    progress=progress,
                )  # fmt: skip
            evaluations.append(found)
            networks[spec.name] = one.network
            save_weights(folder, spec, one.network, self.task, self.source)
            if collector is not None:
                recorded = [(spec, each.rows) for spec, each in zip(self.specs, trained, strict=True)]
                routing = routing_report(
                    folder, self.task, self.source, one.network, collector.found(), recorded
                )  # fmt: skip
        times = latencies_ms(networks, (self.source.channels, *self.source.image_size), self.device)
        results = [
            NetworkResult(spec, one.rows, found, times[spec.name])
            for spec, one, found in zip(self.specs, trained, evaluations, strict=True)
        ]
        damaged = self._damaged(trained)
        if damaged:
            self.console.notice(f"notice: skipped {len(damaged)} damaged samples, listed in {folder.summary}")
        return write_summary(folder, self.task, self.source, results, damaged, self.device, routing)

    def _damaged(self, trained: Sequence[Trained]) -> list[str]:
        train = sorted({index for one in trained for index in one.damaged.train})
        val = sorted({index for one in trained for index in one.damaged.val})
        places = [self.source.train.where(i) for i in train] + [self.source.val.where(i) for i in val]
        return [*self.source.skipped, *(f"{place}: cannot be decoded" for place in places)]


def require_class_count(config: TrainConfig, source: Source) -> None:
    """Raise `DataError` where the data has not the classes that the network is to tell apart."""
    found = len(source.classes)
    if config.num_classes is not None and config.num_classes != found:
        raise DataError(
            f"{source.name}: {found} classes, and the classifier is to have {config.num_classes} (--num-classes); pass "
            f"--num-classes {found} for a classifier of these, or the data that it was meant for"
        )


def silence_lightning() -> None:
    """Keep what Lightning says about its own settings off the user's screen."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_fabric")


def resumed_config(saved: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The settings of a resumed run: those it was started with, and of those given now what is free to change.

    Raises `ArgumentError` naming the first flag that would make it another run.
    """
    for name, value in given.items():
        if name not in FREE_TO_CHANGE and getattr(saved, name) != value:
            raise ArgumentError(
                f"--{name.replace('_', '-')}={value!r}: the run to resume was started with {getattr(saved, name)!r}, "
                "and a resumed run keeps its settings; leave the flag out, or start a new run"
            )
    changeable = FREE_TO_CHANGE - {"name", "out"}
    return replace(saved, **{name: value for name, value in given.items() if name in changeable})
