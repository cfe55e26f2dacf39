"""HTTP as this package wants it: no other protocol, no other host, no packed bodies, and an end to all waiting."""

from __future__ import annotations

import email.message
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import IO, Any
from urllib.parse import urlsplit

from condconv.data.waiting import closed_aside, within
from condconv.errors import DataError
from condconv.limits import limit

REDIRECT_HOSTS = "CONDCONV_REDIRECT_HOSTS"
"""Environment variable: hosts, by commas, that a server may redirect to besides itself."""
_MOST_REDIRECTS = 5


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to the same host, or to one that the user trusts, and never from https to http."""

    max_redirections = _MOST_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise DataError(f"{req.full_url}: redirects to {newurl}, which is not as safe a protocol; refused")
        trusted = [host.strip() for host in os.environ.get(REDIRECT_HOSTS, "").split(",")]
        if new.hostname != old.hostname and new.hostname not in trusted:
            raise DataError(
                f"{req.full_url}: redirects to another host, {new.hostname}; where you trust it, set "
                f"{REDIRECT_HOSTS}={new.hostname}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for kind in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _Redirects,
    ):
        opener.add_handler(kind())
    return opener


@contextmanager
def http_get(url: str) -> Iterator[tuple[HTTPResponse, int | None]]:
    """The body of an answer and its length, where the server says it.

    Raises:
        DataError: a redirect that is not followed, a packed body, or a length that is no number.
        OSError: of all kinds, as urllib raises them; a silence of `fetch_timeout_s` among them.
    """
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    seconds = limit("fetch_timeout_s")
    # Connecting and the headers: however little a server is silent, it gets no more than twice the time for both.
    response: HTTPResponse = within(2 * seconds, lambda: _opener().open(request, timeout=seconds))
    with closed_aside(response):
        packing = response.headers.get("Content-Encoding", "identity")
        if packing.strip().lower() not in ("", "identity"):
            raise DataError(f"{url}: sent packed as {packing!r}, though that was not asked for; the server must not")
        yield response, _length(url, response.headers)


def _length(url: str, headers: email.message.Message) -> int | None:
    length = headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise DataError(f"{url}: says that its length is {length!r}, which is no number of bytes")
    return int(length)
