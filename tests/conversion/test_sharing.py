"""Who shares a router with whom, and who cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.layers import ConditionalLayer
from condconv.routers import Router
from tests.conversion.small import SIZE, Net, Residual


def sources(net: nn.Module) -> dict[str, str | None]:
    """Layer → the module that routes it, None for its own router."""
    return {
        name: module.scope.name if module.scope is not None else None
        for name, module in net.named_modules()
        if isinstance(module, ConditionalLayer)
    }


def routers(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, Router)]


@pytest.mark.parametrize("size", [SIZE, None])
def test_by_block(size: object) -> None:
    net = condconv.convert(Net(), targets=".", share="block", input_size=size)
    assert sources(net)["blocks.2.conv1"] == sources(net)["blocks.2.conv2"] == "blocks.2"
    assert sources(net)["stem"] is None and sources(net)["head"] is None
    assert routers(net) == ["stem.router", *(f"blocks.{i}.router" for i in range(4)), "head.router"]
    assert net(torch.randn(2, *SIZE)).shape == (2, 5)


def test_for_each_layer() -> None:
    net = condconv.convert(Net(), targets="conv", share=None, input_size=SIZE)
    assert set(sources(net).values()) == {None} and len(routers(net)) == 8


def test_for_the_network_from_the_first_block() -> None:
    net = condconv.convert(Net(), targets="conv", share="network", input_size=SIZE)
    assert set(sources(net).values()) == {"blocks.0"} and routers(net) == ["blocks.0.router"]
    net(torch.randn(2, *SIZE)).sum().backward()
    assert net.blocks[0].router.body[-1].weight.grad is not None


def test_for_a_network_without_blocks_the_router_sees_what_the_first_layer_sees() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    made = condconv.convert(net, targets=["depthwise", "pointwise"], share="network", num_experts=2)
    assert routers(made) == ["router"] and made.router.in_channels == 3
    assert made(torch.randn(2, 3, 9, 9)).shape == (2, 4, 5, 5)


def test_layers_before_the_source_route_for_themselves() -> None:
    plan = condconv.plan(Net(), targets=["stem", "conv"], share={"all": "stem|conv"}, input_size=SIZE)
    net = plan.apply()
    assert net(torch.randn(2, *SIZE)).shape == (2, 5)
    assert all(value in (None, "") for value in sources(net).values())


def test_every_so_many_blocks() -> None:
    net = condconv.convert(Net(), targets="conv", share=3, input_size=SIZE)
    assert routers(net) == ["blocks.0.router", "blocks.3.router"]
    assert sources(net)["blocks.2.conv2"] == "blocks.0" and sources(net)["blocks.3.conv1"] == "blocks.3"


def test_by_regex_in_a_network_without_blocks() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    )
    x = torch.randn(2, 3, 6, 6)
    expected = net(x)
    assert condconv.plan(net, targets=".", share="block").layers[0].why == "itself: in no block"
    condconv.convert(net, targets=".", share={"first": r"^0\."}, input_size=(3, 6, 6))
    assert sources(net) == {"0.0": "0", "0.1": "0", "1.0": None}
    assert torch.allclose(net(x), expected, atol=1e-6) and len(net[0]) == 2


def test_routers_take_the_channels_of_the_blocks_input() -> None:
    class Split(nn.Module):
        """Half of its channels take the branch, as in ShuffleNet."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=1)
            return torch.cat([left, self.b(self.a(right))], dim=1)

    net = condconv.convert(nn.Sequential(Split(), Split()), targets=".", input_size=(8, 5, 5))
    assert net[0].router.in_channels == 8
    assert net(torch.randn(2, 8, 5, 5)).shape == (2, 8, 5, 5)


def test_tokens_and_channels_last_blocks() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(torch.relu(self.fc1(x)))

    for size in ((7, 6), (4, 5, 6)):
        net, x = nn.Sequential(Tokens(), Tokens()), torch.randn(2, *size)
        expected = net(x)
        condconv.convert(net, targets="linear", input_size=size)
        assert sources(net)["1.fc2"] == "1" and net[1].router.in_channels == 6
        assert torch.allclose(net(x), expected, atol=1e-5)
        assert condconv.count(net, torch.randn(1, *size)).by_purpose.pooling == 2 * torch.Size(size).numel()


class Windows(nn.Module):
    """Folds windows into the batch, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        windows = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3).transpose(1, 2).flatten(0, 1)
        return x + self.inside(windows).mean()


class TakesList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.b(self.a(x)) for x in xs]


class HasRouter(Residual):
    def __init__(self, channels: int = 4) -> None:
        super().__init__(channels)
        self.router = nn.Identity()


@pytest.mark.parametrize(
    ("kind", "alone", "reason"),
    [
        (Windows, {"0.inside"}, "its batch is not that of 0"),
        (HasRouter, {"0.conv1", "0.conv2"}, "0 has a `router` already"),
    ],
)
def test_layers_that_cannot_borrow_route_for_themselves(kind: type[nn.Module], alone: set[str], reason: str) -> None:
    net, x = nn.Sequential(kind(), kind()).eval(), torch.randn(2, 4, 8, 8)
    expected = net(x)
    plan = condconv.plan(net, targets=".", share="block", input_size=(4, 8, 8))
    plan.apply()
    assert {name for name, source in sources(net).items() if source is None and name.startswith("0")} == alone
    assert all(reason in layer.why for layer in plan.layers if layer.name in alone)
    assert torch.allclose(net(x), expected, atol=1e-5)


def test_blocks_that_take_lists_are_not_sources() -> None:
    net = nn.Sequential(TakesList(), TakesList())
    plan = condconv.plan(net, targets=".", input_size=([torch.randn(1, 4, 5, 5)],))
    plan.apply()
    assert all("gets no tensor" in layer.why for layer in plan.layers)
    assert len(net([torch.randn(2, 4, 5, 5)])) == 1
