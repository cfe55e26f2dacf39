"""The latency of trained networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from condconv.timing import finished, measure


@torch.inference_mode()
def latencies_ms(
    networks: Mapping[str, nn.Module], image_shape: tuple[int, ...], device: torch.device
) -> dict[str, float]:
    """Median time of an eager forward pass on one image, in milliseconds, of each network; they take turns."""
    image = torch.zeros(1, *image_shape, device=device)
    calls = {name: finished(partial(network.to(device).eval(), image), device) for name, network in networks.items()}
    return {name: timing.ms.median for name, timing in measure(calls).items()}
