"""Conversion of any network: plan → apply → revert or collapse."""

from condconv.conversion.apply import forget_originals, revert
from condconv.conversion.collapse import Deviation, collapse
from condconv.conversion.plan import convert, plan
from condconv.conversion.planned import Plan, PlannedLayer

__all__ = ["Deviation", "Plan", "PlannedLayer", "collapse", "convert", "forget_originals", "plan", "revert"]
