"""From a box to the network's input and back: one affine map, in pixels.

B = batch, K = joints. Simple Baselines' conventions: the box is widened to the input's shape and by a quarter, and its
centre is the middle of the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MARGIN = 1.25


def input_to_image(box: Tensor, size: tuple[int, int], scale: float = 1.0, degrees: float = 0.0) -> Tensor:
    """The map (2, 3) from a pixel (u, v, 1) of an input of `size` (H, W) to the image's, for a box (4,) as x, y, w, h.

    Args:
        box: in the image.
        size: of the input.
        scale: above 1 more of the surroundings is seen.
        degrees: by which what is seen is turned.
    """
    x, y, width, height = box.tolist()
    factor = _MARGIN * scale * max(width / size[1], height / size[0], 1e-6)
    cos, sin = (factor * turn(math.radians(degrees)) for turn in (math.cos, math.sin))
    linear = torch.tensor([[cos, -sin], [sin, cos]])
    centre = torch.tensor([x + width / 2, y + height / 2])
    middle = torch.tensor([size[1] / 2, size[0] / 2])
    return torch.cat([linear, (centre - linear @ middle)[:, None]], dim=1)


def apply(matrix: Tensor, points: Tensor) -> Tensor:
    """Map points (*, 2) by a matrix (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def inverse(matrix: Tensor) -> Tensor:
    """The map back, (2, 3)."""
    linear = torch.linalg.inv(matrix[:, :2])
    return torch.cat([linear, -(linear @ matrix[:, 2:])], dim=1)


def warp(image: Tensor, matrix: Tensor, size: Sequence[int]) -> Tensor:
    """The input uint8 (C, H, W) of an image uint8 (C, h, w), bilinear; outside of the image it is black."""
    height, width = size
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = apply(matrix, torch.stack([u, v], dim=-1).float())  # (H, W, 2) as x, y
    shape = torch.tensor([image.shape[2], image.shape[1]])
    grid = (2 * points + 1) / shape - 1
    return F.grid_sample(image[None].float(), grid[None], align_corners=False)[0].round().byte()
