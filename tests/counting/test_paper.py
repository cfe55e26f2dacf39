"""The papers' convention: counts written as arithmetic, and the static networks' published counts."""

from __future__ import annotations

import copy
import csv
import io
import json

import pytest
import torch
from torch import nn

import condconv
from condconv.counting import count
from condconv.errors import ArgumentError, ConversionError, UnknownNameError


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 2, 1)
        self.expand = nn.Conv2d(2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


def rows(result: condconv.counting.Count) -> dict[str, condconv.counting.Row]:
    return {row.name: row for row in result.rows}


def test_static_layers() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 10 × 8 positions
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # every one of its 10 × 8 inputs meets 4 · 2 · 2 weights
        nn.Flatten(2),
        nn.Linear(320, 7),
    )
    result = count(net, (3, 20, 16))
    expected = [80 * 8 * 3 * 9, 80 * 8 * 25, 80 * 8 * 4 * 4, 4 * 7 * 320]
    assert [row.convolution for row in result.rows] == expected
    assert result.macs == sum(expected)
    assert result.params == sum(p.numel() for p in net.parameters())


def test_squeeze_excite_pools_and_rescales() -> None:
    result = count(nn.Sequential(SqueezeExcite(6)), (6, 5, 4))
    assert rows(result)["0"].pooling == 2 * 6 * 5 * 4
    assert result.by_purpose.convolution == 6 * 2 + 2 * 6


def test_conditional_layers_pay_for_mixing_and_routing() -> None:
    net = nn.Sequential(
        condconv.CondConv2d(4, 6, 3, padding=1, num_experts=5, bias=True),
        condconv.DynamicConv2d(6, 8, 1, num_experts=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        condconv.CondLinear(8, 10, num_experts=2),
    )
    result = rows(count(net, (4, 7, 9)))
    assert result["0"].convolution == 63 * 6 * 4 * 9
    assert result["0"].mixing == 5 * 6 * 4 * 9  # n·|W|; the experts' biases are not counted
    assert (result["0.router"].routing, result["0.router"].pooling) == (4 * 5, 4 * 63)
    assert result["1"].mixing == 3 * 8 * 6
    assert result["1.router"].routing == 6 * 1 + 1 * 3  # bottleneck max(1, 6 // 4) = 1
    assert (result["4"].convolution, result["4"].mixing) == (80, 2 * 80)
    assert result["0"].params == 5 * (6 * 4 * 9 + 6)
    assert result["0.router"].params == 4 * 5 + 5


def test_one_expert_is_charged_as_one() -> None:
    layer = condconv.CondConv2d(4, 6, 3, num_experts=1, router=False)
    result = count(layer, (torch.randn(1, 4, 8, 8), torch.ones(1, 1)))
    assert result.macs == 36 * 6 * 4 * 9 + 6 * 4 * 9


def test_a_layer_used_twice_counts_twice_its_parameters_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = condconv.CondConv2d(3, 3, 1, num_experts=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))

    result = count(Twice(), (3, 4, 4))
    assert rows(result)["conv"].calls == 2
    assert rows(result)["conv"].macs == 2 * (16 * 9 + 2 * 9)
    assert rows(result)["conv"].params == 2 * (9 + 3)


def test_shared_routing_counts_once() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
    condconv.convert(net, targets="0", num_experts=3, share={"both": "."}, input_size=(4, 5, 5))
    result = count(net, (4, 5, 5))
    assert [row.name for row in result.rows if row.kind == "router"] == ["0.router"]
    assert result.by_purpose.routing == 4 * 3
    assert result.by_purpose.pooling == 4 * 25


def test_tied_parameters_count_once() -> None:
    a, b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    b.weight = a.weight
    result = count(nn.Sequential(a, b), (3, 2, 2))
    assert result.params == 9 + 3 + 3
    assert [row.params for row in result.rows] == [12, 3]


def test_does_not_depend_on_the_strategy() -> None:
    net = condconv.CondConv2d(4, 4, 3, num_experts=4)
    counts = set()
    for strategy in ("reference", "grouped", "batched_gemm", "mixture_of_experts"):
        with condconv.use_strategy(strategy):
            counts.add(count(net, (4, 9, 9)).macs)
    assert len(counts) == 1


def test_whole_batch_and_several_arguments() -> None:
    conv = nn.Conv2d(3, 5, 1)
    one = count(conv, (3, 6, 6)).macs
    assert count(conv, torch.randn(4, 3, 6, 6)).macs == 4 * one
    assert count(nn.Bilinear(2, 2, 2), (torch.randn(3, 2), torch.randn(3, 2))).macs == 0


def test_matrices_outside_of_the_convention_are_named() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.GRU(8, 8, batch_first=True))
    result = count(net, (5, 8))
    assert result.uncounted == ("1 (GRU)",)
    assert "1 (GRU)" in str(result)


def test_attention_projections_that_are_read_and_not_called_are_named() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=True)[0]

    uncounted = count(Attend(), (5, 8)).uncounted
    assert any(name.startswith("attention ") for name in uncounted)
    assert any(name.startswith("attention.out_proj") for name in uncounted)


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    net[2].eval()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    count(net, (3, 8, 8))
    assert [module.training for module in net] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not net[0]._forward_hooks and not net[0]._forward_pre_hooks


def test_modes_and_hooks_survive_a_failing_forward() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3))
    with pytest.raises(RuntimeError):
        count(net, (3, 8, 8))
    assert net.training and not net[0]._forward_hooks


def test_every_form_names_the_convention() -> None:
    result = count(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 8, 8))
    assert "'paper'" in str(result).splitlines()[0]
    table = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert table[0]["layer"] == "0" and int(table[0]["paper_convolution_macs"]) == 64 * 12
    data = json.loads(result.to_json())
    assert data["convention"] == "paper" and data["macs"] == 64 * 12 and data["rows"][0]["name"] == "0"


def test_bad_arguments() -> None:
    conv = nn.Conv2d(3, 4, 1)
    with pytest.raises(UnknownNameError, match="did you mean 'paper'"):
        count(conv, (3, 8, 8), "papers")
    with pytest.raises(ArgumentError, match="input_size.*below 1"):
        count(conv, (3, 0, 8))
    with pytest.raises(ArgumentError, match="neither a size nor tensors"):
        count(conv, "3x8x8")
    with pytest.raises(ConversionError, match="not initialised"):
        count(nn.LazyConv2d(4, 1), (3, 8, 8))


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("mobilenetv1_100", 568_740_352),
        ("mobilenetv2_100", 300_774_272),
        ("semnasnet_100", 312_773_888),
        ("efficientnet_b0", 390_427_808),
        ("resnet50", 4_089_184_256),
    ],
)
def test_static_networks_of_the_papers(name: str, macs: int) -> None:
    # To the last multiply-add: sums over the layers of the published architectures, at 224 px.
    timm = pytest.importorskip("timm")
    assert count(timm.create_model(name), (3, 224, 224)).macs == macs


def test_timms_own_condconv_layers() -> None:
    timm = pytest.importorskip("timm")
    result = count(timm.create_model("tf_efficientnet_cc_b0_4e"), (3, 224, 224))
    assert result.params == pytest.approx(13.3e6, rel=2e-3)
    assert result.macs == pytest.approx(402e6, rel=5e-3)
    assert result.by_purpose.mixing > 10e6
