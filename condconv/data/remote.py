"""Shards on a web server or in an object store: fetched once into the user's cache, then read by offset like any other.

The server needs to hand out whole files, no more; which ones there are is said by the set's `shards.json`. A shard
appears in the cache under its name when it is whole, so that an interrupted call keeps what it has.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from condconv.data.cache import cache_folder
from condconv.data.http import http_get
from condconv.data.manifest import CLASSES, MANIFEST, Shard, read_manifest
from condconv.data.tar import tar_members
from condconv.data.waiting import closed_aside, within
from condconv.errors import BusyError, DataError
from condconv.files import Lock, whole_file
from condconv.limits import limit

T = TypeVar("T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ATTEMPTS = 4
_FIRST_PAUSE_S = 1.0
_AT_ONCE = 4
_BLOCK_BYTES = 1 << 20


class _NotWhole(Exception):
    """Other bytes came than were announced."""


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
    name = re.sub(r"[^\w.-]+", "-", name_of(url))[-60:]
    folder = cache_folder() / "shards" / f"{name}-{hashlib.sha256(base.encode()).hexdigest()[:10]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            _fetch_all(base, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the shards of {url} cannot be kept there ({error.strerror or error}); make room, or set "
            "CONDCONV_CACHE to another folder"
        ) from error
    return folder


def _fetch_all(base: str, folder: Path) -> None:
    text = _read(f"{base}/{MANIFEST}", "max_index_bytes")
    if text is None:
        raise DataError(
            f"{base}/{MANIFEST}: not found; a set on a server needs this list of its shards, which 'condconv shard' "
            "writes"
        )
    manifest = read_manifest(text.decode("utf-8", errors="replace"), f"{base}/{MANIFEST}")
    kept = folder / MANIFEST
    if not kept.exists() or kept.read_bytes() != text:
        classes = _read(f"{base}/{CLASSES}", "max_text_bytes")
        for old in folder.glob("*.tar"):
            old.unlink()
        (folder / CLASSES).unlink(missing_ok=True)
        for name, content in ((CLASSES, classes), (MANIFEST, text)):
            if content is not None:
                with whole_file(folder / name) as temporary:
                    temporary.write_bytes(content)
    shards = (*manifest.train, *manifest.val)
    _fetch_missing(base, folder, [shard for shard in shards if not _is_whole(folder / shard.name, shard)])


def _is_whole(path: Path, shard: Shard) -> bool:
    """Whether a file of the cache is what the list says: its length, or where that is not listed, an archive's end."""
    if not path.exists():
        return False
    if shard.bytes is not None:
        return path.stat().st_size == shard.bytes
    try:
        return all(True for _ in tar_members(path))
    except DataError:
        return False


def _fetch_missing(base: str, folder: Path, missing: Sequence[Shard]) -> None:
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        waiting = [pool.submit(_fetch, f"{base}/{shard.name}", folder / shard.name, shard) for shard in missing]
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


def _fetch(url: str, path: Path, shard: Shard) -> None:
    """One shard, whole or not at all."""
    with whole_file(path) as temporary:

        def copy() -> None:
            digest, found = hashlib.sha256(), 0
            with _opened(url) as (read, length), temporary.open("wb") as local:
                wanted = shard.bytes if shard.bytes is not None else length
                for block in _blocks(url, read, limit("max_shard_bytes") if shard.bytes is None else shard.bytes):
                    local.write(block)
                    digest.update(block)
                    found += len(block)
            if wanted is not None and found != wanted:
                raise _NotWhole(f"{wanted} bytes expected, {found} received")
            if shard.sha256 not in (None, digest.hexdigest()):
                raise _NotWhole(f"sha256 {shard.sha256} expected, {digest.hexdigest()} received")
            if not _is_whole(temporary, shard):
                raise _NotWhole("no whole tar archive was received")

        try:
            _with_patience(url, copy)
        except FileNotFoundError as error:
            raise DataError(f"{url}: not found, though {MANIFEST} lists it") from error


def _read(url: str, bound: str) -> bytes | None:
    """A small file, no larger than the limit of that name; None where there is none."""

    def read_all() -> bytes:
        with _opened(url) as (read, length):
            data = b"".join(_blocks(url, read, limit(bound)))
        if length is not None and len(data) != length:
            raise _NotWhole(f"{length} bytes expected, {len(data)} received")
        return data

    try:
        return _with_patience(url, read_all)
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
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, _NotWhole) as error:
            if attempt == _ATTEMPTS:
                raise DataError(f"{url}: cannot be fetched ({getattr(error, 'reason', None) or error})") from error
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{url}: not a URL that can be fetched ({error})") from error
        time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _opened(url: str) -> Iterator[tuple[Callable[[int], bytes], int | None]]:
    """What reads on in a remote file, and its length, where the server says it."""
    if url.split(":", 1)[0].lower() in ("http", "https"):
        with http_get(url) as (response, length):
            yield response.read1, length  # `read` would wait for a whole block, however slowly it comes
        return
    try:
        import fsspec  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise DataError(f"{url}: needs the package fsspec; install it with: pip install fsspec") from None
    try:
        file = within(2 * limit("fetch_timeout_s"), lambda: fsspec.open(url, "rb").open())
    except (FileNotFoundError, TimeoutError):
        raise
    except Exception as error:  # each protocol has its own: no such protocol, its package missing, no permission, …
        raise DataError(f"{url}: cannot be opened ({error})") from error
    with closed_aside(file):
        yield file.read, None


def _blocks(url: str, read: Callable[[int], bytes], most: int) -> Iterator[bytes]:
    """What a server sends, as it comes; no more than that many bytes, and not arbitrarily slowly."""
    begun, received = time.monotonic(), 0
    # A single read may wait for a whole block, or for a line that never ends.
    longest = limit("fetch_timeout_s") + _BLOCK_BYTES / limit("fetch_min_bytes_per_s")
    while block := within(longest, lambda: read(_BLOCK_BYTES)):
        received += len(block)
        if received > most:
            raise DataError(f"{url}: sends more than the {most} bytes that it may have; nothing of it is kept")
        seconds = time.monotonic() - begun - limit("fetch_timeout_s")
        if received < seconds * limit("fetch_min_bytes_per_s"):
            raise DataError(f"{url}: slower than CONDCONV_FETCH_MIN_BYTES_PER_S={limit('fetch_min_bytes_per_s')}")
        yield block


def _lock(folder: Path) -> Lock:
    """The lock of a set in the cache, waited for."""
    try:
        return Lock(folder / ".lock", str(folder))
    except BusyError as error:
        print(f"{error}; waiting", file=sys.stderr)
        return Lock(folder / ".lock", str(folder), wait=True)
