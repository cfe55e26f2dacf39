"""What compression did, step by step: a table, a CSV file and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from condconv.safe_text import write_csv

HEAD = ("step", "score", "bytes", "macs")


class Step(NamedTuple):
    """The network after a step."""

    name: str
    score: float
    bytes: int
    """Of the weights in its file."""
    macs: int
    """Multiply-adds of one example, by the papers' convention."""


@dataclass(frozen=True)
class Compressed:
    """What `condconv.compress` returns."""

    network: nn.Module
    """An inference form; `condconv.save_pretrained` writes it."""
    steps: tuple[Step, ...]
    """The first is the network as it was given."""
    max_loss: float
    max_bytes: int
    twin_bytes: int
    """Of the static network's weights in f32."""
    of_accuracy: bool
    """Whether the score is the accuracy in percent."""

    @property
    def small_enough(self) -> bool:
        """Whether the weights take at most `max_bytes`."""
        return self.steps[-1].bytes <= self.max_bytes

    def __str__(self) -> str:
        width = max(len(step.name) for step in self.steps)
        score = "accuracy, %" if self.of_accuracy else "score"
        lines = [f"{'':<{width}} {score:>11} {'MB':>8} {'M mult-adds':>12}"]
        for name, value, size, macs in self.steps:
            lines.append(f"{name:<{width}} {value:>11.2f} {size / 1e6:>8.2f} {macs / 1e6:>12.2f}")
        lines.append(f"{'static network, f32':<{width}} {'':>11} {self.twin_bytes / 1e6:>8.2f}")
        if not self.small_enough:
            lines.append(
                f"larger than {self.max_bytes / 1e6:.2f} MB: what would make it smaller loses more than "
                f"{self.max_loss:g}; allow more with max_loss, or fine-tune with fewer experts"
            )
        return "\n".join(lines)

    def write_csv(self, path: Path) -> None:
        """Write the steps."""
        write_csv(path, HEAD, self.steps)

    def picture(self) -> bytes:
        """Score, size and multiply-adds by step, with what was allowed; a PNG. Needs matplotlib."""
        from matplotlib.figure import Figure

        from condconv.evaluation.figures import png

        figure = Figure(figsize=(11, 1.6 + 0.45 * len(self.steps)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        places = range(len(self.steps))
        score = "accuracy / %" if self.of_accuracy else "score"
        least = self.steps[0].score - self.max_loss
        panels[0].plot([step.score for step in self.steps], places, "o-", color="#0072B2")
        for axes, (values, title, line, meaning) in zip(panels, self._panels(score, least), strict=True):
            if axes is not panels[0]:
                axes.barh(places, values, color="#56B4E9")
            if line is not None:
                axes.axvline(line, color="#D55E00", linestyle="--", label=meaning)
                axes.legend(fontsize="small")
            axes.set(xlabel=title)
            axes.grid(alpha=0.3, axis="x")
        panels[0].set_yticks(places, [step.name for step in self.steps], fontsize="small")
        panels[0].invert_yaxis()
        return png(figure)

    def _panels(self, score: str, least: float) -> Iterator[tuple[list[float], str, float | None, str]]:
        """Values, title, and the line that is not to be crossed, with its meaning."""
        yield [step.score for step in self.steps], score, least, "lowest allowed"
        yield [step.bytes / 1e6 for step in self.steps], "weights / MB", self.max_bytes / 1e6, "largest allowed"
        yield [step.macs / 1e6 for step in self.steps], "multiply-adds / M", None, ""
