"""What the native operators compute does not depend on the instructions that the CPU has, nor on there being any.

The instruction set is chosen once in a process, where the operator is loaded.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.execution import native
from condconv.packing import STORAGES
from tests.execution import test_native, test_native_bf16
from tests.execution.native_cases import NEEDS_NATIVE, difference
from tests.processes import run_code


def run_with(isa: str, *arguments: str) -> str:
    """Run `main` in a process of its own; returns what it prints."""
    code = "import os, sys; os.environ['CONDCONV_ISA'] = sys.argv[1]\nfrom {0} import main; main(sys.argv[2:])"
    done = run_code(code.format(__name__), isa, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


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
    """Check the instruction set that CONDCONV_ISA asks for: all cases, or with a path save what is computed there."""
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
