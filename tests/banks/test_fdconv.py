"""FDConv: a kernel's spectrum in parts, by frequency; what it cannot serve; the published parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import condconv


def layer(**arguments: Any) -> Any:
    return condconv.FDConv2d(**{"in_channels": 6, "out_channels": 5, "kernel_size": 3, "num_experts": 4, **arguments})


def test_parts_are_equal_and_go_from_low_to_high_frequencies() -> None:
    bank = layer().bank.inner
    frequency = torch.hypot(torch.fft.fftfreq(15)[:, None], torch.fft.rfftfreq(18)[None])
    sizes = torch.bincount(bank.parts.flatten())
    assert sizes.sum() == 15 * 10 and sizes.max() - sizes.min() <= 1
    highest = [frequency[bank.parts == part].max() for part in range(4)]
    lowest = [frequency[bank.parts == part].min() for part in range(4)]
    assert all(below <= above for below, above in zip(highest, lowest[1:], strict=False))


@pytest.mark.parametrize("kernel_size", [1, 3, (3, 1), (2, 5)])
def test_kernels_are_the_sum_of_their_parts_each_by_its_weight(kernel_size: Any) -> None:
    bank = layer(kernel_size=kernel_size, bias=False, dtype=torch.float64).bank.inner
    each = bank(torch.eye(4, dtype=torch.float64)).mix()
    weights = torch.rand(3, 4, dtype=torch.float64)
    torch.testing.assert_close(bank(weights).mix(), torch.einsum("bn,noihw->boihw", weights, each))


def test_a_part_of_low_frequencies_alone_is_smooth_over_channels_and_taps() -> None:
    bank = layer(in_channels=32, out_channels=32, num_experts=8).bank.inner
    low, high = (bank(torch.eye(8)[[place]]).mix()[0] for place in (0, 7))
    assert _roughness(low) < 0.2 * _roughness(high)


def _roughness(kernel: torch.Tensor) -> float:
    return float(kernel.diff(dim=1).square().mean() / kernel.square().mean())


def test_what_it_cannot_serve_is_refused_and_listed() -> None:
    with pytest.raises(condconv.SiteError, match=r"groups=2: .* no grouped form; leave it static"):
        layer(out_channels=6, groups=2)
    with pytest.raises(condconv.SiteError, match="num_experts=64 cannot cut 20 frequencies"):
        layer(kernel_size=1, num_experts=64)
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8))
    rows = condconv.plan(net, "fdconv", targets=".").layers
    assert [row.converted for row in rows] == [True, False]
    assert "groups=8" in rows[1].why


def test_published_parameters_of_resnet50_less_what_is_left_out() -> None:
    with torch.device("meta"):
        net = condconv.create_model("fdconv_resnet50")
    total = sum(parameter.numel() for parameter in net.parameters())
    for module in net.modules():
        if isinstance(module, condconv.FDConv2d):
            inputs, outputs, taps = module.in_channels, module.out_channels, module.site.taps
            width = round(math.log2(inputs) / 2 + 0.5) // 2 * 2 + 1
            total += outputs * taps * width + 2 * inputs  # The local modulation: a convolution along channels, a norm.
            total += 3 * 9 * inputs if taps == 9 else 0  # The bands of the input: a 3x3 convolution to one map, thrice.
    assert f"{total / 1e6:.2f}" == "29.20"
