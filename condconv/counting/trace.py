"""One forward pass, watched: which modules were called, in which order, on what shapes.

Counting needs the calls (a layer that runs twice is paid for twice), conversion their order (depth) and the parameters
that somebody else than their owner reads (such a layer cannot be replaced). The pass runs in eval mode without
gradients, and modes, hooks and the random state are as before when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from condconv.banks import Bank
from condconv.errors import argument_error

Inputs = Sequence[int] | Tensor | Sequence[Any]


@dataclass(frozen=True)
class Call:
    """One call of one module."""

    name: str
    """Its name in the model; "" is the model itself."""
    module: nn.Module
    input: Tensor | None
    """The first tensor among its arguments, on the meta device (shape, dtype and layout only)."""
    output: Tensor | None
    """The first tensor of its result, on the meta device."""
    arguments: int
    """How many arguments it was called with."""
    starts_with_tensor: bool
    """Its first argument is a tensor, not a list of some."""
    parents: tuple[str, ...]
    """Names of the modules whose calls were running, outermost first."""


@dataclass
class Trace:
    """What one forward pass did."""

    calls: list[Call] = field(default_factory=list)
    """In the order in which the calls began."""
    foreign_reads: dict[str, str] = field(default_factory=dict)
    """Module → another module that computed with the first one's parameters itself."""

    def of(self, name: str) -> list[Call]:
        """Return the calls of one module."""
        return [call for call in self.calls if call.name == name]


def example_inputs(model: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """Return positional arguments for `model`.

    A sequence of integers is the size of one example without its batch dimension, (C, *space); a tensor or a list is
    the only argument (torchvision's detectors take a list of images); a tuple of other things is all the arguments.

    Raises:
        ArgumentError: `inputs` is none of these.
    """
    if isinstance(inputs, Tensor) or (isinstance(inputs, list) and any(isinstance(item, Tensor) for item in inputs)):
        return (inputs,)
    if isinstance(inputs, Sequence) and inputs and all(isinstance(size, int) for size in inputs):
        if min(inputs) < 1:
            raise argument_error("example input", "input_size", inputs, "has a size below 1", "give (C, *space)")
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
        generator = torch.Generator().manual_seed(0)
        # Uniform in [0, 1) is a valid image for every network, detectors with their own normalisation included.
        return (torch.rand(1, *inputs, generator=generator).to(like),)
    if isinstance(inputs, tuple) and inputs:
        return inputs
    rule, remedy = "is neither a size nor tensors", "give (C, *space), a tensor or a tuple of arguments"
    raise argument_error("example input", "input_size", inputs, rule, remedy)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode and give every module its own mode back at the end; the random state is kept too."""
    modes = {module: module.training for module in model.modules()}
    was_training = model.training
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            # train() first: some modules drop what they cached in eval mode in their own train().
            model.train(was_training)
            for module, mode in modes.items():
                module.training = mode


def trace(model: nn.Module, inputs: Inputs) -> Trace:
    """Run `model` once on `inputs` (see `example_inputs`) and return what was called."""
    arguments = example_inputs(model, inputs)
    recorder = Recorder(model)
    with evaluating(model), torch.no_grad(), recorder:
        model(*arguments)
    return recorder.trace


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in nested tuples, lists and dictionaries, or None."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((found for item in items if (found := first_tensor(item)) is not None), None)


class Recorder(TorchFunctionMode):
    """Keeps the stack of running modules through hooks, and sees every torch function called with a parameter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self._model = model
        self._stack: list[tuple[str, int]] = []
        self._owners: dict[int, list[str]] = {}
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(name)

    @property
    def running(self) -> tuple[str, nn.Module]:
        """Name and module of the innermost call that is going on, a bank's being its layer's; the model before all."""
        for name, index in reversed(self._stack):
            module = self.trace.calls[index].module
            if not isinstance(module, Bank):
                return name, module
        return "", self._model

    def __enter__(self) -> Recorder:
        self._exit = ExitStack()
        for name, module in self._model.named_modules():
            before = module.register_forward_pre_hook(self._enter(name), with_kwargs=True, prepend=True)
            after = module.register_forward_hook(self._leave())
            self._exit.callback(before.remove)
            self._exit.callback(after.remove)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._exit.close()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = (*args, *kwargs.values())
            plain = bool(values) and isinstance(values[0], Tensor)
            parents = tuple(parent for parent, _ in self._stack)
            call = Call(name, module, _on_meta(first_tensor(values)), None, len(values), plain, parents)
            self._stack.append((name, len(self.trace.calls)))
            self.trace.calls.append(call)

        return hook

    def _leave(self) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            _, index = self._stack.pop()
            call = self.trace.calls[index]
            self.trace.calls[index] = replace(call, output=_on_meta(first_tensor(output)))

        return hook

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        # Asking a parameter for its dtype or shape is no computation: only functions that give tensors count.
        if first_tensor(result) is not None:
            self._note_reads((*args, *kwargs.values()))
        return result

    def _note_reads(self, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, (tuple, list)):
                self._note_reads(value)
            elif isinstance(value, nn.Parameter) and (owners := self._owners.get(id(value))):
                running = [name for name, _ in self._stack]
                if not set(owners) & set(running):
                    for owner in owners:
                        self.trace.foreign_reads.setdefault(owner, running[-1] if running else "")


def _on_meta(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.empty_like(x, device="meta")
