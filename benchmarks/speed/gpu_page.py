"""The part of docs/performance.md about GPUs: ratios to the static twin by strategy, of networks and of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.speed.results import Line

ABOUT = """`grouped`, `batched_gemm` and `mixture_of_experts` are plain PyTorch and run on a GPU as they are. What
`triton` does there it does tile by tile (pointwise, dense and depthwise, forward and backward): it mixes and multiplies
at once, and no example's kernel is in memory. Times are relative to the static twin in the same run; *auto* is what the
planner chooses: `triton` for depthwise layers on large maps, and never for dense ones, where another is faster in every
row. Nothing else ran; calls of less than 0.1 ms wait for their launch, and vary. `python -m benchmarks.gpu` measures
it again, and says so where there is no device."""


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
        *_table("network", networks, "contender", ("timm", "auto", "grouped", "batched_gemm", "triton")),
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
    yield f"| {' | '.join([title, 'numbers', 'pass', 'batch', 'static ms', *columns])} |"
    yield "|" + "---|" * (len(columns) + 5)
    for key, found in works.items():
        ratios = [f"{float(found[name]['ratio']):.2f}" if name in found else "–" for name in columns]
        yield f"| {' | '.join([*key, f'''{float(found['static']['median_ms']):.3f}''', *ratios])} |"


def _contenders(line: Line, kind: str) -> list[str]:
    """The columns that a measurement stands in."""
    if kind == "contender":
        return [line["strategy"] or line["contender"]]
    return [line["strategy"], *(["auto"] if line["auto"] == "True" else [])]


def _name(line: Line) -> str:
    if "network" in line:
        return line["network"]
    k, stride = line["kernel"], "" if line["stride"] == "1" else f", stride {line['stride']}"
    channels = f"depthwise {k}x{k} {line['in_channels']}" if line["depthwise"] == "True" else (
        f"{k}x{k} {line['in_channels']}→{line['out_channels']}"
    )  # fmt: skip
    return f"{channels} @{line['size']}{stride}"
