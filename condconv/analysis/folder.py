"""A folder of results that is there as a whole or not at all, and never in place of another one."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from condconv.errors import ArgumentError


@dataclass
class Growing:
    """The folder's present path: a temporary one inside the `with` block of `whole_folder`, the final one after it."""

    path: Path


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Growing]:
    """Make a folder beside `out` to write into, and at the end rename it to `out`, or to the first free `out-2`, ….

    Raises:
        ArgumentError: the folder cannot be written; nothing is left of it then.
    """
    out = Path(out).expanduser()
    temporary = make_temporary(out)
    folder = Growing(temporary)
    try:
        try:
            temporary.chmod(0o755)
            yield folder
            folder.path = _rename_to_free(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(out, error) from error


def make_temporary(out: Path) -> Path:
    """Make the folder beside `out` in which a report grows. Raises `ArgumentError` where that is not possible."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> ArgumentError:
    return ArgumentError(
        f"--out {out}: the results cannot be written ({error.strerror or error}); pass a folder you can write to, with "
        "some space left"
    )


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
