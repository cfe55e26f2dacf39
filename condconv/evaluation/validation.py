"""A trained network on the validation set, and its latency, in plain torch."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from condconv.data import IGNORED, EpochSampler, ImageView
from condconv.evaluation.routing import RoutingStatistics, experts_by_layer
from condconv.routing_hooks import record_routing
from condconv.signals import leave_signals_to_parent

_LATENCY_WARM_UP = 5
_LATENCY_PASSES = 50


@dataclass(frozen=True)
class Validation:
    """`confusion` int64 (true class, predicted class); `routing` mean coefficients (classes, n) by layer name.

    `by_condition`: the share of right images under each of the source's conditions.
    """

    confusion: Tensor
    routing: dict[str, Tensor]
    by_condition: dict[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified right."""
        return float(self.confusion.diag().sum() / self.confusion.sum())


@torch.inference_mode()
def validate(
    network: nn.Module, view: ImageView, num_classes: int, batch_size: int, workers: int, device: torch.device
) -> Validation:
    """Run the network over a validation view, in its own precision."""
    network.to(device).eval()
    layers = experts_by_layer(network)
    statistics_ = RoutingStatistics(layers, num_classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    loader = DataLoader(
        view,
        batch_size=batch_size,
        sampler=EpochSampler(len(view), shuffle=False),
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),
    )
    names = () if view.normalise.conditions is None else view.normalise.conditions.names
    under = torch.zeros(len(names), 2)
    for images, labels, places, _ in loader:
        if layers:
            with record_routing(network) as routing:
                logits = network(images.to(device))
            statistics_.update(routing, labels)
        else:
            logits = network(images.to(device))
        keep = labels != IGNORED
        pairs = labels[keep] * num_classes + logits.argmax(dim=1).cpu()[keep]
        confusion += torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        if names:
            which = torch.tensor([view.condition_of(place) for place in places[keep].tolist()])
            right = (logits.argmax(dim=1).cpu() == labels)[keep].float()
            under.index_add_(0, which, torch.stack([right, torch.ones_like(right)], dim=1))
    by_condition = dict(zip(names, (under[:, 0] / under[:, 1]).tolist(), strict=True))
    return Validation(confusion, statistics_.compute()[0] if layers else {}, by_condition)


@torch.inference_mode()
def latency_ms(network: nn.Module, image_shape: tuple[int, ...], device: torch.device) -> float:
    """Median time of an eager forward pass on one image, in milliseconds, over 50 passes after 5 to warm up."""
    network.to(device).eval()
    image = torch.zeros(1, *image_shape, device=device)
    times = []
    for _ in range(_LATENCY_WARM_UP + _LATENCY_PASSES):
        started = time.perf_counter()
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[_LATENCY_WARM_UP:])
