"""What holds in a block holds for that block alone: not in other threads, not in other tasks."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
import torch
from torch import nn

import condconv
from condconv.context import ContextStack


def test_values_are_nested_and_given_back() -> None:
    stack: ContextStack[int] = ContextStack("test")
    with stack.holding(1), pytest.raises(ZeroDivisionError), stack.holding(2):
        assert stack.values() == (1, 2)
        raise ZeroDivisionError
    assert stack.values() == ()


def test_a_block_may_be_left_in_another_context() -> None:
    stack: ContextStack[int] = ContextStack("test")
    block = stack.holding(1)
    contextvars.copy_context().run(block.__enter__)
    block.__exit__(None, None, None)
    assert stack.values() == ()


def test_compiled_code_sees_the_values() -> None:
    stack: ContextStack[int] = ContextStack("test")

    @torch.compile(backend="eager", fullgraph=True)
    def add(x: torch.Tensor) -> torch.Tensor:
        for value in stack.values():
            x = x + value
        return x

    assert add(torch.zeros(())) == 0
    with stack.holding(2), stack.holding(3):
        assert add(torch.zeros(())) == 5
    assert add(torch.zeros(())) == 0


def network() -> nn.Sequential:
    net = nn.Sequential(condconv.CondConv2d(3, 4, 3, num_experts=3), nn.ReLU(), condconv.CondConv2d(4, 4, 3))
    return net.eval()


def test_six_tasks_record_and_override_each_for_itself() -> None:
    net = network()
    ways = ["mean", "argmax", "shuffle", "shuffle_experts", None, None]
    images = [torch.randn(2, 3, 9, 9) for _ in ways]

    async def task(x: torch.Tensor, how: str | None) -> tuple[torch.Tensor, condconv.routing_hooks.Routing]:
        with condconv.record_routing(net) as routing:
            await asyncio.sleep(0)
            if how is None:
                return net(x), routing
            with condconv.override_routing(net, how):
                await asyncio.sleep(0)
                return net(x), routing

    async def together() -> list[tuple[torch.Tensor, condconv.routing_hooks.Routing]]:
        return await asyncio.gather(*map(task, images, ways))

    with torch.no_grad():
        for x, how, (y, routing) in zip(images, ways, asyncio.run(together()), strict=True):
            assert routing["0"].shape == (2, 3)
            assert torch.equal(y, asyncio.run(task(x, how))[0])


def test_a_task_inherits_the_block_that_started_it() -> None:
    net = network()

    async def call() -> None:
        net(torch.randn(1, 3, 9, 9))

    async def main() -> None:
        await asyncio.create_task(call())

    with condconv.record_routing(net) as routing:
        asyncio.run(main())
    assert routing["0"].shape == (1, 3)


def test_tasks_keep_their_own_kernels() -> None:
    net = network()

    async def stream(x: torch.Tensor) -> condconv.reuse.KernelReuse:
        with torch.no_grad(), condconv.reuse_kernels(net, 0.0) as reuse:
            for _ in range(3):
                net(x)
        await asyncio.sleep(0)
        return reuse

    async def main() -> list[condconv.reuse.KernelReuse]:
        return await asyncio.gather(*(stream(torch.randn(1, 3, 9, 9)) for _ in range(3)))

    assert [reuse.mixed["0"] for reuse in asyncio.run(main())] == [1, 1, 1]
