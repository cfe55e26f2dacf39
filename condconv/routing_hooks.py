"""Watching and replacing routing: context managers that do not touch the model.

They see what runs in their block and in tasks that it starts; other threads and other tasks see nothing of them. Every
conditional layer hands its coefficients to `run_hooks` before it uses them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from condconv.arguments import a_module, a_tensor
from condconv.coefficients import MIXING, Slices
from condconv.context import ContextStack
from condconv.errors import ArgumentError, NonFiniteError, ShapeError, argument_error
from condconv.registry import Registry, unknown_name_message

Intervention = Callable[[str, Tensor], Tensor]
"""(layer name, coefficients (B, D), or a slice of them) → coefficients of the same shape."""


class _Hook(Protocol):
    names: dict[int, str]

    def see(self, name: str, layer: nn.Module, coefficients: Tensor) -> Tensor: ...


_hooks: ContextStack[_Hook] = ContextStack("condconv hooks")


def run_hooks(layer: nn.Module, coefficients: Tensor) -> Tensor:
    """Show a layer's coefficients (B, D) to the active hooks; return what the layer is to use."""
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
    """Id → name of the conditional layers and blocks of a model; compiled code is refused."""
    a_module(where, "model", model)
    for name, child in model.named_modules():
        compiled = getattr(child, "_compiled_call_impl", None) is not None
        if compiled or isinstance(child, torch._dynamo.OptimizedModule):
            raise ArgumentError(
                f"{where}: {name or 'model'} ({type(child).__name__}) is compiled, and compiled code runs none of the "
                "hooks; pass the module that was handed to torch.compile and run that one"
            )
    names = {id(m): name for name, m in model.named_modules() if hasattr(m, "num_coefficients")}
    if not names:
        raise ArgumentError(
            f"{where}: model={type(model).__name__} has no conditional layer; convert it first with condconv.convert"
        )
    return names


class Routing(Mapping[str, Tensor]):
    """Recorded coefficients: layer name → CPU tensor (examples seen, D), in the order in which examples were seen."""

    def __init__(self, names: dict[int, str], part: str | None = None) -> None:
        self.names = names
        self.part = part
        self._batches: dict[str, list[Tensor]] = {}
        self._slices: dict[str, Slices] = {}

    def see(self, name: str, layer: nn.Module, coefficients: Tensor) -> Tensor:
        """Keep a copy of the coefficients and return them unchanged."""
        kept = coefficients
        slices = self._slices[name] = cast(Any, layer).slices
        if self.part is not None:
            kept = coefficients[:, slices.span(self.part)]
            self._slices[name] = Slices(tuple(part for part in slices.parts if part.name == self.part))
        self._batches.setdefault(name, []).append(kept.detach().to("cpu", copy=True))
        return coefficients

    def __getitem__(self, name: str) -> Tensor:
        batches = self._batches[name]
        return batches[0] if len(batches) == 1 else torch.cat(batches)

    def parts(self, examples: int | None = None) -> dict[str, Tensor]:
        """What was recorded by slice, (examples seen, length): under the names of `part_names`.

        With `examples`, of calls with so many examples alone: layers that see regions of images are left out.
        """
        found = {}
        for name, batches in self._batches.items():
            kept = [batch for batch in batches if examples in (None, len(batch))]
            if not kept:
                continue
            coefficients, slices = torch.cat(kept), self._slices[name]
            for label, part in zip(part_names(name, slices), slices.names, strict=True):
                found[label] = coefficients[:, slices.span(part)]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


@contextlib.contextmanager
def record_routing(model: nn.Module, part: str | None = None) -> Iterator[Routing]:
    """Record the coefficients of every conditional layer that runs inside the block.

    `routing["layer.name"]` is a CPU tensor (examples seen, D); a layer that is called twice records both calls.

    Args:
        model: a network with conditional layers.
        part: a slice of the coefficients, such as "mixing"; layers that have none of that name are left out. None
            records all slices, one after the other, as `layer.slices` says.

    Raises:
        ArgumentError: the model has no conditional layer, none with such a slice, or is compiled.
    """
    routing = Routing(_names_with(model, part, "record_routing"), part)
    with _hooks.holding(routing):
        yield routing


