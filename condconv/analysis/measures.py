"""What the sums say about one routing decision: each number with its definition.

`DEFINITIONS` is printed in the report. N images, C classes, n experts, α the coefficients of an image, p = α / Σα its
shares. Nothing here is estimated from fewer images than were seen, except where a definition says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from condconv.analysis.totals import DEAD_SHARE, HIGH, HISTOGRAM_BINS, LOW, Totals, nearly_always

_NEAR_ZERO = round(LOW * HISTOGRAM_BINS)
"""Bins of the histogram that lie below `LOW`."""

DEFINITIONS = {
    "mean, std": "of α over the images of a class, or over all; std is the population's (divided by the count)",
    "entropy": "mean over the images of -Σ p log p / log n: 1 if all experts weigh the same, 0 if one does it all",
    "effective experts": "mean over the images of exp(-Σ p log p), from 1 to n",
    "effective experts overall": "exp of the entropy of the mean shares: which experts are used at all",
    "mutual information": "between the class and one expert's coefficient, in bits, mean over the experts. Estimator: "
    "plug-in from the joint histogram of class and 20 equal bins on [0, 1], with Miller and Madow's correction for "
    "bias, not below 0. A spread that stays inside one bin of 0.05 counts for nothing",
    "class information": "mutual information divided by the entropy of the class: 0 tells nothing of the class, 1 all",
    "variance between classes": "part of the coefficients' variance that lies between the classes' means (η²), all "
    "experts together; needs no bins",
    "spread": "√(mean variance over the images) / √(mean squared mean) over the experts: 0 where routing is constant",
    "dead": f"experts whose coefficient is below {LOW} (above four experts: below 0.2 / n) for at least "
    f"{DEAD_SHARE:.1%} of the images",
    "always on": f"experts whose coefficient is above {HIGH} for at least {DEAD_SHARE:.1%} of the images",
    "near 0, near 1": f"part of all coefficients below {LOW}, above {HIGH}",
    "top-k mass": "mean over the images of the sum of the k largest shares",
    "coefficient similarity": "mean over pairs of experts of the correlation of their coefficients over the images "
    "(experts that never change have none)",
    "weight similarity": "mean over pairs of experts of the cosine between their kernels",
}


@dataclass(frozen=True)
class Measures:
    """The numbers of one routing decision; see `DEFINITIONS`. NaN where there is nothing to compute them from."""

    images: int
    nonfinite: int
    outside: int
    class_count: Tensor
    """(C,)"""
    class_mean: Tensor
    """(C, n), NaN for a class without images."""
    class_std: Tensor
    """(C, n)"""
    mean: Tensor
    """(n,)"""
    std: Tensor
    """(n,)"""
    histogram: Tensor
    """Part of each expert's coefficients in each bin, (n, bins)."""
    largest: Tensor
    """Part of the images in which the expert is the largest, (n,)."""
    rank_share: Tensor
    """Mean share of the largest, the second, … expert of an image, (n,)."""
    information: Tensor
    """Mutual information of each expert with the class, bits, (n,)."""
    correlation: Tensor
    """(n, n), NaN where an expert never changes."""
    dead: tuple[int, ...]
    always_on: tuple[int, ...]
    entropy: float
    effective_experts: float
    effective_overall: float
    mutual_information: float
    class_information: float
    variance_between: float
    spread: float
    near_zero: float
    near_one: float
    coefficient_similarity: float

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return len(self.mean)

    @property
    def top_k_mass(self) -> Tensor:
        """Mean mass of the k largest shares for k = 1 … n, (n,)."""
        return self.rank_share.cumsum(0)


