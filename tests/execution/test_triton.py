"""The Triton strategy: its cases in Triton's interpreter and on a GPU, its refusals, and that its kernels compile."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from condconv.errors import StrategyError
from condconv.execution import choose, strategies
from condconv.geometry import ConvGeometry
from condconv.lowered import Kernels, Mixture

CASES = Path(__file__).with_name("triton_cases.py")
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
SAME = ConvGeometry((1, 1), (1, 1), (1, 1))
DEPTHWISE = ConvGeometry((1, 1), (1, 1), (1, 1), groups=4)


def run_cases(interpret: bool, *options: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(CASES), *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@NEEDS_TRITON
def test_in_the_interpreter() -> None:
    run_cases(True, "-m", "not slow")


@NEEDS_TRITON
@pytest.mark.slow
def test_slow_cases_in_the_interpreter() -> None:
    run_cases(True, "-m", "slow")


@NEEDS_TRITON
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    run_cases(False)


def mixture(*kernel: int, **kwargs: Any) -> Mixture:
    return Mixture(torch.rand(2, 3, **kwargs), torch.randn(3, *kernel, **kwargs), None)


@pytest.mark.parametrize(
    ("lowered", "geometry", "reason"),
    [
        (Kernels(torch.randn(2, 4, 4, 3, 3), None), SAME, "not mixed yet"),
        (mixture(4, 4, 3, 3), SAME, "needs a depthwise 2-D convolution"),
        (mixture(4, 4, 3), ConvGeometry((1,), (1,), (1,)), "needs a depthwise 2-D convolution"),
        (mixture(4, 2, 3, 3), ConvGeometry((1, 1), (1, 1), (1, 1), groups=2), "needs a depthwise 2-D convolution"),
        (mixture(8, 1, 3, 3), ConvGeometry((1, 1), (1, 1), (1, 1), groups=4), "needs a depthwise 2-D convolution"),
        (
            mixture(4, 1, 3, 3),
            ConvGeometry((1, 1), (1, 1), (1, 1), 4, True, (0, 0)),
            "needs a depthwise 2-D convolution",
        ),
        (mixture(4, 1, 3, 3, dtype=torch.float64), DEPTHWISE, "torch.float64; it needs f32, bf16 or f16"),
        (mixture(4, 1, 3, 3), DEPTHWISE, "the experts are on cpu"),
    ],
)
def test_what_it_cannot_serve_is_refused_by_name(lowered: Any, geometry: ConvGeometry, reason: str) -> None:
    if reason == "the experts are on cpu" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    assert reason in (strategies["triton"].supports(lowered, geometry) or "")
    with pytest.raises(StrategyError, match="stem: strategy='triton' cannot serve it.*use strategy='auto'"):
        choose(torch.randn(2, 4, *[5] * geometry.rank), lowered, geometry, "triton", "stem")


F32 = {"weight", "d_weight"}


def compile_for(
    architecture: int, kernel: str, dtype: str, fixed: dict[str, Any], kernel_size: int, back: bool
) -> str:
    """The PTX of a kernel; `fixed` are arguments that are known when it is compiled."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from condconv.execution.native import triton_kernels

    function = getattr(triton_kernels, kernel)
    constants: dict[str, Any] = {f"{name}_{side}": kernel_size for name in ("KERNEL", "STRIDE") for side in "HW"}
    constants |= {f"{name}_{side}": 1 for name in ("PADDING", "DILATION") for side in "HW"}
    constants |= {"BACK": back, "BLOCK_M": 64, "BLOCK_C": 32, **fixed}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = dict.fromkeys(function.arg_names, "i32")
    signature |= {name: f"*{dtype}" for name in ("grad", "x", "y") if name in signature}
    signature |= {name: "*fp32" for name in F32 if name in signature}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, signature, constants, {})
    target = GPUTarget("cuda", architecture, 32)
    return str(compile(source, target=target, options={"enable_fp_fusion": True}).asm["ptx"])


@NEEDS_TRITON
def test_kernels_compile_where_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert "fma.rn.f32" in compile_for(90, "depthwise", "bf16", {}, 3, False)


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    ("kernel", "back"),
    [
        ("depthwise", False),
        ("depthwise", True),
        ("depthwise_gradient", False),
    ],
)
def test_every_kernel_compiles(
    kernel: str, back: bool, dtype: str, architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ones = {"channels": 1, "out_height": 1, "out_width": 1, "height": 1, "width": 1}
    for fixed in ({}, ones):  # Triton compiles arguments that are 1 in as constants.
        assert compile_for(architecture, kernel, dtype, fixed, 3, back)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_benchmark_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu

    assert gpu.main([]) == 2
    assert "no CUDA device was found" in capsys.readouterr().err
