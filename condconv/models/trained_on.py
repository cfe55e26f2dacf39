"""What a network was trained on, kept where timm keeps it: in the network's `pretrained_cfg`.

So ``timm.data.resolve_model_data_config(model)`` finds size, mean and standard deviation too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_KEPT = "pretrained_cfg"
_KEYS = ("input_size", "mean", "std", "label_names", "native")


def note_images(model: nn.Module, images: Mapping[str, Any]) -> None:
    """Remember what `model` was trained on: `input_size` (C, H, W), `mean`, `std` by channel, `label_names`, `native`.

    `native`: images of that size are used as they are; others are cropped and resized to it either way.

    Raises:
        ValueError: a value is missing, or of another kind.
    """
    if set(images) != set(_KEYS):
        raise ValueError(f"images: expected {', '.join(_KEYS)}; got {', '.join(images)}")
    size, names = tuple(map(int, images["input_size"])), tuple(map(str, images["label_names"]))
    mean, std = (tuple(map(float, images[name])) for name in ("mean", "std"))
    if len(size) != 3 or min(size) < 1 or not len(mean) == len(std) == size[0] or min(std) <= 0:
        raise ValueError(f"images: input_size={size}, mean={mean} and std={std} do not go together")
    noted = {"input_size": size, "mean": mean, "std": std, "label_names": names, "native": bool(images["native"])}
    setattr(model, _KEPT, {**(getattr(model, _KEPT, None) or {}), **noted, "num_classes": len(names)})


def noted_images(model: nn.Module) -> dict[str, Any] | None:
    """What `note_images` was told; None where nothing is known but the architecture's own size."""
    about: Any = getattr(model, _KEPT, None) or {}
    return {name: about[name] for name in _KEYS} if all(name in about for name in _KEYS) else None
