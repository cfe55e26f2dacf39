"""Banks: the learned kernels, and how coefficients turn them into a lowered form. Each answers for itself."""

from condconv.banks.base import Affine, Bank, KernelBank, Packing
from condconv.banks.dense import DenseBank
from condconv.banks.folding import scale_outputs
from condconv.banks.packed import PackedBank
from condconv.banks.scaled import ScaledBank
from condconv.banks.static import StaticBank

__all__ = [
    "Affine",
    "Bank",
    "DenseBank",
    "KernelBank",
    "PackedBank",
    "Packing",
    "ScaledBank",
    "StaticBank",
    "scale_outputs",
]
