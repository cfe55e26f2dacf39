"""A server that does its worst: nothing outlasts or outgrows the limits, and what is not whole is not kept."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest

from condconv.data import open_source
from condconv.data import remote as module
from condconv.errors import DataError
from tests.data.writers import shard_samples, write_tar

Answer = Callable[[BaseHTTPRequestHandler], None]


class _Handler(BaseHTTPRequestHandler):
    answers: dict[str, Answer] = {}

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        try:
            self.answers[self.path.rsplit("/", 1)[-1]](self)
        except KeyError:
            self.send_error(404)
        except (BrokenPipeError, ConnectionResetError):
            pass


def send(body: bytes, length: object = ..., **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(len(body) if length is ... else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def endless(piece: bytes, pause: float = 0.0) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(piece)
            if pause:
                handler.wfile.flush()
                time.sleep(pause)

    return answer


def redirect(to: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


@pytest.fixture()
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, samples in (("train.tar", shard_samples(6)), ("val.tar", shard_samples(3, first=9))):
        write_tar(tmp_path / "www" / name, samples)
    files = {name: (tmp_path / "www" / name).read_bytes() for name in ("train.tar", "val.tar")}
    index = {"format": 1, "train": [{"name": "train.tar"}], "val": [{"name": "val.tar"}]}
    _Handler.answers = {name: send(body) for name, body in files.items()}
    _Handler.answers["shards.json"] = send(json.dumps(index).encode())
    monkeypatch.setenv("CONDCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "_ATTEMPTS", 2)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/pets"
        httpd.shutdown()


def kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def list_with(**stated: object) -> None:
    shards = {"format": 1, "train": [{"name": "train.tar", **stated}], "val": [{"name": "val.tar"}]}
    _Handler.answers["shards.json"] = send(json.dumps(shards).encode())


def test_an_honest_one(server: str) -> None:
    assert len(open_source(server).train) == 6


def test_an_endless_body_ends_at_what_was_stated(server: str, tmp_path: Path) -> None:
    list_with(bytes=20_000)
    _Handler.answers["train.tar"] = endless(b"x" * 10_000)
    with pytest.raises(DataError, match="sends more than the 20000 bytes that it may have"):
        open_source(server)
    assert kept(tmp_path / "cache") < 100_000


def test_an_endless_body_ends_at_the_limit(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDCONV_MAX_SHARD_BYTES", "50000")
    _Handler.answers["train.tar"] = endless(b"x" * 10_000)
    with pytest.raises(DataError, match="sends more than the 50000 bytes"):
        open_source(server)
    assert kept(tmp_path / "cache") < 100_000


def test_an_endless_list(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDCONV_MAX_INDEX_BYTES", "50000")
    _Handler.answers["shards.json"] = endless(b" " * 10_000)
    with pytest.raises(DataError, match=r"shards\.json: sends more than the 50000 bytes"):
        open_source(server)


def test_a_drip(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDCONV_FETCH_TIMEOUT_S", "1")
    _Handler.answers["train.tar"] = endless(b"x", pause=0.1)
    began = time.monotonic()
    with pytest.raises(DataError, match="slower than CONDCONV_FETCH_MIN_BYTES_PER_S=1000"):
        open_source(server)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("part", ["headers", "length of a chunk"])
def test_a_drip_where_a_line_is_awaited(server: str, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setenv("CONDCONV_FETCH_TIMEOUT_S", "1")
    monkeypatch.setenv("CONDCONV_FETCH_MIN_BYTES_PER_S", str(10**7))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        begun = {"headers": b"X: ", "length of a chunk": b"Transfer-Encoding: chunked\r\n\r\n"}[part]
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + begun)
        while True:
            handler.wfile.write(b"0")
            time.sleep(0.1)

    _Handler.answers["train.tar"] = answer
    began = time.monotonic()
    with pytest.raises(DataError, match=r"train\.tar: cannot be fetched \(no answer within [12] s\)"):
        open_source(server)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "to, message",
    [
        ("ftp://127.0.0.1/x.tar", "not as safe a protocol"),
        ("file:///etc/passwd", "not allowed"),
        ("http://localhost:1/train.tar", "another host, localhost; where you trust it, set CONDCONV_REDIRECT_HOSTS"),
        ("train.tar", "redirect"),  # to itself, for ever
    ],
)
def test_redirects(server: str, to: str, message: str) -> None:
    _Handler.answers["train.tar"] = redirect(to)
    with pytest.raises(DataError, match=message):
        open_source(server)


def test_a_trusted_host(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _Handler.answers["train.tar"]
    _Handler.answers |= {"train.tar": redirect(server.replace("127.0.0.1", "localhost") + "/moved"), "moved": honest}
    monkeypatch.setenv("CONDCONV_REDIRECT_HOSTS", "example.org, localhost")
    assert len(open_source(server).train) == 6


def test_a_packed_body_is_refused(server: str) -> None:
    _Handler.answers["train.tar"] = send(b"x" * 2000, Content_Encoding="gzip")
    with pytest.raises(DataError, match="sent packed as 'gzip'"):
        open_source(server)


Opening = Callable[[], IO[bytes]]


class _Slow(io.BytesIO):
    """A file of an object store that fetches whole blocks, from a server that drips."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(3600)
        return b""


