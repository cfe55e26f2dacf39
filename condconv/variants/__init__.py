"""Variants: one paper, one file. A file here registers a `Variant` or a `BlockVariant`; everything else finds it there.

A package from elsewhere adds its own by an entry point of the group "condconv.variants" that names such a module.
"""

from condconv.variants.base import BlockVariant, Share, Variant, block_variants, variants
from condconv.variants.discovery import discover

discover(__path__, __name__)

__all__ = ["BlockVariant", "Share", "Variant", "block_variants", "variants"]
