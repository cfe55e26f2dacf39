"""The pictures of restoration: sheets of before and after, and how close networks come by strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from condconv.analysis.drawing import COLOURS
from condconv.evaluation import figures
from condconv.tasks.restore.evaluator import Restored


def sheet(columns: Mapping[str, Sequence[Tensor]], captions: Mapping[str, Sequence[str]]) -> bytes:
    """Pictures (C, H, W) on [0, 1] in rows, a column for each name, its captions below its pictures; a PNG."""
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(2.0 * len(columns) + 0.4, 2.25 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for place, (name, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            axes = panels[row][place]
            axes.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], title=name if row == 0 else "")
            if name in captions:
                axes.set_xlabel(captions[name][row], fontsize=8)
    return figures.png(figure)


def before_after(found: Mapping[str, Restored]) -> bytes:
    """One picture of each group: degraded, as each network restores it, and as it was."""
    first = next(iter(found.values()))
    columns = {"degraded": [example.degraded for example in first.examples]}
    qualities = [example.quality for example in first.examples]
    captions = {"degraded": [f"{first.groups[each.group]}: {each.psnr_before:.1f} dB" for each in qualities]}
    for network, each in found.items():
        columns[network] = [example.restored for example in each.examples]
        captions[network] = [f"{example.quality.psnr:.1f} dB" for example in each.examples]
    columns["original"] = [example.clean for example in first.examples]
    return sheet(columns, captions)


def quality_by_strength(found: Mapping[str, Restored]) -> bytes:
    """Gain in PSNR over the degraded picture, group by group, a line for each network; a PNG."""
    first = next(iter(found.values()))
    figure = Figure(figsize=(max(5.5, 0.6 * len(first.groups) + 3), 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, (network, each) in zip(COLOURS, found.items(), strict=False):
        gains = [each.mean("psnr", group) - each.mean("psnr_before", group) for group in range(len(each.groups))]
        axes.plot(range(len(gains)), gains, marker="o", color=colour, label=network)
    axes.set_xticks(range(len(first.groups)), first.groups, rotation=45, ha="right")
    axes.set(ylabel="PSNR restored - PSNR degraded / dB", title="What restoring brings, by strength")
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figures.png(figure)
