"""Banks: the learned kernels, and how coefficients turn them into a lowered form."""

from condconv.banks.dense import DenseBank

__all__ = ["DenseBank"]
