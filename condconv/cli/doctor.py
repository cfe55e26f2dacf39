"""`condconv doctor`: what is installed, what this machine can do, and what `strategy="auto"` will run on it.

It needs torch alone, so that it can say what is missing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Sequence

import torch

from condconv.errors import ArgumentError
from condconv.execution import AUTO, choose, fitted, native
from condconv.geometry import ConvGeometry
from condconv.lowered import Mixture
from condconv.registry import unknown_name_message

PACKAGES = ("condconv", "torch", "timm", "pytorch-lightning", "triton", "onnxruntime")
COMPILERS = ("c++", "g++", "clang++")
REBUILD = "pip install --force-reinstall --no-deps --editable .   (in the source folder)"

# kind, kernel (O, I/g, kh, kw), groups, size: what a mobile network has most of
_TYPICAL = (
    ("pointwise", (256, 256, 1, 1), 1, 14),
    ("dense 3x3", (256, 256, 3, 3), 1, 14),
    ("depthwise 3x3", (256, 1, 3, 3), 256, 14),
)


def run(arguments: Sequence[str]) -> int:
    """Print the findings; 1 if the native operator is missing although there is a compiler to build it, else 0.

    As in the other verbs, --help leaves with SystemExit.
    """
    if any(word in ("-h", "--help") for word in arguments):
        print("usage: condconv doctor\n\nVersions, processor, devices, native operator, and what strategy='auto' runs.")
        raise SystemExit(0)
    if arguments:
        raise ArgumentError(unknown_name_message("option", arguments[0], ["--help"]))
    compiler = find_compiler()
    for name, finding in findings(compiler):
        print(f"{name:<20} {finding}")
    if native.built() or compiler is None:
        return 0
    print(f"\nThe native operator is missing although there is a compiler. Build it with\n    {REBUILD}")
    return 1


def findings(compiler: str | None) -> Iterator[tuple[str, str]]:
    """Each thing that was looked at, and what was found."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield package, version(package) or "not installed"
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    yield "cpu features", " ".join(native.cpu_features()) or "none that the native operator knows"
    yield "compiler", compiler or "none (CXX, c++, g++, clang++)"
    yield "native operator", operator()
    yield "planner", planner()
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "cuda", ", ".join(cuda) or "no device"
    yield "mps", "available" if torch.backends.mps.is_available() else "no device"
    for kind, chosen in choices():
        yield f"auto, {kind}", chosen


def version(package: str) -> str | None:
    """The version of an installed package, found without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_compiler() -> str | None:
    """The path of a C++ compiler: the one that CXX names, else the first of the usual names."""
    named = os.environ.get("CXX", "").split()[:1]
    return next(filter(None, map(shutil.which, (*named, *COMPILERS))), None)


def operator() -> str:
    """Whether the native operator is there, and which instructions it uses."""
    if native.available():
        return f"built, uses {native.instruction_set()}"
    state = "built, but not used" if native.built() else "missing"
    return f"{state} ({native.load_error()}); the torch strategies serve in its place"


def planner() -> str:
    """Whose times decide what strategy="auto" runs on the CPU."""
    used = fitted.instructions_here()
    if used in fitted.INSTRUCTIONS:
        return f"times measured with {used}; condconv.tune measures on this machine"
    other = fitted.INSTRUCTIONS[0]
    return f"times of another instruction set ({other}), for none were measured here; condconv.tune measures them"


def choices() -> Iterator[tuple[str, str]]:
    """What the planner chooses on the CPU for typical layers, at batch 1 and 32."""
    for kind, kernel, groups, size in _TYPICAL:
        geometry = ConvGeometry((1, 1), (kernel[2] // 2,) * 2, (1, 1), groups)
        chosen = []
        for batch in (1, 32):
            x = torch.empty(batch, kernel[1] * groups, size, size).to(memory_format=torch.channels_last)
            mixture = Mixture(torch.empty(batch, 8), torch.empty(8, *kernel), None)
            with torch.no_grad():
                chosen.append(f"{choose(x, mixture, geometry, AUTO, 'doctor')} at batch {batch}")
        yield kind, ", ".join(chosen)
