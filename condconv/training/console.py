"""What the user sees while it trains: a coloured table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console
from rich.markup import escape

from condconv.progress import Progress, progress_bar
from condconv.runs.metrics import EpochRow
from condconv.tasks import Score


def header(score: Score) -> str:
    """The line above those of the epochs."""
    return (
        f"{'network':<12} {'epoch':>9} {'loss':>8} {'val loss':>8} {score.title:>9} {'images/s':>9} {'memory':>9} "
        f"{'entropy':>8} {'dead':>5} {'on':>5} {'bimodal':>8} {'ETA':>8}"
    )


class RunConsole:
    """Prints notices and one line for each epoch; silent in all processes but the first."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.console.quiet = quiet
        self._network = ""

    def notice(self, text: str) -> None:
        """One line the user should see."""
        self.console.print(escape(text), style="yellow" if text.startswith("notice:") else "")

    def epoch(self, rows: Sequence[EpochRow], epochs: int, score: Score) -> None:
        """The line of the last row; a header where a network begins."""
        row = rows[-1]
        if row["network"] != self._network:
            self._network = str(row["network"])
            self.console.print(header(score), style="bold")
        self.console.print(epoch_line(rows, epochs, score))

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """A bar, where somebody is watching."""
        return progress_bar(what, self.console)

    def table(self, text: str) -> None:
        """A block of text as it is."""
        self.console.print(escape(text))


def epoch_line(rows: Sequence[EpochRow], epochs: int, score: Score) -> str:
    """One aligned line. The ETA is for this network: epochs left times the mean of those done."""
    row = rows[-1]
    left = (epochs - int(row["epoch"])) * sum(float(r["seconds"]) for r in rows) / len(rows)
    unit = "%" if score.unit == "%" else ""
    value = f"{score.shown(float(row[score.column]))}{unit}"
    loss = f"{row['val_loss']:8.4f}" if "val_loss" in row else f"{'-':>8}"
    return (
        f"{row['network']:<12} {row['epoch']:>4}/{epochs:<4} {row['train_loss']:8.4f} {loss} "
        f"{value:>9} {row['images_per_s']:9.0f} {row['memory_mb']:6.0f} MB "
        f"{_routers(row)} {duration(left):>8}"
    )


def _routers(row: EpochRow) -> str:
    """Entropy, dead and always-on experts, bimodality; dashes for a static network."""
    if row["router_entropy"] == "":
        return f"{'-':>8} {'-':>5} {'-':>5} {'-':>8}"
    return (
        f"{row['router_entropy']:8.4f} {row['dead_experts']:5} {row['always_on_experts']:5} "
        f"{row['router_bimodality']:8.3f}"
    )


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
