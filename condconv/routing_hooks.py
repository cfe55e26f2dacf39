"""Watching and replacing routing: context managers that do not touch the model.

They see what runs in their block and in tasks that it starts; other threads and other tasks see nothing of them. Every
conditional layer hands its coefficients to `run_hooks` before it uses them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from condconv.arguments import a_module, a_tensor
from condconv.context import ContextStack
from condconv.errors import ArgumentError, NonFiniteError, ShapeError, argument_error
from condconv.registry import Registry

Intervention = Callable[[str, Tensor], Tensor]
"""(layer name, coefficients (B, n)) → coefficients (B, n)."""


class _Hook(Protocol):
    names: dict[int, str]

    def see(self, name: str, layer: nn.Module, coefficients: Tensor) -> Tensor: ...


_hooks: ContextStack[_Hook] = ContextStack("condconv hooks")


def run_hooks(layer: nn.Module, coefficients: Tensor) -> Tensor:
    """Show a layer's coefficients (B, n) to the active hooks; return what the layer is to use."""
    hooks = _hooks.values()
    # Inside the backward pass a layer runs only because an activation checkpoint recomputes it: seen already.
    if not hooks or torch._C._current_graph_task_id() != -1:
        return coefficients
    for hook in hooks:
        name = hook.names.get(id(layer))
        if name is not None:
            coefficients = hook.see(name, layer, coefficients)
    return coefficients


def conditional_names(model: nn.Module, where: str) -> dict[int, str]:
    """Id → name of the conditional layers of a model (those that have experts); compiled code is refused."""
    a_module(where, "model", model)
    for name, child in model.named_modules():
        compiled = getattr(child, "_compiled_call_impl", None) is not None
        if compiled or isinstance(child, torch._dynamo.OptimizedModule):
            raise ArgumentError(
                f"{where}: {name or 'model'} ({type(child).__name__}) is compiled, and compiled code runs none of the "
                "hooks; pass the module that was handed to torch.compile and run that one"
            )
    names = {id(m): name for name, m in model.named_modules() if getattr(m, "num_experts", None) and hasattr(m, "bank")}
    if not names:
        raise ArgumentError(
            f"{where}: model={type(model).__name__} has no conditional layer; convert it first with condconv.convert"
        )
    return names


class Routing(Mapping[str, Tensor]):
    """Recorded coefficients: layer name → CPU tensor (examples seen, n), in the order in which examples were seen."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names
        self._batches: dict[str, list[Tensor]] = {}

    def see(self, name: str, layer: nn.Module, coefficients: Tensor) -> Tensor:
        """Keep a copy of the coefficients and return them unchanged."""
        self._batches.setdefault(name, []).append(coefficients.detach().to("cpu", copy=True))
        return coefficients

    def __getitem__(self, name: str) -> Tensor:
        batches = self._batches[name]
        if len(batches) > 1:
            batches[:] = [torch.cat(batches)]
        return batches[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


@contextlib.contextmanager
def record_routing(model: nn.Module) -> Iterator[Routing]:
    """Record the coefficients of every conditional layer that runs inside the block.

    `routing["layer.name"]` is a CPU tensor (examples seen, n); a layer that is called twice records both calls.

    Raises:
        ArgumentError: the model has no conditional layer, or is compiled.
    """
    routing = Routing(conditional_names(model, "record_routing"))
    with _hooks.holding(routing):
        yield routing


class _NonFiniteDetector:
    def __init__(self, names: dict[int, str]) -> None:
        self.names = names

    def see(self, name: str, layer: nn.Module, coefficients: Tensor) -> Tensor:
        bad = ~torch.isfinite(coefficients)
        if bad.any():
            scope = getattr(layer, "scope", None)
            owner = f"the router of {scope.name or 'the network'!r}" if scope is not None else "its own router"
            examples = bad.any(dim=1).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"{name}: {int(bad.sum())} of {bad.numel()} coefficients from {owner} are not finite (examples "
                f"{examples[:8]}); look for a non-finite input to that router, a learning rate that is too high, or "
                "missing gradient clipping"
            )
        return coefficients


@contextlib.contextmanager
def detect_nonfinite(model: nn.Module) -> Iterator[None]:
    """Raise `NonFiniteError`, naming layer and router, at the first coefficient that is NaN or infinite.

    Without it non-finite values propagate: a layer's forward never branches on its data.
    """
    with _hooks.holding(_NonFiniteDetector(conditional_names(model, "detect_nonfinite"))):
        yield


def _mean(name: str, coefficients: Tensor) -> Tensor:
    return coefficients.mean(dim=1, keepdim=True).expand_as(coefficients)


def _argmax(name: str, coefficients: Tensor) -> Tensor:
    largest = torch.zeros_like(coefficients).scatter_(1, coefficients.argmax(dim=1, keepdim=True), 1.0)
    return largest * coefficients.sum(dim=1, keepdim=True)


def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def _shuffle(name: str, coefficients: Tensor) -> Tensor:
    return coefficients[_permutation(coefficients.shape[0], seed=0).to(coefficients.device)]


def _shuffle_experts(name: str, coefficients: Tensor) -> Tensor:
    batch, n = coefficients.shape
    orders = torch.rand(batch, n, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return coefficients.gather(1, orders.to(coefficients.device))


interventions: Registry[Intervention] = Registry("intervention")
interventions.register("mean", _mean)
interventions.register("argmax", _argmax)
interventions.register("shuffle", _shuffle)
interventions.register("shuffle_experts", _shuffle_experts)


class _Override:
    def __init__(self, names: dict[int, str], intervention: Intervention) -> None:
        self.names = names
        self.intervention = intervention

    def see(self, name: str, layer: nn.Module, coefficients: Tensor) -> Tensor:
        replaced = a_tensor(name, "override_routing's result", self.intervention(name, coefficients))
        if replaced.shape != coefficients.shape:
            raise ShapeError(
                f"{name}: override_routing's callable returned shape {tuple(replaced.shape)} for coefficients of shape "
                f"{tuple(coefficients.shape)}; return one coefficient for each example and expert"
            )
        return replaced


@contextlib.contextmanager
def override_routing(model: nn.Module, how: str | Intervention) -> Iterator[None]:
    """Replace the coefficients of every conditional layer that runs inside the block (Dynamic Convolution, table 7).

    * "mean": every expert gets the example's mean coefficient (softmax: 1/n, the plain average of the kernels);
    * "argmax": the example's whole coefficient mass goes to its largest expert (softmax: one kernel alone);
    * "shuffle": every example is routed as another one of its batch, the same one in every layer;
    * "shuffle_experts": each example's coefficients are permuted among the experts;
    * a callable (layer name, coefficients (B, n)) → coefficients (B, n).

    Raises:
        UnknownNameError: no such intervention.
        ArgumentError: the model has no conditional layer, or is compiled.
    """
    intervention = interventions[how] if isinstance(how, str) else how
    if not callable(intervention):
        rule = f"must be one of {', '.join(interventions.names())}, or a function (layer name, coefficients)"
        raise argument_error("override_routing", "how", how, rule, "pass 'mean'")
    with _hooks.holding(_Override(conditional_names(model, "override_routing"), intervention)):
        yield
