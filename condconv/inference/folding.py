"""Batch norm multiplied into the convolution in front of it.

In eval mode batch norm is y = s·x + t for each channel, with s = γ / √(variance + ε) and t = β − s·mean. After a
convolution that is

    s·(W * x + b) + t  =  (s W) * x + (s b + t)                            static
    s·(Σᵢ αᵢ (Wᵢ * x + bᵢ)) + t  =  Σᵢ αᵢ ((s Wᵢ) * x + s bᵢ) + t            conditional: t is not mixed

Which norms follow which convolutions is read off the graph that torch.fx records of the network's own code. Everything
without a norm inside is one opaque step of it, so that little Python is traced and hardly a network resists; of one
that does, the submodules are tried one by one. A pair is folded only where the convolution's output goes into that norm
and nowhere else, both are called at one place, and neither has hooks that would see the difference.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from condconv.banks import Affine, scale_outputs
from condconv.conversion.sites import layer_obstacle
from condconv.layers import ConditionalLayer

_NORMS = frozenset(
    {
        ("torch.nn.modules.batchnorm", "BatchNorm1d"),
        ("torch.nn.modules.batchnorm", "BatchNorm2d"),
        ("torch.nn.modules.batchnorm", "BatchNorm3d"),
        ("torch.nn.modules.batchnorm", "SyncBatchNorm"),
        ("torchvision.ops.misc", "FrozenBatchNorm2d"),
        ("timm.layers.norm_act", "BatchNormAct2d"),
        ("timm.layers.norm_act", "FrozenBatchNormAct2d"),
        ("timm.layers.norm_act", "SyncBatchNormAct"),
    }
)
"""Classes that normalise by running statistics in eval mode; timm's go on with their children `drop` and `act`."""


class ConvAndNorm(NamedTuple):
    """A convolution, static or conditional, and the batch norm behind it, by their names in the network."""

    convolution: str
    norm: str


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm of a class known here, recognised without importing timm or torchvision."""
    return (type(module).__module__, type(module).__name__) in _NORMS


def find_pairs(model: nn.Module) -> list[ConvAndNorm]:
    """Return the pairs of `model`, in eval mode, that can be folded."""
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    state = {module: dict(vars(module)) for module in model.modules()}
    pairs = []
    try:
        for prefix, graph in _graphs("", model):
            for convolution, norm in _followers(graph):
                pair = ConvAndNorm(prefix + convolution, prefix + norm)
                modules = [model.get_submodule(name) for name in pair]
                if all(places[id(module)] == 1 for module in modules) and _can_fold(*modules):
                    pairs.append(pair)
    finally:
        # Code that keeps something of its last call on a module has kept stand-ins of tensors while it was traced.
        for module, attributes in state.items():
            vars(module).clear()
            vars(module).update(attributes)
    return pairs


class _Tracer(fx.Tracer):
    """Steps into modules that hold batch norms, and records every other one as a single call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_batch_norm(m) or not any(is_batch_norm(inside) for inside in m.modules())


def _graphs(name: str, module: nn.Module) -> Iterator[tuple[str, fx.Graph]]:
    """The graph of a module, or of its children where its code cannot be traced, with the prefix of their names."""
    if _Tracer().is_leaf_module(module, name):
        return
    prefix = f"{name}." if name else ""
    graph = _traced(module, is_root=not name)
    if graph is not None:
        yield prefix, graph
        return
    for child, inside in module.named_children():
        yield from _graphs(prefix + child, inside)


def _traced(module: nn.Module, is_root: bool) -> fx.Graph | None:
    """What a call of the module does, the root with its optional arguments at their defaults; None where unknown."""
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    if defaults and not is_root:
        return None  # With what its parent calls it cannot be told, so only its children can be.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That the graph holds for these defaults alone is what is wanted.
            return _Tracer().trace(module, concrete_args=defaults)
    except Exception:  # Whatever the code of a network raises when it is given a stand-in for a tensor.
        return None


def _followers(graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """(module, batch norm) wherever the norm takes the module's output, nothing else does, and both are called once."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    reads = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        if node.op != "call_module" or len(node.all_input_nodes) != 1:
            continue
        source = node.all_input_nodes[0]
        if source.op != "call_module" or len(source.users) != 1:
            continue
        if calls[node.target] == calls[source.target] == 1 and source.target not in reads:
            yield str(source.target), str(node.target)


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether both are what they seem: the convolution linear in its kernel, the norm a constant factor and shift."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in (convolution, norm)):
        return False
    if not is_batch_norm(norm) or getattr(norm, "running_mean", None) is None:
        return False
    if isinstance(convolution, ConditionalLayer):
        return not issubclass(convolution.static_type, nn.Linear)
    return isinstance(convolution, _ConvNd) and layer_obstacle(convolution) is None


def factor_and_shift(norm: Any) -> Affine:
    """Return s and t, (O,) each, in f64."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -factor * norm.running_mean.double()
    return Affine(factor, shift if norm.bias is None else shift + norm.bias.double())


def affine_behind(model: nn.Module) -> dict[str, Affine]:
    """What the batch norms that can be folded into convolutions of `model`, in eval mode, do; by the convolutions."""
    return {pair.convolution: factor_and_shift(model.get_submodule(pair.norm)) for pair in find_pairs(model)}


@torch.no_grad()
def fold_static(convolution: Any, norm: nn.Module) -> None:
    """Fold a norm into a convolution of torch.nn, in place; the norm is still to be removed."""
    factor, shift = factor_and_shift(norm)
    weight = convolution.weight
    kernel = scale_outputs(weight.unsqueeze(0), factor, convolution.groups, convolution.transposed)[0]
    bias = shift if convolution.bias is None else shift + factor * convolution.bias.double()
    convolution.weight = nn.Parameter(kernel.to(weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


def without_norm(norm: nn.Module) -> nn.Module:
    """What stands in the place of a folded norm: nothing, or the dropout and activation that timm's norms contain."""
    steps = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    if not steps:
        return nn.Identity()
    return steps[0] if len(steps) == 1 else nn.Sequential(*steps)
