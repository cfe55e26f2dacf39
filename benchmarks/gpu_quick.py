"""What `python -m benchmarks.gpu --quick` measures in at most eight minutes on a CUDA device; writes gpu_quick.csv.

Networks come before layers and the targets' rows first; each row is on the disk as soon as it is measured, so that a
time limit loses nothing. Contenders take turns (`condconv.timing`). `eager` includes the launches of kernels, as long
as the CPU is slower than the device; `graph` replays a CUDA graph of the same call, which has none; `compiled` is
torch.compile. bf16 is autocast in networks, and the type of all tensors in layers. A contender that fails has a row
that says so.
"""

from __future__ import annotations

import csv
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from timm.layers import CondConv2d as TimmCondConv2d
from torch import Tensor, nn

import condconv
from benchmarks.gpu import DTYPES, EXPERTS, NETWORK, SHAPES, Shape, work
from benchmarks.speed.machine import description, gpu_code
from benchmarks.speed.subjects import OURS, STATIC, TIMM, image_batch, raw_network, timm_name
from condconv.benchmarking import memory
from condconv.benchmarking.networks import TrainingStep, strategies_of
from condconv.benchmarking.rows import measured_on
from condconv.execution import AUTO, choose, execute, strategies
from condconv.timing import Call, Timing, finished, measure
from condconv.tuning import tune

EAGER, GRAPH, COMPILED = "eager", "graph", "compiled"
TUNED = "ours, tuned"
BURST_S, TURNS = 0.05, 5
CALLS = 20
"""Calls of a layer that are timed as one, so that waiting for the device counts little."""
COLUMNS = (
    "cell", "kind", "pass", "numbers", "batch", "mode", "contender", "strategy", "median_ms", "p95_ms", "ratio",
    "ratio_p10", "ratio_p90", "peak_mb", "noisy", "error", "elapsed_s", "device", "cuda", *measured_on(), "commit",
    "code",
)  # fmt: skip

Row = dict[str, object]


