"""Shards on a web server or in an object store: fetched once into the user's cache, then read by offset like any other.

The server needs to hand out whole files, no more; which ones there are is said by the set's `shards.json`. A shard
appears in the cache under its name when it is whole, so that an interrupted call keeps what it has.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from condconv.data.cache import cache_folder
from condconv.data.manifest import CLASSES, MANIFEST, Shard, read_manifest
from condconv.errors import DataError

T = TypeVar("T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ATTEMPTS = 4
_FIRST_PAUSE_S = 1.0
_TIMEOUT_S = 60
_AT_ONCE = 4
_CHUNK_BYTES = 1 << 20


class _CutShort(Exception):
    """Fewer bytes came than were announced."""


def is_url(data: str) -> bool:
    """Whether `--data` is a URL."""
    return _URL.match(data) is not None


def name_of(url: str) -> str:
    """The last part of a URL."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def fetch_shards(url: str) -> Path:
    """Fetch the shards of the folder at `url` that are not in the cache, and return their folder there.

    One process of a machine fetches and the others wait for it.

    Raises:
        DataError: the set has no `shards.json`, a file cannot be fetched or is not as long as it should be, the cache
            cannot be written, or a package for the protocol is missing.
    """
    base = url.rstrip("/")
    folder = cache_folder() / "shards" / f"{name_of(url)}-{hashlib.sha256(base.encode()).hexdigest()[:10]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            _fetch_all(base, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the shards of {url} cannot be kept there ({error.strerror or error}); make room, or set "
            "CONDCONV_CACHE to another folder"
        ) from error
    return folder


def _fetch_all(base: str, folder: Path) -> None:
    text = _read(f"{base}/{MANIFEST}")
    if text is None:
        raise DataError(
            f"{base}/{MANIFEST}: not found; a set on a server needs this list of its shards, which 'condconv shard' "
            "writes"
        )
    manifest = read_manifest(text.decode("utf-8", errors="replace"), f"{base}/{MANIFEST}")
    kept = folder / MANIFEST
    if not kept.exists() or kept.read_bytes() != text:
        for old in folder.glob("*.tar"):
            old.unlink()
        classes = _read(f"{base}/{CLASSES}")
        (folder / CLASSES).unlink(missing_ok=True)
        if classes is not None:
            (folder / CLASSES).write_bytes(classes)
        kept.write_bytes(text)
    missing = [shard for shard in (*manifest.train, *manifest.val) if not (folder / shard.name).exists()]
    _fetch_missing(base, folder, missing)


def _fetch_missing(base: str, folder: Path, missing: Sequence[Shard]) -> None:
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        waiting = [pool.submit(_fetch, f"{base}/{shard.name}", folder / shard.name, shard.bytes) for shard in missing]
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            if sys.stderr.isatty():
                print(
                    f"\rfetched {done} of {len(missing)} shards",
                    end="\n" if done == len(missing) else "",
                    file=sys.stderr,
                )
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(url: str, path: Path, expected: int | None) -> None:
    """One shard, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def copy() -> None:
        with _opened(url) as (remote, length), temporary.open("wb") as local:
            shutil.copyfileobj(remote, local, _CHUNK_BYTES)
        found = temporary.stat().st_size
        wanted = expected if expected is not None else length
        if wanted is not None and found != wanted:
            raise _CutShort(
                f"{wanted} bytes expected, {found} received; if that stays so, the server's file is damaged"
            )

    try:
        _with_patience(url, copy)
        os.replace(temporary, path)
    except FileNotFoundError as error:
        raise DataError(f"{url}: not found, though {MANIFEST} lists it") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(url: str) -> bytes | None:
    """A small file; None where there is none."""

    def read() -> bytes:
        with _opened(url) as (remote, _):
            return remote.read()

    try:
        return _with_patience(url, read)
    except FileNotFoundError:
        return None


def _with_patience(url: str, action: Callable[[], T]) -> T:
    """Try again, after longer and longer pauses, what a network can spoil.

    Raises:
        FileNotFoundError: the server says that there is no such file.
        DataError: it did not work, after all attempts.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise FileNotFoundError(f"{url}: not found") from None
            if attempt == _ATTEMPTS or (error.code < 500 and error.code != 429):
                raise DataError(f"{url}: cannot be fetched (HTTP {error.code} {error.reason})") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, _CutShort) as error:
            if attempt == _ATTEMPTS:
                raise DataError(f"{url}: cannot be fetched ({getattr(error, 'reason', None) or error})") from error
        time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _opened(url: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """A remote file and its length, where the server says it."""
    if url.split(":", 1)[0].lower() in ("http", "https"):
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            length = response.headers.get("Content-Length")
            yield response, None if length is None else int(length)
        return
    try:
        import fsspec  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise DataError(f"{url}: needs the package fsspec; install it with: pip install fsspec") from None
    try:
        file = fsspec.open(url, "rb").open()
    except FileNotFoundError:
        raise
    except Exception as error:  # each protocol has its own: no such protocol, its package missing, no permission, …
        raise DataError(f"{url}: cannot be opened ({error})") from error
    with file:
        yield file, None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine, or wait for it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