def part_names(layer: str, slices: Slices) -> list[str]:
    """A name for each slice of a layer's coefficients: the layer's for mixing weights alone, else "layer:slice"."""
    if slices.names == (MIXING,):
        return [layer]
    return [f"{layer}:{name}" for name in slices.names]


def layer_of(part: str) -> str:
    """The layer's name in one of `part_names`."""
    return part.partition(":")[0]


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
    def __init__(self, names: dict[int, str], intervention: Intervention, part: str | None) -> None:
        self.names = names
        self.intervention = intervention
        self.part = part

    def see(self, name: str, layer: nn.Module, coefficients: Tensor) -> Tensor:
        span = slice(0, coefficients.shape[1]) if self.part is None else _span(layer, self.part)
        if span.stop == span.start:
            return coefficients  # The layer has no such slice.
        before = coefficients[:, span]
        replaced = a_tensor(name, "override_routing's result", self.intervention(name, before))
        if replaced.shape != before.shape:
            raise ShapeError(
                f"{name}: override_routing's callable returned shape {tuple(replaced.shape)} for coefficients of shape "
                f"{tuple(before.shape)}; return one coefficient for each example and expert"
            )
        if before.shape == coefficients.shape:
            return replaced
        return torch.cat([coefficients[:, : span.start], replaced, coefficients[:, span.stop :]], dim=1)


@contextlib.contextmanager
def override_routing(model: nn.Module, how: str | Intervention, part: str | None = None) -> Iterator[None]:
    """Replace the coefficients of every conditional layer that runs inside the block (Dynamic Convolution, table 7).

    * "mean": every expert gets the example's mean coefficient (softmax: 1/n, the plain average of the kernels);
    * "argmax": the example's whole coefficient mass goes to its largest expert (softmax: one kernel alone);
    * "shuffle": every example is routed as another one of its batch, the same one in every layer;
    * "shuffle_experts": each example's coefficients are permuted among the experts;
    * a callable (layer name, coefficients) → coefficients of the same shape.

    Args:
        model: a network with conditional layers.
        how: see above.
        part: a slice of the coefficients, such as "output"; layers that have none of that name stay as they are. None:
            all coefficients (B, D) for a callable and "shuffle", the experts' "mixing" for the others.

    Raises:
        UnknownNameError: no such intervention.
        ArgumentError: the model has no conditional layer, none with such a slice, or is compiled.
    """
    intervention = interventions[how] if isinstance(how, str) else how
    if not callable(intervention):
        rule = f"must be one of {', '.join(interventions.names())}, or a function (layer name, coefficients)"
        raise argument_error("override_routing", "how", how, rule, "pass 'mean'")
    if part is None and intervention in (_mean, _argmax, _shuffle_experts):
        part, names = MIXING, conditional_names(model, "override_routing")
    else:
        names = _names_with(model, part, "override_routing")
    with _hooks.holding(_Override(names, intervention, part)):
        yield


def _span(layer: nn.Module, part: str) -> slice:
    """Where a slice lies among a layer's coefficients; an empty one where it has none of that name."""
    slices: Slices = cast(Any, layer).slices
    return slices.span(part)


def _names_with(model: nn.Module, part: str | None, where: str) -> dict[int, str]:
    """Id → name of the conditional layers that have a slice of that name, of all for None."""
    names = conditional_names(model, where)
    if part is None:
        return names
    layers = [module for module in model.modules() if id(module) in names]
    having = {id(layer): names[id(layer)] for layer in layers if _span(layer, part).stop}
    if not having:
        known = sorted({name for layer in layers for name in cast(Any, layer).slices.names})
        raise ArgumentError(f"{where}: {unknown_name_message('part', part, known)}")
    return having
