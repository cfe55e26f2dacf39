"""Calls the compiled operators with arguments that do not fit, and names the calls that crash, hang or fail in silence.

A call is made of its number: arguments that fit, of which some are then spoiled. Each runs in a process that says what
it is about to do, so that whoever watches knows the call that ended it. Memory is limited, for an allocation of all
there is would be no crash of ours: what is too large then ends in torch's own error.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import resource
import signal
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

import condconv
from condconv.errors import CondConvError
from condconv.packing import STORAGES, pack
from tests.processes import CONTEXT

LIMIT_S = 10
WAIT_S = 120
MEMORY_BYTES = 2**29
PLAIN = ("can't allocate memory", "std::bad_alloc", "size calculation overflowed", "Stride calculation overflowed",
         ", condconv:")  # fmt: skip
"""Words of errors that say what is wrong: torch's of a tensor that is too large, and ours from C++."""
Arguments = dict[str, Any]
Random = random.Random

INTEGERS = (0, -1, 1, 2, 3, 7, 255, 2**12, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**31), -(2**63))
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64)
HUGE = (2**10, 2**18, 2**31 - 1, 2**31, 2**40, 2**60)


def _spoiled_numbers(r: Random, values: list[int]) -> list[int]:
    if r.random() < 0.1:
        return values[: r.randrange(len(values))] if r.random() < 0.5 else [*values, 1]
    changed = list(values)
    for _ in range(r.choice((1, 1, 2, len(values)))):
        changed[r.randrange(len(values))] = r.choice(INTEGERS)
    return changed


def _expanded(r: Random, t: Tensor) -> Tensor:
    """A dimension, at no cost of memory, far longer."""
    if t.dim() == 0:
        return t
    at = r.randrange(t.dim())
    size = list(t.shape)
    size[at] = r.choice(HUGE)
    return t.narrow(at, 0, min(1, t.shape[at])).expand(size)


def _empty(r: Random, t: Tensor) -> Tensor:
    return t.narrow(r.randrange(t.dim()), 0, 0) if t.dim() else t


def _restrided(r: Random, t: Tensor) -> Tensor:
    """Rows that overlap, lie apart or stand still."""
    strides = [r.choice((0, 0, 1, stride, stride + 1)) for stride in t.stride()]
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, strides, strict=True))
    return t if reach >= t.numel() else t.as_strided(t.shape, strides)


def _reranked(r: Random, t: Tensor) -> Tensor:
    ways: tuple[Callable[[], Tensor], ...] = (lambda: t.unsqueeze(0), lambda: t.flatten(), lambda: t.squeeze(),
            lambda: t.new_ones(()), lambda: t[..., :0], lambda: t.transpose(0, -1) if t.dim() else t)  # fmt: skip
    return r.choice(ways)()


def _filled(r: Random, t: Tensor) -> Tensor:
    value = r.choice((math.nan, math.inf, -math.inf, 3e38, 1e-40))
    return t.clone().fill_(value) if t.is_floating_point() else t


def _cut(r: Random, t: Tensor) -> Tensor:
    if t.dim() == 0:
        return t
    at = r.randrange(t.dim())
    return t.narrow(at, 0, t.shape[at] - 1) if t.shape[at] and r.random() < 0.5 else torch.cat([t, t], at)


def _elsewhere(r: Random, t: Tensor) -> Any:
    return r.choice((lambda: t.to("meta"), lambda: t.to_sparse(), lambda: None, lambda: torch._neg_view(t)))()


_SPOIL = (_expanded, _expanded, _empty, _restrided, _reranked, _filled, _cut, _elsewhere,
          lambda r, t: t.to(r.choice(DTYPES)))  # fmt: skip


def _spoil(r: Random, arguments: Arguments) -> None:
    """Change one of the arguments."""
    name = r.choice(list(arguments))
    value = arguments[name]
    if isinstance(value, Tensor) and value.numel() <= 2**20:
        with contextlib.suppress(RuntimeError, IndexError):  # torch itself has no such tensor
            arguments[name] = r.choice(_SPOIL)(r, value)
    elif isinstance(value, list):
        arguments[name] = _spoiled_numbers(r, value) if value else value
    elif isinstance(value, bool):
        arguments[name] = not value
    elif isinstance(value, int):
        arguments[name] = r.choice(INTEGERS)
    elif isinstance(value, float):
        arguments[name] = r.choice((math.nan, math.inf, -1.0, 1e308))
    elif value is None:
        arguments[name] = torch.ones(r.choice(((), (1,), (3, 4), (0,))))


