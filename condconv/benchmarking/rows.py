"""What is measured, cell by cell, and the rows that come of it."""

from __future__ import annotations

import copy
import datetime
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.benchmarking import memory
from condconv.benchmarking.networks import CONDITIONAL, STATIC, TUNED, rivals, strategies_of
from condconv.cpu_info import processor
from condconv.errors import ArgumentError, CondConvError
from condconv.execution import machine_of
from condconv.exporting import ExportedNetwork, export
from condconv.exporting.formats import FORMATS
from condconv.inference import optimize_for_inference
from condconv.timing import Call, Timing, finished, measure
from condconv.tuning import tune

EAGER, COMPILED, INFERENCE = "eager", "compiled", "inference"
"""Modes: the network as it is; by torch.compile; in the inference form (batch norm folded, experts packed). A format of
`condconv.export` is one too: the exported file in its runtime, on the CPU."""
BURST_S = 0.06
COLUMNS = (
    "model", "work", "mode", "batch", "input", "contender", "strategy", "median_ms", "p95_ms", "images_per_s", "ratio",
    "ratio_p10", "ratio_p90", "memory_mb", "noisy", "device", "machine", "cores", "threads", "torch", "timm", "date",
)  # fmt: skip

TimingRow = dict[str, object]


@dataclass(frozen=True)
class TimingCell:
    """What all contenders do in turns."""

    mode: str
    batch: int
    threads: int


def timing_cells(modes: Sequence[str], batches: Sequence[int], threads: Sequence[int]) -> list[TimingCell]:
    """All combinations, each once, the slow modes last."""
    ordered = sorted(dict.fromkeys(modes), key=lambda mode: mode == COMPILED)
    return [TimingCell(*cell) for cell in itertools.product(ordered, dict.fromkeys(batches), dict.fromkeys(threads))]


def measured_on() -> dict[str, object]:
    """Machine, versions and date, as every row has them."""
    return {
        "machine": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
        "date": datetime.date.today().isoformat(),
    }


