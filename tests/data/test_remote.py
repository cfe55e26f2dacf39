from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from condconv.data import open_source
from condconv.data import remote as module
from condconv.data.sharding import write_shards
from condconv.errors import DataError
from tests.data.writers import write_folder_set


class _Handler(SimpleHTTPRequestHandler):
    """Hands out files; `failing` are statuses to answer with first, `cut` shortens what it sends."""

    requests: list[str] = []
    failing: list[int] = []
    cut: set[str] = set()

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.requests.append(name)
        if self.failing:
            self.send_error(self.failing.pop(0))
        elif name in self.cut:
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()


@pytest.fixture()
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    write_folder_set(tmp_path / "images", per_class=5)
    write_shards(tmp_path / "images", tmp_path / "www" / "pets", shard_size=4, workers=0)
    monkeypatch.setenv("CONDCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    _Handler.requests, _Handler.failing, _Handler.cut = [], [], set()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(tmp_path / "www"))) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/pets"
        httpd.shutdown()


def test_fetched_once_and_read_like_any_other(server: str, tmp_path: Path) -> None:
    local, remote = open_source(str(tmp_path / "www" / "pets")), open_source(server)
    assert (remote.name, remote.classes, len(remote.train), len(remote.val)) == ("pets", ("cat", "dog"), 10, 10)
    assert all((remote.train.load(i) == local.train.load(i)).all() for i in range(10))
    shards = sorted(name for name in _Handler.requests if name.endswith(".tar"))
    assert shards == sorted(path.name for path in (tmp_path / "www" / "pets").glob("*.tar"))
    _Handler.requests.clear()
    open_source(server + "/")
    assert _Handler.requests == ["shards.json"]


def test_a_new_set_at_the_same_place_replaces_the_old(server: str, tmp_path: Path) -> None:
    open_source(server)
    write_folder_set(tmp_path / "more", per_class=6)
    (tmp_path / "www" / "pets").rename(tmp_path / "www" / "old")
    write_shards(tmp_path / "more", tmp_path / "www" / "pets", shard_size=4, workers=0)
    assert len(open_source(server).train) == 12


def test_a_server_that_is_busy_is_asked_again(server: str) -> None:
    _Handler.failing = [503, 500]
    assert len(open_source(server).train) == 10
    _Handler.failing = [503] * 4
    with pytest.raises(DataError, match=r"shards\.json: cannot be fetched \(HTTP 503"):
        open_source(server)
    _Handler.failing = [403]
    with pytest.raises(DataError, match="HTTP 403"):
        open_source(server)


def test_a_shard_that_comes_short_is_named_and_the_others_are_kept(server: str, tmp_path: Path) -> None:
    _Handler.cut = {"train-000001.tar"}
    with pytest.raises(DataError, match=r"train-000001\.tar: cannot be fetched \(\d+ bytes expected, \d+ received"):
        open_source(server)
    (folder,) = (tmp_path / "cache" / "shards").iterdir()
    assert not list(folder.glob(".*.tmp")) and not (folder / "train-000001.tar").exists()
    _Handler.cut = set()
    assert len(open_source(server).train) == 10


def test_no_list_of_shards_a_listed_one_missing_nobody_there(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing/shards.json: not found; a set on a server needs this list"):
        open_source(server.replace("pets", "nothing"))
    (tmp_path / "www" / "pets" / "val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"val-000000\.tar: not found, though shards\.json lists it"):
        open_source(server)
    with pytest.raises(DataError, match="cannot be fetched"):
        open_source("http://127.0.0.1:1/pets")


def test_other_protocols_go_through_fsspec(server: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "www" / "pets").iterdir():
        memory.pipe(f"/bucket/pets/{path.name}", path.read_bytes())
    assert len(open_source("memory://bucket/pets").train) == 10
    with pytest.raises(DataError, match=r"shards\.json: not found"):
        open_source("memory://bucket/none")
    with pytest.raises(DataError, match="cannot be opened"):
        open_source("nosuchprotocol://bucket/pets")
