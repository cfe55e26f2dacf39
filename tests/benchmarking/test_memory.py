from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import condconv
from condconv.benchmarking import memory
from condconv.benchmarking.networks import TrainingStep

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


def small() -> nn.Module:
    return condconv.create_model("condconv_mobilenetv1_025", num_experts=2)


def test_memory_counts_what_is_allocated_outside_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def step(self: object) -> None:
        held.append(bytearray(b"x" * 50_000_000))
        held.pop()

    x = torch.randn(2, 3, 32, 32)
    before = memory.use_memory(small, x, training=True)
    monkeypatch.setattr(TrainingStep, "__call__", step)
    after = memory.use_memory(small, x, training=True)
    assert after["working_mb"] > before["working_mb"] + 20
    assert before["weights_mb"] > after["weights_mb"] > 0  # no step, no gradients and no momentum


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own() -> None:
    network = condconv.optimize_for_inference(small())
    assert float(str(memory.measure(network, torch.randn(1, 3, 32, 32))["weights_mb"])) > 1