def _convolution(r: Random) -> Arguments:
    """Arguments of `conv2d` that fit."""
    kind = r.choice(("dense", "grouped", "depthwise"))
    groups = {"dense": 1, "grouped": 2, "depthwise": r.choice((5, 40))}[kind]
    depth, columns = (1, 1) if kind == "depthwise" else (r.choice((1, 3, 20)), r.choice((1, 4, 17)))
    bounds = (1, 3), (1, 2), (0, 2), (1, 2)
    kernel, stride, padding, dilation = ([r.randint(low, high) for _ in "hw"] for low, high in bounds)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = [low + r.randint(0, 4) for low in least]
    batch, experts = r.choice((0, 1, 1, 2, 5)), r.choice((1, 3, 8))
    x = torch.randn(batch, groups * depth, *size).to(r.choice((torch.float32, torch.float32, torch.bfloat16)))
    if r.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    bank = torch.randn(experts, groups * columns, depth, *kernel)
    return {"x": x, "coefficients": torch.rand(batch, experts), "experts": bank, "stride": stride, "padding": padding,
            "dilation": dilation, "groups": groups}  # fmt: skip


def _forward(r: Random) -> Call:
    arguments = _spoiled(r, _convolution(r))
    for name in ("x", "coefficients", "experts"):
        t = arguments[name]
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) and r.random() < 0.3:
            arguments[name] = t.detach().requires_grad_()

    def call() -> Any:
        y = torch.ops.condconv.conv2d(**arguments)
        _require_shape(y, arguments["x"], arguments["experts"].shape[1:], arguments)
        if y.requires_grad and y.device.type == "cpu":
            torch.autograd.backward(y, torch.ones_like(y))

    return Call(call, arguments)


def _backward(r: Random) -> Call:
    arguments = _convolution(r)
    grad = torch.randn_like(torch.ops.condconv.conv2d(**arguments))
    arguments = _spoiled(r, {"grad": grad, **arguments, "needs_input": r.random() < 0.7})
    return Call(lambda: torch.ops.condconv.conv2d_backward(**arguments), arguments)


def _packed(r: Random) -> Call:
    given = _convolution(r)
    experts = given.pop("experts")
    packed, scale = pack(experts, given["groups"], r.choice(list(STORAGES)))
    bias = torch.randn(experts.shape[:2]) if r.random() < 0.5 else None
    shift = torch.randn(experts.shape[1]) if r.random() < 0.5 else None
    weights = {"packed": packed, "scale": scale, "bias": bias, "shift": shift}
    rest = {"kernel_shape": list(experts.shape[1:]), "threshold": r.choice((0.0, 0.5))}
    arguments = _spoiled(r, {**given, **weights, **rest})

    def call() -> Any:
        y = torch.ops.condconv.conv2d_packed(**arguments)
        _require_shape(y, arguments["x"], arguments["kernel_shape"], arguments)

    return Call(call, arguments)


def _router(r: Random) -> Call:
    x = _convolution(r)["x"].float()
    experts = r.choice((0, 1, 3))
    gate = {"gate": r.choice((0, 1, 2)), "divisor": r.choice((None, torch.tensor(2.0)))}
    matrix = {"weight": torch.randn(experts, x.shape[1]), "bias": torch.randn(experts)}
    arguments = _spoiled(r, {"x": x, **matrix, **gate})
    return Call(lambda: torch.ops.condconv.pooled_linear(**arguments), arguments)


def _layer(r: Random) -> Call:
    """The same through a layer, whose errors are to be those of the package."""
    given = _convolution(r)
    experts = given.pop("experts")
    arguments = {
        "in_channels": experts.shape[2] * given["groups"], "out_channels": experts.shape[1],
        "kernel_size": list(experts.shape[3:]), "num_experts": len(experts),
        **{name: given[name] for name in ("stride", "padding", "dilation", "groups")}, "x": given["x"].float(),
    }  # fmt: skip
    arguments = _spoiled(r, arguments)
    x = arguments["x"]
    strategy, train = r.choice(("auto", "native")), r.random() < 0.5
    # A router would add up all that there is.
    coefficients = torch.ones(()).expand(len(x), len(experts)) if isinstance(x, Tensor) and x.numel() > 2**20 else None

    def call() -> None:
        settings = {name: value for name, value in arguments.items() if name != "x"}
        layer = condconv.CondConv2d(**settings).train(train)
        with condconv.use_strategy(strategy):
            y = layer(x, coefficients)
        if train and y.device.type == "cpu":
            torch.autograd.backward(y, torch.ones_like(y))

    return Call(call, arguments)


