"""Small conditional networks, data and analyses that the tests of the analysis share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import condconv
from condconv.analysis import Analysis, Collection, ImageAccess, RoutingGroup, RoutingTotals, measure
from condconv.analysis.collect import Accuracy

CLASSES = ("cat", "dog", "ship")


def small_network(num_classes: int = 3, experts: int = 4) -> nn.Sequential:
    """Two routing decisions: sigmoid with `experts`, softmax with 2."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), condconv.CondConv2d(6, 6, 3, num_experts=experts), nn.ReLU(),
        condconv.DynamicConv2d(6, 8, 3, num_experts=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    ).eval()  # fmt: skip


def batches(images: int, num_classes: int = 3, batch_size: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(images, 1, 10, 10, generator=generator)
    labels = torch.randint(0, num_classes, (images,), generator=generator)
    return list(zip(x.split(batch_size), labels.split(batch_size), strict=True))


def synthetic_analysis(
    coefficients: Mapping[str, Tensor],
    labels: Tensor,
    classes: tuple[str, ...] = CLASSES,
    layers: Mapping[str, tuple[str, ...]] | None = None,
) -> Analysis:
    """An analysis of given coefficients (N, n) by name, without a network."""
    groups = tuple(
        RoutingGroup(name, alpha.shape[1], (layers or {}).get(name, (name,))) for name, alpha in coefficients.items()
    )
    totals = RoutingTotals({group.name: group.num_experts for group in groups}, len(classes))
    totals.update(coefficients, labels, torch.arange(len(labels)))
    class_place = torch.full((len(classes),), -1)
    class_place[labels] = torch.arange(len(labels))
    collection = Collection(groups, totals, class_place)
    shown = min(20, len(labels))
    collection.sample_places = list(range(shown))
    collection.sample_labels = labels[:shown].tolist()
    collection.sample_coefficients = {name: alpha[:shown].float() for name, alpha in coefficients.items()}
    collection.accuracy = Accuracy(len(labels), len(labels))
    collection.counterfactuals = {"intact": Accuracy(9, 10), "mean": Accuracy(4, 10)}
    return Analysis(
        title="a network",
        data="some data",
        classes=classes,
        collection=collection,
        measures={group.name: measure(totals.of(group.name)) for group in groups},
        weight_similarity={layer: torch.eye(group.num_experts) for group in groups for layer in group.layers},
        temperatures={},
    )


def random_analysis(images: int = 30, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Analysis:
    generator = torch.Generator().manual_seed(seed)
    coefficients = {
        "early": torch.rand(images, 4, generator=generator),
        "late": torch.rand(images, 4, generator=generator),
    }
    labels = torch.randint(0, len(classes), (images,), generator=generator)
    return synthetic_analysis(coefficients, labels, classes, {"early": ("early.dw", "early.pw")})


def pictures(suffix: str = "") -> ImageAccess:
    """Grey 8x8 pictures of one brightness each."""
    return ImageAccess(
        lambda place: torch.full((1, 8, 8), place % 256, dtype=torch.uint8),
        lambda place: f"/home/me/x/{place}{suffix}.png",
    )
