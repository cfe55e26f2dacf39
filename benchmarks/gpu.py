"""Time and memory of the execution strategies on a CUDA device, beside the static twins in the same run.

    python -m benchmarks.gpu             writes benchmarks/results/gpu.csv and gpu_networks.csv
    python -m benchmarks.gpu --quick     writes gpu_quick.csv, in at most eight minutes: see gpu_quick.py

Both exit with 2 without a device.

Layers have given coefficients and 8 experts, channels_last, no bias. The static twin is `F.conv2d` with one of the
experts, in the faster of both memory formats; `error` is the largest difference of y from a f64 reference, relative to
the largest value of that. Networks include their routers; none has its batch norms folded, and timm's implementation of
the same network is beside ours. Times are medians with the 10th and 90th percentile, of calls that find the device's
cache empty; `peak_mb` is what a call holds at most beyond its arguments, in 10^6 bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import condconv
from benchmarks.speed.machine import commit, gpu_code
from benchmarks.speed.subjects import OURS, STATIC, TIMM, image_batch, raw_network
from condconv.benchmarking.networks import TrainingStep, strategies_of
from condconv.execution import choose, execute, strategies, use_strategy
from condconv.files import write_text
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture

DEVICE = "cuda"
OUT = Path(__file__).resolve().parent / "results"
EXPERTS = 8
BATCHES = (1, 32)
DTYPES = {"tf32": torch.float32, "bf16": torch.bfloat16}
"""How products are computed: tf32 is f32 with `allow_tf32` set for matrix products and convolutions."""
QUANTILES = [0.5, 0.1, 0.9]
WARM_UP_MS, MEASURED_MS = 10, 40
NETWORK = "condconv_efficientnet_b0_8e"
NETWORK_STRATEGIES = ("auto", "grouped", "batched_gemm")
NETWORK_WORK = ((1, False), (32, False), (32, True))
"""(batch, whether it is a training step), at 224 x 224; bf16 is autocast, as such networks are trained."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A k×k layer on a map of `size` × `size` positions."""

    kernel: int
    in_channels: int
    out_channels: int
    size: int
    stride: int = 1
    depthwise: bool = False

    @property
    def geometry(self) -> ConvGeometry:
        """Padded so that stride 1 keeps the size."""
        pad = self.kernel // 2
        return ConvGeometry((self.stride,) * 2, (pad, pad), (1, 1), self.in_channels if self.depthwise else 1)

    def tensors(
        self, batch: int, dtype: torch.dtype, device: torch.device | str = DEVICE
    ) -> tuple[Tensor, Mixture]:
        """Input and mixture, leaves that want gradients."""
        per_group = 1 if self.depthwise else self.in_channels
        x = torch.randn(batch, self.in_channels, self.size, self.size, device=device, dtype=dtype)
        experts = torch.randn(EXPERTS, self.out_channels, per_group, self.kernel, self.kernel, device=device)
        experts = (experts / (per_group * self.kernel**2) ** 0.5).to(dtype)
        coefficients = torch.rand(batch, EXPERTS, device=device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        return x.requires_grad_(), Mixture(coefficients.requires_grad_(), experts.requires_grad_(), None)


SHAPES = (
    Shape(1, 96, 24, 56), Shape(1, 112, 672, 14), Shape(1, 512, 512, 14), Shape(3, 64, 64, 56), Shape(3, 256, 256, 14),
    Shape(3, 96, 96, 112, stride=2, depthwise=True), Shape(3, 480, 480, 14, depthwise=True),
    Shape(5, 1152, 1152, 7, depthwise=True),
)  # fmt: skip


def timed(call: Call) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile of a call, in milliseconds."""
    from triton.testing import do_bench

    return tuple(do_bench(call, warmup=WARM_UP_MS, rep=MEASURED_MS, quantiles=QUANTILES))


def peak_mb(call: Call) -> float:
    """What a call holds at most beyond what was held before it, in 10^6 bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def work(forward: Callable[[], Tensor], leaves: Sequence[Tensor], training: bool) -> Call:
    """One inference, or one forward and backward pass."""
    if not training:
        return torch.no_grad()(forward)
    grad = torch.ones_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, grad)


def static_call(x: Tensor, weight: Tensor, geometry: ConvGeometry, training: bool) -> Call:
    """The static twin, in the faster memory format."""
    calls = []
    for layout in (torch.channels_last, torch.contiguous_format):
        a, w = (t.detach().contiguous(memory_format=layout).requires_grad_() for t in (x, weight))
        calls.append(work(lambda a=a, w=w: geometry.convolve(a, w), (a, w), training))  # type: ignore[misc]
    return min(calls, key=lambda call: timed(call)[0])


