"""Variants: one paper, one file. A file here registers a `Variant`; everything else finds it there.

A package from elsewhere adds its own by an entry point of the group "condconv.variants" that names such a module.
"""

from condconv.variants.base import Share, Variant, variants
from condconv.variants.discovery import discover

discover(__path__, __name__)

__all__ = ["Share", "Variant", "variants"]
