"""The verb: what routing leaves unused goes, then bits, as long as the network's score stays.

1. Layers whose kernels hardly change over the data become static.
2. Experts that are never used, are equal, or always go together become fewer kernels (`condconv.banks.principal`).
3. Kernels are stored in 8 bits, the rest in bf16.
4. Where the file is still too large: fewer kernels, and 4 bits for all but the first, where that changes a layer's
   kernels least.

Which layers, is settled by one number for all: by how much a layer's kernels may change. Each step takes the largest
with which the network keeps its score; it is found by halving.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from condconv.arguments import integer, number
from condconv.banks import Packing
from condconv.compression.options import choose, levels_of, options_of, variation, weights_bytes
from condconv.compression.steps import Compressed, Step
from condconv.conversion.apply import conditional_layers
from condconv.conversion.collapse import make_static
from condconv.conversion.observing import input_of, observe
from condconv.counting import count
from condconv.errors import argument_error
from condconv.inference.folding import affine_behind
from condconv.inference.form import inference_form
from condconv.packing import INT4

Score = Callable[[nn.Module], float]

HARDLY = 0.02
"""Of a kernel's norm: a change of this size is hardly one; int8 changes a kernel by about 0.01."""
MOST_EXAMPLES = 2048
"""Over which routing is recorded."""
_STORAGES = (("int8", "bf16"), ("int8", "f32"), ("bf16", "bf16"), ("bf16", "f32"))


@dataclass(frozen=True)
class _Trial:
    """A network as it would be: how it is stored, and what comes of it."""

    static: Mapping[str, Tensor] = field(default_factory=dict)
    packings: Mapping[str, Packing] = field(default_factory=dict)
    rest: str = "f32"
    network: Any = None
    score: float = 0.0

    def packing(self, name: str) -> Packing:
        """How a layer is stored."""
        return self.packings.get(name, Packing("f32"))


def compress(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    max_loss: float = 0.1,
    max_bytes: int | None = None,
    score: Score | None = None,
) -> Compressed:
    """Make a network's file small without a loss of score, and say what each step costs and saves.

    Args:
        model: a network with conditional layers; unchanged.
        loader: batches (images, labels); it is gone through several times. With `score`, labels are not needed.
        max_loss: how much the score may fall, in its own unit; 0.1 point of accuracy.
        max_bytes: of the weights in the file; those of the static network in f32 where None. Steps that lose least are
            taken in any case, the others only while the file is larger.
        score: network → a number, more is better; accuracy on the loader in percent where None.

    Returns:
        The network, an inference form to be written by `condconv.save_pretrained`, and the steps.

    Raises:
        ArgumentError: an argument has none of its values.
        ConversionError: the network has no conditional layer or is an inference form, or a layer never runs.
    """
    where = "compress"
    number(where, "max_loss", max_loss, minimum=0, remedy="0 allows no loss at all")
    limit = None if max_bytes is None else integer(where, "max_bytes", max_bytes, 1)
    if isinstance(loader, Iterator):
        rule = "can be gone through once, and is needed several times"
        raise argument_error(where, "loader", type(loader).__name__, rule, "pass a loader or a list of batches")
    if score is not None and not callable(score):
        raise argument_error(where, "score", score, "is no function of a network", "leave it out for the accuracy")
    seen = observe(where, model, loader, MOST_EXAMPLES)
    routing = {name: seen.routing[name] for name in seen.routing}
    means = {name: coefficients.double().mean(dim=0) for name, coefficients in routing.items()}
    twin_bytes = weights_bytes(make_static(copy.deepcopy(model), means).float())
    scored = score or (lambda network: accuracy(network, loader))
    search = _Search(model, scored, twin_bytes if limit is None else limit, float(max_loss), seen.input[:1])
    search.begin()
    search.without_routing(routing, means)
    search.fewer_kernels(routing)
    search.fewer_bits()
    search.small_enough(routing)
    return Compressed(search.now.network, tuple(search.steps), float(max_loss), search.limit, twin_bytes, score is None)


@torch.no_grad()
def accuracy(network: nn.Module, loader: Iterable[Any]) -> float:
    """Percent of the images of batches (images, labels) whose label has the largest output."""
    device = next(iter((*network.parameters(), *network.buffers()))).device
    right = total = 0
    for batch in loader:
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        output = network(input_of("compress", batch, device))
        if not (isinstance(output, Tensor) and isinstance(labels, Tensor) and output.shape[:1] == labels.shape):
            rule = "gives no images and labels to a network that classifies"
            raise argument_error("compress", "loader", type(batch).__name__, rule, "pass score=, of any network")
        right += int((output.argmax(1) == labels.to(device)).sum())
        total += len(labels)
    return 100 * right / total


