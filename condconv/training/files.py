"""Writing files so that a half-written one never stands under its final name."""

from __future__ import annotations

import os
from pathlib import Path

from condconv.errors import CheckpointError


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, flush it to the disk, and rename it to `path`.

    Raises `CheckpointError`, naming the file and the reason, where the disk is full or the folder cannot be written;
    what stood at `path` before is then intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: could not be written ({error.strerror or error}); what stood there before is intact. "
            "Free some space or make the folder writable, then go on with --resume"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
