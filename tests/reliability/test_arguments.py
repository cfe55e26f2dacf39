"""Every public callable × every argument × absurd values: an error of this package, or a documented acceptance.

The counts are printed with `pytest -s`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import condconv
from condconv.errors import CondConvError
from tests.reliability.counts import note

ABSURD: dict[str, Any] = {
    "None": None, "True": True, "NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "2.5": 2.5,
    "-3": -3, "0": 0, "2**31": 2**31, "2**63": 2**63, "10**400": 10**400, "numpy 3": np.int64(3),
    "numpy 2.5": np.float32(2.5), "numpy True": np.bool_(True), "''": "", "text": "absurd", "NUL": "a\0b",
    "superscript": "²", "bytes": b"3", "[]": [], "[3]": [3], "()": (), "5 of them": (1, 1, 1, 1, 1), "{}": {},
    "object": object(), "type": int, "function": lambda *_, **__: 3, "tensor": torch.ones(2, 2),
    "scalar tensor": torch.tensor(3), "NaN tensor": torch.tensor(float("nan")), "module": nn.Identity(),
    "complex": 1j, "range": range(2), "set": {1}, "exception": ValueError("x"), "surrogate": "\udcff",
}  # fmt: skip


def network() -> nn.Module:
    layer = condconv.DynamicConv2d(3, 4, 3, num_experts=2)
    return nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def _layers() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    for name in condconv.__all__:
        thing = getattr(condconv, name)
        if name.endswith("Linear") and name != "PooledLinear":
            yield name, thing, {"in_features": 4, "out_features": 4}
        elif name.startswith(("CondConv", "Dynamic")) and inspect.isclass(thing) and not issubclass(thing, Exception):
            yield name, thing, {"in_channels": 4, "out_channels": 4, "kernel_size": 3}


def _context(function: Callable[..., Any]) -> Callable[..., Any]:
    def enter(**arguments: Any) -> None:
        with function(**arguments):
            pass

    return enter


def _with_network(function: Callable[..., Any], name: str = "model") -> Callable[..., Any]:
    """A fresh network for each call, for what changes it."""

    def call(**arguments: Any) -> Any:
        return function(**{name: network(), **arguments})

    call.__signature__ = inspect.signature(function)
    return call


CALLS: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    *_layers(),
    ("PooledLinear", condconv.PooledLinear, {"in_channels": 4, "num_experts": 3}),
    ("SqueezeExcite", condconv.SqueezeExcite, {"in_channels": 4, "num_experts": 3}),
    ("SoftmaxGate", condconv.SoftmaxGate, {}),
    ("TopKGate", condconv.TopKGate, {"gate": condconv.SigmoidGate(), "k": 1}),
    ("RoutingSchedule", _with_network(condconv.RoutingSchedule), {"steps": 10}),
    ("record_routing", _with_network(_context(condconv.record_routing)), {}),
    ("override_routing", _with_network(_context(condconv.override_routing)), {"how": "mean"}),
    ("detect_nonfinite", _with_network(_context(condconv.detect_nonfinite)), {}),
    ("reuse_kernels", _with_network(_context(condconv.reuse_kernels)), {"tolerance": 0.1}),
    ("use_strategy", _context(condconv.use_strategy), {"name": "auto"}),
    ("last_strategy", condconv.last_strategy, {"layer": condconv.CondConv2d(3, 4, 3)}),
    ("plan", _with_network(condconv.plan), {"variant": "condconv"}),
    ("convert", _with_network(condconv.convert), {"variant": "condconv"}),
    ("revert", _with_network(condconv.revert), {}),
    ("collapse", _with_network(condconv.collapse), {"loader": [torch.ones(1, 3, 8, 8)]}),
    ("count", _with_network(condconv.count), {"input_size": (3, 8, 8)}),
    ("create_model", condconv.create_model, {"name": "mobilenetv1_025", "width_multiplier": 0.25}),
    ("static_twin", condconv.static_twin, {"name": "condconv_mobilenetv1_025", "width_multiplier": 0.25}),
    ("list_models", condconv.list_models, {}),
    ("from_pretrained", condconv.from_pretrained, {"name": "nowhere/at/all"}),
    ("save_pretrained", _with_network(condconv.save_pretrained), {"folder": "/proc/nowhere"}),
    ("optimize_for_inference", _with_network(condconv.optimize_for_inference), {}),
]

TARGETS = {"record_routing": condconv.record_routing, "override_routing": condconv.override_routing,
           "detect_nonfinite": condconv.detect_nonfinite, "reuse_kernels": condconv.reuse_kernels,
           "use_strategy": condconv.use_strategy}  # fmt: skip


def arguments_of(name: str, function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(TARGETS.get(name, function)).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def attack(name: str, function: Callable[..., Any], usual: dict[str, Any], every: int) -> tuple[int, list[str]]:
    """How many cells, and which of them ended in an error that is not ours, or in one that names nothing."""
    cells, problems = 0, []
    for argument in arguments_of(name, function):
        if argument in ("device", "dtype"):  # torch's own, handed on to it as they are
            continue
        for label, value in list(ABSURD.items())[cells % every :: every]:
            cells += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function(**{**usual, argument: value})
            except CondConvError as error:
                if len(str(error)) < 10:
                    problems.append(f"{name}({argument}={label}): says only {error}")
            except Exception as error:
                problems.append(f"{name}({argument}={label}): {type(error).__name__}: {str(error)[:150]}")
    return cells, problems


@pytest.mark.slow
@pytest.mark.parametrize("name, function, usual", CALLS, ids=[name for name, *_ in CALLS])
def test_absurd_arguments(
    name: str, function: Callable[..., Any], usual: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells, problems = attack(name, function, usual, 1)
    note("arguments", name, cells, len(problems))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name, function, usual", CALLS, ids=[name for name, *_ in CALLS])
def test_some_absurd_arguments(
    name: str, function: Callable[..., Any], usual: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, problems = attack(name, function, usual, 7)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("make", [
    lambda n: condconv.CondConv2d(4, 4, 3, num_experts=n), lambda n: condconv.CondLinear(4, 4, num_experts=n),
    lambda n: condconv.plan(nn.Sequential(nn.Conv2d(4, 4, 3)), num_experts=n),
])  # fmt: skip
def test_more_experts_than_memory_has_room_to_list(make: Callable[[int], Any]) -> None:
    with pytest.raises(CondConvError, match="num_experts=2147483647 must be at most 1048576"):
        make(2**31 - 1)
