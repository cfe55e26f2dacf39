"""Joints as heatmaps and back. B = batch, K = joints, h and w = height and width of the maps, a quarter of the input's.

Encoding (Simple Baselines): a Gaussian of deviation 2 and peak 1, cut at three deviations, around the joint's position
rounded to a pixel. Decoding: the highest pixel, moved a quarter towards its higher neighbour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condconv.models.pose import STRIDE

SIGMA = 2.0
_RADIUS = 6


def encode(joints: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Joints (B, K, 3) in pixels of an input of `size` (H, W) → heatmaps (B, K, h, w) and which of them count (B, K).

    Joints that are not labelled, or whose Gaussian lies outside, do not count.
    """
    height, width = (side // STRIDE for side in size)
    centre = torch.floor(joints[..., :2] / STRIDE + 0.5)  # (B, K, 2) as x, y
    limits = torch.tensor([width, height], device=joints.device)
    inside = ((centre + _RADIUS >= 0) & (centre - _RADIUS < limits)).all(dim=-1)
    dx = torch.arange(width, device=joints.device) - centre[..., :1]  # (B, K, w)
    dy = torch.arange(height, device=joints.device) - centre[..., 1:]  # (B, K, h)
    across, down = (torch.exp(-(d**2) / (2 * SIGMA**2)) * (d.abs() <= _RADIUS) for d in (dx, dy))
    return down[..., :, None] * across[..., None, :], inside & (joints[..., 2] > 0)


def decode(heatmaps: Tensor) -> Tensor:
    """Heatmaps (B, K, h, w) → joints (B, K, 3): x and y in pixels of the input, and the height of the peak."""
    height, width = heatmaps.shape[2:]
    score, place = heatmaps.flatten(2).max(dim=2)
    x, y = place % width, torch.div(place, width, rounding_mode="floor")

    inner = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)

    def towards(step: int) -> Tensor:
        """A quarter in the direction of the higher of the two neighbours that are `step` away; 0 at an edge."""
        after, before = (place + step).where(inner, 0), (place - step).where(inner, 0)
        at = heatmaps.flatten(2)
        difference = at.gather(2, after[..., None]) - at.gather(2, before[..., None])
        return difference[..., 0].sign() * inner / 4

    return torch.stack([STRIDE * (x + towards(1)), STRIDE * (y + towards(width)), score], dim=-1)


def unmirrored(heatmaps: Tensor, mirror: Tensor) -> Tensor:
    """Heatmaps (B, K, h, w) of a mirrored input, as those of the input; `mirror` (K,) says which joint is which.

    They are moved one pixel to the right, since a pixel of the maps is the first of four of the input.
    """
    back = heatmaps.flip(3)[:, mirror]
    return torch.cat([back[..., :1], back[..., :-1]], dim=-1)
