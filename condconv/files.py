"""How everything here is written: whole or not at all, by one process at a time, and what a killed one left is removed.

* A file or folder grows under a temporary name `.NAME.TOKEN.tmp` beside its final one, is flushed to the disk and
  renamed; the rename is flushed too. Its writer holds a lock on it, so that whoever finds one without a lock knows that
  nobody will finish it, on whatever machine that was, and removes it.
* A `Lock` is a file that says who holds it. The operating system lets go of it when its holder ends, however it ends.

`OSError` is raised as it comes by what yields a path; what takes content raises an error of this package.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from condconv.errors import ArgumentError, BusyError, CheckpointError

_HELD = (errno.EAGAIN, errno.EACCES)
_POLL_S = 0.1


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole.

    Raises `CheckpointError`, naming the file and the reason, where the disk is full or the folder cannot be written;
    what stood at `path` before is then intact.
    """
    try:
        with whole_file(path) as temporary:
            write_flushed(temporary, content)
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be written ({error.strerror or error}); what stood there before is intact. "
            "Free some space or make the folder writable, then repeat the command (train: with --resume)"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as `write_bytes` does; names of files that are no text are kept as their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file, and have it on the disk. Raises `OSError`."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which at the end of the block becomes `path`, flushed to the disk.

    Raises `OSError`; what stood at `path` before is then intact, and nothing is left of the new file.
    """
    remove_temporaries(path.parent, path.name)
    temporary, descriptor = _claim(path, lambda name: os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        os.fsync(descriptor)  # of what was written through other descriptors too
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(descriptor)


@dataclass
class Growing:
    """The folder's present path: a temporary one inside the `with` block of `whole_folder`, the final one after it."""

    path: Path


@contextmanager
def whole_folder(out: str | Path, *, replace: bool = False) -> Iterator[Growing]:
    """Make a folder beside `out` to write into, and at the end rename it to `out`.

    Where that exists, it is replaced, or the new folder becomes the first free `out-2`, `out-3`, …

    Raises:
        ArgumentError: the folder cannot be written; nothing is left of it then.
    """
    out = Path(out).expanduser()
    with _unwritable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as temporary:
            folder = Growing(temporary)
            yield folder
            _flush_files(temporary)
            if replace:
                remove_whole(out)
            folder.path = _rename_to_free(temporary, out)
            flush_folder(out.parent)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, gone at the end of the block unless it was renamed."""

    def make(name: Path) -> int:
        name.mkdir()
        return os.open(name, os.O_RDONLY)

    remove_temporaries(path.parent, path.name)
    temporary, descriptor = _claim(path, make)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def whole_files(path: Path) -> Iterator[Path]:
    """A folder to write into; at the end of the block its files go to the folder of `path`, the one of that name last.

    Raises `OSError`; what stood there before is intact where the block is left by an error, and nothing is left of it.
    """
    with temporary_folder(path) as temporary:
        yield temporary
        _flush_files(temporary)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))
        flush_folder(path.parent)


def require_writable(out: str | Path) -> None:
    """Raise `ArgumentError` where `whole_folder` would, before anything is computed for it."""
    out = Path(out).expanduser()
    with _unwritable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out):
            pass


def remove_whole(folder: Path) -> None:
    """Remove a folder so that no part of it is ever seen without the rest; nothing where there is none."""
    if not folder.is_dir():
        return
    name = temporary_name(folder)
    os.rename(folder, name)
    shutil.rmtree(name)


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Remove what killed processes left half-written in a folder: of one name, or of any."""
    start = f".{name}." if name else "."
    try:
        left = [entry.name for entry in os.scandir(folder) if is_temporary(entry.name) and entry.name.startswith(start)]
    except OSError:
        return
    for found in left:
        with suppress(OSError):
            _remove_if_nobody_writes(folder / found)


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one that is being written, or was when its writer was killed."""
    return name.startswith(".") and name.endswith(".tmp")


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, without which a rename can be lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(descriptor)


class Lock:
    """A lock among processes, held from its making to `release` or the end of the process.

    Args:
        path: of the lock file, which says who holds it; it is removed at the end.
        what: what is locked, for messages.
        wait: wait while another process holds it.

    Raises:
        BusyError: another process holds it; the message names it.
        OSError: the lock file cannot be made.
    """

    def __init__(self, path: Path, what: str, wait: bool = False) -> None:
        self.path = path
        self.descriptor = _locked(path, what, wait)

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self.descriptor >= 0:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _locked(path: Path, what: str, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):  # else its holder removed it in between
                os.ftruncate(descriptor, 0)
                since = datetime.now().astimezone().isoformat(timespec="seconds")
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
                return descriptor
        except OSError as error:
            if error.errno not in _HELD:
                os.close(descriptor)
                raise
            if not wait:
                holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip() or "another process"
                os.close(descriptor)
                raise BusyError(f"{what}: in use by {holder}; wait for its end, or end it") from None
            time.sleep(_POLL_S)
        os.close(descriptor)


def _claim(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Make something under a temporary name and lock it; → its name and descriptor."""
    while True:
        temporary = temporary_name(path)
        descriptor = make(temporary)
        with suppress(OSError):  # file systems without locks: what is left there, is left
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(temporary, descriptor):  # else it was taken for a left one before it was locked
            return temporary, descriptor
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """A name for what is to become `path`, or was it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _remove_if_nobody_writes(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _flush_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    flush_folder(folder)


@contextmanager
def _unwritable(out: Path) -> Iterator[None]:
    if not out.name or "\0" in str(out):
        raise ArgumentError(f"--out {str(out)!r}: is not the name of a folder; pass one")
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            f"--out {out}: the results cannot be written ({error.strerror or error}); pass a folder you can write to, "
            "with some space left"
        ) from error


def _rename_to_free(temporary: Path, out: Path) -> Path:
    """Rename to `out`, or to the first `out-N` that is free."""
    for number in itertools.count(1):
        path = out if number == 1 else out.with_name(f"{out.name}-{number}")
        try:
            # Renaming would replace an empty folder.
            if not os.path.lexists(path):
                return temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            # Another process took the name in between.
    raise FileExistsError(errno.EEXIST, "no free name", str(out))
