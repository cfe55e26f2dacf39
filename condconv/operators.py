"""The compiled operators of csrc/, loaded with this module: whether they are there, and what they use of this CPU.

    condconv::conv2d          experts as the bank holds them, differentiable
    condconv::conv2d_packed   experts in the layout of `condconv.packing`, for inference
    condconv::pooled_linear   a router's logits, or its coefficients, for inference

What torch must know of them besides their kernels stands in `condconv.execution.native`.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from condconv.cpu_info import processor_flags


def load_error() -> str | None:
    """Return why the operators cannot be used, or None if they can."""
    return _LOAD_ERROR


def available() -> bool:
    """Whether the operators can be used on this machine."""
    return load_error() is None


def built() -> bool:
    """Whether the operators were compiled and loaded, even if the CPU or the environment keeps them from being used."""
    return hasattr(torch.ops.condconv, "instruction_set")


def instruction_set() -> str:
    """Return what the operators use: "amx" (AMX where x is bf16, AVX-512 elsewhere), "avx512", "avx2" or "none".

    The environment's CONDCONV_ISA=avx512|avx2|none asks for less than the CPU has.
    """
    return torch.ops.condconv.instruction_set() if available() else "none"


def cpu_features() -> list[str]:
    """Return the vector extensions that this CPU has, of those that matter here."""
    flags = processor_flags()
    if not flags:
        return [getattr(torch.backends.cpu, "get_cpu_capability", lambda: "unknown")()]
    names = {"AVX2": "avx2", "AVX512": "avx512f", "AVX512_BF16": "avx512_bf16", "AMX_BF16": "amx_bf16"}
    return [name for name, flag in names.items() if flag in flags]


def _load() -> str | None:
    files = sorted(Path(__file__).parent.glob("execution/native/_ops*.so"))
    if not files:
        return (
            "the operator was not built: there was no C++ compiler when condconv was installed, "
            "or its wheel is the one for every platform"
        )
    try:
        torch.ops.load_library(str(files[0]))
    except OSError as error:
        return (
            f"torch {torch.__version__} cannot load {files[0].name} ({error}); "
            "it needs torch 2.11 or later: update torch, or install condconv again"
        )
    if torch.ops.condconv.instruction_set() == "none":
        if os.environ.get("CONDCONV_ISA") == "none":
            return "CONDCONV_ISA=none of the environment turns the operator off"
        return f"this CPU ({platform.machine()}) has neither AVX2 nor AVX-512"
    return None


_LOAD_ERROR = _load()
