"""TensorFlow's "SAME" padding: equal to timm's, in a conditional layer that routes on the unpadded input."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import condconv
from condconv.conversion.same_padding import pad_same

conv2d_same = pytest.importorskip("timm.layers.conv2d_same")


@pytest.mark.parametrize("size", [(7, 7), (8, 9), (13, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 2), (4, 1)])
def test_equal_to_timm(size: tuple[int, int], stride: int, kernel: int, dilation: int) -> None:
    static = conv2d_same.Conv2dSame(4, 6, kernel, stride, dilation=dilation).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = static(x)
    made = condconv.convert(nn.Sequential(static), targets=".", num_experts=3)
    assert made(x).shape == expected.shape == (2, 6, -(-size[0] // stride), -(-size[1] // stride))
    assert torch.allclose(made(x), expected, rtol=0, atol=1e-12)


def test_padding_goes_to_the_end_first() -> None:
    assert pad_same(torch.ones(1, 1, 4, 4), (3, 3), (2, 2), (1, 1))[0, 0, :, 0].tolist() == [1, 1, 1, 1, 0]


def test_routing_sees_the_input_without_padding() -> None:
    made = condconv.convert(nn.Sequential(conv2d_same.Conv2dSame(3, 4, 7, 2)), targets=".", init="fresh")
    x = torch.randn(2, 3, 9, 9)
    with condconv.record_routing(made) as routing:
        made(x)
    assert torch.allclose(routing["0"], made[0].router(x).detach())


def test_copies_and_collapse_keep_the_padding() -> None:
    static = nn.Sequential(conv2d_same.Conv2dSame(3, 4, 3, 2))
    x = torch.randn(2, 3, 9, 9)
    expected = static(x)
    made = condconv.convert(static, targets=".")
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other[0]) is type(made[0]) and torch.allclose(other(x), expected, atol=1e-5)
    assert torch.allclose(condconv.collapse(made, [x])(x), expected, atol=1e-5)
    assert type(condconv.revert(made)[0]) is conv2d_same.Conv2dSame


def test_counts_the_padded_positions() -> None:
    made = condconv.convert(nn.Sequential(conv2d_same.Conv2dSame(3, 4, 3, 2)), targets=".", num_experts=2)
    row = next(row for row in condconv.count(made, (3, 9, 9)).rows if row.name == "0")
    assert (row.convolution, row.mixing) == (25 * 4 * 27, 2 * 4 * 27)
