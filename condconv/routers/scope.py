"""Routing scopes: one router, computed from the input of a block, shared by several layers.

The papers route once for a whole inverted bottleneck. Here the block that owns the router (the *source*) computes the
coefficients when it is called and lends them, for that call only, to the layers in its scope:

    source(x):   scope.lend(router(x))  →  the block's own forward  →  scope.discard()
    layer(h):    coefficients = scope.borrow()

`attach_scope` swaps the class of the source for a generated subclass whose `forward` does this (the way
`torch.nn.utils.parametrize` works), so names, hooks and `state_dict` keys of the block stay as they were and the router
is one more child of it.

Where the coefficients are in between:

* in eager mode in a context variable, so that threads and tasks may share a model;
* on the scope itself while torch.compile, torch.export or ONNX export trace, which know no threads;
* for activation checkpointing *inside* the block, which calls layers again during the backward pass when the loan is
  over: also in the `metadata` of the autograd node that made them. The recomputing layer walks from the node that is
  being evaluated to the most recent loan upstream of it.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import ArgumentError, RoutingError
from condconv.routers.router import Router

_loans: ContextVar[Mapping[RoutingScope, Tensor]] = ContextVar("condconv loans", default=MappingProxyType({}))


class RoutingScope:
    """A routing decision that several layers share. A plain object: no parameters, nothing in `state_dict`.

    Args:
        name: name of the source in its model, for messages.
        rank: number of spatial dimensions of the source's input; one dimension less than rank + 2 means unbatched.
        channels_last: the source's channels are its input's last dimension (tokens), not the second.
        previous: the scope whose coefficients a hierarchical router also sees.
    """

    def __init__(
        self, name: str, rank: int = 2, channels_last: bool = False, previous: RoutingScope | None = None
    ) -> None:
        self.name = name
        self.rank = rank
        self.channels_last = channels_last
        self.previous = previous
        self._traced: Tensor | None = None

    def route(self, router: Router, x: Tensor) -> Tensor:
        """Return the coefficients (B, n) that the router computes from the source's input x."""
        if isinstance(x, Tensor) and x.dim() == self.rank + 1:
            x = x.unsqueeze(0)
        if self.channels_last:
            x = x.movedim(-1, 1)
        if self.previous is None:
            return router(x)
        return router(x, self.previous.borrow(self.name))

    def lend(self, coefficients: Tensor) -> None:
        """Make the coefficients available to the layers of this scope."""
        if torch.compiler.is_compiling():
            self._traced = coefficients
            return
        _loans.set({**_loans.get(), self: coefficients})
        if isinstance(coefficients, Tensor) and coefficients.grad_fn is not None:
            # Detached: the node must not keep alive the graph that it is part of.
            metadata: Any = coefficients.grad_fn.metadata
            metadata[self] = coefficients.detach()

    def discard(self) -> None:
        """End the loan."""
        if torch.compiler.is_compiling():
            self._traced = None
        else:
            _loans.set({scope: lent for scope, lent in _loans.get().items() if scope is not self})

    def lent(self) -> Tensor | None:
        """What is lent now, (B, n)."""
        return self._traced if torch.compiler.is_compiling() else _loans.get().get(self)

    def borrow(self, borrower: str) -> Tensor:
        """Return the coefficients (B, n) of the current call of the source.

        Raises:
            RoutingError: the source is not running.
        """
        lent = self.lent()
        if lent is None and not torch.compiler.is_compiling():
            lent = _lent_upstream(self)
        if lent is None:
            raise RoutingError(
                f"{borrower}: shares the routing of {self.name or 'the network'!r}, which is not running; call it "
                "through that module or pass coefficients=. With activation checkpointing inside it, use "
                "use_reentrant=False and a trainable router, or checkpoint around the whole module"
            )
        return lent


def _lent_upstream(scope: RoutingScope) -> Tensor | None:
    """During the backward pass, find the most recent loan of `scope` upstream of the node being evaluated."""
    current = torch._C._current_autograd_node()
    # A reentrant checkpoint differentiates what it recomputes, and that would not reach the router.
    if current is None or current.name() == "CheckpointFunctionBackward":
        return None
    # Best first by sequence number = latest first, so that only nodes made since the loan are visited.
    tie = itertools.count()
    heap: list[tuple[int, int, Any]] = [(-current._sequence_nr(), next(tie), current)]
    seen = {current}
    while heap:
        _, _, node = heapq.heappop(heap)
        if scope in node.metadata:
            return node.metadata[scope].requires_grad_()
        for upstream, _ in node.next_functions:
            if upstream is not None and upstream not in seen:
                seen.add(upstream)
                heapq.heappush(heap, (-upstream._sequence_nr(), next(tie), upstream))
    return None


