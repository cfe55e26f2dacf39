"""Measuring which strategy is the fastest for each layer, on this machine and for these shapes, and remembering it."""

from condconv.tuning.measuring import TunedLayer, Tuning, tune
from condconv.tuning.records import pin_records, restore_pins

__all__ = ["TunedLayer", "Tuning", "pin_records", "restore_pins", "tune"]