OPERATORS: dict[str, Callable[[Random], Call]] = {
    "conv2d": _forward, "conv2d_backward": _backward, "conv2d_packed": _packed, "pooled_linear": _router,
    "layer": _layer,
}  # fmt: skip


def _spoiled(r: Random, arguments: Arguments) -> Arguments:
    for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
        _spoil(r, arguments)
    return arguments


class Call(NamedTuple):
    """A call, and what it is handed."""

    run: Callable[[], Any]
    arguments: Arguments

    def __str__(self) -> str:
        return ", ".join(f"{name}={_words(value)}" for name, value in self.arguments.items())

    def is_carried_out(self) -> bool:
        """Whether memory is touched; otherwise torch asks Python for shapes, and passes on what that raises."""
        return not any(isinstance(value, Tensor) and value.is_meta for value in self.arguments.values())


def _words(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    layout = f"strides {value.stride()}" if value.layout == torch.strided else str(value.layout)
    return f"{value.device} {value.dtype} {tuple(value.shape)} {layout}"


def _require_shape(y: Tensor, x: Tensor, kernel: Any, arguments: Arguments) -> None:
    """What is returned has the shape of a convolution, by numbers without end."""
    sizes = zip(x.shape[2:], kernel[2:], *(arguments[name] for name in ("stride", "padding", "dilation")), strict=True)
    space = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes]
    if list(y.shape) != [x.shape[0], kernel[0], *space]:
        raise AssertionError(f"the output is {tuple(y.shape)}, not {[x.shape[0], kernel[0], *space]}")


def make(operator: str, number: int) -> Call:
    """The call of that number."""
    torch.manual_seed(number)
    return OPERATORS[operator](random.Random(f"{operator} {number}"))


def trouble(operator: str, call: Call) -> str:
    """What is wrong with the way a call ends, "" for nothing."""
    try:
        call.run()
    except CondConvError as error:
        return "" if len(str(error)) > 10 else f"says only {error}"
    except Exception as error:
        fine = not call.is_carried_out() or _is_plain(operator, error)
        return "" if fine else f"{type(error).__name__}: {str(error)[:300]}"
    return ""


def _is_plain(operator: str, error: Exception) -> bool:
    """Whether an error that is not of the package says what is wrong; operators leave the types of tensors to torch."""
    if operator != "layer" and (isinstance(error, NotImplementedError) or "Not yet supported ScalarType" in str(error)):
        return True
    return any(words in str(error) for words in PLAIN)


def _work(connection: Connection, operator: str, numbers: list[int]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch writes a page of addresses for each error
    torch.set_num_threads(2)
    torch.ops.condconv.conv2d(**_convolution(random.Random(0)))  # all threads are there before memory is limited
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    for number in numbers:
        call = make(operator, number)
        connection.send(str(call))
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # of computing, whatever else the machine does; a SIGPROF ends it
        problem = trouble(operator, call)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(problem)


def attack(operator: str, numbers: Iterable[int]) -> list[str]:
    """Make calls, and say which of them ended their process, kept it waiting, or ended badly."""
    problems: list[str] = []
    left = list(numbers)
    while left:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=_work, args=(sender, operator, left), daemon=True)
        child.start()
        sender.close()
        said = "while it was made"
        try:
            while left:
                said = _receive(receiver)
                if problem := _receive(receiver):
                    problems.append(f"{operator} {left[0]}({said}): {problem}")
                del left[0]
                said = "while it was made"
        except (EOFError, TimeoutError) as error:
            child.kill()
            child.join()
            ending = {-signal.SIGKILL: f"waited {WAIT_S} s", -signal.SIGPROF: f"computed for {LIMIT_S} s"}
            how = ending.get(child.exitcode, f"ended the process with {child.exitcode} ({type(error).__name__})")
            problems.append(f"{operator} {left.pop(0)}({said}): {how}")
        child.join()
    return problems


def _receive(receiver: Connection) -> Any:
    if not receiver.poll(WAIT_S):
        raise TimeoutError
    return receiver.recv()
