"""`count`: multiply-adds and parameters of a model, layer by layer, by a named convention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from condconv.arguments import a_module
from condconv.banks import Bank
from condconv.counting.executed import DispatchCount, WatchExecution
from condconv.counting.rules import Macs, kind_of, paper_macs
from condconv.counting.table import Count, Row
from condconv.counting.trace import Inputs, Recorder, Trace, evaluating, example_inputs, trace
from condconv.errors import ConversionError
from condconv.layers import ConditionalLayer
from condconv.registry import Registry
from condconv.routers import Router

Convention = Callable[[nn.Module, Inputs], Count]

conventions: Registry[Convention] = Registry("convention")


def count(model: nn.Module, input_size: Inputs, convention: str = "paper") -> Count:
    """Count multiply-adds (one multiply and one add = 1) and parameters.

    * "paper": convolutions, linear layers, pooling and rescaling of squeeze-excite modules, mixing n·|W|, pooling and
      linear layers of routers. Not: batch norm, activations, biases, residuals, the head's pooling. This is the rule
      that reproduces the papers' tables, and it does not depend on the execution strategy.
    * "executed": the convolutions and matrix products that ran, with the strategies that were chosen or pinned.

    A layer that is called twice counts twice, a router that several layers share once.

    Args:
        model: Any network; it is run once, in eval mode, and left as it was.
        input_size: (C, *space) of one example, or inputs: a tensor, a list (detectors), a tuple of arguments. Given
            inputs are counted for their whole batch.
        convention: "paper" or "executed".

    Raises:
        UnknownNameError: no such convention.
        ArgumentError: `input_size` is neither a size nor inputs.
        ConversionError: the model has parameters that are not initialised yet.
    """
    a_module("count", "model", model)
    rule = conventions[convention]
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        names = ", ".join(lazy[:3])
        raise ConversionError(f"count: parameters {names} are not initialised yet (lazy modules); run the model once")
    return rule(model, input_size)


def _paper(model: nn.Module, inputs: Inputs) -> Count:
    watched = trace(model, inputs)
    cost, calls = paper_cost(model, watched)
    return _table("paper", model, inputs, cost, calls, watched)


def paper_cost(model: nn.Module, watched: Trace) -> tuple[dict[str, Macs], Counter[str]]:
    """Return the multiply-adds and the number of calls of every module that the papers' convention counts."""
    routers = {name for name, module in model.named_modules() if isinstance(module, Router)}
    cost: dict[str, Macs] = {}
    calls: Counter[str] = Counter()
    for call in watched.calls:
        if kind_of(call.module) is None or routers & set(call.parents) or call.input is None or call.output is None:
            continue
        macs = paper_macs(call.module, call.input, call.output)
        cost[call.name] = _add(cost.get(call.name, Macs()), macs)
        calls[call.name] += 1
    return cost, calls


def _executed(model: nn.Module, inputs: Inputs) -> Count:
    arguments = example_inputs(model, inputs)
    recorder = Recorder(model)
    dispatched = DispatchCount(recorder)
    watch = WatchExecution(recorder)
    with evaluating(model), torch.no_grad(), recorder, watch, dispatched:
        model(*arguments)
    modules = dict(model.named_modules())
    ran = Counter(call.name for call in recorder.trace.calls)
    cost, calls = {}, Counter[str]()
    for name in dict.fromkeys(call.name for call in recorder.trace.calls):
        total, module = dispatched.macs[name], modules[name]
        if total or kind_of(module):
            mixing = watch.mixing[name]
            linear = Macs(routing=total) if isinstance(module, Router) else Macs(total - mixing, mixing)
            cost[name], calls[name] = linear, ran[name]
    return _table("executed", model, inputs, cost, calls, recorder.trace, watch.strategies)


conventions.register("paper", _paper)
conventions.register("executed", _executed)


def _table(
    convention: str,
    model: nn.Module,
    inputs: Inputs,
    cost: dict[str, Macs],
    calls: Counter[str],
    watched: Trace,
    strategies: dict[str, str] | None = None,
) -> Count:
    modules = dict(model.named_modules())
    params = _params(modules, cost)
    rows = []
    for name, macs in cost.items():
        kind = kind_of(modules[name]) or type(modules[name]).__name__
        strategy = (strategies or {}).get(name, "")
        rows.append(Row(name, kind, *macs, params=params[name], calls=calls[name], strategy=strategy))
    total = sum({key: size for module in modules.values() for key, size in own_sizes(module)}.values())
    uncounted = () if convention == "executed" else tuple(_uncounted(modules, cost, watched))
    return Count(convention, _describe(inputs), total, tuple(rows), uncounted)


def _params(modules: dict[str, nn.Module], rows: Iterable[str]) -> Counter[str]:
    """Elements of every parameter, credited to the innermost row that it belongs to, and to one row only."""
    with_row, params, seen = set(rows), Counter[str](), set()
    for name, module in modules.items():
        around = [name, *(name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)), ""]
        owner = next((part for part in around if part in with_row), None)
        for key, size in own_sizes(module):
            if owner is not None and key not in seen:
                seen.add(key)
                params[owner] += size
    return params


def own_sizes(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Identity and elements of a module's own parameters; a bank says it itself."""
    if isinstance(module, Bank):
        yield from module.sizes()
        return
    for parameter in module.parameters(recurse=False):
        yield id(parameter), parameter.numel()


def _uncounted(modules: dict[str, nn.Module], rows: Iterable[str], watched: Trace) -> list[str]:
    """Names of modules that computed with matrices of their own and have no row: attention, recurrent layers, …"""
    counted = tuple(f"{name}." for name in rows)
    used = {call.name for call in watched.calls} | set(watched.foreign_reads)
    return [
        f"{name or '(model)'} ({type(module).__name__})"
        for name, module in modules.items()
        if name in used
        and f"{name}." not in counted
        and not (isinstance(module, (Router, ConditionalLayer)) or f"{name}.".startswith(counted))
        and any(sum(size > 1 for size in p.shape) > 1 for p in module.parameters(recurse=False))
    ]


def _describe(inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        return "x".join(map(str, inputs.shape)) + " (whole batch)"
    if isinstance(inputs, Sequence) and all(isinstance(size, int) for size in inputs):
        return "x".join(map(str, inputs)) + " (one example)"
    return "as given"


def _add(a: Macs, b: Macs) -> Macs:
    return Macs(*(x + y for x, y in zip(a, b, strict=True)))
