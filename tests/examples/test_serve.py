"""The server answers what the network does, to many at once, and outlives what is sent to harm it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import condconv
from condconv.data import ImageView, SampleKey, TensorImages
from condconv.data.decoding import decode_image
from condconv.exporting import ExportedNetwork
from tests.examples.test_model_examples import example
from tests.exporting import networks
from tests.processes import CONTEXT

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime", "starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)

QUEUE = 4
WAIT_S = 300
"""For what takes milliseconds; only a server that hangs takes so long."""


class Reply(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    """A server in a process of its own, at a port that it was given."""

    process: Any
    port: int

    def send(self, body: bytes | None, path: str = "/predict", method: str = "POST") -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())

    def get(self, path: str) -> Reply:
        return self.send(None, path, "GET")

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def open(self, *pieces: bytes) -> socket.socket:
        """A connection over which some bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        for piece in pieces:
            connection.sendall(piece)
        return connection


def serve(log: Path, network: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    os.environ |= {"CONDCONV_MAX_IMAGE_BYTES": "1000000", "CONDCONV_MAX_IMAGE_PIXELS": "1000000"}
    example("serve").main([str(network), "--port", "0", "--queue", str(QUEUE)])


@contextlib.contextmanager
def started(folder: Path, network: Path) -> Iterator[Server]:
    log = folder / "log"
    process = CONTEXT.Process(target=serve, args=(log, network), daemon=True)
    process.start()
    try:
        port = until(lambda: re.search(r"running on http://127.0.0.1:(\d+)", log.read_text() if log.exists() else ""))
        yield Server(process, int(port[1]))
    finally:
        process.terminate()
        process.join(WAIT_S)
        assert "Traceback" not in log.read_text()


def until(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "net.onnx"
    return condconv.export(networks.network(), path, example=networks.images(1)).path


@pytest.fixture(scope="module")
def server(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("server"), network) as found:
        yield found


def picture(seed: int = 0, form: str = "PNG", size: tuple[int, int] = (60, 50)) -> bytes:
    packed = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(packed, form)
    return packed.getvalue()


def bomb() -> bytes:
    """100 million pixels in some kilobytes."""
    packed = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(packed, "PNG")
    return packed.getvalue()


def expected(model: nn.Module, path: Path, files: list[bytes]) -> Tensor:
    """The probabilities (N, classes) of the network in eager mode."""
    decoded = torch.stack([decode_image(file, "file", 3) for file in files])
    stored = TensorImages(decoded, torch.zeros(len(files), dtype=torch.int64), "files")
    view = ImageView(ExportedNetwork(path).source(stored), train=False)
    with torch.no_grad():
        return model(torch.stack([view[SampleKey(0, place)].image for place in range(len(files))])).softmax(dim=1)


def test_many_at_once_get_the_answers_of_the_network(server: Server, network: Path) -> None:
    files = [picture(seed) for seed in range(16)]
    with ThreadPoolExecutor(QUEUE) as clients:
        replies = list(clients.map(server.send, files))
    assert {reply.status for reply in replies} == {200}
    for reply, probabilities in zip(replies, expected(networks.network(), network, files), strict=True):
        named = {answer["class"]: answer["probability"] for answer in reply.said["classes"]}
        top = probabilities.topk(5)
        assert list(named) == [str(label) for label in top.indices.tolist()]
        assert list(named.values()) == pytest.approx(top.values.tolist(), abs=1e-4)
    assert server.metric('condconv_requests_total{status="200"}') >= 16
    assert server.metric("condconv_batch_images_sum") >= 16 and server.metric("condconv_inside") == 0
    assert server.get("/health").said == {"network": "Sequential"}


@pytest.mark.parametrize(
    ("make", "status", "why"),
    [
        (lambda: b"", 400, "empty"),
        (lambda: b"no image" * 100, 400, "cannot identify"),
        (lambda: picture()[:500], 400, "truncated"),
        (bomb, 400, "10000 x 10000 pixels, more than the limit of 1000000"),
        (lambda: picture(form="EPS"), 400, "cannot identify"),  # Pillow would start Ghostscript.
        (lambda: bytes(1_000_001), 413, "more than 1000000 bytes"),
    ],
    ids=["empty", "no image", "truncated", "bomb", "EPS", "large"],
)
def test_what_is_no_image_is_refused(server: Server, make: Callable[[], bytes], status: int, why: str) -> None:
    reply = server.send(make())
    assert reply.status == status and why in reply.said["error"]
    assert server.send(picture()).status == 200


def test_what_is_no_request_is_refused(server: Server) -> None:
    assert server.get("/predict").status == 405 and server.get("/other").status == 404
    with server.open(b"NONSENSE\r\n\r\n") as connection:
        assert b" 400 " in connection.recv(100)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    server.open(head, b"part").close()
    until(lambda: server.metric("condconv_inside") == 0)
    assert server.send(picture()).status == 200


def begun(server: Server, body: bytes) -> socket.socket:
    """A request of which half has been sent."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return server.open(head, body[: len(body) // 2])


def ended(connection: socket.socket, body: bytes) -> bytes:
    """Send the other half; the answer."""
    with connection:
        connection.sendall(body[len(body) // 2 :])
        return b"".join(iter(lambda: connection.recv(10_000), b""))


def test_more_than_the_queue_are_refused_and_the_others_served(server: Server) -> None:
    body = picture()
    held = [begun(server, body) for _ in range(QUEUE)]
    until(lambda: server.metric("condconv_inside") == QUEUE)
    refused = server.send(body)
    assert refused.status == 429 and refused.headers["Retry-After"] == "1" and "waiting" in refused.said["error"]
    assert server.get("/health").status == 200
    assert all(ended(connection, body).startswith(b"HTTP/1.1 200 ") for connection in held)


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_flood_leaves_memory_flat(server: Server, number: int) -> None:
    kinds = [picture(), bomb(), bytes(1_000_001), b"no image", picture(size=(900, 1000), form="JPEG")]
    assert [server.send(body).status for body in kinds] == [200, 400, 413, 400, 200]
    status = Path(f"/proc/{server.process.pid}")
    if not (status / "clear_refs").exists():
        pytest.skip("the system does not tell a process's peak of memory")
    (status / "clear_refs").write_text("5")
    before = kilobytes(status, "VmRSS")
    with ThreadPoolExecutor(100) as clients:
        found = list(clients.map(lambda i: (i % len(kinds), server.send(kinds[i % len(kinds)]).status), range(number)))
    allowed = [{200, 429}, {400, 429}, {413, 429}, {400, 429}, {200, 429}]
    assert all(status in allowed[kind] for kind, status in found)
    # A body, its pixels and copies of them, for each of the queue and of the decoders.
    assert kilobytes(status, "VmHWM") - before < 100_000
    assert server.send(picture()).status == 200


def kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in (status / "status").read_text().splitlines() if line.startswith(name))


def test_asked_to_stop_it_answers_what_has_been_begun(network: Path, tmp_path: Path) -> None:
    body = picture()
    with started(tmp_path, network) as server:
        connection = begun(server, body)
        until(lambda: server.metric("condconv_inside") == 1)
        os.kill(server.process.pid, signal.SIGTERM)
        until(lambda: refuses(server))
        assert ended(connection, body).startswith(b"HTTP/1.1 200 ")
        server.process.join(WAIT_S)
        assert server.process.exitcode == -signal.SIGTERM


def refuses(server: Server) -> bool:
    try:
        server.open().close()
    except ConnectionRefusedError:
        return True
    return False


class Stand:
    """Stands in for an exported network: fails at batches of three, and keeps what it was given."""

    def __init__(self, path: Path) -> None:
        exported = ExportedNetwork(path)
        self.about, self.source, self.sizes = exported.about, exported.source, list[int]()

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) == 3:
            raise RuntimeError("out of memory")
        return images.flatten(1)[:, :10]


async def post(service: Any, receive: Callable[[], Awaitable[dict[str, Any]]]) -> Any:
    from starlette.requests import Request

    return await service.predict(Request({"type": "http", "method": "POST", "headers": []}, receive))


def test_what_waits_is_the_next_batch_and_a_failure_is_of_that_batch_alone(network: Path) -> None:
    stand = Stand(network)

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": picture()}

    async def sent(service: Any, number: int) -> list[Any]:
        asked = [asyncio.create_task(post(service, whole)) for _ in range(number)]
        while service.waiting.qsize() < number:
            assert not any(task.done() for task in asked)
            await asyncio.sleep(0.01)
        worker = asyncio.create_task(service.work())
        found = await asyncio.gather(*asked, return_exceptions=True)
        worker.cancel()
        return found

    async def run() -> tuple[list[Any], list[Any]]:
        service = example("serve").Service(stand, 9, 4)
        return await sent(service, 3), await sent(service, 6)

    failed, served = asyncio.run(run())
    assert all(isinstance(error, RuntimeError) for error in failed)
    assert [answer.status_code for answer in served] == [200] * 6 and stand.sizes == [3, 4, 2]


def test_a_body_that_does_not_come_is_given_up(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("serve")
    monkeypatch.setattr(module, "READ_S", 0.01)

    async def never() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()

    async def run() -> Any:
        return await post(module.Service(Stand(network), 1, 1), never)

    answer = asyncio.run(run())
    assert answer.status_code == 408 and b"did not come within 0.01 s" in answer.body


def test_what_cannot_be_served_is_said(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in example("serve").LIMITS.items():
        monkeypatch.setenv(name, value)  # The server sets them in its environment, which is that of all tests.
    model = onnx.load(network)
    model.metadata_props[0].value = json.dumps(json.loads(model.metadata_props[0].value) | {"classes": []})
    onnx.save(model, tmp_path / "maps.onnx")
    for words, message in (
        ([str(tmp_path / "none.onnx")], "none.onnx: no such file"),
        ([str(tmp_path / "maps.onnx")], "gives no scores of classes"),
        ([str(network), "--queue", "0"], "--queue=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            example("serve").main(words)
        assert message in capsys.readouterr().err