class _Search:
    """The steps, one after the other, each from where the last one ended."""

    def __init__(self, model: nn.Module, score: Score, limit: int, max_loss: float, example: Any) -> None:
        self.model, self.score, self.limit, self.example = model, score, limit, example
        self.max_loss, self.steps, self.now = max_loss, list[Step](), _Trial()

    def begin(self) -> None:
        """The network as it is, and as an inference form with nothing changed."""
        made = copy.deepcopy(self.model).eval()
        self._take("as trained", replace(self.now, network=made, score=float(self.score(made))))
        self.least = self.now.score - self.max_loss
        self.now = self._made(self.now)

    def without_routing(self, routing: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> None:
        """Make layers static whose kernels hardly change."""
        layers = dict(conditional_layers(self.model))
        changes = {name: variation(layer.bank, routing[name]) for name, layer in layers.items()}
        levels = sorted({change for change in changes.values() if change <= HARDLY})

        def trial(level: float) -> _Trial:
            return replace(self.now, static={name: means[name] for name in layers if changes[name] <= level})

        found = self._largest(levels, trial)
        self._take(f"static where routing hardly matters: {len(found.static)} of {len(layers)} layers", found)

    def fewer_kernels(self, routing: Mapping[str, Tensor]) -> None:
        """Leave out experts that hardly matter, and merge those that are hardly told apart."""
        options = self._options(routing, ("f32",))

        def trial(level: float) -> _Trial:
            packings = {name: option.packing for name, option in choose(options, level).items()}
            return replace(self.now, packings=packings)

        found = self._largest(levels_of(options.values(), HARDLY), trial)
        before, after = self._kernels(self.now), self._kernels(found)
        self._take(f"dead and equal experts left out: {before} kernels to {after}", found)

    def fewer_bits(self) -> None:
        """Store kernels in 8 bits and the rest in bf16, or what of it keeps the score."""
        for storage, rest in _STORAGES:
            packed = self.now.network.inference_form.packed
            packings = {name: self.now.packing(name)._replace(storage=storage) for name in packed}
            found = self._made(replace(self.now, packings=packings, rest=rest))
            if found.score >= self.least:
                self._take(f"kernels in {storage}, rest in {rest}", found)
                return

    def small_enough(self, routing: Mapping[str, Tensor]) -> None:
        """Leave out more kernels and more bits, no more than the size asks for."""
        small = weights_bytes(self.now.network)
        layers = self.now.network.inference_form.layers
        if small <= self.limit or not layers:
            return
        storages = dict.fromkeys((*(stored.storage for stored in layers.values()), "int8", INT4))
        options = self._options(routing, tuple(storages))
        rest = small - sum(weights_bytes(self.now.network.get_submodule(name).bank) for name in layers)

        def size(level: float) -> int:
            return rest + sum(option.bytes for option in choose(options, level).values())

        def trial(level: float) -> _Trial:
            packings = {name: option.packing for name, option in choose(options, level).items()}
            return replace(self.now, packings=packings)

        levels = [level for level in levels_of(options.values()) if size(level) < small]
        enough = next((i for i, level in enumerate(levels) if size(level) <= self.limit), len(levels) - 1)
        found = self._largest(levels[: enough + 1], trial)
        four = sum(stored.storage == INT4 for stored in found.network.inference_form.layers.values())
        before, after = self._kernels(self.now), self._kernels(found)
        self._take(f"{before} kernels to {after}, {four} of {len(layers)} layers in 4 bits", found)

    def _options(self, routing: Mapping[str, Tensor], storages: Sequence[str]) -> dict[str, list[Any]]:
        """How the layers that are still conditional may be stored."""
        made = copy.deepcopy(self.model).eval()
        made = make_static(made, self.now.static) if self.now.static else made
        norms = affine_behind(made)
        return {
            name: options_of(layer.bank, norms.get(name), routing[name], layer.num_experts, storages)
            for name, layer in conditional_layers(made)
        }

    def _kernels(self, trial: _Trial) -> int:
        """How many kernels are mixed in all."""
        layers = dict(conditional_layers(trial.network))
        return sum(trial.packing(name).kernels or layer.num_experts for name, layer in layers.items())

    def _largest(self, levels: Sequence[float], trial: Callable[[float], _Trial]) -> _Trial:
        """What comes of the highest level that keeps the score; all stays where none does."""
        best, low, high = self.now, 0, len(levels)
        at = high - 1  # The highest first: mostly it is good.
        while low < high:
            found = self._made(trial(levels[at]))
            if found.score >= self.least:
                best, low = found, at + 1
            else:
                high = at
            at = (low + high) // 2
        return best

    def _made(self, trial: _Trial) -> _Trial:
        """The trial carried out, and its score."""
        network = inference_form(self.model, trial.packing, trial.rest, trial.static)
        return replace(trial, network=network, score=float(self.score(network)))

    def _take(self, name: str, trial: _Trial) -> None:
        """Go on from here."""
        self.now = trial
        macs = count(trial.network, self.example).macs
        self.steps.append(Step(name, trial.score, weights_bytes(trial.network), macs))
