"""Banks: the learned kernels, and how coefficients turn them into a lowered form."""

from condconv.banks.base import Bank
from condconv.banks.dense import DenseBank
from condconv.banks.packed import PackedBank

__all__ = ["Bank", "DenseBank", "PackedBank"]
