"""The client that farebox had before its own: aiohttp's, set up as it was, to compare answers with.

Two faults of it were mended where it was used and are mended here: a body whose chunks do not parse
would be waited for without end, and a reset would pass for the proper end of a body that ends with
its connection. A connection on which bytes came while it was idle was not used again.
"""

from __future__ import annotations

import functools
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import BaseConnector
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from farebox.upstream import FIELD_BYTES_MAX, READ_BUFFER_BYTES, Head, UpstreamError
from farebox.upstream.head import read_head
from support.wires import Wires


class OldAnswer:
    """As `farebox.upstream.Answer`, as far as it is compared."""

    def __init__(self, response: aiohttp.ClientResponse, head: Head) -> None:
        self.head = head
        self._response = response

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, ValueError):
            raise UpstreamError("broken_body", sent=True) from None

    def close(self) -> None:
        self._response.close()


class OldClient:
    """`send` and `close` as `farebox.upstream.Upstream` has them."""

    def __init__(self, wires: Wires, *, fields_max: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=_Connector(wires),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=FIELD_BYTES_MAX,
            max_field_size=FIELD_BYTES_MAX,
            max_headers=fields_max,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            trust_env=False,
        )
        self._session._retry_connection = False

    async def send(self, method: str, url: str, body: bytes | None) -> OldAnswer:
        try:
            response = await self._session.request(method, URL(url, encoded=True), data=body, allow_redirects=False)
        except aiohttp.ServerDisconnectedError:
            raise UpstreamError("disconnected", sent=True) from None
        except (aiohttp.ClientResponseError, aiohttp.ClientPayloadError, ValueError):
            raise UpstreamError("broken_answer", sent=True) from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamError("connection_lost", sent=True) from None
        try:
            reason = (response.reason or "").encode("utf-8", "surrogateescape")
            return OldAnswer(response, read_head(response.status, reason, response.raw_headers))
        except UpstreamError:
            response.close()
            raise

    async def close(self) -> None:
        await self._session.close()


class _Handler(ResponseHandler):
    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        if isinstance(exc, HttpProcessingError):
            self._break_body()
        super().set_exception(exc, exc_cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None:
            self._break_body()
        super().connection_lost(exc)

    def _break_body(self) -> None:
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("broken off"))


class _Connector(BaseConnector):
    def __init__(self, wires: Wires) -> None:
        super().__init__(keepalive_timeout=60)
        self._factory = functools.partial(_Handler, loop=self._loop)
        self._wires = wires

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        protocol = await self._wires.open(self._factory)
        assert isinstance(protocol, ResponseHandler)
        return protocol

    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                break
            connection.close()
        return connection
