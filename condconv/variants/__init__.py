"""Variants: one paper, one file. A file here registers a `Variant`; everything else finds it there."""

from condconv.variants.base import Share, Variant, variants
from condconv.variants.condconv import CondConv1d, CondConv2d, CondConv3d, CondConvTranspose2d, CondLinear
from condconv.variants.dynamic_convolution import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicConvTranspose2d,
    DynamicLinear,
)

__all__ = [
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "CondConvTranspose2d",
    "CondLinear",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvTranspose2d",
    "DynamicLinear",
    "Share",
    "Variant",
    "variants",
]
