"""Images of several sizes in one batch: routers pool over each image, not over what pads it to the batch's size.

A batch of detectors is as large as its largest image; the others are padded below and on the right. Averaged over the
padding too, an example's coefficients would depend on its companions. The sizes travel with the batch in a context
variable, as the loans of routing scopes do.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.arguments import integers
from condconv.context import ContextStack
from condconv.errors import ShapeError, argument_error


class ValidArea(NamedTuple):
    """`sizes` int64 (B, 2) of the images as height, width, which are padded to `padded` (H, W)."""

    sizes: Tensor
    padded: tuple[int, int]

    def on_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (B,) of a map (B, C, h, w) that the images fill, at least one each.

        Raises `ShapeError` for a map of another batch.
        """
        if x.shape[0] != len(self.sizes):
            raise ShapeError(
                f"a valid area of {len(self.sizes)} images holds, and the router's input of shape {tuple(x.shape)} has "
                f"{x.shape[0]} examples; run what regroups its batch in `with condconv.valid_area(None):`"
            )
        sizes = self.sizes.to(x.device)
        rows, columns = (_filled(sizes[:, i], self.padded[i], x.shape[2 + i]) for i in (0, 1))
        return rows, columns


_areas: ContextStack[ValidArea | None] = ContextStack("condconv valid areas")


@contextlib.contextmanager
def valid_area(sizes: Tensor | Sequence[Sequence[int]] | None, padded: tuple[int, int] | None = None) -> Iterator[None]:
    """Let routers pool over the images alone, inside the block: for batches that are padded below and on the right.

    Maps of fewer pixels than the images are taken to be made from them by steps of stride 2, or else in proportion.

    Args:
        sizes: height and width of each image, (B, 2) whole numbers; None for images that fill the batch, as a block
            needs inside another one for what regroups its batch.
        padded: (H, W) of the batch.

    Raises:
        ArgumentError: sizes of another shape, or that do not lie in 1 … H and 1 … W.
    """
    with _areas.holding(None if sizes is None else made_area(sizes, padded)):
        yield


def made_area(sizes: Tensor | Sequence[Sequence[int]], padded: Sequence[int] | None) -> ValidArea:
    """The checked area; see `valid_area`."""
    height, width = integers("valid_area", "padded", padded, 2, 1)
    try:
        found = torch.as_tensor(sizes)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.dim() != 2 or found.shape[1] != 2 or found.is_floating_point() or found.is_complex():
        rule = "must be whole numbers (B, 2), the height and width of each image"
        raise argument_error("valid_area", "sizes", sizes, rule, "pass one row for each image of the batch")
    most = torch.tensor([height, width], device=found.device)
    if bool(((found < 1) | (found > most)).any()):
        rule = f"must lie in 1 … {height} and 1 … {width}, the size of the batch"
        raise argument_error("valid_area", "sizes", found.tolist(), rule, "pass the sizes before padding")
    return ValidArea(found.long(), (height, width))


def hold(area: ValidArea | None) -> None:
    """Let an area hold until the next call: for hooks, which cannot stand around a block."""
    _areas.set(() if area is None else (area,))


def area_of(x: Tensor) -> ValidArea | None:
    """The area that a router has to heed for an input x (B, C, *space); None where it has none.

    Raises `ShapeError` for an input with positions that are no rows and columns.
    """
    areas = _areas.values()
    area = areas[-1] if areas else None
    if area is None or x.shape[2:].numel() == 1:
        return None
    if x.dim() != 4:
        raise ShapeError(
            f"a valid area holds, and the router's input of shape {tuple(x.shape)} has no height and width; share the "
            "routing of a module that sees maps (B, C, H, W), or batch images of one size"
        )
    return area


def average(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean of x (B, C, *space) over space, or over the valid area where one holds; (B, C), accumulated in `dtype`."""
    area = area_of(x)
    if area is None:
        space = tuple(range(2, x.dim()))
        if not x.requires_grad:
            return x.mean(space, dtype=dtype)
        return x.sum(space, dtype=dtype) / math.prod(x.shape[2:])  # Its gradient is expanded; a mean's is written out.
    rows, columns = area.on_map(x)
    in_rows, in_columns = (
        torch.arange(size, device=x.device) < filled[:, None]
        for size, filled in zip(x.shape[2:], (rows, columns), strict=True)
    )
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # (B, 1, H, W)
    return torch.where(inside, x, 0).sum(dim=(2, 3), dtype=dtype) / (rows * columns)[:, None]


def _filled(sizes: Tensor, whole: int, here: int) -> Tensor:
    """How many of `here` rows are an image's, of which `sizes` of `whole` rows are."""
    given, size = sizes, whole
    while size > here:
        size, sizes = (size + 1) // 2, (sizes + 1) // 2
    return sizes if size == here else (given * here + whole - 1) // whole
