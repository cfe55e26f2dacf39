"""The pictures of a run folder. Drawn with matplotlib's object interface: no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from condconv.tasks import Score
from condconv.training.callbacks import Row

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_DEPTHS = 4
_MOST_LABELS = 40


def learning_curves(rows: Sequence[Row], score: Score, loss_title: str) -> bytes:
    """Loss and score by epoch, training dashed, validation solid, one colour for each network; a PNG."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    columns = {
        loss_axes: ("train_loss", "val_loss", 1.0),
        score_axes: (score.train_column, score.column, score.factor),
    }
    for colour, network in zip(COLOURS, dict.fromkeys(str(row["network"]) for row in rows), strict=False):
        mine = [row for row in rows if row["network"] == network]
        epochs = [int(row["epoch"]) for row in mine]
        for axes, (train, val, scale) in columns.items():
            for column, half, style in ((train, "training", "--"), (val, "validation", "-")):
                if column not in mine[0]:
                    continue
                values = [scale * float(row[column]) for row in mine]
                label = f"{network}, {half}"
                axes.plot(epochs, values, style, color=colour, label=label, marker="." if len(mine) < 30 else None)
    loss_axes.set(xlabel="epoch", ylabel=loss_title, title="Loss")
    score_axes.set(xlabel="epoch", ylabel=f"{score.title} / {score.unit}", title=score.heading)
    for axes in (loss_axes, score_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    score_axes.legend(fontsize="small")
    return _png(figure)


def confusion_matrix(confusions: Mapping[str, Tensor], classes: Sequence[str]) -> bytes:
    """One panel for each network: rows true, columns predicted, each row in % of its images; a PNG."""
    size = min(4.5 + 0.25 * len(classes), 14)
    figure = Figure(figsize=(size * len(confusions), size), layout="constrained")
    panels = figure.subplots(1, len(confusions), squeeze=False)[0]
    for axes, (network, confusion) in zip(panels, confusions.items(), strict=True):
        percent = 100 * confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
        image = axes.imshow(percent.numpy(), vmin=0, vmax=100, cmap="cividis")
        accuracy = 100 * float(confusion.diag().sum() / confusion.sum())
        axes.set(xlabel="predicted class", ylabel="true class", title=f"{network}: {accuracy:.2f} %")
        _label_classes(axes, classes, both=True)
        if len(classes) <= 12:
            for (row, column), value in zip(torch.cartesian_prod(*map(torch.arange, percent.shape)).tolist(),
                                            percent.flatten().tolist(), strict=True):  # fmt: skip
                if value >= 0.5:
                    colour = "black" if value > 50 else "white"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    return _png(figure)


def routing_heat_map(routing: Mapping[str, Tensor], classes: Sequence[str]) -> bytes:
    """Mean coefficient by class and expert, one panel for each of up to four depths, first to last; a PNG.

    Layers that borrow the same routing have equal means, and count as one depth.
    """
    chosen = depths(routing)
    height = min(2.0 + 0.3 * len(classes), 12)
    figure = Figure(figsize=(4.0 * len(chosen) + 1, height), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    top = max(float(routing[name].nan_to_num().max()) for name in chosen)
    for axes, name in zip(panels, chosen, strict=True):
        image = axes.imshow(routing[name].numpy(), vmin=0, vmax=max(1.0, top), cmap="cividis", aspect="auto")
        axes.set(xlabel="expert", title=name)
        axes.title.set_fontsize(9)
        axes.set_xticks(range(routing[name].shape[1]))
    panels[0].set_ylabel("class")
    _label_classes(panels[0], classes, both=False)
    figure.colorbar(image, ax=list(panels), label="mean coefficient")
    return _png(figure)


def learning_rate_sweep(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggested: float
) -> bytes:
    """Loss by learning rate, as it was and smoothed, with the suggestion marked; a PNG."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=COLOURS[4], alpha=0.6, label="loss of one step")
    axes.plot(rates, smoothed, color=COLOURS[0], label="smoothed")
    axes.axvline(suggested, color=COLOURS[5], linestyle="--", label=f"suggestion: {suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Sweep of the learning rate")
    axes.set_ylim(top=1.1 * max(max(smoothed), losses[0]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _png(figure)


def depths(routing: Mapping[str, Tensor]) -> list[str]:
    """Up to four layer names, evenly from first to last among those whose routing differs from the one before."""
    distinct: list[str] = []
    for name, means in routing.items():
        if not distinct or not torch.equal(means.nan_to_num(), routing[distinct[-1]].nan_to_num()):
            distinct.append(name)
    places = torch.linspace(0, len(distinct) - 1, min(_DEPTHS, len(distinct))).round().long().tolist()
    return [distinct[place] for place in places]


def _label_classes(axes, classes: Sequence[str], both: bool) -> None:  # type: ignore[no-untyped-def]
    if len(classes) > _MOST_LABELS:
        return
    # Class names are not trusted: "$" would be read as mathematics.
    names = [name.replace("$", r"\$") for name in classes]
    axes.set_yticks(range(len(names)), names)
    if both:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
