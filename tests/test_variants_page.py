"""The table of variants in the docs, and the README's, say what the registry says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from condconv.variants import block_variants, variants

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `(\w+)` \| \[([^]]+)\]\(([^)]+)\) \|.*\| ([^|]+) \|$", re.MULTILINE)


def rows(page: str) -> dict[str, tuple[str, str, str]]:
    """Title, address and layers of each variant in a table."""
    return {name: rest for name, *rest in ROW.findall((ROOT / page).read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", ["README.md", "docs/variants.md"])
def test_every_variant_has_its_row(page: str) -> None:
    found = rows(page)
    assert sorted(found) == sorted([*variants, *block_variants])
    for name, (title, url, classes) in found.items():
        variant = block_variants[name] if name in block_variants else variants[name]
        assert url == variant.url
        own = (variant.block,) if name in block_variants else variant.layers
        assert classes.split() == [f"`{layer.__name__}`" for layer in own]
        assert title == variant.title or page == "README.md"
