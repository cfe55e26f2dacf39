"""What a finished run leaves behind: weights, pictures, and `summary.md`, which is written last."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from condconv.data import Source
from condconv.files import write_bytes, write_text
from condconv.tables import visible
from condconv.training import figures
from condconv.training.callbacks import Row
from condconv.training.config import TrainConfig
from condconv.training.console import duration
from condconv.training.evaluation import Evaluation
from condconv.training.networks import CONDITIONAL, STATIC, WIDENED, NetworkSpec
from condconv.training.run_folder import RunFolder

RATIO_WARNING = 1.15


@dataclass(frozen=True)
class NetworkResult:
    """One trained network with all that the summary says about it."""

    spec: NetworkSpec
    rows: Sequence[Row]
    evaluation: Evaluation
    latency_ms: float

    @property
    def seconds(self) -> float:
        """Training and validation time."""
        return sum(float(row["seconds"]) for row in self.rows)


def save_weights(folder: RunFolder, spec: NetworkSpec, network: nn.Module, config: TrainConfig, source: Source) -> None:
    """The network's tensors as safetensors; the metadata says what is needed to build and feed it."""
    metadata = {
        "network": spec.name,
        "model": config.model,
        "variant": spec.variant,
        "description": spec.description,
        "macs": str(spec.cost.macs),
        "data": source.name,
        "classes": json.dumps(source.classes),
        "input_shape": json.dumps([source.channels, *source.image_size]),
        "mean": json.dumps(source.mean),
        "std": json.dumps(source.std),
        "native": json.dumps(source.native),
        "config": json.dumps(config.to_dict()),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(folder.weights(spec.name), safetensors.torch.save(tensors, {"format": "pt", **metadata}))


def write_report(
    folder: RunFolder,
    config: TrainConfig,
    source: Source,
    results: Sequence[NetworkResult],
    damaged: Sequence[str],
    device: torch.device,
    routing_page: Path | None,
) -> str:
    """Write pictures and summary, with a link to the report on the routing; return the table of the networks."""
    rows = [row for result in results for row in result.rows]
    write_bytes(folder.path / "learning_curves.png", figures.learning_curves(rows))
    confusions = {result.spec.name: result.evaluation.confusion for result in results}
    write_bytes(folder.path / "confusion_matrix.png", figures.confusion_matrix(confusions, source.classes))
    routing = next((result.evaluation.routing for result in results if result.evaluation.routing), None)
    pictures = ["learning_curves.png", "confusion_matrix.png"]
    if routing is not None:
        write_bytes(folder.path / "routing.png", figures.routing_heat_map(routing, source.classes))
        pictures.append("routing.png")
    table = results_table(results)
    parts = [
        f"# {folder.path.name}",
        f"{config.model} on {source.name}: {len(source.train):,} training and {len(source.val):,} validation images, "
        f"{len(source.classes)} classes, {config.epochs} epochs, seed {config.seed}.",
        table,
        *_remarks(results),
        f"Latency: median of eager forward passes of one image on {device.type}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.machine()}. Multiply-adds: of one image, the papers' convention (mixing "
        "and routing counted). Accuracy: after the last epoch, on all validation images.",
        *(
            [f"Skipped {len(damaged)} damaged samples:\n\n" + "\n".join(f"* {text}" for text in damaged)]
            if damaged
            else []
        ),
        *(
            [f"[What the experts do]({routing_page.relative_to(folder.path).as_posix()})"]
            if routing_page is not None
            else []
        ),
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures),
    ]
    write_text(folder.summary, visible("\n\n".join(parts)) + "\n")
    return table


def results_table(results: Sequence[NetworkResult]) -> str:
    """A Markdown table; ratio: to the static network of the same shape."""
    lines = [
        f"| {'network':<11} | {'accuracy':>9} | {'parameters':>11} | {'multiply-adds':>13} | {'ratio':>6} "
        f"| {'training time':>13} | {'latency':>9} |",
        f"|:{'-' * 12}|{'-' * 10}:|{'-' * 12}:|{'-' * 14}:|{'-' * 7}:|{'-' * 14}:|{'-' * 10}:|",
    ]
    for result in results:
        cost = result.spec.cost
        lines.append(
            f"| {result.spec.name:<11} | {100 * result.evaluation.accuracy:7.2f} % | {cost.params:11,} "
            f"| {cost.macs:13,} | {result.spec.ratio:6.3f} | {duration(result.seconds):>13} "
            f"| {result.latency_ms:6.2f} ms |"
        )
    return "\n".join(lines)


def _remarks(results: Sequence[NetworkResult]) -> list[str]:
    by_name = {result.spec.name: result for result in results}
    remarks = ["\n".join(f"* {result.spec.name}: {result.spec.description}" for result in results)]
    conditional, static, widened = (by_name.get(name) for name in (CONDITIONAL, STATIC, WIDENED))
    if conditional and static and widened:
        matched = widened.spec.cost.macs / conditional.spec.cost.macs
        remarks.append(
            f"The conditional network has {conditional.spec.ratio:.3f} × the multiply-adds of its twin, the widened "
            f"static network {matched:.3f} × those of the conditional one. Accuracy against the twin: "
            f"{_gain(conditional, static)}; against the widened network: {_gain(conditional, widened)} percentage "
            "points, one seed."
        )
    if conditional and conditional.spec.ratio > RATIO_WARNING:
        remarks.append(
            f"**Warning:** the conditional network has {conditional.spec.ratio:.2f} × the multiply-adds of a static "
            f"one of the same shape, above {RATIO_WARNING}: its late layers have few output pixels, over which "
            "the cost of mixing the kernels is spread. A smaller --output-stride, fewer experts or larger images "
            "bring it down."
        )
    return remarks


def _gain(one: NetworkResult, other: NetworkResult) -> str:
    return f"{100 * (one.evaluation.accuracy - other.evaluation.accuracy):+.2f}"
