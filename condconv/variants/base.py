"""What a variant is: the layers of one paper and the choices that the paper makes by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from condconv.layers import ConditionalBlock, ConditionalLayer, Design
from condconv.registry import Registry

Share = Literal["block", "network"] | int | Mapping[str, str] | None
"""Which layers share a router: those of a block, all, those of that many consecutive blocks, {name: regex}, or none."""


@dataclass(frozen=True)
class Variant:
    """One paper's conditional convolution.

    Args:
        name: registry name.
        title: of the paper, with venue and year.
        url: where it is read.
        equation: the kernel of an example, in the symbols of the code.
        design: which bank and which router.
        layers: the paper's layers; each replaces its `static_type`.
        share: default of `share` in a conversion.
        placement: which convolutions a conversion selects by default: the "second_half" by depth, or "all_but_first".
    """

    name: str
    title: str
    url: str
    equation: str
    design: Design
    layers: tuple[type[ConditionalLayer], ...]
    share: Share
    placement: Literal["second_half", "all_but_first"]

    def layer_for(self, static: nn.Module) -> type[ConditionalLayer] | None:
        """Return the class that replaces a static layer, or None if this variant has none for it."""
        return next((layer for layer in self.layers if isinstance(static, layer.static_type)), None)


@dataclass(frozen=True)
class BlockVariant:
    """One paper's conditional block, which wraps a block of a network and leaves its layers alone.

    Args:
        name: registry name.
        title: of the paper, with venue and year.
        url: where it is read.
        equation: the output of an example, in the symbols of the code.
        block: (block, in_channels) → the conditional block.
    """

    name: str
    title: str
    url: str
    equation: str
    block: type[ConditionalBlock]


variants: Registry[Variant] = Registry("variant")
block_variants: Registry[BlockVariant] = Registry("variant of blocks")
