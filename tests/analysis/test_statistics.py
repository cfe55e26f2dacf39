"""Streaming sums equal a naive computation over all coefficients in memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from torch import Tensor

from condconv.analysis import Measures, RoutingTotals, measure
from condconv.analysis.measures import mutual_information_bits, weight_similarity
from condconv.analysis.totals import CLASS_BINS, HISTOGRAM_BINS, TOP_IMAGES
from condconv.errors import ShapeError


def stream(alpha: Tensor, labels: Tensor, classes: int, cuts: list[int]) -> RoutingTotals:
    """The sums of coefficients (N, n) that come in batches cut at `cuts`."""
    totals = RoutingTotals({"layer": alpha.shape[1]}, classes)
    edges = sorted({0, len(alpha), *(cut % (len(alpha) + 1) for cut in cuts)})
    for start, end in zip(edges, edges[1:], strict=False):
        totals.update({"layer": alpha[start:end]}, labels[start:end], torch.arange(start, end))
    return totals


@st.composite
def recorded(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, list[int]]:
    images, n, classes = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    alpha = torch.rand(images, n, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        alpha = torch.softmax(8 * alpha, dim=1)
    if draw(st.booleans()):  # Values on the edges of bins, ties, constants
        alpha = alpha.round(decimals=1)
    labels = torch.randint(0, classes, (images,), generator=generator)
    return alpha, labels, classes, draw(st.lists(st.integers(0, 40), max_size=4))


@settings(deadline=None, max_examples=60)
@given(recorded())
def test_streaming_equals_naive(case: tuple[Tensor, Tensor, int, list[int]]) -> None:
    alpha, labels, classes, cuts = case
    found = measure(stream(alpha, labels, classes, cuts).of("layer"))
    a, y = alpha.numpy(), labels.numpy()
    n = a.shape[1]
    for label in range(classes):
        mine = a[y == label]
        assert int(found.class_count[label]) == len(mine)
        if len(mine):
            np.testing.assert_allclose(found.class_mean[label], mine.mean(axis=0), atol=1e-12)
            np.testing.assert_allclose(found.class_std[label], mine.std(axis=0), atol=1e-7)
        else:
            assert found.class_mean[label].isnan().all()
    np.testing.assert_allclose(found.mean, a.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.std, a.std(axis=0), atol=1e-7)
    check_histogram(found, a)
    check_shares(found, a)
    check_between(found, a, y, classes)
    for expert in range(n):
        assert (expert in found.dead) == ((a[:, expert] < min(0.05, 0.2 / n)).mean() >= 0.999)
        assert (expert in found.always_on) == ((a[:, expert] > 0.95).mean() >= 0.999)


def check_histogram(found: Measures, a: np.ndarray) -> None:
    for expert in range(a.shape[1]):
        expected, _ = np.histogram((a[:, expert] * HISTOGRAM_BINS).astype(int).clip(0, 99), bins=100, range=(0, 100))
        np.testing.assert_allclose(found.histogram[expert], expected / len(a), atol=1e-12)
    assert found.near_zero == pytest.approx((a < 0.05).mean())
    assert found.near_one == pytest.approx((a > 0.95).mean())


def check_shares(found: Measures, a: np.ndarray) -> None:
    total = a.sum(axis=1, keepdims=True)
    p = np.divide(a, total, out=np.zeros_like(a), where=total > 0)
    h = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
    assert found.entropy == pytest.approx(h.mean() / np.log(a.shape[1]) if a.shape[1] > 1 else 0, abs=1e-9)
    assert found.effective_experts == pytest.approx(np.exp(h).mean())
    mean_p = p.mean(axis=0)
    overall = np.exp(-(mean_p * np.log(np.where(mean_p > 0, mean_p, 1))).sum())
    assert found.effective_overall == pytest.approx(overall)
    np.testing.assert_allclose(found.top_k_mass, np.sort(p, axis=1)[:, ::-1].mean(axis=0).cumsum(), atol=1e-12)
    np.testing.assert_allclose(found.largest, np.bincount(a.argmax(axis=1), minlength=a.shape[1]) / len(a))


def check_between(found: Measures, a: np.ndarray, y: np.ndarray, classes: int) -> None:
    bins = np.minimum((a * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1) // (HISTOGRAM_BINS // CLASS_BINS)
    for expert in range(a.shape[1]):
        cells = len(set(zip(y.tolist(), bins[:, expert].tolist(), strict=True)))
        correction = (len(set(y.tolist())) + len(set(bins[:, expert].tolist())) - cells - 1) / (2 * len(a))
        nats = max(0.0, mutual_info_score(y, bins[:, expert]) + correction)
        assert float(found.information[expert]) == pytest.approx(nats / math.log(2), abs=1e-9)
    variance = a.var(axis=0)
    if variance.sum() > 1e-10:
        means = np.stack([a[y == c].mean(axis=0) if (y == c).any() else a.mean(axis=0) for c in range(classes)])
        between = (np.bincount(y, minlength=classes)[:, None] * (means - a.mean(axis=0)) ** 2).sum(axis=0) / len(a)
        assert found.variance_between == pytest.approx(between.sum() / variance.sum(), abs=1e-6)
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            if min(variance[i], variance[j]) > 1e-6:
                expected = np.corrcoef(a[:, i], a[:, j])[0, 1]
                assert float(found.correlation[i, j]) == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(recorded())
def test_top_images_are_the_largest(case: tuple[Tensor, Tensor, int, list[int]]) -> None:
    alpha, labels, classes, cuts = case
    totals = stream(alpha, labels, classes, cuts).of("layer")
    kept = min(TOP_IMAGES, len(alpha))
    for expert in range(alpha.shape[1]):
        values, places = totals.top_value[expert], totals.top_place[expert]
        torch.testing.assert_close(values[:kept], alpha[:, expert].sort(descending=True).values[:kept])
        torch.testing.assert_close(alpha[places[:kept], expert], values[:kept])
        assert len(set(places[:kept].tolist())) == kept
        assert (places[kept:] == -1).all()


def test_layers_of_different_widths_and_repeated_calls_are_told_apart() -> None:
    totals = RoutingTotals({"a": 3, "b": 2, "c": 3}, 2)
    a, b, c = torch.rand(4, 3), torch.rand(4, 2), torch.rand(8, 3)
    labels = torch.tensor([0, 1, 1, 0])
    totals.update({"a": a, "b": b, "c": c}, labels, torch.arange(4))
    assert [totals.of(name).images for name in "abc"] == [4, 4, 8]
    torch.testing.assert_close(totals.of("a").sum.sum(dim=0), a.double().sum(dim=0))
    torch.testing.assert_close(totals.of("c").sum[1], c.double()[[1, 2, 5, 6]].sum(dim=0))
    totals.update({"b": b}, labels, torch.arange(4, 8))
    assert [totals.of(name).images for name in "abc"] == [4, 8, 8]


def test_a_regrouped_batch_is_refused() -> None:
    totals = RoutingTotals({"windows": 2}, 2)
    with pytest.raises(ShapeError, match="windows: 5 routing decisions for 2 images"):
        totals.update({"windows": torch.rand(5, 2)}, torch.zeros(2, dtype=torch.int64), torch.arange(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_examples_that_are_not_finite_are_counted_and_left_out(bad: float) -> None:
    alpha = torch.rand(6, 3)
    damaged = alpha.clone()
    damaged[[1, 4], [0, 2]] = bad
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    kept = [0, 2, 3, 5]
    found = measure(stream(damaged, labels, 2, [3]).of("layer"))
    expected = measure(stream(alpha[kept], labels[kept], 2, []).of("layer"))
    assert (found.nonfinite, found.images) == (2, 4)
    assert found.entropy == pytest.approx(expected.entropy)
    for name in ("mean", "std", "class_mean", "histogram", "largest", "information", "rank_share"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert not set(stream(damaged, labels, 2, []).of("layer").top_place.flatten().tolist()) & {1, 4}


def test_coefficients_outside_the_unit_interval_are_counted_and_go_into_the_outer_bins() -> None:
    alpha = torch.tensor([[-0.5, 2.0], [0.5, 1e30]])
    found = measure(stream(alpha, torch.tensor([0, 0]), 1, []).of("layer"))
    assert found.outside == 3
    assert found.histogram[0, 0] == 0.5
    assert found.histogram[1, -1] == 1


def test_mutual_information_of_known_cases() -> None:
    told = torch.zeros(2, 1, CLASS_BINS, dtype=torch.int32)
    told[0, 0, 3], told[1, 0, 9] = 5000, 5000
    assert float(mutual_information_bits(told)) == pytest.approx(1, abs=1e-3)
    nothing = torch.zeros(2, 1, CLASS_BINS, dtype=torch.int32)
    nothing[:, 0, [3, 9]] = 5000
    assert float(mutual_information_bits(nothing)) == 0


def test_correction_makes_independent_coefficients_carry_almost_nothing() -> None:
    torch.manual_seed(0)
    alpha, labels = torch.rand(500, 30), torch.randint(0, 10, (500,))
    corrected = measure(stream(alpha, labels, 10, []).of("layer")).mutual_information
    plug_in = np.mean([mutual_info_score(labels, (alpha[:, i] * CLASS_BINS).int()) for i in range(30)]) / math.log(2)
    assert plug_in > 0.2
    assert corrected < 0.05


def test_one_image_and_one_expert() -> None:
    one = measure(stream(torch.tensor([[0.2, 0.6]]), torch.tensor([1]), 3, []).of("layer"))
    assert one.std.tolist() == pytest.approx([0, 0], abs=1e-8)
    assert one.mutual_information == 0
    assert math.isnan(one.class_information) and math.isnan(one.variance_between)
    single = measure(stream(torch.rand(5, 1), torch.zeros(5, dtype=torch.int64), 1, []).of("layer"))
    assert (single.entropy, single.effective_experts) == (0, 1)


def test_weight_similarity_is_the_cosine_between_kernels() -> None:
    kernels = torch.tensor([[[1.0, 0]], [[2.0, 0]], [[0.0, -3]], [[-1.0, 0]]])
    expected = [[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 1, 0], [-1, -1, 0, 1]]
    assert weight_similarity(kernels).tolist() == expected


def test_memory_does_not_grow_with_the_images() -> None:
    def size(images: int) -> int:
        totals = stream(torch.rand(images, 4), torch.randint(0, 3, (images,)), 3, [])
        return sum(t.untyped_storage().nbytes() for t in vars(totals.of("layer")).values())

    assert size(10) == size(5000)
