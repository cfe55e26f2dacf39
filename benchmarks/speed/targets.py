"""The targets, and what the committed results say of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from benchmarks.speed.results import RESULTS, Line, read


@dataclass(frozen=True)
class Results:
    """The lines of each script's results; a script that never ran has none."""

    layers: Sequence[Line] = ()
    networks: Sequence[Line] = ()
    training: Sequence[Line] = ()
    random_shapes: Sequence[Line] = ()
    hotspots: Sequence[Line] = ()
    gpu: Sequence[Line] = ()
    gpu_networks: Sequence[Line] = ()
    gpu_quick: Sequence[Line] = ()
    single_layers: Sequence[Line] = ()
    planner: Sequence[Line] = ()
    planner_check: Sequence[Line] = ()

    @staticmethod
    def committed() -> Results:
        """Read benchmarks/results."""
        return Results(**{field.name: read(RESULTS / f"{field.name}.csv") for field in fields(Results)})


@dataclass(frozen=True)
class Measured:
    """A ratio to the static twin, with its spread, that of timm's implementation, and the limits; None if unknown."""

    ratio: float | None
    spread: tuple[float, float] | None = None
    timm: float | None = None
    macs_ratio: float | None = None
    roofline_ratio: float | None = None


@dataclass(frozen=True)
class Target:
    """A kind of work and the ratio that it must and should have."""

    work: str
    must: float
    aim: float
    measured: Callable[[Results], Measured]


def select(lines: Iterable[Line], **values: str) -> list[Line]:
    """The lines with these values."""
    return [line for line in lines if all(line[name] == value for name, value in values.items())]


def number(line: Line | None, column: str) -> float | None:
    """A number of a line, or None if there is none."""
    return float(line[column]) if line and line[column] else None


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of one or more numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _one(lines: Sequence[Line], timm: Sequence[Line]) -> Measured:
    if not lines:
        return Measured(None)
    line = lines[0]
    return Measured(
        float(line["ratio"]), (float(line["ratio_p10"]), float(line["ratio_p90"])),
        number(timm[0] if timm else None, "ratio"), float(line["macs_ratio"]), float(line["roofline_ratio"]),
    )  # fmt: skip


def inference(mode: str, batch: int, storage: str = "f32") -> Callable[[Results], Measured]:
    """The network at inference; what is not in the experts is f32."""

    def measured(results: Results) -> Measured:
        lines = select(results.networks, mode=mode, batch=str(batch), rest="f32")
        return _one(select(lines, contender="ours", storage=storage), select(lines, contender="timm"))

    return measured


def layers(group: str, storage: str = "f32") -> Callable[[Results], Measured]:
    """The geometric mean over a group of layers, with the strategy that the planner chooses."""

    def measured(results: Results) -> Measured:
        lines = select(results.layers, group=group)
        ours, timm = select(lines, contender="ours", storage=storage, asked="auto"), select(lines, contender="timm")
        if not ours:
            return Measured(None)
        columns = ("ratio", "ratio_p10", "ratio_p90", "macs_ratio", "roofline_ratio")
        ratio, p10, p90, macs, limit = (geometric_mean([float(line[c]) for line in ours]) for c in columns)
        return Measured(ratio, (p10, p90), geometric_mean([float(line["ratio"]) for line in timm]), macs, limit)

    return measured


def single(
    work: str, instructions: str, kinds: Sequence[str] = ("dense", "pointwise", "depthwise")
) -> Callable[[Results], Measured]:
    """The geometric mean of single layers of the training form, in both memory layouts."""

    def measured(results: Results) -> Measured:
        lines = select(results.single_layers, work=work, instructions=instructions)
        lines = [line for line in lines if line["kind"] in kinds]
        if not lines:
            return Measured(None)
        columns = ("ratio", "ratio_p10", "ratio_p90", "timm_ratio", "macs_ratio")
        ratio, p10, p90, timm, macs = (geometric_mean([float(line[c]) for line in lines]) for c in columns)
        return Measured(ratio, (p10, p90), timm, macs)

    return measured


def training(batch: int, size: int) -> Callable[[Results], Measured]:
    """The time of a training step."""

    def measured(results: Results) -> Measured:
        lines = select(results.training, batch=str(batch), size=str(size), mode="eager")
        return _one(select(lines, contender="ours"), select(lines, contender="timm"))

    return measured


def training_memory(batch: int, size: int) -> Callable[[Results], Measured]:
    """The peak working memory of a training step."""

    def measured(results: Results) -> Measured:
        lines = select(results.training, batch=str(batch), size=str(size), mode="eager")
        used = {line["contender"]: number(line, "working_mb") for line in lines}
        static = used.get("static")

        def over_static(kind: str) -> float | None:
            own = used.get(kind)
            return own / static if own is not None and static else None

        return Measured(over_static("ours"), timm=over_static("timm"))

    return measured


TARGETS = (
    Target("inference, batch 1, f32", 1.30, 1.10, inference("eager", 1)),
    Target("inference, batch 1, bf16 experts", 1.20, 1.06, inference("eager", 1, "bf16")),
    Target("inference, batch 1, int8 experts", 1.20, 1.06, inference("eager", 1, "int8")),
    Target("inference, batch 16, f32", 1.35, 1.10, inference("eager", 16)),
    Target("13 dense and 1x1 layers, geometric mean, f32", 1.5, 1.25, layers("dense")),
    Target("13 dense and 1x1 layers, geometric mean, bf16 experts", 1.35, 1.15, layers("dense", "bf16")),
    Target("12 depthwise layers, geometric mean, f32", 1.0, 0.8, layers("depthwise")),
    Target("torch.compile, batch 1, f32", 1.35, 1.10, inference("compiled", 1)),
    Target("torch.compile with freezing, batch 1, f32", 1.35, 1.10, inference("compiled and frozen", 1)),
    Target("training step, batch 16, 224 px: time", 1.15, 1.07, training(16, 224)),
    Target("training step, batch 16, 224 px: peak working memory", 1.06, 1.0, training_memory(16, 224)),
    Target("training step, batch 32, 96 px: time", 1.65, 1.45, training(32, 96)),
    Target("training step, batch 32, 96 px: peak working memory", 1.3, 1.1, training_memory(32, 96)),
    Target("training step of single layers, AVX2", 1.6, 1.25, single("training", "avx2")),
    Target("training step of single layers, AVX-512", 1.4, 1.2, single("training", "avx512")),
    Target("inference of dense and 1x1 layers, AVX2", 1.5, 1.25, single("forward", "avx2", ("dense", "pointwise"))),
    Target("inference of depthwise layers, AVX2", 1.0, 0.8, single("forward", "avx2", ("depthwise",))),
)
"""EfficientNet-B0 with 8 experts, routers included, unless a layer is named; ratios to its static twin."""
