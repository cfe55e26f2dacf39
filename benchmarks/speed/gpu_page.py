"""The part of docs/performance.md about GPUs: ratios to the static twin by strategy, of networks and of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.speed.machine import gpu_code
from benchmarks.speed.results import Line

ABOUT = """`grouped`, `batched_gemm` and `mixture_of_experts` are plain PyTorch and run on a GPU as they are. `triton`
has kernels for depthwise layers, forward and backward; the dense ones that benchmarks/results/gpu.csv has rows of were
the fastest in none of them, and are gone. Times are relative to the static twin in the same run; *auto* is what the
planner chose: `triton` for depthwise layers on large maps. Nothing else ran; calls of less than 0.1 ms wait for their
launch, and vary. `python -m benchmarks.gpu` measures it again, and says so where there is no device.

*Code* is the commit that a row is of. "Not measured since" it: kernels, routing or planner have changed after it, and
what they take now is not known."""


QUICK = """`python -m benchmarks.gpu --quick` measures the rows that matter most, in minutes. *Eager* includes the
launches of kernels, as long as the CPU is slower than the device; *graph* replays a CUDA graph of the same call,
which has none. *Tuned* is after `condconv.tune`. EfficientNet-B0 with 8 experts at 224 px as below, and layers. In a
profile of the training step more than half of what our network's kernels took beyond the twin's was torch's gradient
of depthwise kernels, which then had maps too small for `triton`; what a bf16 network took beyond that at batch 1 was
rounding the banks; and dense layers on large maps went through columns. All three are mended, and wait for a card to
be measured:"""


def gpu(networks: Sequence[Line], layers: Sequence[Line], quick: Sequence[Line]) -> list[str]:
    """The lines of the section, none where nothing was measured."""
    measured = [*networks, *layers]
    if not measured and not quick:
        return []
    where = "; ".join(
        dict.fromkeys(f"{line['machine']}, torch {line['torch']}, Triton {line['triton']}" for line in measured)
    )
    return [
        ABOUT,
        "",
        *(_quick(quick) if quick else ()),
        "",
        f"The tables below were measured on: {where}.",
        "",
        "EfficientNet-B0 with 8 experts at 224 px, routers included, batch norms not folded; bf16 is autocast:",
        "",
        *_table("network", networks, "contender", ("timm", "auto", "grouped", "batched_gemm")),
        "",
        "Layers, coefficients given, 8 experts:",
        "",
        *_table("layer", layers, "strategy", ("auto", "grouped", "batched_gemm", "mixture_of_experts", "triton")),
    ]


def _table(title: str, lines: Sequence[Line], kind: str, columns: Sequence[str]) -> Iterator[str]:
    """One row for each work, one column for each contender."""
    works: dict[tuple[str, ...], dict[str, Line]] = {}
    for line in lines:
        key = (_name(line), line["numbers"], line["pass"], line["batch"])
        works.setdefault(key, {}).update({name: line for name in _contenders(line, kind)})
    yield f"| {' | '.join([title, 'numbers', 'pass', 'batch', 'static ms', *columns, 'code'])} |"
    yield "|" + "---|" * (len(columns) + 6)
    for work, found in works.items():
        ratios = [f"{float(found[name]['ratio']):.2f}" if name in found else "–" for name in columns]
        static = found["static"]
        cells = [*work, f"{float(static['median_ms']):.3f}", *ratios, _code(static)]
        yield f"| {' | '.join(cells)} |"


def _quick(lines: Sequence[Line]) -> Iterator[str]:
    """One row for each cell of the quick measurement."""
    cells: dict[str, dict[str, Line]] = {}
    for line in lines:
        words = line["contender"].split()
        column = "auto" if words == ["ours"] or "auto" in words else words[-1]
        cells.setdefault(line["cell"], {})[column] = line
    columns = ("timm", "auto", "tuned", "grouped", "mixture_of_experts", "triton")
    first = lines[0]
    yield from (QUICK, "", f"Measured on: {first['device']}, torch {first['torch']}, timm {first['timm']}.", "")
    yield f"| {' | '.join(['work', 'static ms', *columns, 'code'])} |"
    yield "|" + "---|" * (len(columns) + 3)
    for name, found in cells.items():
        ratios = [found[column]["ratio"] if column in found else "–" for column in columns]
        static = found["static"]
        yield f"| {' | '.join([name, static['median_ms'], *ratios, _code(static)])} |"


def _code(line: Line) -> str:
    """The commit that a row is of, and whether the code has changed since."""
    return line["commit"] if line["code"] == gpu_code() else f"not measured since {line['commit']}"


def _contenders(line: Line, kind: str) -> list[str]:
    """The columns that a measurement stands in; none for the dense kernels that are gone."""
    if kind == "contender":
        return [line["strategy"] or line["contender"]]
    if line["strategy"] == "triton" and line["depthwise"] == "False":
        return []
    return [line["strategy"], *(["auto"] if line["auto"] == "True" else [])]


def _name(line: Line) -> str:
    if "network" in line:
        return line["network"]
    k, stride = line["kernel"], "" if line["stride"] == "1" else f", stride {line['stride']}"
    channels = f"depthwise {k}x{k} {line['in_channels']}" if line["depthwise"] == "True" else (
        f"{k}x{k} {line['in_channels']}→{line['out_channels']}"
    )  # fmt: skip
    return f"{channels} @{line['size']}{stride}"
