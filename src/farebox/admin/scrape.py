"""`/metrics`: the metrics of all workers, for Prometheus."""

from __future__ import annotations

import asyncio
import gzip
import hmac

from farebox import paths
from farebox.config import Config
from farebox.config.web import is_loopback
from farebox.errors import Forbidden, InvalidKey, MethodNotAllowed
from farebox.metrics import CONTENT_TYPE, Metrics
from farebox.server import Reply, Request, respond

PATH = "/metrics"
_GZIP_LEVEL = 1


class Scrape:
    """Answers `GET /metrics`; with a token only to who says it, without one on loopback only to loopback names.

    The text is written a piece at a time, so that calls go on meanwhile, and written and compressed
    once for all who ask at the same time: strangers can't keep the process busy with more than one.
    """

    def __init__(self, metrics: Metrics, config: Config) -> None:
        self._metrics = metrics
        self.config = config
        self._writing: asyncio.Task[tuple[bytes, bytes]] | None = None

    async def answer(self, request: Request) -> Reply:
        """One scrape. Raises `MethodNotAllowed`, `InvalidKey`, `Forbidden`."""
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{request.method} is not a method of {PATH}.")
        self._check(request)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="metrics")
        body, packed = await asyncio.shield(self._writing)
        headers = [(b"Cache-Control", b"no-store"), (b"Vary", b"Accept-Encoding")]
        if _takes_gzip(request):
            body = packed
            headers.append((b"Content-Encoding", b"gzip"))
        return respond(request, 200, body, content_type=CONTENT_TYPE, headers=headers)

    def _check(self, request: Request) -> None:
        token, server = self.config.metrics.token, self.config.server
        if token is None:
            # A page that had its own name point to this machine could read along in somebody's browser.
            if is_loopback(server.host) and not paths.loopback_name(request.headers.get("Host", "")):
                raise Forbidden(f"Without metrics.token, {PATH} answers only to a loopback name in the Host header.")
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        said = given.strip().encode("utf-8", "replace")
        if scheme.lower() != "bearer" or not hmac.compare_digest(said, token.encode()):
            raise InvalidKey(f"{PATH} takes `Authorization: Bearer TOKEN`, the metrics.token of the config.")

    async def _write(self) -> tuple[bytes, bytes]:
        """The text, plain and in gzip."""
        pieces: list[bytes] = []
        await self._metrics.look_up()
        for piece in self._metrics.pieces():
            pieces.append(piece)
            await asyncio.sleep(0)
        body = b"".join(pieces)
        # zlib lets go of the interpreter while it works.
        return body, await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL)


def _takes_gzip(request: Request) -> bool:
    """Whether the client names gzip and does not rule it out."""
    for offer in ",".join(request.headers.getall("Accept-Encoding", ())).split(","):
        coding, _, parameters = offer.partition(";")
        if coding.strip().lower() == "gzip":
            name, _, weight = parameters.partition("=")
            return not (name.strip().lower() == "q" and weight.strip(" 0.") == "")
    return False
