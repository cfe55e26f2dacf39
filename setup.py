"""Builds the native operator (csrc/) against torch's stable ABI; without a compiler the package is pure torch."""

from __future__ import annotations

from setuptools import Extension, setup
from torch.utils.cpp_extension import include_paths, library_paths

SOURCES = ("ops", "problem", "backward", "threads", "routing", "isa", "kernels_avx2", "kernels_avx512", "kernels_amx")
HEADERS = ("conv.h", "isa.h", "problem.h", "scratch.h", "threads.h", "mixing.inc", "vector_kernels.inc", "packing.inc",
           "maps.inc", "gemm.inc", "gemm_gradient.inc", "depthwise.inc")

setup(
    ext_modules=[
        Extension(
            "condconv.execution.native._ops",
            sources=[f"csrc/{name}.cpp" for name in SOURCES],
            depends=[f"csrc/{name}" for name in HEADERS],
            include_dirs=include_paths(),
            library_dirs=library_paths(),
            libraries=["torch", "torch_cpu"],
            define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("TORCH_STABLE_ONLY", None)],
            extra_compile_args=["-std=c++20", "-O3", "-fno-math-errno", "-fvisibility=hidden"],
            optional=True,
        )
    ]
)
