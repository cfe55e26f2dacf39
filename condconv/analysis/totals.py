"""Sums over images, from which every number of the analysis follows. Their size does not depend on how many images
there are.

R routing decisions with the same number of experts n are kept in the same tensors, so that a batch costs a fixed number
of tensor operations however deep the network is. B batch, C classes, K images kept for each expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from condconv.errors import ShapeError

HISTOGRAM_BINS = 100
CLASS_BINS = 20
TOP_IMAGES = 8
LOW, HIGH = 0.05, 0.95
"""A coefficient below LOW is near 0, one above HIGH near 1."""
DEAD_SHARE = 0.999
"""Part of the images for which an expert must be off (on) to count as dead (always on)."""


def off_below(experts: int) -> float:
    """Below what a coefficient counts as off: `LOW`, but at most a fifth of an equal share.

    A softmax over many experts would otherwise be dead from the start.
    """
    return min(LOW, 0.2 / experts)


def nearly_always(count: Tensor, images: int) -> tuple[int, ...]:
    """The experts that are so for at least `DEAD_SHARE` of the images: count (n,)."""
    return tuple((count >= DEAD_SHARE * images).nonzero().flatten().tolist()) if images else ()


@dataclass(frozen=True)
class Totals:
    """Sums over the images; every tensor has a leading axis R while they are collected, and none in `of(name)`.

    Examples with a coefficient that is not finite are counted in `nonfinite` and left out of everything else.
    """

    count: Tensor
    """Examples by class, int64 (C,)."""
    sum: Tensor
    """Of the coefficients, f64 (C, n)."""
    square_sum: Tensor
    """Of their squares, f64 (C, n)."""
    product_sum: Tensor
    """Of the products of two experts' coefficients, f64 (n, n)."""
    histogram: Tensor
    """Coefficients by expert and bin; `HISTOGRAM_BINS` equal bins on [0, 1], the outer ones open: int64 (n, bins)."""
    class_histogram: Tensor
    """Coefficients by class, expert and bin; `CLASS_BINS` equal bins: int32 (C, n, bins)."""
    entropy_sum: Tensor
    """Of the entropy, in nats, of each example's shares (its coefficients over their sum), f64 ()."""
    effective_sum: Tensor
    """Of exp(entropy): the number of experts that would have this entropy if they weighed the same, f64 ()."""
    share_sum: Tensor
    """Of the shares, f64 (n,)."""
    sorted_share_sum: Tensor
    """Of the shares, largest first, f64 (n,)."""
    largest: Tensor
    """Examples in which the expert's coefficient is the largest, int64 (n,)."""
    low: Tensor
    """Examples with a coefficient that is off, see `off_below`, int64 (n,)."""
    high: Tensor
    """Examples with a coefficient above `HIGH`, int64 (n,)."""
    outside: Tensor
    """Coefficients outside [0, 1], int64 ()."""
    nonfinite: Tensor
    """Examples with a coefficient that is not finite, int64 ()."""
    top_value: Tensor
    """The largest coefficients of each expert, -inf where there are fewer images, f64 (n, K)."""
    top_place: Tensor
    """The images they are of, -1 where there are fewer, int64 (n, K)."""

    @classmethod
    def zeros(cls, routings: int, num_experts: int, num_classes: int) -> Totals:
        """Return the sums over no image, with a leading axis of `routings`."""
        c, n = num_classes, num_experts
        shapes = {
            "count": (c,), "sum": (c, n), "square_sum": (c, n), "product_sum": (n, n),
            "histogram": (n, HISTOGRAM_BINS), "class_histogram": (c, n, CLASS_BINS), "entropy_sum": (),
            "effective_sum": (), "share_sum": (n,), "sorted_share_sum": (n,), "largest": (n,), "low": (n,),
            "high": (n,), "outside": (), "nonfinite": (), "top_value": (n, TOP_IMAGES), "top_place": (n, TOP_IMAGES),
        }  # fmt: skip
        real = {"sum", "square_sum", "product_sum", "entropy_sum", "effective_sum", "share_sum", "sorted_share_sum"}
        tensors = {
            name: torch.zeros((routings, *shape), dtype=torch.float64 if name in real else torch.int64)
            for name, shape in shapes.items()
        }
        tensors["class_histogram"] = tensors["class_histogram"].int()
        tensors["top_value"] = torch.full((routings, n, TOP_IMAGES), -torch.inf, dtype=torch.float64)
        tensors["top_place"] -= 1
        return cls(**tensors)

    def row(self, index: int) -> Totals:
        """Return the sums of one routing decision, without the leading axis; views."""
        return Totals(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def rows(self, start: int, length: int) -> Totals:
        """Return the sums of some neighbouring routing decisions; views."""
        return Totals(**{field.name: getattr(self, field.name).narrow(0, start, length) for field in fields(self)})

    @property
    def images(self) -> int:
        """Examples that counted."""
        return int(self.count.sum())

    def add(self, coefficients: Tensor, labels: Tensor, places: Tensor) -> None:
        """Add a batch: coefficients (R, B, n), labels (B,) in 0 … C - 1, places (B,) of the images."""
        alpha = coefficients.double()
        finite = alpha.isfinite().all(dim=2)  # (R, B)
        self.nonfinite.add_((~finite).sum(dim=1))
        alpha = alpha.masked_fill(~finite.unsqueeze(2), 0)
        self._add_moments(alpha, finite, labels)
        self._add_histograms(alpha, finite, labels)
        self._add_shares(alpha, finite)
        self._add_top(alpha, finite, places)

    def _add_moments(self, alpha: Tensor, finite: Tensor, labels: Tensor) -> None:
        self.count.index_add_(1, labels, finite.long())
        self.sum.index_add_(1, labels, alpha)
        self.square_sum.index_add_(1, labels, alpha.square())
        self.product_sum.baddbmm_(alpha.mT, alpha)

    def _add_histograms(self, alpha: Tensor, finite: Tensor, labels: Tensor) -> None:
        routings, batch, n = alpha.shape
        ones = finite.unsqueeze(2).expand_as(alpha).long()  # (R, B, n)
        fine = (alpha * HISTOGRAM_BINS).clamp(0, HISTOGRAM_BINS - 1).long()
        self.histogram.scatter_add_(2, fine.mT, ones.mT)
        # Bins of the fine histogram are whole parts of the coarse one's.
        coarse = fine.div(HISTOGRAM_BINS // CLASS_BINS, rounding_mode="floor")
        cell = (labels.view(1, batch, 1) * n + torch.arange(n)) * CLASS_BINS + coarse  # (R, B, n)
        self.class_histogram.view(routings, -1).scatter_add_(1, cell.flatten(1), ones.flatten(1).int())
        self.low.add_(((alpha < off_below(n)) & finite.unsqueeze(2)).sum(dim=1))
        self.high.add_((alpha > HIGH).sum(dim=1))
        self.outside.add_(((alpha < 0) | (alpha > 1)).sum(dim=(1, 2)))

    def _add_shares(self, alpha: Tensor, finite: Tensor) -> None:
        positive = alpha.clamp(min=0)
        total = positive.sum(dim=2, keepdim=True)
        shares = torch.where(total > 0, positive / total, 0.0)  # (R, B, n)
        entropy = torch.special.entr(shares).sum(dim=2)  # (R, B)
        self.entropy_sum.add_(entropy.sum(dim=1))
        self.effective_sum.add_((entropy.exp() * finite).sum(dim=1))
        self.share_sum.add_(shares.sum(dim=1))
        self.sorted_share_sum.add_(shares.sort(dim=2, descending=True).values.sum(dim=1))
        self.largest.scatter_add_(1, alpha.argmax(dim=2), finite.long())

    def _add_top(self, alpha: Tensor, finite: Tensor, places: Tensor) -> None:
        candidates = alpha.masked_fill(~finite.unsqueeze(2), -torch.inf).mT  # (R, n, B)
        values, order = candidates.topk(min(TOP_IMAGES, candidates.shape[2]), dim=2)
        found = torch.where(values > -torch.inf, places[order], -1)
        values = torch.cat([self.top_value, values], dim=2)
        best, order = values.topk(TOP_IMAGES, dim=2)
        self.top_place.copy_(torch.cat([self.top_place, found], dim=2).gather(2, order))
        self.top_value.copy_(best)


class RoutingTotals:
    """The sums of every routing decision of a network.

    Args:
        experts: name of the routing decision → number of experts, in the order of depth.
        num_classes: C.
    """

    def __init__(self, experts: Mapping[str, int], num_classes: int) -> None:
        self.experts = dict(experts)
        self.num_classes = num_classes
        self._names: dict[int, list[str]] = {}
        for name, n in self.experts.items():
            self._names.setdefault(n, []).append(name)
        self._totals = {n: Totals.zeros(len(names), n, num_classes) for n, names in self._names.items()}

    def of(self, name: str) -> Totals:
        """Return the sums of one routing decision (views, without the leading axis)."""
        n = self.experts[name]
        return self._totals[n].row(self._names[n].index(name))

    def update(self, coefficients: Mapping[str, Tensor], labels: Tensor, places: Tensor) -> None:
        """Add a batch.

        Args:
            coefficients: name → (B, n), or (k B, n) where a layer was called k times. Names may be missing.
            labels: (B,), int64 in 0 … C - 1.
            places: (B,), int64, which images these are.

        Raises:
            ShapeError: coefficients of another number of examples.
        """
        for n, names in self._names.items():
            present = [name for name in names if name in coefficients]
            lengths = {len(coefficients[name]) for name in present}
            if present == names and lengths == {len(labels)}:
                self._totals[n].add(torch.stack([coefficients[name] for name in names]), labels, places)
                continue
            for name in present:
                row = self._totals[n].rows(names.index(name), 1)
                calls = _calls(name, coefficients[name], labels)
                row.add(coefficients[name].unsqueeze(0), labels.repeat(calls), places.repeat(calls))


def _calls(name: str, coefficients: Tensor, labels: Sequence[int] | Tensor) -> int:
    """How often a layer was called for this batch."""
    calls, rest = divmod(len(coefficients), max(1, len(labels)))
    if rest:
        raise ShapeError(
            f"{name}: {len(coefficients)} routing decisions for {len(labels)} images; a layer that regroups its batch "
            "cannot be analysed by image, so leave its block out of the conversion"
        )
    return calls
