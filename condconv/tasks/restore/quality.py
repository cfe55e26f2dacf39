"""How close a picture is to another: peak signal-to-noise ratio and structural similarity, picture by picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

MOST_DB = 100.0
"""Of equal pictures, whose ratio is infinite."""


def psnr(pictures: Tensor, clean: Tensor) -> Tensor:
    """Of pictures (B, C, H, W) on [0, 1], cut off there, beside the clean ones: (B,), dB."""
    error = (pictures.float().clamp(0, 1) - clean).square().flatten(1).mean(dim=1)
    return (-10 * torch.log10(error)).clamp(max=MOST_DB)


def ssim(pictures: Tensor, clean: Tensor) -> Tensor:
    """Structural similarity with the usual Gaussian window of 11 pixels: (B,)."""
    found = structural_similarity_index_measure(
        pictures.float().clamp(0, 1), clean, data_range=1.0, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.reshape(-1)