class Clock:
    """The time that is left of a budget, in seconds."""

    def __init__(self, budget_s: float) -> None:
        self.started, self.budget_s = time.perf_counter(), budget_s

    @property
    def elapsed_s(self) -> float:
        """Since this was made."""
        return time.perf_counter() - self.started

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so long ends in time."""
        return self.elapsed_s + seconds <= self.budget_s


class Rows:
    """A CSV file whose rows are on the disk one by one, under their final name."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        self._writer.writeheader()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        """Write a row and show it."""
        self._writer.writerow(row)
        self._file.flush()
        result = row.get("error") or f"{row['median_ms']} ms  × {row['ratio']}"
        print(f"{row['elapsed_s']:>6} s  {row['cell']:<58} {row['contender']:<20} {result}", flush=True)


@dataclass(frozen=True)
class Work:
    """What is asked of a network or a layer."""

    training: bool
    batch: int
    mode: str = EAGER
    numbers: str = "bf16"

    @property
    def name(self) -> str:
        """A readable name."""
        return f"{'training' if self.training else 'inference'} {self.numbers} B{self.batch} {self.mode}"


@dataclass(frozen=True)
class NetworkCell:
    """A network at work, routers included, batch norms not folded."""

    work: Work
    network: str = NETWORK
    size: int = 224
    kind = "network"
    calls = 1

    @property
    def name(self) -> str:
        """A readable name."""
        return f"{self.network} @{self.size} {self.work.name}"

    @property
    def seconds(self) -> float:
        """About how long one contender takes."""
        return 80.0 if self.work.mode == COMPILED else 8.0

    def contenders(self, device: torch.device) -> Iterator[tuple[str, Callable[[], Call]]]:
        """Each contender with what makes its call."""
        timm = (TIMM,) if timm_name(self.network) else ()
        tuned = () if self.work.mode == COMPILED else (TUNED,)  # Compiled code is planned.
        for name in (STATIC, OURS, *timm, *tuned):
            yield name, functools.partial(self._call, name, device)

    def weights_bytes(self, name: str, device: torch.device) -> int:
        """Of parameters and buffers."""
        network = _network(self.network, name, device)
        return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))

    def _call(self, name: str, device: torch.device) -> Call:
        work, x = self.work, image_batch(self.work.batch, self.size).to(device)
        network = _network(self.network, name, device).train(work.training)
        # A graph must not find casts in the cache that were made outside of it.
        autocast = functools.partial(
            torch.autocast, device.type, torch.bfloat16, work.numbers == "bf16", cache_enabled=work.mode != GRAPH
        )
        if name == TUNED:
            with autocast():
                tune(network, x, training=work.training)
        run = torch.compile(network, dynamic=False) if work.mode == COMPILED else network
        if not work.training:
            return torch.no_grad()(autocast()(lambda: run(x)))

        def logits(x: Tensor) -> Tensor:
            with autocast():
                return run(x).float()

        return TrainingStep(network, x, logits)


@dataclass(frozen=True)
class LayerCell:
    """A layer with given coefficients, no bias."""

    work: Work
    shape: Shape
    kind = "layer"
    calls = CALLS
    seconds = 1.0

    @property
    def name(self) -> str:
        """A readable name."""
        s = self.shape
        kind = "depthwise " if s.depthwise else ""
        channels = f"{s.in_channels}-{s.out_channels}"
        return f"{kind}{s.kernel}x{s.kernel}/{s.stride} {channels} @{s.size} {self.work.name}"

    def contenders(self, device: torch.device) -> Iterator[tuple[str, Callable[[], Call]]]:
        """The static convolution, timm's layer, and every strategy that can serve, the planner's choice among them."""
        x, mixture = self.shape.tensors(self.work.batch, DTYPES[self.work.numbers], device)
        geometry, training = self.shape.geometry, self.work.training
        kernel = mixture.experts[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        yield STATIC, lambda: work(lambda: geometry.convolve(x, kernel), (x, kernel), training)
        timm = self._timm(device, x.dtype)
        leaves = (x, mixture.coefficients)
        yield TIMM, lambda: work(lambda: timm(x, mixture.coefficients), (*leaves, timm.weight), training)
        with torch.set_grad_enabled(training):
            planned = choose(x, mixture, geometry, AUTO, "benchmark")
        for name in strategies:
            if name != "reference" and strategies[name].supports(mixture, geometry) is None:
                forward = functools.partial(execute, x, mixture, geometry, name)
                contender = f"{OURS} auto {name}" if name == planned else f"{OURS} {name}"
                yield contender, functools.partial(work, forward, (*leaves, mixture.experts), training)

    def _timm(self, device: torch.device, dtype: torch.dtype) -> TimmCondConv2d:
        s, geometry = self.shape, self.shape.geometry
        arguments: dict[str, Any] = {"padding": geometry.padding, "stride": geometry.stride, "groups": geometry.groups}
        made = TimmCondConv2d(s.in_channels, s.out_channels, s.kernel, num_experts=EXPERTS, **arguments)
        return made.to(device=device, dtype=dtype)

    def weights_bytes(self, name: str, device: torch.device) -> int:
        """Nothing: a layer's memory is what a call takes beyond its arguments."""
        return 0


Cell = NetworkCell | LayerCell


def plan() -> list[Cell]:
    """All cells, the rows of the targets first."""
    networks = [
        Work(True, 128), Work(False, 128), Work(False, 1, GRAPH), Work(False, 128, GRAPH), Work(False, 1),
        Work(True, 64), Work(True, 128, GRAPH), Work(False, 1, GRAPH, "tf32"), Work(True, 128, COMPILED),
    ]  # fmt: skip
    layers = [Work(True, 128, GRAPH), Work(True, 128), Work(False, 128, GRAPH), Work(False, 1, GRAPH)]
    return [*map(NetworkCell, networks), *(LayerCell(asked, shape) for asked in layers for shape in SHAPES)]


@functools.cache
def _network(model: str, contender: str, device: torch.device) -> nn.Module:
    """A network that is made once; the tuned one is another than ours, for its pins."""
    kind = OURS if contender == TUNED else contender
    return raw_network(kind, model).to(device).to(memory_format=torch.channels_last)