class _Routed:
    """Mixed into the class of a source, and of the module at whose end scopes that span several blocks are closed."""

    routed_scope: RoutingScope | None
    closed_scopes: tuple[RoutingScope, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The generated class cannot be found by name: pickle the class it was made from.
        base = type(self).__mro__[2]
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new_routed, (base,), *reduced[2:])


def _first_tensor(scope: RoutingScope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The input that the router sees: the first positional argument, or the first keyword argument."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(first, Tensor | torch.fx.Proxy):
        raise RoutingError(
            f"{scope.name or 'the network'}: its first argument is {type(first).__name__}, not a tensor, so routing "
            "cannot be computed from it; share the routing of a module that takes a tensor, or use share=None"
        )
    return first


@functools.cache
def _routed_class(base: Any) -> type[nn.Module]:
    """A subclass of `base` that lends coefficients to the layers in its scope while its own forward runs."""

    @functools.wraps(base.forward)  # FX reads the arguments' names off the wrapped function.
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = self.routed_scope
        try:
            if scope is not None:
                scope.lend(scope.route(self.router, _first_tensor(scope, args, kwargs)))
            return base.forward(self, *args, **kwargs)
        finally:
            for closed in self.closed_scopes:
                closed.discard()

    members = {"__module__": base.__module__, "__doc__": base.__doc__, "forward": forward}
    if issubclass(base, nn.Sequential):
        members |= {"__iter__": _iterate_without_router, "__len__": _length_without_router}
    return type(f"Routed{base.__name__}", (_Routed, base), members)


def _iterate_without_router(self: nn.Sequential) -> Iterator[nn.Module]:
    """A sequence runs what it iterates over; its router is a child, but no step of it."""
    return (module for name, module in self._modules.items() if name != "router" and module is not None)


def _length_without_router(self: nn.Sequential) -> int:
    return len(self._modules) - ("router" in self._modules)


def _new_routed(base: Any) -> Any:
    cls = _routed_class(base)
    return cls.__new__(cls)


def _make_routed(module: nn.Module) -> Any:
    """Swap the class of a module for its routed subclass, once, and return the module."""
    routed: Any = module
    if not isinstance(module, _Routed):
        base: Any = type(module)
        routed.__class__ = _routed_class(base)
        routed.routed_scope = None
        routed.closed_scopes = ()
    return routed


def attach_scope(
    model: nn.Module,
    source: str,
    layers: Sequence[nn.Module],
    router: Router,
    *,
    rank: int = 2,
    channels_last: bool = False,
    previous: RoutingScope | None = None,
    spans_blocks: bool = False,
) -> RoutingScope:
    """Let one router, computed from the input of the module named `source`, serve all `layers`.

    Args:
        model: the network that contains them.
        source: name of the module whose input feeds the router ("" is the network itself). The router becomes its
            child `router`.
        layers: conditional layers, called while the source runs (or after it, with `spans_blocks`).
        router: maps the source's input to (B, n).
        rank: spatial dimensions of the source's input.
        channels_last: the channels of the source's input are its last dimension.
        previous: scope whose coefficients a hierarchical router sees too; it must span blocks.
        spans_blocks: the loan lasts until the network's forward ends, not just the source's.

    Raises:
        ArgumentError: the source already routes, or has a child of that name.
    """
    module = model.get_submodule(source)
    if getattr(module, "router", None) is not None:
        raise ArgumentError(
            f"{source or 'the network'}: already has a `router`, so it cannot be the source of another routing scope; "
            "choose another module to share over"
        )
    scope = RoutingScope(source, rank, channels_last, previous)
    routed = _make_routed(module)
    routed.router = router
    routed.routed_scope = scope
    closer = _make_routed(model) if spans_blocks else routed
    closer.closed_scopes = (*closer.closed_scopes, scope)
    for layer in layers:
        member: Any = layer
        member.scope = scope
        member.router = None
    return scope


def detach_scopes(model: nn.Module, keep: Collection[RoutingScope] = ()) -> None:
    """Undo every `attach_scope` in a model but those of `keep`: restore the classes and remove the shared routers."""
    for module in list(model.modules()):
        if not isinstance(module, _Routed):
            continue
        if module.routed_scope is not None and module.routed_scope not in keep:
            del module.router
            module.routed_scope = None
        module.closed_scopes = tuple(scope for scope in module.closed_scopes if scope in keep)
        if module.routed_scope is not None or module.closed_scopes:
            continue
        for attribute in ("routed_scope", "closed_scopes"):
            delattr(module, attribute)
        routed: Any = module
        routed.__class__ = type(module).__mro__[2]
