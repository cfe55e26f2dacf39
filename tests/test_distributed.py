"""Two processes under DDP (gloo) train like one process on the concatenated batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import condconv
from condconv.routers import attach_scope
from condconv.variants import variants
from condconv.variants.sparse_moe import NoisyTopKGate
from tests.contract.cases import MIXTURES, Block, shared_router
from tests.processes import METHOD

STEPS, BATCH = 10, 6


def network(variant: str) -> nn.Module:
    """Stem, a block that shares its routing, a layer with its own router, head; batch norm in eval."""
    torch.manual_seed(0)
    conv = variants[variant].layers[1]
    block = Block(conv, 4, 3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), block, conv(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    members = [block.expand, block.depthwise, block.project]
    attach_scope(net, "1", members, shared_router(members, 4))
    block.norm.eval()
    for module in net.modules():
        if isinstance(module, NoisyTopKGate):
            module.eval()  # Each process has its own noise.
    return net.double()


def train(net: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    inner = net.module if isinstance(net, DistributedDataParallel) else net
    gates = [m for m in net.modules() if isinstance(m, condconv.SoftmaxGate)]
    schedule = condconv.RoutingSchedule(inner, steps=STEPS // 2) if gates else None
    for step in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[step]), y[step]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, BATCH, 3, 8, 8, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 5, (STEPS, BATCH), generator=generator)


def worker(rank: int, port: int, variant: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    net = DistributedDataParallel(network(variant))
    x, y = data()
    train(net, x[:, rank::2], y[:, rank::2])
    torch.save(net.module.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("variant", MIXTURES)
def test_ddp_equals_one_process(variant: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(worker, args=(port, variant, str(tmp_path)), nprocs=2, start_method=METHOD)
    alone = network(variant)
    before = {k: v.clone() for k, v in alone.state_dict().items()}
    train(alone, *data())
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in alone.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, atol=1e-10, rtol=0, msg=name)
    moved = [not torch.equal(before[name], p) for name, p in alone.named_parameters()]
    assert all(moved)
