"""What routing looked like over a data set: sums that stream, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from condconv.data import IGNORED


def conditional_layers(model: nn.Module) -> dict[str, int]:
    """Name → number of experts of every conditional layer, in the order of the modules."""
    from condconv.layers import ConditionalLayer

    return {name: module.num_experts for name, module in model.named_modules() if isinstance(module, ConditionalLayer)}


class RoutingStatistics(Metric):
    """Mean coefficient by layer, class and expert, and the mean entropy of routing.

    The entropy of an example in a layer is -Σ p log p / log n with p = coefficients / their sum: 1 where all experts
    weigh the same, 0 where one expert does it all (and 0 for n = 1).
    """

    full_state_update = False
    count: Tensor
    entropy_sum: Tensor
    entropy_count: Tensor

    def __init__(self, layers: Mapping[str, int], num_classes: int) -> None:
        super().__init__(sync_on_compute=True)
        self.layers = dict(layers)
        self.num_classes = num_classes
        self.add_state("count", torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("entropy_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("entropy_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for index, experts in enumerate(self.layers.values()):
            name = f"sum_{index}"
            self.add_state(name, torch.zeros(num_classes, experts, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, routing: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add one batch: coefficients (B, n) by layer name, labels (B,). Examples labelled `IGNORED` don't count."""
        keep = (labels != IGNORED).cpu()
        classes = labels.cpu()[keep]
        self.count += torch.bincount(classes, minlength=self.num_classes).to(self.count)
        for index, name in enumerate(self.layers):
            if name not in routing:
                continue
            coefficients = routing[name].double()[keep]  # (B, n)
            total: Tensor = getattr(self, f"sum_{index}")
            total.index_add_(0, classes.to(total.device), coefficients.to(total.device))
            entropy = normalised_entropy(coefficients)
            self.entropy_sum += entropy.sum().to(self.entropy_sum.device)
            self.entropy_count += entropy.numel()

    def compute(self) -> tuple[dict[str, Tensor], float]:
        """Mean coefficients (classes, n) by layer name (NaN for a class never seen), and the mean entropy."""
        means = {
            name: (getattr(self, f"sum_{index}") / self.count[:, None]).float().cpu()
            for index, name in enumerate(self.layers)
        }
        return means, float(self.entropy_sum / self.entropy_count)


def normalised_entropy(coefficients: Tensor) -> Tensor:
    """Entropy of each example's coefficients, normalised as in `RoutingStatistics`: (B, n) → (B,)."""
    experts = coefficients.shape[1]
    if experts == 1:
        return torch.zeros(len(coefficients), dtype=coefficients.dtype)
    shares = coefficients / coefficients.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1) / torch.log(torch.tensor(float(experts)))
