"""How an inference form stores experts: in the order in which a matrix product reads them, as f32, bf16 or int8.

Alphabet: n experts, O I/g *k of a kernel, G groups, N = O/G columns, K = |*k|·(I/g) rows.

Each group of each expert is a matrix (K, N): column o of group g is output channel g·N + o, row (*k, i) is tap *k of
input channel i (channels last, as the windows of a channels_last image lie in memory). A depthwise kernel (I/g = 1 and
O = g) is one matrix of N = O columns and K = |*k| rows, for a column of its own group would waste a whole block.

Columns go in blocks of 16, padded with zeros; rows in chunks of 8, the last one shorter. The flat order in memory is

    group, column block, row chunk, expert, row in the chunk, column in the block

so that one chunk of all experts is one run of memory, and mixing it gives a panel that a matrix product uses at once.

int8 is symmetric, with one scale for each expert and output channel: q = round(w / scale) in [-127, 127] and
scale = max|w| / 127, or 1 where a row is all zero. Scales are f32 (n, G·⌈N/16⌉·16) in the order of the padded columns,
0 where a column is padding. A transposed kernel (I, O/g, *k) is stored in the same way with I in the place of O.

int4 is int8 in memory, where all experts but the first are of whole numbers in [-7, 7], with scales of max|w| / 7. In a
file two of these numbers are one byte (`as_nibbles`). It is for principal kernels, of which the first is the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from condconv.errors import argument_error

COLUMNS = 16
"""Columns of a block: one AVX-512 register of f32."""
ROWS = 8
"""Rows of a chunk: 512 bytes of one expert in f32, so that all experts are read as one stream of memory."""

STORAGES: dict[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
"""Names of the storages, and the type of their elements."""
INT4 = "int4"
"""One more: int8 with smaller numbers."""


def pack(experts: Tensor, groups: int, storage: str) -> tuple[Tensor, Tensor | None]:
    """Pack experts (n, O, I/g, *k) of any rank, *k of a linear layer being nothing.

    Returns:
        packed, 1-D, of the storage's type; and for "int8" and "int4" the scales (n, G·⌈N/16⌉·16) in f32, else None.

    Raises:
        ArgumentError: the storage has no such name, or an expert to be stored as whole numbers is not finite.
    """
    if storage not in (*STORAGES, INT4):
        raise argument_error("pack", "experts", storage, "is no storage", f"use one of {', '.join((*STORAGES, INT4))}")
    matrices = _matrices(experts.detach().float(), groups)
    if storage not in ("int8", INT4):
        return _tiled(matrices).to(STORAGES[storage]), None
    if not all_finite(matrices):
        rule, remedy = "cannot hold experts that are NaN or infinite", "use 'f32', or look for what spoiled them"
        raise argument_error("pack", "experts", storage, rule, remedy)
    largest = matrices.abs().amax(dim=3) if matrices.shape[3] else matrices.new_zeros(matrices.shape[:3])
    most = torch.full_like(largest, 127)
    if storage == INT4:
        most[1:] = 7
    scale = torch.where(largest == 0, 1.0, largest / most)  # n G ⌈N⌉
    numbers = (matrices / scale.unsqueeze(3)).round().clamp(-most.unsqueeze(3), most.unsqueeze(3))
    scale[:, :, matrix_shape(experts.shape[1:], groups)[1] :] = 0.0
    return _tiled(numbers).to(torch.int8), scale.flatten(1)


def as_nibbles(packed: Tensor, kernel_shape: Sequence[int], groups: int) -> tuple[Tensor, Tensor]:
    """Return int4 experts as they lie in a file.

    Returns:
        The first expert (1, *kernel_shape), int8, and the others' numbers, two in a byte, uint8, 1-D.
    """
    numbers = unpack(packed, None, kernel_shape, groups)
    others = (numbers[1:].flatten() + 8).to(torch.uint8)  # 1 … 15
    low, high = torch.nn.functional.pad(others, (0, others.numel() % 2)).unflatten(0, (-1, 2)).unbind(1)
    return numbers[:1], low | (high << 4)


def from_nibbles(first: Tensor, others: Tensor, kernels: int, groups: int) -> Tensor:
    """Return what `as_nibbles` was given, for that many kernels."""
    numbers = torch.stack([others & 15, others >> 4], dim=1).flatten().to(torch.int8) - 8
    shape = (kernels - 1, *first.shape[1:])
    return _tiled(_matrices(torch.cat([first, numbers[: math.prod(shape)].reshape(shape)]), groups))


def _matrices(experts: Tensor, groups: int) -> Tensor:
    """Experts as matrices, the columns filled up with zeros: (n, G, ⌈N/16⌉·16, K)."""
    n = experts.shape[0]
    matrix_groups, columns, rows = matrix_shape(experts.shape[1:], groups)
    matrices = experts.reshape(n, matrix_groups, columns, *experts.shape[2:])
    matrices = matrices.movedim(3, -1).reshape(n, matrix_groups, columns, rows)
    return torch.nn.functional.pad(matrices, (0, 0, 0, -columns % COLUMNS))


def _tiled(matrices: Tensor) -> Tensor:
    """Such matrices in their flat order, 1-D."""
    tiles = matrices.unflatten(2, (-1, COLUMNS)).permute(1, 2, 0, 4, 3)  # G ⌈N/16⌉ n K 16
    chunks = [chunk.flatten(2) for chunk in tiles.split(ROWS, dim=3)]
    return torch.cat(chunks, dim=2).flatten()


def unpack(packed: Tensor, scale: Tensor | None, kernel_shape: Sequence[int], groups: int) -> Tensor:
    """Return experts (n, *kernel_shape) from what `pack` returned: bit for bit in bf16 and f32; f32 for int8."""
    pieces = _pieces(packed, kernel_shape, groups)
    return _kernels(pieces if scale is None else [_scaled(piece, scale) for piece in pieces], kernel_shape)


def mix(
    packed: Tensor, scale: Tensor | None, coefficients: Tensor, kernel_shape: Sequence[int], groups: int
) -> Tensor:
    """Return the kernels (B, *kernel_shape) f32 that coefficients (B, n) f32 make of packed experts.

    They are mixed as they lie: only the result is brought into order.
    """
    mixed = []
    for piece in _pieces(packed, kernel_shape, groups):
        experts = (piece.float() if scale is None else _scaled(piece, scale)).flatten(4).flatten(0, 2)
        kernels = torch.bmm(coefficients.expand(experts.shape[0], -1, -1), experts)
        mixed.append(kernels.reshape(*piece.shape[:3], coefficients.shape[0], *piece.shape[4:]))
    return _kernels(mixed, kernel_shape)


def _pieces(packed: Tensor, kernel_shape: Sequence[int], groups: int) -> list[Tensor]:
    """Packed experts as (G, ⌈N/16⌉, chunks, n, rows of a chunk, 16): the whole chunks, and the shorter one if any."""
    matrix_groups, columns, rows = matrix_shape(kernel_shape, groups)
    lines = packed.reshape(matrix_groups, -(-columns // COLUMNS), -1, COLUMNS)
    n, whole = lines.shape[2] // rows, rows // ROWS * ROWS
    chunks = lines[:, :, : n * whole].unflatten(2, (rows // ROWS, n, ROWS))
    shorter = lines[:, :, n * whole :].unflatten(2, (1, n, rows - whole))
    return [piece for piece in (chunks, shorter) if piece.numel()]


def _scaled(piece: Tensor, scale: Tensor) -> Tensor:
    """Such a piece of whole numbers times their scales, f32."""
    matrix_groups, blocks, _, n = piece.shape[:4]
    of_columns = scale.reshape(n, matrix_groups, blocks, COLUMNS).permute(1, 2, 0, 3)
    return piece.float() * of_columns[:, :, None, :, None]


def _kernels(pieces: Sequence[Tensor], kernel_shape: Sequence[int]) -> Tensor:
    """All pieces as kernels (n, *kernel_shape)."""
    tiles = torch.cat([piece.permute(3, 0, 1, 5, 2, 4).flatten(4) for piece in pieces], dim=4)  # n G ⌈N/16⌉ 16 K
    columns = kernel_shape[0] // tiles.shape[1]
    matrices = tiles.flatten(2, 3)[:, :, :columns]  # n G N K
    kernels = matrices.reshape(tiles.shape[0], kernel_shape[0], *kernel_shape[2:], kernel_shape[1])
    return kernels.movedim(-1, 2).contiguous()


def matrix_shape(kernel_shape: Sequence[int], groups: int) -> tuple[int, int, int]:
    """Return (G, N, K): how many matrices a kernel (O, I/g, *k) is, and their columns and rows."""
    rows = math.prod(kernel_shape[1:])
    depthwise = kernel_shape[1] == 1 and kernel_shape[0] == groups
    return (1, kernel_shape[0], rows) if depthwise else (groups, kernel_shape[0] // groups, rows)


def all_finite(experts: Tensor) -> bool:
    """Whether no element is NaN or infinite; taken for granted on the meta device, which has no elements."""
    return experts.is_meta or bool(torch.isfinite(experts).all())
