"""The pictures of a run folder. Drawn with matplotlib's object interface: no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from condconv.analysis.drawing import coefficient_limit, nested
from condconv.evaluation import figures
from condconv.runs.metrics import EpochRow
from condconv.tasks import Score

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_DEPTHS = 4


def learning_curves(rows: Sequence[EpochRow], score: Score, loss_title: str) -> bytes:
    """Loss and score by epoch, training dashed, validation solid, one colour for each network; a PNG."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    columns = {
        loss_axes: ("train_loss", "val_loss", 1.0),
        score_axes: (score.train_column, score.column, score.factor),
    }
    networks = list(dict.fromkeys(str(row["network"]) for row in rows))
    for place, (colour, network) in enumerate(zip(_COLOURS, networks, strict=False)):
        mine = [row for row in rows if row["network"] == network]
        epochs = [int(row["epoch"]) for row in mine]
        line = {"color": colour, "marker": "o" if len(mine) < 30 else "", **nested(place, len(networks))}
        for axes, (train, val, scale) in columns.items():
            for column, half, style in ((train, "training", "--"), (val, "validation", "-")):
                if column not in mine[0]:
                    continue
                values = [scale * float(row[column]) for row in mine]
                axes.plot(epochs, values, style, label=f"{network}, {half}", **line)
    loss_axes.set(xlabel="epoch", ylabel=loss_title, title="Loss")
    score_axes.set(xlabel="epoch", ylabel=f"{score.title} / {score.unit}", title=score.heading)
    for axes in (loss_axes, score_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    score_axes.legend(fontsize="small")
    return figures.png(figure)


def routing_heat_map(routing: Mapping[str, Tensor], classes: Sequence[str]) -> bytes:
    """Mean coefficient by class and expert, one panel for each of up to four depths, first to last; a PNG.

    Layers that borrow the same routing have equal means, and count as one depth.
    """
    chosen = depths(routing)
    height = min(2.0 + 0.3 * len(classes), 12)
    figure = Figure(figsize=(4.0 * len(chosen) + 1, height), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    top = coefficient_limit(routing.values())
    for axes, name in zip(panels, chosen, strict=True):
        image = axes.imshow(routing[name].numpy(), vmin=0, vmax=top, cmap="cividis", aspect="auto")
        axes.set(xlabel="expert", title=name)
        axes.title.set_fontsize(9)
        axes.set_xticks(range(routing[name].shape[1]))
    panels[0].set_ylabel("class")
    figures.name_classes(panels[0], classes, both=False)
    figure.colorbar(image, ax=list(panels), label="mean coefficient")
    return figures.png(figure)


def learning_rate_sweep(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggested: float
) -> bytes:
    """Loss by learning rate, as it was and smoothed, with the suggestion marked; a PNG."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=_COLOURS[4], alpha=0.6, label="loss of one step")
    axes.plot(rates, smoothed, color=_COLOURS[0], label="smoothed")
    axes.axvline(suggested, color=_COLOURS[5], linestyle="--", label=f"suggestion: {suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Sweep of the learning rate")
    axes.set_ylim(top=1.1 * max(max(smoothed), losses[0]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figures.png(figure)


def depths(routing: Mapping[str, Tensor]) -> list[str]:
    """Up to four layer names, evenly from first to last among those whose routing differs from the one before."""
    distinct: list[str] = []
    for name, means in routing.items():
        if not distinct or not torch.equal(means.nan_to_num(), routing[distinct[-1]].nan_to_num()):
            distinct.append(name)
    places = torch.linspace(0, len(distinct) - 1, min(_DEPTHS, len(distinct))).round().long().tolist()
    return [distinct[place] for place in places]
