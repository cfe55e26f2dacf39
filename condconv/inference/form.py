"""The inference form of a network: batch norm folded, experts packed, channels last; same outputs, smaller file.

    optimised = condconv.optimize_for_inference(model, experts="int8")

The form of a static network is its fair rival: folded and channels_last too.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from condconv.arguments import a_module, choice, number
from condconv.banks import Packing
from condconv.conversion.apply import conditional_layers, forget_originals, refuse_inference_form
from condconv.conversion.collapse import make_static
from condconv.errors import ConversionError
from condconv.inference.folding import (
    ConvAndNorm,
    factor_and_shift,
    find_pairs,
    fold_static,
    is_batch_norm,
    without_norm,
)
from condconv.layers import ConditionalLayer
from condconv.packing import STORAGES
from condconv.routers import Router

_log = logging.getLogger("condconv")

ExpertStorage = Literal["f32", "bf16", "int8"]
RestStorage = Literal["f32", "bf16"]

_REST = {"f32": torch.float32, "bf16": torch.bfloat16}
_CLOSED = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)

Value = TypeVar("Value")


class Stored(NamedTuple):
    """How the experts of a layer are stored."""

    storage: str
    kernels: int | None = None
    """Principal kernels in the place of the experts; None for the experts themselves."""


@dataclass(frozen=True)
class InferenceForm:
    """What `optimize_for_inference` did; it stays with the network as `network.inference_form`."""

    layers: Mapping[str, Stored]
    """The conditional layers by name."""
    rest: str
    """Type of everything else."""
    skip_below: float
    folded: tuple[str, ...]
    """Names of the batch norms that are folded into the convolutions in front of them."""
    left: tuple[str, ...]
    """Names of the others."""
    static: tuple[str, ...] = ()
    """Names of layers that were conditional, and are static in this form."""

    @property
    def packed(self) -> tuple[str, ...]:
        """Names of the conditional layers."""
        return tuple(self.layers)

    @property
    def experts(self) -> str:
        """Storage of the experts; several where layers differ, nothing where there are none."""
        return ", ".join(dict.fromkeys(stored.storage for stored in self.layers.values()))

    def __str__(self) -> str:
        skipped = f", those with coefficients up to {self.skip_below:g} skipped" if self.skip_below else ""
        left = f" (left: {', '.join(self.left[:3])}{', …' if len(self.left) > 3 else ''})" if self.left else ""
        return (
            f"inference form: experts of {len(self.packed)} layers{self.experts and f' in {self.experts}'}{skipped}; "
            f"{len(self.folded)} of {len(self.folded) + len(self.left)} batch norms folded{left}; rest in {self.rest}"
        )


def optimize_for_inference(
    model: nn.Module,
    experts: ExpertStorage = "f32",
    rest: RestStorage = "f32",
    skip_below: float = 0.0,
) -> nn.Module:
    """Return a copy of a network for inference: faster, smaller, in eval mode; the argument is not touched.

    Every batch norm that directly follows a convolution is folded into it, experts are packed, weights are in
    channels_last order, and nothing requires gradients. What was done is in the copy's attribute `inference_form`, and
    is logged. In f32 it computes what `model.eval()` does, to about 1e-5 of the largest output, which is rounding. Not
    to be called while other threads run networks: torch.fx, which finds the pairs, changes how modules are called.

    Args:
        model: any network, conditional or static.
        experts: how experts are stored; they are mixed in f32 whatever it is. "int8" has a scale for each expert and
            output channel.
        rest: type of everything else, but for what stays in f32: routers, batch norms that could not be folded, and the
            biases and scales of the experts. With "bf16" the network casts its inputs to bf16 and its outputs to f32.
        skip_below: experts whose |coefficient| is at most this are left out of the mixture; 0 leaves those out that
            are exactly 0. A skipped expert is assumed finite: its NaN would not show.

    Raises:
        ArgumentError: an argument has none of its values.
        ConversionError: the model is an inference form already, compiled, scripted or wrapped for parallel training,
            has parameters that are not initialised yet, or experts that are not finite and have to be.
    """
    where = "optimize_for_inference"
    a_module(where, "model", model)
    choice(where, "experts", experts, tuple(STORAGES))
    choice(where, "rest", rest, tuple(_REST))
    skip_below = number(where, "skip_below", skip_below, minimum=0, remedy="0 skips coefficients of 0 alone")
    _check(model)
    packing = Packing(experts, float(skip_below))
    made = inference_form(model, lambda name: packing, rest)
    _log.info("%s", made.inference_form)
    return made


def inference_form(
    model: nn.Module,
    packing_of: Callable[[str], Packing],
    rest: str,
    static: Mapping[str, Tensor | None] | None = None,
) -> Any:
    """Return the inference form of a network, with a choice for each layer; see `optimize_for_inference`.

    Args:
        model: any network; unchanged.
        packing_of: how the conditional layer of that name is packed.
        rest: type of everything else.
        static: layers to be made static, with their coefficients (D,); None for whichever, where weights are loaded.
    """
    made = copy.deepcopy(model).eval()
    layers = dict(conditional_layers(made))
    fixed = {name: layers[name].bank.identity if mean is None else mean for name, mean in (static or {}).items()}
    made = forget_originals(make_static(made, fixed) if fixed else made)
    pairs = find_pairs(made)
    norms = tuple(name for name, module in made.named_modules() if is_batch_norm(module))
    packings = _pack(made, pairs, packing_of)
    for pair in pairs:
        convolution, norm = made.get_submodule(pair.convolution), made.get_submodule(pair.norm)
        if not isinstance(convolution, ConditionalLayer):
            fold_static(convolution, norm)
        made.set_submodule(pair.norm, without_norm(norm))
    folded = tuple(pair.norm for pair in pairs)
    left = tuple(name for name in norms if name not in folded)
    for module in made.modules():
        if isinstance(module, Router):
            module.fold_norm()
    made.requires_grad_(False).zero_grad()
    _store(made, _REST[rest])
    stored = {name: Stored(packing.storage, packing.kernels) for name, packing in packings.items()}
    threshold = max((packing.threshold for packing in packings.values()), default=0.0)
    form = InferenceForm(stored, rest, threshold, folded, left, tuple(fixed))
    object.__setattr__(made, "inference_form", form)
    made.register_forward_pre_hook(_before, with_kwargs=True)
    if rest == "bf16":
        made.register_forward_hook(_after)
    return made


def _check(model: nn.Module) -> None:
    refuse_inference_form(model, "optimize_for_inference")
    # A compiled module is known by its attribute: its class would bring in the whole compiler.
    if isinstance(model, _CLOSED) or hasattr(model, "_orig_mod"):
        raise ConversionError(
            f"optimize_for_inference: model is a {type(model).__name__}, whose modules cannot be replaced; optimise "
            "the plain module inside, then compile or wrap the result"
        )
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        names = ", ".join(lazy[:3])
        raise ConversionError(f"optimize_for_inference: {names} are not initialised yet (lazy); run the model once")


def _pack(model: nn.Module, pairs: Sequence[ConvAndNorm], packing_of: Callable[[str], Packing]) -> dict[str, Packing]:
    """Pack the experts of every conditional layer, the factor of the norm behind it included; return how."""
    norm_of = {pair.convolution: model.get_submodule(pair.norm) for pair in pairs}
    packings = {}
    for name, layer in list(conditional_layers(model)):
        norm, packings[name] = norm_of.get(name), packing_of(name)
        try:
            layer.bank = layer.bank.pack(packings[name], None if norm is None else factor_and_shift(norm))
        except ConversionError as error:
            raise ConversionError(f"optimize_for_inference: {name or 'the model'}: {error}") from None
    return packings


def _store(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast all but packed experts, routers and batch norms to f32 in any case; static kernels to channels last."""
    routers = {inside for module in model.modules() if isinstance(module, Router) for inside in module.modules()}
    for module in model.modules():
        # Batch norm takes a bf16 image with f32 statistics; those of torchvision's frozen one would make it f32.
        precise = module in routers or isinstance(module, _BatchNorm)
        module._apply(functools.partial(_floating_to, dtype=torch.float32 if precise else dtype), recurse=False)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)


def _before(model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Refuse training mode, and hand a network in bf16 its input in bf16."""
    if model.training:
        raise ConversionError(
            f"{type(model).__name__}: is an inference form, where batch norm is folded and experts are packed; call "
            ".eval(), or train the network it was made from"
        )
    form: Any = model.inference_form
    return _all_to((args, kwargs), torch.bfloat16) if form.rest == "bf16" else (args, kwargs)


def _after(model: nn.Module, args: Any, output: Any) -> Any:
    """Hand out f32."""
    return _all_to(output, torch.float32)


def _all_to(values: Value, dtype: torch.dtype) -> Value:
    """Cast every floating-point tensor in nested tuples, lists and dictionaries."""
    cast: Value = pytree.tree_map_only(Tensor, functools.partial(_floating_to, dtype=dtype), values)
    return cast


def _floating_to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
