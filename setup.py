"""Builds the native operator (csrc/) against torch's stable ABI; without a compiler the package is pure torch.

CONDCONV_PURE=1 leaves the operator out by intention: one wheel for every platform that has no wheel of its own.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from torch.utils.cpp_extension import include_paths, library_paths

SOURCES = ("ops", "problem", "backward", "threads", "routing", "isa", "kernels_avx2", "kernels_avx512", "kernels_amx")
HEADERS = ("conv.h", "isa.h", "problem.h", "scratch.h", "threads.h", "mixing.inc", "vector_kernels.inc", "packing.inc",
           "maps.inc", "gemm.inc", "gemm_gradient.inc", "depthwise.inc")


class AnyPython(bdist_wheel):
    """The operator uses torch's stable ABI and nothing of Python's: one wheel of a platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel's name: Python, its ABI, platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"bdist_wheel": AnyPython},
    ext_modules=[]
    if os.environ.get("CONDCONV_PURE") == "1"
    else [
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
