"""The number by which the networks of a task are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """More is better; written with two decimals.

    `column` of metrics.csv has it after an epoch, on the validation set, `train_column` on the training batches (None
    where that is not computed). `title` and `unit` are for people, `factor` brings a value to the unit. `study_column`
    and `study_title` are those of the tables of studies.
    """

    column: str
    train_column: str | None
    title: str
    unit: str
    factor: float
    study_column: str
    study_title: str

    def shown(self, value: float) -> str:
        """The value in its unit, without it."""
        return f"{self.factor * value:.2f}"

    @property
    def heading(self) -> str:
        """The title at the beginning of a line."""
        return self.title[0].upper() + self.title[1:]

    @property
    def differences(self) -> str:
        """What differences are counted in."""
        return "percentage points" if self.unit == "%" else self.unit
