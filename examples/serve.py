"""Serve an exported network over HTTP: an image file in, its likeliest classes out.

    pip install 'condconv[export,serve]'
    condconv export runs/pets --out pets.onnx
    python examples/serve.py pets.onnx
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

Images that come while the network is at work are its next batch: none waits for a batch to fill. /health answers when
the network is loaded, /metrics is for Prometheus. At SIGTERM what has been begun is answered, and nothing else.

Memory is bounded, for what is too much is refused: more requests at a time than --queue (429), a body of more than
CONDCONV_MAX_IMAGE_BYTES (413) or one that takes longer than 10 s (408), and what is no image, or has more than
CONDCONV_MAX_IMAGE_PIXELS (400). Encryption, passwords and connections that never send a request are left to a proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from condconv import arguments
from condconv.data import ImageView, SampleKey, TensorImages
from condconv.data.decoding import decode_image
from condconv.errors import CondConvError, DataError
from condconv.exporting import ExportedNetwork
from condconv.limits import limit

LIMITS = {"CONDCONV_MAX_IMAGE_BYTES": "10000000", "CONDCONV_MAX_IMAGE_PIXELS": "25000000"}
"""Where the environment has no others: the package's own are for files that one has chosen oneself."""
READ_S = 10.0
DECODERS = 2
"""Images that are decoded at a time; each may take some ten bytes for a pixel."""
TOP = 5


class Service:
    """A network and the images that wait for it.

    Args:
        network: an exported file; one that does not classify is an `ArgumentError`.
        queue: requests at a time.
        batch: images of a call of the network, at most.
    """

    def __init__(self, network: ExportedNetwork, queue: int, batch: int) -> None:
        self.network, self.queue, self.batch = network, queue, batch
        self.source = network.source(_images(torch.empty(0, 1, 1, 1, dtype=torch.uint8)))
        self.inside = 0
        self.waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()
        self.decoders = ThreadPoolExecutor(DECODERS)
        self.registry = CollectorRegistry()
        self.requests = Counter("condconv_requests", "Requests by status.", ["status"], registry=self.registry)
        self.seconds = Histogram("condconv_request_seconds", "From headers to answer.", registry=self.registry)
        self.images = Histogram(
            "condconv_batch_images", "Images of a call.", buckets=range(1, batch + 1), registry=self.registry
        )
        inside = Gauge("condconv_inside", "Requests that are read, decoded or waiting.", registry=self.registry)
        inside.set_function(lambda: self.inside)

    async def predict(self, request: Request) -> Response:
        """POST /predict: the bytes of an image file → its classes, the likeliest first."""
        started, status = time.perf_counter(), 500
        try:
            answer = JSONResponse({"classes": await self.classes(request)})
            status = 200
            return answer
        except HTTPException as refusal:
            status = refusal.status_code
            return JSONResponse({"error": refusal.detail}, status, refusal.headers)
        finally:
            self.requests.labels(status).inc()
            self.seconds.observe(time.perf_counter() - started)

    async def classes(self, request: Request) -> list[dict[str, Any]]:
        """Read, decode, wait for the network. Raises `HTTPException` for what is refused."""
        if self.inside >= self.queue:
            raise HTTPException(429, f"{self.inside} requests are waiting already; try again", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        self.inside += 1
        try:
            body = await asyncio.wait_for(read(request), READ_S)
            image = await loop.run_in_executor(self.decoders, self.prepared, body)
            scores: asyncio.Future[Tensor] = loop.create_future()
            self.waiting.put_nowait((image, scores))
            likeliest = (await scores).softmax(dim=0).topk(min(TOP, len(self.source.classes)))
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body did not come within {READ_S:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection ended before the body did") from None
        except DataError as error:
            raise HTTPException(400, f"the body is no image that can be used: {error.__cause__ or error}") from None
        finally:
            self.inside -= 1
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return [{"class": self.source.classes[label], "probability": round(p, 6)} for label, p in pairs]

    def prepared(self, body: bytes) -> Tensor:
        """An image file → what the network takes, (C, H, W)."""
        image = decode_image(body, "the body", self.source.channels)
        return ImageView(replace(self.source, val=_images(image[None])), train=False)[SampleKey(0, 0)].image

    async def work(self) -> None:
        """Give the network all that waits, batch after batch."""
        while True:
            taken = [await self.waiting.get()]
            while len(taken) < self.batch and not self.waiting.empty():
                taken.append(self.waiting.get_nowait())
            self.images.observe(len(taken))
            images, futures = zip(*taken, strict=True)
            try:
                found = await asyncio.to_thread(self.network, torch.stack(images))
            except Exception as error:  # Each runtime has its own; whoever waits gets it, and the next batch is taken.
                for future in futures:
                    if not future.done():  # Whoever asked may have gone.
                        future.set_exception(error)
            else:
                for future, scores in zip(futures, found, strict=True):
                    if not future.done():
                        future.set_result(scores)

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return JSONResponse({"network": self.network.about.name})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """From the start to the last answer."""
        worker = asyncio.create_task(self.work())
        yield
        worker.cancel()


def _images(images: Tensor) -> TensorImages:
    return TensorImages(images, torch.zeros(len(images), dtype=torch.int64), "the body")


async def read(request: Request) -> bytes:
    """The body of a request, so far as it is no longer than it may be."""
    most, pieces, size = limit("max_image_bytes"), list[bytes](), 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise HTTPException(413, f"the body has more than {most} bytes, the limit")
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        pieces.clear()  # An error lives, with its frames, until garbage is collected; what was sent is not to.


def application(network: ExportedNetwork, queue: int, batch: int) -> Starlette:
    """The three addresses."""
    service = Service(network, queue, batch)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)


def main(words: Sequence[str] | None = None) -> None:
    """Open the network and serve it."""
    parser = argparse.ArgumentParser(description="Serve an exported network over HTTP.")
    parser.add_argument("network", type=Path, help="a classifier's file of condconv export")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--queue", type=int, default=64, help="requests at a time; others are refused")
    parser.add_argument("--batch", type=int, default=8, help="images of a call of the network, at most")
    asked = parser.parse_args(words)
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    try:
        arguments.integer("serve", "--queue", asked.queue, 1)
        arguments.integer("serve", "--batch", asked.batch, 1)
        app = application(ExportedNetwork(asked.network), asked.queue, asked.batch)
    except CondConvError as error:
        parser.error(str(error))
    uvicorn.run(app, host=asked.host, port=asked.port, timeout_graceful_shutdown=30, access_log=False)


if __name__ == "__main__":
    main()