def run(cells: Sequence[Cell], rows: Rows, clock: Clock, device: torch.device) -> list[Cell]:
    """Measure cell by cell, and return those for which no time was left."""
    left = []
    for cell in cells:
        if not clock.allows(2 * cell.seconds):
            left.append(cell)
            continue
        for row in cell_rows(cell, clock, device):
            rows.add(row)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return left


def cell_rows(cell: Cell, clock: Clock, device: torch.device) -> Iterator[Row]:
    """A row for each contender: first those that fail, then the others."""
    calls: dict[str, Call] = {}
    ran: dict[str, str] = {}
    for name, make in cell.contenders(device):
        if not clock.allows(cell.seconds):
            yield _row(cell, name, clock, device, error="no time was left")
            continue
        try:
            call = make()
            ran[name] = "" if cell.work.mode == COMPILED else strategies_of(call)
            calls[name] = finished(_repeated(call, cell, device), device)
            calls[name]()
        except RuntimeError as error:  # Also when memory is short, and when a graph cannot be captured.
            calls.pop(name, None)
            yield _row(cell, name, clock, device, error=str(error).strip().splitlines()[0])
    if not calls:
        return
    timings = measure(calls, BURST_S, turns=TURNS)
    for name, timing in timings.items():
        times = _times(timing, timings.get(STATIC), cell.calls)
        weigh = device.type == "cuda" and cell.work.mode == EAGER
        peak = f"{memory.on_gpu(calls[name], cell.weights_bytes(name, device)):.1f}" if weigh else ""
        yield _row(cell, name, clock, device, strategy=ran[name], **times, peak_mb=peak)


def _repeated(call: Call, cell: Cell, device: torch.device) -> Call:
    """So many calls as are timed as one; as a CUDA graph where that is asked for."""

    def calls() -> None:
        for _ in range(cell.calls):
            call()

    return graphed(calls, device) if cell.work.mode == GRAPH else calls


def graphed(call: Call, device: torch.device) -> Call:
    """Capture a call as a CUDA graph, and return what replays it.

    Raises:
        RuntimeError: it cannot be captured, or the device is none of CUDA's.
    """
    if device.type != "cuda":
        raise RuntimeError(f"CUDA graphs need a CUDA device, and this is {device}")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # What is allocated or chosen once must not be part of the graph.
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # Gradients are summed up on the stream that they began on.
        call()

    def replay() -> Call:
        graph.replay()
        return call  # What it holds lives as long as the graph, which reads and writes it.

    return replay


def _times(timing: Timing, static: Timing | None, calls: int) -> Row:
    found: Row = {"median_ms": f"{timing.ms.median / calls:.4f}", "p95_ms": f"{timing.p95_ms / calls:.4f}"}
    found["noisy"] = "yes" if timing.unsteady else ""
    if static is not None:
        ratio = timing.over(static)
        found |= {"ratio": f"{ratio.median:.3f}", "ratio_p10": f"{ratio.p10:.3f}", "ratio_p90": f"{ratio.p90:.3f}"}
    return found


def _row(cell: Cell, contender: str, clock: Clock, device: torch.device, **found: object) -> Row:
    asked = cell.work
    return {
        "cell": cell.name, "kind": cell.kind, "pass": "training" if asked.training else "inference",
        "numbers": asked.numbers, "batch": asked.batch, "mode": asked.mode, "contender": contender, "ratio": "",
        **found, "elapsed_s": f"{clock.elapsed_s:.1f}", "device": condconv.execution.machine_of(device),
        "cuda": torch.version.cuda, **description(), "code": gpu_code(),
    }  # fmt: skip


def warm_up(device: torch.device) -> None:
    """Load libraries and raise the clock, once for all cells."""
    x = image_batch(8, 64).to(device)
    step = TrainingStep(nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device), x)
    for _ in range(20):
        step()


def main(out: Path, minutes: float, device: torch.device) -> int:
    """Measure what fits into the time, and say what did not."""
    clock = Clock(60 * minutes)
    warm_up(device)
    with Rows(out / "gpu_quick.csv") as rows:
        left = run(plan(), rows, clock, device)
    print(f"wrote {out / 'gpu_quick.csv'} in {clock.elapsed_s:.0f} s")
    for cell in left:
        print(f"no time was left for: {cell.name}")
    return 0