class _Endless(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return b" " * (10_000 if size is None or size < 0 else size)


def _never() -> IO[bytes]:
    time.sleep(3600)
    raise AssertionError


@pytest.fixture()
def store(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Opening]:
    """The files that fsspec finds under hostile://."""
    fsspec = pytest.importorskip("fsspec")
    index = json.dumps({"format": 1, "train": [{"name": "train.tar"}], "val": [{"name": "val.tar"}]}).encode()
    files: dict[str, Opening] = {"shards.json": lambda: io.BytesIO(index)}
    for name in ("train.tar", "val.tar"):
        files[name] = partial(io.BytesIO, (tmp_path / "www" / name).read_bytes())

    class Store(fsspec.AbstractFileSystem):  # type: ignore[misc, name-defined]
        protocol = "hostile"
        cachable = False

        def _open(self, path: str, mode: str = "rb", **_: object) -> IO[bytes]:
            name = path.rsplit("/", 1)[-1]
            if name not in files:
                raise FileNotFoundError(path)
            return files[name]()

    fsspec.register_implementation("hostile", Store, clobber=True)
    monkeypatch.setenv("CONDCONV_FETCH_TIMEOUT_S", "1")
    monkeypatch.setenv("CONDCONV_FETCH_MIN_BYTES_PER_S", str(10**7))
    return files


@pytest.mark.parametrize("name", ["shards.json", "train.tar"])
@pytest.mark.parametrize("opening", [_Slow, _never])
def test_another_protocol_that_never_answers(store: dict[str, Opening], name: str, opening: Opening) -> None:
    store[name] = opening
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"{name}: cannot be fetched \(no answer within [12] s\)"):
        open_source("hostile://bucket/pets")
    assert time.monotonic() - began < 60


def test_another_protocol_without_end(
    store: dict[str, Opening], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDCONV_MAX_INDEX_BYTES", "50000")
    monkeypatch.setenv("CONDCONV_MAX_SHARD_BYTES", "50000")
    store["train.tar"] = _Endless
    with pytest.raises(DataError, match=r"train\.tar: sends more than the 50000 bytes"):
        open_source("hostile://bucket/pets")
    assert kept(tmp_path / "cache") < 100_000
    store["shards.json"] = _Endless
    with pytest.raises(DataError, match=r"shards\.json: sends more than the 50000 bytes"):
        open_source("hostile://bucket/pets")


@pytest.mark.parametrize("length", ["-1", "many", "1" * 5000, "٣"])
def test_a_length_that_is_none(server: str, length: str) -> None:
    body = b"x" * 2000

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: " + length.encode() + b"\r\n\r\n" + body)

    _Handler.answers["train.tar"] = answer
    with pytest.raises(DataError, match="which is no number of bytes|no whole tar archive|cannot be fetched"):
        open_source(server)


def test_a_body_that_is_cut_is_not_kept(server: str, tmp_path: Path) -> None:
    honest = _Handler.answers["train.tar"]
    whole = (tmp_path / "www" / "train.tar").read_bytes()
    _Handler.answers["train.tar"] = send(whole[: len(whole) // 2], length=None)
    with pytest.raises(DataError, match="no whole tar archive was received"):
        open_source(server)
    _Handler.answers["train.tar"] = honest
    assert len(open_source(server).train) == 6


def test_a_file_of_the_cache_that_is_cut_is_fetched_again(server: str, tmp_path: Path) -> None:
    open_source(server)
    (cached,) = (tmp_path / "cache").rglob("train.tar")
    cached.write_bytes(cached.read_bytes()[:1000])
    assert len(open_source(server).train) == 6


def test_other_bytes_than_the_list_says(server: str, tmp_path: Path) -> None:
    list_with(sha256="0" * 64)
    with pytest.raises(DataError, match="sha256 0000.* expected"):
        open_source(server)
    assert not list((tmp_path / "cache").rglob("train.tar"))


@pytest.mark.parametrize(
    "index",
    ["[]", '{"format": 1}', "[" * 100_000, '{"format": "x", "train": [], "val": []}', "\x00",
     '{"format": 1, "train": [{"name": "../../x"}], "val": []}',
     '{"format": 1, "train": [{"name": ".lock"}], "val": []}',
     '{"format": 1, "train": [{"name": 3}], "val": []}', '{"format": 1, "train": [{"name": "a\\u0000"}], "val": []}',
     '{"format": 1, "train": [{"name": "a", "bytes": -1}], "val": []}', '{"format": ' + "9" * 5000 + "}",
     '{"format": 1, "train": [{"name": "a", "bytes": true}], "val": []}', '{"format": 1, "train": 3, "val": 4}',
     '{"format": 1, "train": [{"name": "a"}, {"name": "a"}], "val": []}'],
    ids=lambda text: text[:60],
)  # fmt: skip
def test_lists_that_are_none(server: str, index: str) -> None:
    _Handler.answers["shards.json"] = send(index.encode())
    with pytest.raises(DataError, match=r"shards\.json: "):
        open_source(server)


def test_urls_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDCONV_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    for url in ("http://[::1", "http://", "http://a b/", "https://\x00/"):
        with pytest.raises(DataError):
            open_source(url)
