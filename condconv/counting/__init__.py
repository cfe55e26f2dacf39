"""Multiply-adds and parameters: by the papers' convention, and as executed."""

from condconv.counting.count import count
from condconv.counting.formulas import register_formula
from condconv.counting.table import Count, Row

__all__ = ["Count", "Row", "count", "register_formula"]
