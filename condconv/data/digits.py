"""scikit-learn's digits: 1,797 grey images of 8x8 pixels, part of the package, so nothing is fetched."""

from __future__ import annotations

import torch

from condconv.data.source import Source, TensorImages


def open_digits() -> Source:
    """The digits, every fifth image for validation (the set is in order of writers, so both halves see all of them)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Pixels are stored as 0 … 16; brought to 0 … 255.
    images = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    is_val = torch.arange(len(labels)) % 5 == 0
    train = TensorImages(images[~is_val], labels[~is_val], "scikit-learn's digits, training")
    val = TensorImages(images[is_val], labels[is_val], "scikit-learn's digits, validation")
    classes = tuple(str(name) for name in digits.target_names)
    # A mirrored digit is another sign, so no flipping.
    return Source("digits", train, val, classes, 1, (8, 8), native=True, flip=False, mean=(0.305,), std=(0.376,))
