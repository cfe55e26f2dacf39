"""The packed bank: the experts of an inference form, in f32, bf16, int8 or int4 and laid out by `condconv.packing`.

    W(x) = Σᵢ αᵢ(x) sᵢ qᵢ,    b(x) = Σᵢ αᵢ(x) bᵢ + t

qᵢ are the stored numbers and sᵢ the scales of int8 and int4 (1 otherwise). t is the constant that is left of a batch
norm whose factor has been multiplied into every expert: it is added as it is, for coefficients need not sum to one.

Fewer kernels than experts (`condconv.banks.principal`) are mixed by α(x) M in the place of α(x).

Experts are left out where |αᵢ| ≤ `threshold`. That assumes finite experts: the NaN of one that is left out is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from condconv.banks.base import Bank
from condconv.coefficients import mixing
from condconv.errors import CheckpointError
from condconv.lowered import Packed, Static
from condconv.packing import INT4, STORAGES, as_nibbles, from_nibbles, pack, unpack


class PackedBank(Bank):
    """n packed experts; they are buffers, for nothing here is trained.

    Args:
        experts: (n, O, I/g, *k), or (n, I, O/g, *k) for a transposed convolution; or m kernels in their place.
        bias: the experts' biases (n, O), or None; (m, O) of kernels.
        shift: (O,) to be added to every example, or None.
        groups: g.
        storage: "f32", "bf16", "int8" or "int4".
        threshold: experts whose coefficient is at most this large are left out; 0: those with coefficient 0.
        projection: M, (n, m) of m kernels; None where the experts themselves are mixed.

    Raises:
        ArgumentError: no such storage, or experts for int8 that are not finite.
    """

    packed: Tensor
    scale: Tensor | None
    bias: Tensor | None
    shift: Tensor | None
    projection: Tensor | None

    def __init__(
        self,
        experts: Tensor,
        bias: Tensor | None,
        shift: Tensor | None,
        groups: int,
        storage: str,
        threshold: float = 0.0,
        projection: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_kernels = experts.shape[0]
        self.num_experts = self.num_kernels if projection is None else projection.shape[0]
        self.storage = storage
        self.slices = mixing(self.num_experts)
        self.kernel_shape = tuple(experts.shape[1:])
        self.groups = groups
        self.threshold = threshold
        packed, scale = pack(experts, groups, storage)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("shift", None if shift is None else shift.detach().float())
        self.register_buffer("projection", None if projection is None else projection.detach().float())

    @property
    def weight(self) -> Tensor:
        """The experts (n, *kernel_shape) as they are used: unpacked anew each time, f32, or bf16 as stored."""
        return self._of_experts(unpack(self.packed, self.scale, self.kernel_shape, self.groups))

    def _of_experts(self, of_kernels: Tensor) -> Tensor:
        """What n experts have, (n, …), from what the kernels have."""
        if self.projection is None:
            return of_kernels
        return torch.tensordot(self.projection, of_kernels.float(), dims=1)

    def unpacked(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the experts (n, *kernel_shape), their biases (n, O) and what is added to every example, (O,)."""
        return self.weight, None if self.bias is None else self._of_experts(self.bias), self.shift

    def plain(self) -> Bank:
        """The experts unpacked, as rows of one matrix."""
        return PlainMixture(self)

    def experts(self) -> Tensor:
        """The kernels that it mixes, unpacked."""
        return self.weight

    def forward(self, coefficients: Tensor) -> Packed:
        """Return the lowered form for coefficients (B, n)."""
        held = self._buffers  # An nn.Module finds its attributes slowly.
        projection = held["projection"]
        if projection is not None:
            coefficients = torch.mm(coefficients.to(projection.dtype), projection)
        return Packed(
            coefficients,
            self.packed,
            held["scale"],
            held["bias"],
            held["shift"],
            self.kernel_shape,
            self.groups,
            self.threshold,
        )

    def macs(self, input_size: Sequence[int], output_size: Sequence[int]) -> int:
        """Mixing, n·|W|; of m kernels m·|W|, and n·m for their coefficients."""
        projected = 0 if self.projection is None else self.projection.numel()
        return self.num_kernels * math.prod(self.kernel_shape) + projected

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Packed experts are buffers, but count as they did before."""
        yield id(self.packed), self.num_kernels * math.prod(self.kernel_shape)
        if self.projection is not None:
            yield id(self.projection), self.projection.numel()
        if self.bias is not None:
            yield id(self.bias), self.bias.numel()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedBank:
        """Move the experts; their types stay, whatever `.half()` or `.to(dtype)` asks of the rest of the network."""

        def keeping_type(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(keeping_type, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Write int4 as two numbers in a byte."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.storage == INT4:
            packed = destination[f"{prefix}packed"]
            first, others = as_nibbles(packed, self.kernel_shape, self.groups)
            destination[f"{prefix}packed"], destination[f"{prefix}nibbles"] = first, others

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Refuse experts of another storage, which would fit by their number and mean something else."""
        given, nibbles = state_dict.get(f"{prefix}packed"), state_dict.pop(f"{prefix}nibbles", None)
        if given is not None:
            names = (name for name, dtype in STORAGES.items() if dtype == given.dtype)
            stored = INT4 if nibbles is not None else next(names, str(given.dtype))
            if stored != self.storage:
                raise CheckpointError(
                    f"{prefix}packed: the file holds {stored} experts, the network {self.storage} ones; load it into "
                    f"optimize_for_inference(model, experts={stored!r})"
                )
            if nibbles is not None:
                state_dict[f"{prefix}packed"] = from_nibbles(given, nibbles, self.num_kernels, self.groups)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Show how much is stored, and how."""
        kernels = "" if self.projection is None else f" by {self.num_kernels} kernels"
        shown = f"{self.num_experts} x {self.kernel_shape}{kernels}, {self.storage}"
        return shown + (f", threshold={self.threshold:g}" if self.threshold else "")


class PlainMixture(Bank):
    """Experts for exporters: one product (1, n) · (n, |W|) makes the kernel of the only example.

    Args:
        bank: with f32 experts.
    """

    rows: Tensor
    bias: Tensor | None
    shift: Tensor | None

    def __init__(self, bank: PackedBank) -> None:
        super().__init__()
        self.slices, self.kernel_shape = bank.slices, bank.kernel_shape
        experts, bias, shift = bank.unpacked()
        self.register_buffer("rows", experts.flatten(1))  # n |W|
        self.register_buffer("bias", bias)  # n O
        self.register_buffer("shift", shift)  # O

    def forward(self, coefficients: Tensor) -> Static:
        """Return the kernel for coefficients (1, n)."""
        kernel = torch.mm(coefficients, self.rows).reshape(self.kernel_shape)
        return Static(kernel, self._bias(coefficients), 1)

    def _bias(self, coefficients: Tensor) -> Tensor | None:
        """The bias (1, O)."""
        if self.bias is None:
            return None if self.shift is None else self.shift.unsqueeze(0)
        mixed = torch.mm(coefficients, self.bias)
        return mixed if self.shift is None else mixed + self.shift