class Benchmark:
    """A conditional network beside its rivals, all channels_last in f32.

    Args:
        name: of the network, for the rows.
        model: the network; unchanged.
        input_size: (C, *space) of an image.
        training: whether to take steps of training in place of inference.
        tuned: whether the network runs a second time, tuned for each cell (`condconv.tune`).
        device: where.

    Raises:
        ArgumentError: no conditional layer, no twin, or an input size or output that does not serve.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        input_size: tuple[int, ...],
        training: bool,
        tuned: bool,
        device: torch.device,
    ) -> None:
        self.name, self.input_size, self.training, self.tuned, self.device = name, input_size, training, tuned, device
        self.networks = {**rivals(model), CONDITIONAL: copy.deepcopy(model)}
        for network in self.networks.values():
            network.to(device=device).to(memory_format=torch.channels_last).eval()
        self._try_out()

    def _try_out(self) -> None:
        size = "x".join(map(str, self.input_size))
        try:
            with torch.no_grad():
                for network in self.networks.values():
                    y = network(self.images(1))
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ArgumentError(
                f"benchmark: {self.name} does not run on images of {size}: {reason}; pass another --input-size"
            ) from error
        if self.training and not (isinstance(y, Tensor) and y.dim() == 2):
            raise ArgumentError(
                f"benchmark: --training: {self.name} gives no logits (B, classes) to take a loss of; leave it out"
            )

    def images(self, batch: int) -> Tensor:
        """Random images (B, C, *space)."""
        x = torch.randn(batch, *self.input_size)
        return x.to(device=self.device, memory_format=torch.channels_last)

    def rows(self, cell: TimingCell) -> list[TimingRow]:
        """Measure a cell: a row for each contender.

        Raises:
            ArgumentError: torch could not do it, for lack of memory or of a compiler.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(cell.threads)
        if cell.mode == COMPILED:
            torch.compiler.reset()  # What an earlier cell compiled.
        try:
            with tempfile.TemporaryDirectory() as folder:  # of exported files
                return list(self._rows(cell, Path(folder)))
        except CondConvError:
            raise
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ArgumentError(f"benchmark: {cell.mode}, batch {cell.batch}: {reason}; leave that cell out") from error
        finally:
            torch.set_num_threads(before)

    def _rows(self, cell: TimingCell, folder: Path) -> Iterator[TimingRow]:
        x = self.images(cell.batch)
        if cell.mode in FORMATS:
            x = x.contiguous()
            networks = self.exported(cell.mode, x, folder)
        else:
            networks = self.contenders(cell.mode, x)
        calls = {name: self._call(network, x, cell.mode) for name, network in networks.items()}
        timings = measure(calls, BURST_S)
        for name, network in networks.items():
            yield {
                "model": self.name, "work": "training" if self.training else "inference", "mode": cell.mode,
                "batch": cell.batch, "input": "x".join(map(str, self.input_size)), "contender": name,
                "strategy": self._strategy(cell.mode, calls[name]),
                **_times(timings[name], timings[STATIC], cell.batch),
                "memory_mb": self._memory_mb(network, calls[name], x, cell.mode), "device": machine_of(self.device),
                **measured_on(),
            }  # fmt: skip

    def contenders(self, mode: str, x: Tensor) -> dict[str, nn.Module]:
        """The networks in the form of a mode; static first."""
        form: Callable[[nn.Module], nn.Module] = optimize_for_inference if mode == INFERENCE else copy.deepcopy
        # timm's batch norms cannot be folded into its experts: its network stays as it is.
        made = {n: form(m) if n in (STATIC, CONDITIONAL) else copy.deepcopy(m) for n, m in self.networks.items()}
        if self.tuned and mode != COMPILED:
            made[TUNED] = copy.deepcopy(made[CONDITIONAL])
            tune(made[TUNED], x, training=self.training)
        return made

    def exported(self, format: str, x: Tensor, folder: Path) -> dict[str, nn.Module]:
        """The conditional network and its twin as files of a runtime, opened there; static first."""
        batch = 1 if FORMATS[format].one_image else len(x)
        made: dict[str, nn.Module] = {}
        for name in (STATIC, CONDITIONAL):
            path = folder / f"{name}{FORMATS[format].suffix}"
            export(self.networks[name], path, batch=batch, example=x)
            made[name] = ExportedNetwork(path)
        return made

    def _strategy(self, mode: str, call: Call) -> str:
        if mode in FORMATS:
            return f"{FORMATS[mode].runtime} {metadata.version(FORMATS[mode].runtime)}"
        return "" if mode == COMPILED else strategies_of(call)

    def _call(self, network: nn.Module, x: Tensor, mode: str) -> Call:
        call = memory.work(network, x, self.training, mode == COMPILED)[0]
        return finished(call, self.device)

    def _memory_mb(self, network: nn.Module, call: Call, x: Tensor, mode: str) -> object:
        if self.device.type == "cuda":
            tensors = (*network.parameters(), *network.buffers())
            return f"{memory.on_gpu(call, sum(t.nbytes for t in tensors)):.1f}"
        if self.device.type != "cpu":
            return ""
        return memory.measure(network, x, self.training, mode == COMPILED)["total_mb"]


def _times(timing: Timing, static: Timing, batch: int) -> TimingRow:
    ms, ratio = timing.ms, timing.over(static)
    return {
        "median_ms": f"{ms.median:.4f}", "p95_ms": f"{timing.p95_ms:.4f}",
        "images_per_s": f"{1e3 * batch / ms.median:.1f}",
        "ratio": f"{ratio.median:.3f}", "ratio_p10": f"{ratio.p10:.3f}", "ratio_p90": f"{ratio.p90:.3f}",
        "noisy": "yes" if timing.unsteady else "",
    }  # fmt: skip
