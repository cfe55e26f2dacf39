"""What a finished run leaves behind: weights, pictures, and `summary.md`, which is written last."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from condconv.data import Source
from condconv.evaluation.evaluate import Evaluation
from condconv.files import write_bytes, write_text
from condconv.runs import figures
from condconv.runs.folder import BEST, RunFolder
from condconv.runs.metrics import EpochRow, best_epoch
from condconv.runs.networks import CONDITIONAL, STATIC, WIDENED, NetworkSpec
from condconv.runs.routing_report import RoutingFound
from condconv.safe_text import visible
from condconv.tasks import Score
from condconv.tasks.base import Task

RATIO_WARNING = 1.15


@dataclass(frozen=True)
class NetworkResult:
    """One trained network with all that the summary says about it."""

    spec: NetworkSpec
    rows: Sequence[EpochRow]
    evaluation: Evaluation[Any]
    latency_ms: float

    @property
    def score(self) -> float:
        """By which networks are compared."""
        return float(self.evaluation.found.score)

    @property
    def times(self) -> tuple[float, float]:
        """Of an epoch, training and validation, s (median); of one image, ms."""
        return statistics.median(float(row["seconds"]) for row in self.rows), self.latency_ms


def save_weights(
    folder: RunFolder, spec: NetworkSpec, network: nn.Module, task: Task, source: Source, *, best: bool = False
) -> None:
    """The network's tensors as safetensors; the metadata says what is needed to build and feed it.

    `best`: they are those of its best epoch so far, and get a file of their own.
    """
    metadata = {
        "network": spec.name,
        "task": task.name,
        "model": task.config.model,
        "variant": spec.variant,
        "description": spec.description,
        "macs": str(spec.cost.macs),
        "data": source.name,
        "classes": json.dumps(source.classes),
        "input_shape": json.dumps([source.channels, *source.image_size]),
        "mean": json.dumps(source.mean),
        "std": json.dumps(source.std),
        "native": json.dumps(source.native),
        "config": json.dumps(task.config.to_dict()),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    name = f"{spec.name}{BEST}" if best else spec.name
    write_bytes(folder.weights(name), safetensors.torch.save(tensors, {"format": "pt", **metadata}))


def write_summary(
    folder: RunFolder,
    task: Task,
    source: Source,
    results: Sequence[NetworkResult],
    damaged: Sequence[str],
    device: torch.device,
    found: RoutingFound | None,
) -> str:
    """Write pictures and summary, with a link to the report on the routing; return what the console shows of it."""
    config, score = task.config, task.score
    rows = [row for result in results for row in result.rows]
    found_by = {result.spec.name: result.evaluation.found for result in results}
    pictures = {"learning_curves.png": figures.learning_curves(rows, score, task.loss_title)}
    pictures |= task.pictures(found_by, source)
    routing = next((result.evaluation.routing for result in results if result.evaluation.routing), None)
    if routing is not None:
        pictures["routing.png"] = figures.routing_heat_map(routing, task.groups(source))
    for name, content in pictures.items():
        write_bytes(folder.path / name, content)
    table = results_table(results, score)
    said = [] if found is None else [f"{found.sentence} The report: {found.page}"]
    parts = [
        f"# {folder.path.name}",
        f"{config.model} on {source.name}: {len(source.train):,} training and {len(source.val):,} validation images, "
        f"{task.about(source)}, {config.epochs} epochs, seed {config.seed}.",
        table,
        *_remarks(results, score),
        *task.remarks(found_by),
        f"Image: median of eager forward passes of one image on {device.type}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.machine()}. Epoch: median over the epochs, training and validation. "
        "Multiply-adds: of one image, the papers' convention (mixing and routing counted). "
        f"{score.heading}: after the last epoch, on all validation images; gain: "
        f"{score.differences} over the static network of the same shape.",
        _best_epochs(folder, results, score),
        *(
            [f"Skipped {len(damaged)} damaged samples:\n\n" + "\n".join(f"* {text}" for text in damaged)]
            if damaged
            else []
        ),
        *(
            [f"{found.sentence} [What the experts do]({found.page.relative_to(folder.path).as_posix()})"]
            if found is not None
            else []
        ),
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures),
    ]
    write_text(folder.summary, visible("\n\n".join(parts)) + "\n")
    return "\n\n".join([table, *_remarks(results, score)[1:], *said, next_commands(folder, task)])


def next_commands(folder: RunFolder, task: Task) -> str:
    """Three things to do with a finished run."""
    beside = Path(sys.executable).with_name("condconv")
    # `make demo` does not put its environment on the path.
    program = "condconv" if shutil.which("condconv") or not beside.exists() else os.path.relpath(beside)
    commands = {
        f"{program} eval {folder.path}": task.evaluates,
        f"{program} train{task.flag} --data FOLDER --twin": "the same with your own images",
        f"{program} convert resnet18 --max-overhead 0.05": "where mixing is cheap in another network",
    }
    width = max(map(len, commands))
    return "\n".join(["next:", *(f"  {command:<{width}}  # {why}" for command, why in commands.items())])


def results_table(results: Sequence[NetworkResult], score: Score) -> str:
    """A Markdown table; ratios and gain: to the static network of the same shape, dashes where it was not trained."""
    lines = [
        f"| {'network':<11} | {score.title:>9} | {'gain':>6} | {'parameters':>11} | {'multiply-adds':>13} "
        f"| {'ratio':>6} | {'epoch':>8} | {'ratio':>5} | {'image':>8} | {'ratio':>5} |",
        f"|:{'-' * 12}|{'-' * 10}:|{'-' * 7}:|{'-' * 12}:|{'-' * 14}:|{'-' * 7}:|{'-' * 9}:|{'-' * 6}:|{'-' * 9}:"
        f"|{'-' * 6}:|",
    ]
    twin = next((result for result in results if result.spec.name == STATIC), None)
    for result in results:
        cost, value = result.spec.cost, f"{score.shown(result.score)} {score.unit}"
        gain, epoch, image = f"{'–':>6}", f"{'–':>5}", f"{'–':>5}"
        if twin is not None:
            gain = f"{score.factor * (result.score - twin.score):+6.2f}"
            epoch, image = (f"{a / b:5.2f}" for a, b in zip(result.times, twin.times, strict=True))
        lines.append(
            f"| {result.spec.name:<11} | {value:>9} | {gain} | {cost.params:11,} "
            f"| {cost.macs:13,} | {result.spec.ratio:6.3f} | {result.times[0]:6.1f} s | {epoch} "
            f"| {result.times[1]:5.2f} ms | {image} |"
        )
    return "\n".join(lines)


def _remarks(results: Sequence[NetworkResult], score: Score) -> list[str]:
    by_name = {result.spec.name: result for result in results}
    remarks = ["\n".join(f"* {result.spec.name}: {result.spec.description}" for result in results)]
    conditional, static, widened = (by_name.get(name) for name in (CONDITIONAL, STATIC, WIDENED))
    if conditional and static and widened:
        matched = widened.spec.cost.macs / conditional.spec.cost.macs
        remarks.append(
            f"The conditional network has {conditional.spec.ratio:.3f} × the multiply-adds of its twin, the widened "
            f"static network {matched:.3f} × those of the conditional one. {score.heading} against the twin: "
            f"{_gain(conditional, static, score)}; against the widened network: "
            f"{_gain(conditional, widened, score)} {score.differences}, one seed."
        )
    if conditional and conditional.spec.ratio > RATIO_WARNING:
        remarks.append(
            f"**Warning:** the conditional network has {conditional.spec.ratio:.2f} × the multiply-adds of a static "
            f"one of the same shape, above {RATIO_WARNING}: its late layers have few output pixels, over which "
            "the cost of mixing the kernels is spread. A smaller --output-stride, --max-overhead, fewer experts "
            "or larger images bring it down."
        )
    return remarks


def _best_epochs(folder: RunFolder, results: Sequence[NetworkResult], score: Score) -> str:
    """Which epoch of each network was the best on the validation images, and where its weights are."""
    lines = ["The best epoch of each network, chosen by the validation images, so that its number is too good:"]
    for result in results:
        best = result.rows[best_epoch(result.rows, score)]
        value = f"{score.shown(float(best[score.column]))} {score.unit}".strip()
        file = folder.weights(f"{result.spec.name}{BEST}").name
        lines.append(f"* {result.spec.name}: epoch {best['epoch']} of {len(result.rows)}, {value} (`{file}`)")
    return "\n".join([lines[0], "", *lines[1:]])


def _gain(one: NetworkResult, other: NetworkResult, score: Score) -> str:
    return f"{score.factor * (one.score - other.score):+.2f}"
