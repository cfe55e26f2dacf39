"""Reads TensorFlow checkpoints ("tensor bundles": an ``.index`` file and ``.data-…`` shards) without TensorFlow.

The index is a LevelDB table: sorted keys in prefix-compressed blocks, an index block that points at them, and a footer.
Its values are small protocol buffers that say where in the shards each tensor lies (tensorflow/core/protobuf/
tensor_bundle.proto; tensorflow/core/lib/io/format.cc). The one pure-Python reader on PyPI pins protobuf below 3.19,
which excludes ONNX, hence these lines.

Checksums of the index are verified. Those of the tensors are not: pure Python would take minutes for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condconv.errors import CheckpointError

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_BLOCK_TRAILER_BYTES = 5  # one byte for the compression, four for the masked CRC-32C
_DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: BundleEntryProto without slices. ``dtype`` is None for a type that torch does not have."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    shard: int
    offset: int
    size_bytes: int


def read_index(prefix: str | Path) -> tuple[dict[str, Entry], int]:
    """Read ``<prefix>.index`` and return the entries by tensor name, and the number of data shards.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or not a tensor bundle.
    """
    path = Path(f"{prefix}.index")
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; a TensorFlow checkpoint is named by its prefix, the part before '.index' and "
            "'.data-00000-of-00001' (for example 'folder/model.ckpt')"
        )
    data = path.read_bytes()
    try:
        return _parse_index(data)
    except (IndexError, struct.error, UnicodeDecodeError, _BadTable) as error:
        raise CheckpointError(
            f"{path}: not a TensorFlow checkpoint index, or damaged ({error}); fetch it again"
        ) from error


def read_tensors(prefix: str | Path) -> dict[str, Tensor]:
    """Read every numeric tensor of the checkpoint ``prefix``; entries of other types (strings) are left out.

    Raises:
        CheckpointError: a file is missing, truncated or damaged.
    """
    entries, shards = read_index(prefix)
    paths = [Path(f"{prefix}.data-{i:05d}-of-{shards:05d}") for i in range(shards)]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; the index lists {shards} data file(s), fetch this one too")
    contents = [bytearray(path.read_bytes()) for path in paths]
    tensors = {}
    for name, entry in entries.items():
        if entry.dtype is None:
            continue
        shard = contents[entry.shard]
        if entry.offset + entry.size_bytes > len(shard):
            raise CheckpointError(
                f"{paths[entry.shard]}: truncated: {len(shard)} bytes, but tensor {name!r} ends at byte "
                f"{entry.offset + entry.size_bytes}; fetch it again"
            )
        tensors[name] = _tensor(name, entry, shard)
    return tensors


def _tensor(name: str, entry: Entry, shard: bytearray) -> Tensor:
    dtype = entry.dtype
    if dtype is None:
        raise CheckpointError(f"tensor {name!r} has a type that torch does not have")
    count = 1
    for size in entry.shape:
        count *= size
    if count * dtype.itemsize != entry.size_bytes:
        raise CheckpointError(
            f"tensor {name!r}: shape {entry.shape} in {dtype} needs {count * dtype.itemsize} bytes, the index says "
            f"{entry.size_bytes}; the checkpoint is damaged"
        )
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(shard, dtype=dtype, count=count, offset=entry.offset).reshape(entry.shape).clone()


class _BadTable(ValueError):
    """The bytes are not a table; turned into a `CheckpointError` that names the file."""


def _parse_index(data: bytes) -> tuple[dict[str, Entry], int]:
    if len(data) < _FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise _BadTable("the table's magic number is missing at its end")
    footer = data[-_FOOTER_BYTES:]
    position = 0
    handles = []
    for _ in range(4):  # offset and size of the meta-index block, then of the index block
        number, position = _varint(footer, position)
        handles.append(number)
    entries: dict[str, Entry] = {}
    shards = 0
    for _, handle in _block(data, handles[2], handles[3]):
        offset, position = _varint(handle, 0)
        size, _ = _varint(handle, position)
        for key, value in _block(data, offset, size):
            if key == b"":
                shards = int(_fields(value).get(1, [1])[0])
            else:
                entries[key.decode()] = _entry(value)
    if shards < 1:
        raise _BadTable("the header entry is missing")
    return entries, shards


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The key-value pairs of one table block; keys share a prefix with the one before."""
    end = offset + size
    if end + _BLOCK_TRAILER_BYTES > len(data):
        raise _BadTable(f"a block ends at byte {end}, the file at {len(data)}")
    compression, checksum = struct.unpack("<BI", data[end : end + _BLOCK_TRAILER_BYTES])
    if compression != 0:
        raise _BadTable(f"block compression {compression} where tensor bundles use none")
    if _masked_crc32c(data[offset : end + 1]) != checksum:
        raise _BadTable(f"the checksum of the block at byte {offset} is wrong")
    (restarts,) = struct.unpack("<I", data[end - 4 : end])
    limit = end - 4 * (restarts + 1)
    key, position = b"", offset
    while position < limit:
        shared, position = _varint(data, position)
        unshared, position = _varint(data, position)
        length, position = _varint(data, position)
        key = key[:shared] + data[position : position + unshared]
        position += unshared
        yield key, data[position : position + length]
        position += length


def _entry(value: bytes) -> Entry:
    fields = _fields(value)
    shape = tuple(int(_fields(dim).get(1, [0])[0]) for dim in _fields(fields.get(2, [b""])[0]).get(2, []))
    dtype = _DTYPES.get(int(fields.get(1, [0])[0]))
    shard, offset, size = (int(fields.get(number, [0])[0]) for number in (3, 4, 5))
    return Entry(dtype, shape, shard, offset, size)


def _fields(message: bytes) -> dict[int, list[Any]]:
    """A protocol buffer's fields by number: integers for varint and fixed fields, bytes for length-delimited ones."""
    fields: dict[int, list[Any]] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, position = _varint(message, position)
        elif wire == 2:
            length, position = _varint(message, position)
            value = message[position : position + length]
            position += length
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            value = int.from_bytes(message[position : position + width], "little")
            position += width
        else:
            raise _BadTable(f"protocol buffer wire type {wire}")
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc32c(data: bytes) -> int:
    """LevelDB's checksum: CRC-32C (Castagnoli), rotated by 15 bits and offset."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
