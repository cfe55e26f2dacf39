"""The drop-in layers. A variant (`condconv.variants`) gives them their name, default router and number of experts."""

from condconv.layers.base import ConditionalLayer, RouterChoice, RouterFactory, last_strategy
from condconv.layers.conv import (
    ConditionalConv1d,
    ConditionalConv2d,
    ConditionalConv3d,
    ConditionalConvTranspose2d,
)
from condconv.layers.linear import ConditionalLinear

__all__ = [
    "ConditionalConv1d",
    "ConditionalConv2d",
    "ConditionalConv3d",
    "ConditionalConvTranspose2d",
    "ConditionalLayer",
    "ConditionalLinear",
    "RouterChoice",
    "RouterFactory",
    "last_strategy",
]