def measure(shape: Shape, batch: int, numbers: str, training: bool) -> Iterator[dict[str, object]]:
    """One row for the static twin and one for each strategy that can serve."""
    x, mixture = shape.tensors(batch, DTYPES[numbers])
    geometry, leaves = shape.geometry, (x, *mixture[:2])
    expected = _exact(x, mixture, geometry)
    contenders = {"static": static_call(x, mixture.experts[0], geometry, training)}
    errors = {"static": ""}
    for name in strategies:
        if name != "reference" and strategies[name].supports(mixture, geometry) is None:
            y = execute(x, mixture, geometry, name).detach()
            errors[name] = f"{float((y.double() - expected).abs().max() / expected.abs().max()):.1e}"
            contenders[name] = work(lambda name=name: execute(x, mixture, geometry, name), leaves, training)  # type: ignore[misc]
    times = {name: timed(call) for name, call in contenders.items()}
    for name, call in contenders.items():
        yield {
            **vars(shape), "batch": batch, "numbers": numbers, "pass": "training" if training else "inference",
            "strategy": name, "auto": name == choose(x, mixture, geometry, "auto", "benchmark"),
            **{key: f"{value:.4f}" for key, value in zip(("median_ms", "p10_ms", "p90_ms"), times[name], strict=True)},
            "ratio": f"{times[name][0] / times['static'][0]:.3f}", "peak_mb": f"{peak_mb(call):.2f}",
            "error": errors[name],
        }  # fmt: skip


@torch.no_grad()
def _exact(x: Tensor, mixture: Mixture, geometry: ConvGeometry) -> Tensor:
    """The reference in f64."""
    doubled = Mixture(mixture.coefficients.double(), mixture.experts.double(), None)
    return execute(x.double(), doubled, geometry, "reference")


def measure_network(numbers: str, batch: int, training: bool) -> Iterator[dict[str, object]]:
    """One row for the static twin, for timm's network, and for ours as planned and by each strategy."""
    x = image_batch(batch, 224).to(DEVICE)
    static: tuple[float, ...] = ()
    for kind, strategy in [(STATIC, ""), (TIMM, ""), *((OURS, name) for name in NETWORK_STRATEGIES)]:
        network = raw_network(kind, NETWORK).to(memory_format=torch.channels_last).to(DEVICE)
        call = _network_call(network, x, numbers == "bf16", training)
        with use_strategy(strategy or "auto"):
            call()
            ran, times, peak = strategies_of(call), timed(call), peak_mb(call)
        static = static or times
        yield {
            "network": NETWORK, "batch": batch, "numbers": numbers, "pass": "training" if training else "inference",
            "contender": kind, "strategy": strategy, "ran": ran,
            **{key: f"{value:.3f}" for key, value in zip(("median_ms", "p10_ms", "p90_ms"), times, strict=True)},
            "ratio": f"{times[0] / static[0]:.3f}", "peak_mb": f"{peak:.1f}",
        }  # fmt: skip


def _network_call(network: nn.Module, x: Tensor, autocast: bool, training: bool) -> Call:
    """One inference, or one step of training."""
    step = TrainingStep(network, x) if training else torch.no_grad()(lambda: network.eval()(x))

    def call() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            step()

    return call


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows with what they were measured on."""
    import triton

    machine = {
        "machine": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "torch": torch.__version__,
        "triton": triton.__version__, "python": platform.python_version(), "condconv": condconv.__version__,
        "commit": commit(), "code": gpu_code(),
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0], *machine], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **machine} for row in rows)
    write_text(path, text.getvalue())
    print(f"wrote {path}", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write; return the exit code."""
    parser = argparse.ArgumentParser("benchmarks.gpu", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="default: benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="what matters most, in at most eight minutes")
    parser.add_argument("--minutes", type=float, default=7.5, help="of measuring, with --quick; default: 7.5")
    given = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device was found; nothing was measured", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if given.quick:
        from benchmarks import gpu_quick

        return gpu_quick.main(given.out, given.minutes, torch.device(DEVICE, torch.cuda.current_device()))
    networks = [row for numbers in DTYPES for work in NETWORK_WORK for row in measure_network(numbers, *work)]
    write(given.out / "gpu_networks.csv", networks)
    layers: list[dict[str, object]] = []
    for shape in SHAPES:
        for numbers in DTYPES:
            for batch in BATCHES:
                for training in (False, True):
                    layers += measure(shape, batch, numbers, training)
        print(f"{shape}: {len(layers)} rows so far", flush=True)
    write(given.out / "gpu.csv", layers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