def measure(totals: Totals) -> Measures:
    """Compute the numbers of one routing decision from its sums (without the leading axis)."""
    images, n = totals.images, totals.sum.shape[1]
    count = totals.count.double().unsqueeze(1)  # (C, 1)
    class_mean = totals.sum / count
    class_variance = (totals.square_sum / count - class_mean.square()).clamp(min=0)
    mean = totals.sum.sum(dim=0) / images
    variance = (totals.square_sum.sum(dim=0) / images - mean.square()).clamp(min=0)
    information = mutual_information_bits(totals.class_histogram)
    class_entropy = float(torch.special.entr(totals.count / images).sum()) / math.log(2)
    # One expert always has the whole mass: log n = 0 is no scale, and the entropy is 0 by convention.
    entropy = float(totals.entropy_sum) / images / math.log(n) if n > 1 and images else 0.0 if images else math.nan
    correlation = _correlation(totals.product_sum / images, mean, variance)
    return Measures(
        images=images,
        nonfinite=int(totals.nonfinite),
        outside=int(totals.outside),
        class_count=totals.count,
        class_mean=class_mean,
        class_std=class_variance.sqrt(),
        mean=mean,
        std=variance.sqrt(),
        histogram=totals.histogram / images,
        largest=totals.largest / images,
        rank_share=totals.sorted_share_sum / images,
        information=information,
        correlation=correlation,
        dead=nearly_always(totals.low, images),
        always_on=nearly_always(totals.high, images),
        entropy=entropy,
        effective_experts=float(totals.effective_sum / images),
        effective_overall=float(torch.special.entr(totals.share_sum / images).sum().exp()),
        mutual_information=float(information.mean()) if images else math.nan,
        class_information=float(information.mean()) / class_entropy if class_entropy > 0 else math.nan,
        variance_between=_variance_between(count, class_mean, mean, variance, images),
        spread=_ratio(float(variance.mean().sqrt()), float(mean.square().mean().sqrt())),
        near_zero=float(totals.histogram[:, :_NEAR_ZERO].sum()) / (images * n) if images else math.nan,
        near_one=float(totals.high.sum()) / (images * n) if images else math.nan,
        coefficient_similarity=mean_off_diagonal(correlation),
    )


def mutual_information_bits(joint: Tensor) -> Tensor:
    """Mutual information between class and binned coefficient of each expert: counts (C, n, bins) → bits (n,).

    Plug-in estimate with the bias correction of G. A. Miller and W. G. Madow (1955): for each entropy
    (occupied cells - 1) / 2N nats. Clamped at 0.
    """
    counts = joint.double().transpose(0, 1)  # (n, C, bins)
    images = counts.sum(dim=(1, 2)).clamp(min=1)  # (n,)
    by_class, by_bin = counts.sum(dim=2), counts.sum(dim=1)

    def entropy(cells: Tensor) -> Tensor:
        flat = cells.flatten(1)
        plug_in = torch.special.entr(flat / images.unsqueeze(1)).sum(dim=1)
        return plug_in + ((flat > 0).sum(dim=1) - 1) / (2 * images)

    nats = entropy(by_class) + entropy(by_bin) - entropy(counts)
    return (nats / math.log(2)).clamp(min=0)


def weight_similarity(weight: Tensor) -> Tensor:
    """Cosine between the kernels of each pair of experts: (n, *kernel) → (n, n)."""
    flat = torch.nn.functional.normalize(weight.detach().flatten(1).double(), dim=1)
    return (flat @ flat.T).cpu()


def mean_off_diagonal(matrix: Tensor) -> float:
    """Mean over pairs, NaN entries left out; NaN where there is no pair."""
    off_diagonal = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return float(off_diagonal.nanmean())


def _correlation(mean_product: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    covariance = mean_product - mean.outer(mean)
    # Below this a variance is the rounding of a constant.
    std = torch.where(variance > 1e-12, variance, torch.nan).sqrt()
    return (covariance / std.outer(std)).clamp(-1, 1)


def _variance_between(count: Tensor, class_mean: Tensor, mean: Tensor, variance: Tensor, images: int) -> float:
    between = (count * (class_mean - mean).square()).nansum(dim=0) / images  # (n,)
    return _ratio(float(between.sum()), float(variance.sum()), smallest=1e-12)


def _ratio(part: float, whole: float, smallest: float = 0.0) -> float:
    return part / whole if whole > smallest else math.nan
