"""One pass over a network: what is recorded, counted and tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.analysis import collect, routing_groups
from condconv.analysis.collect import SAMPLE_IMAGES, Collector
from condconv.errors import ArgumentError, DataError
from tests.analysis.networks import batches, small_network


def record(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    with torch.no_grad(), condconv.record_routing(model) as routing:
        for images, _ in data:
            model(images)
    return dict(routing)


def test_totals_equal_what_record_routing_sees() -> None:
    model, data = small_network(), batches(23)
    found = collect(model, data, 3)
    labels = torch.cat([y for _, y in data])
    for name, alpha in record(model, data).items():
        totals = found.totals.of(name)
        for label in range(3):
            torch.testing.assert_close(totals.sum[label], alpha[labels == label].double().sum(dim=0))
        torch.testing.assert_close(found.sample_coefficients[name], alpha)
    assert found.sample_labels == labels.tolist()
    assert found.accuracy.images == 23


def test_counterfactual_accuracies_equal_a_run_inside_override_routing() -> None:
    model, data = small_network(), batches(20)
    found = collect(model, data, 3)
    assert list(found.counterfactuals) == ["intact", "mean", "argmax", "shuffle", "shuffle_experts"]
    for how in ("mean", "argmax", "shuffle", "shuffle_experts"):
        right = 0
        for images, labels in data:
            with torch.no_grad(), condconv.override_routing(model, how):
                right += int((model(images).argmax(dim=1) == labels).sum())
        assert (found.counterfactuals[how].right, found.counterfactuals[how].images) == (right, 20)


def test_the_counterfactuals_and_the_sample_are_bounded() -> None:
    found = collect(small_network(), batches(400, batch_size=50), 3, counterfactual_images=100)
    assert found.counterfactuals["mean"].images == found.counterfactuals["intact"].images == 100
    assert len(found.sample_places) == len(found.sample_coefficients["2"]) == SAMPLE_IMAGES
    assert collect(small_network(), batches(10), 3, counterfactual_images=0).counterfactuals == {}


def test_layers_that_share_a_router_are_one_decision_in_the_order_of_the_calls() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = condconv.CondConv2d(4, 4, 1, num_experts=2)
            self.first = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1))
            self.unused = condconv.CondConv2d(4, 4, 1, num_experts=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x)).mean(dim=(2, 3))

    model = Backwards()
    condconv.convert(model.first, "condconv", targets=".*", num_experts=3, share="network")
    found = collect(model, [(torch.randn(4, 1, 3, 3), torch.tensor([0, 1, 2, 3]))], 4)
    assert [group.name for group in found.groups] == [routing_groups(model)[1].name, "last"]
    assert found.groups[0].layers == ("first.0", "first.1")
    assert found.problems.never_ran == ["unused"]


def test_the_model_is_left_as_it_was() -> None:
    model = small_network()
    model.train()
    model[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collect(model, batches(10), 3)
    assert [module.training for module in model] == [False, *[True] * 7]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_images_that_cannot_be_used_are_counted_and_named() -> None:
    x, y = torch.randn(6, 1, 10, 10), torch.tensor([0, -1, 2, 7, -1, 1])
    decoded = torch.tensor([True, False, True, True, True, True])
    found = collect(small_network(), [(x, y, torch.arange(40, 46), decoded)], 3)
    assert (found.problems.undecodable, found.problems.undecodable_images) == (1, [41])
    assert found.problems.unlabelled == 2
    assert found.totals.of("2").images == 3
    assert found.sample_places == [40, 42, 45]


def test_coefficients_that_are_not_finite_are_counted_by_layer_and_image() -> None:
    data = batches(10)
    data[1][0][3] = torch.nan
    found = collect(small_network(), data, 3)
    assert dict(found.problems.nonfinite) == {"2": 1, "4": 1}
    assert found.problems.nonfinite_images == [8]


def test_a_batch_without_a_usable_image_does_not_matter_and_a_pass_without_one_says_so() -> None:
    nothing = (torch.zeros(2, 1, 10, 10), torch.tensor([-1, -1]), torch.tensor([0, 1]), torch.tensor([False, True]))
    assert collect(small_network(), [nothing, *batches(5)], 3).totals.of("2").images == 5
    with pytest.raises(DataError, match="not one image could be used: 1 of 2 cannot be decoded"):
        collect(small_network(), [nothing], 3)
    with pytest.raises(DataError, match="there are none"):
        collect(small_network(), [], 3)


def test_scores_of_other_classes_give_no_accuracy() -> None:
    found = collect(small_network(num_classes=7), batches(6), 3)
    assert (found.accuracy.images, found.counterfactuals) == (0, {})
    assert found.totals.of("2").images == 6


def test_a_model_without_conditional_layers_is_refused_with_what_to_do() -> None:
    with pytest.raises(ArgumentError, match=r"model=Sequential has no conditional layer.*condconv\.convert"):
        collect(nn.Sequential(nn.Conv2d(1, 1, 1)), batches(2), 3)


def test_progress_is_told() -> None:
    done: list[int] = []
    collect(small_network(), batches(12), 3, progress=done.append)
    assert done == [5, 10, 12]


def test_decisions_that_are_too_long_are_left_out_and_named() -> None:
    torch.manual_seed(0)
    long = condconv.KernelWarehouseConv2d(8, 8, 3, budget="4", norm="layer")
    longer = condconv.KernelWarehouseConv2d(8, 8, 9, padding=4, budget="4", norm="layer")
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), long, longer, *head).eval()
    collector = Collector(net, 3)
    for images, labels in batches(6):
        collector.add(images, labels, torch.arange(len(labels)), torch.ones(len(labels), dtype=torch.bool))
    assert [group.num_experts for group in collector.groups] == [long.num_coefficients] == [324]
    assert collector.problems.too_long == ["2:cells"]
    with pytest.raises(ArgumentError, match="26244 coefficients and more each, .* up to 2048"):
        Collector(nn.Sequential(longer), 3)
