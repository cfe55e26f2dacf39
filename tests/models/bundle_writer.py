"""Writes tensors in TensorFlow's checkpoint format, so that the reader is tested without TensorFlow.

Written from the format's description (LevelDB table, tensor_bundle.proto) and independent of the reader: its own
varints, its own checksum by polynomial division. PyPI's tensorflow-checkpoint-reader reads what it writes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch

_DTYPES = {torch.float32: 1, torch.float64: 2, torch.int32: 3, torch.int64: 9, torch.bfloat16: 14, torch.float16: 19}
_RESTART_INTERVAL = 16


def write_bundle(prefix: Path, tensors: dict[str, torch.Tensor], *, block_entries: int = 40) -> None:
    """Write ``<prefix>.index`` and ``<prefix>.data-00000-of-00001``."""
    data, entries = bytearray(), {b"": _field(1, 1) + _field(3, _field(1, 1))}
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        shape = b"".join(_field(2, _field(1, size)) for size in tensor.shape)
        entries[name.encode()] = (
            _field(1, _DTYPES[tensor.dtype])
            + _field(2, shape)
            + (_field(4, len(data)) if data else b"")
            + _field(5, len(raw))
            + _varint(6 << 3 | 5)
            + struct.pack("<I", _masked(_crc32c(raw)) if len(raw) < 4096 else 0)
        )
        data += raw
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(data))
    Path(f"{prefix}.index").write_bytes(_table(sorted(entries.items()), block_entries))


def _table(entries: list[tuple[bytes, bytes]], block_entries: int) -> bytes:
    out, index = bytearray(), []
    for start in range(0, len(entries), block_entries):
        group = entries[start : start + block_entries]
        handle = _append_block(out, group)
        index.append((group[-1][0] + b"~", handle))
    meta = _append_block(out, [])
    root = _append_block(out, index)
    footer = meta + root
    out += footer + bytes(40 - len(footer)) + struct.pack("<Q", 0xDB4775248B80FB57)
    return bytes(out)


def _append_block(out: bytearray, entries: list[tuple[bytes, bytes]]) -> bytes:
    """Append one block with its trailer and return its handle."""
    block, restarts, previous = bytearray(), [0], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % _RESTART_INTERVAL == 0:
            if number:
                restarts.append(len(block))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        block += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        previous = key
    block += b"".join(struct.pack("<I", restart) for restart in restarts) + struct.pack("<I", len(restarts))
    handle = _varint(len(out)) + _varint(len(block))
    out += block + b"\0" + struct.pack("<I", _masked(_crc32c(bytes(block) + b"\0")))
    return handle


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
