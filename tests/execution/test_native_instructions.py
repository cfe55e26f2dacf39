"""What the native operators compute does not depend on the instructions that the CPU has, nor on there being any.

The instruction set is chosen once in a process. Run as a module, this file checks the one that CONDCONV_ISA asks for:
with a path, it saves what layers and networks compute there.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.execution import native
from condconv.packed import STORAGES
from tests.execution import test_native, test_native_bf16
from tests.execution.native_cases import NEEDS_NATIVE, difference


def run_with(isa: str, *arguments: str) -> str:
    """Run this file in a process of its own; returns what it prints."""
    command = [sys.executable, "-m", __name__, *arguments]
    environment = {**os.environ, "CONDCONV_ISA": isa, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.strip()


@NEEDS_NATIVE
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_lesser_instructions_compute_the_same(isa: str) -> None:
    if run_with(isa) != isa:
        pytest.skip(f"this CPU has no {isa}")


@NEEDS_NATIVE
def test_without_instructions_torch_computes_the_same(tmp_path: Path) -> None:
    assert run_with("none", str(tmp_path / "outputs.pt")) == "none"
    without = torch.load(tmp_path / "outputs.pt")
    for name, expected in outputs().items():
        assert difference(without[name], expected) < (2e-2 if "bf16 rest" in name else 1e-5), name


def outputs() -> dict[str, Tensor]:
    """What layers, a network in training, and its inference forms compute."""
    torch.manual_seed(0)
    computed: dict[str, Tensor] = {}
    for kind in ({"kernel_size": 1}, {"kernel_size": 3, "stride": 2}, {"kernel_size": 3, "groups": 8}):
        layer, x = condconv.CondConv2d(8, 16 - kind.get("groups", 0), num_experts=3, **kind), torch.randn(3, 8, 7, 6)
        y = layer(x)
        gradients = torch.autograd.grad(y.square().sum(), tuple(layer.parameters()))
        computed |= {f"layer {kind} {i}": t.detach() for i, t in enumerate((y, *gradients))}
    # A bias before a batch norm would have a gradient that all but cancels: rounding, not what is computed.
    stem = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers = [*stem, nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1)]
    kinds = ["dense", "depthwise", "pointwise"]
    model = condconv.convert(nn.Sequential(*layers), num_experts=3, init="fresh", targets=kinds)
    x = torch.randn(2, 3, 12, 12)
    y = model(x)
    gradients = torch.autograd.grad(y.square().sum(), tuple(model.parameters()))
    computed |= {f"network {i}": t.detach() for i, t in enumerate((y, *gradients))}
    for storage in STORAGES:
        computed[f"{storage} experts"] = condconv.optimize_for_inference(model, storage)(x)
    computed["bf16 rest"] = condconv.optimize_for_inference(model, "int8", "bf16")(x)
    return computed


def main(paths: list[str]) -> None:
    """Check all cases, or save the outputs."""
    if paths:
        assert not native.available()
        torch.save(outputs(), paths[0])
    else:
        test_native.check_all_geometries(60)
        for case in test_native.BEYOND_ALL_BLOCKS:
            test_native.check_values_and_gradients(case, "channels_last", 0)
        for case, storage in itertools.product(test_native_bf16.CASES, STORAGES):
            test_native_bf16.test_equals_the_reference(case, storage)
    print(native.instruction_set())


if __name__ == "__main__":
    main(sys.argv[1:])
