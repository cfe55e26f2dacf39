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


def gpu(networks: Sequence[Line], layers: Sequence[Line]) -> list[str]:
    """The lines of the section, none where nothing was measured."""
    measured = [*networks, *layers]
    if not measured:
        return []
    where = "; ".join(
        dict.fromkeys(f"{line['machine']}, torch {line['torch']}, Triton {line['triton']}" for line in measured)
    )
    return [
        ABOUT,
        "",
        f"Measured on: {where}.",
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
    for key, found in works.items():
        ratios = [f"{float(found[name]['ratio']):.2f}" if name in found else "–" for name in columns]
        static = found["static"]
        cells = [*key, f"{float(static['median_ms']):.3f}", *ratios, _code(static)]
        yield f"| {' | '.join(cells)} |"


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
