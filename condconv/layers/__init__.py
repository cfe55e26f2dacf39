"""The drop-in layers. A variant (`condconv.variants`) gives them their name, default router and number of experts."""

from condconv.layers.base import ConditionalLayer, RouterChoice, last_strategy, site_of
from condconv.layers.block import ConditionalBlock
from condconv.layers.conv import (
    ConditionalConv1d,
    ConditionalConv2d,
    ConditionalConv3d,
    ConditionalConvTranspose2d,
)
from condconv.layers.design import Common, Design, RouterFactory, made_router
from condconv.layers.linear import ConditionalLinear
from condconv.layers.tiled import TiledConv2d, route_by_tile

__all__ = [
    "Common",
    "ConditionalBlock",
    "ConditionalConv1d",
    "ConditionalConv2d",
    "ConditionalConv3d",
    "ConditionalConvTranspose2d",
    "ConditionalLayer",
    "ConditionalLinear",
    "Design",
    "RouterChoice",
    "RouterFactory",
    "TiledConv2d",
    "last_strategy",
    "made_router",
    "route_by_tile",
    "site_of",
]
