"""The device that a command runs on."""

from __future__ import annotations

import torch

from condconv.errors import ArgumentError
from condconv.registry import unknown_name_message

DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str, precision: str = "32") -> torch.device:
    """The device of `--device`; `ArgumentError` where it is unknown, not there, or cannot do the precision."""
    if name not in DEVICES:
        raise ArgumentError(f"--device: {unknown_name_message('device', name, DEVICES)}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(
            "--device cuda: torch finds no CUDA device; pass --device cpu or install torch for your GPU"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError("--device mps: torch finds no Apple GPU; pass --device cpu")
    if precision == "16" and name == "cpu":
        raise ArgumentError("--precision 16: float16 training needs a GPU; pass --precision bf16 or 32")
    return torch.device(name)
