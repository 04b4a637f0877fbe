"""The provider's side: send one request, hand back the answer's head and raw body pieces.

Everything that knows which HTTP client is in use is in this module, so that it can be replaced.
It decides nothing: which provider, whether to fall back and what a failure means for the row are
`proxy`'s. Bodies are never decoded, redirects never followed, cookies never kept.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL as _NO_CAUSE
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from farebox.config import Provider
from farebox.dialects import PROFILES
from farebox.errors import FareboxError

RawHeaders = tuple[tuple[bytes, bytes], ...]

READ_BUFFER_BYTES = 64 * 1024
"""Bytes of one answer held unread; past twice this the provider's socket is not read until some are taken."""
HEAD_BYTES_MAX = 64 * 1024
"""Longest header line taken from a provider; a longer one counts as a broken answer."""
IDLE_CONNECTION_S = 30.0
"""Seconds an unused connection to a provider is kept."""

_SECRET_CHARS_MIN = 8
"""A shorter credential is a stand-in like `none`, for a local server, which ordinary values contain."""

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers "
    b"transfer-encoding upgrade".split()
)
_FAREBOX_REQUEST = frozenset(
    b"host content-length expect authorization x-api-key api-key x-goog-api-key cookie2 http2-settings".split()
)


class UpstreamError(FareboxError):
    """The provider gave no answer, or broke it off. `kind` is a bounded word for rows and metrics."""

    def __init__(self, kind: str, *, sent: bool, timeout: bool = False) -> None:
        super().__init__(f"provider: {kind}")
        self.kind = kind
        self.sent = sent
        """False: provably nothing of the request reached the provider."""
        self.timeout = timeout


class NeverSent(asyncio.CancelledError):
    """The call was cancelled while it waited for a connection: nothing of it went up."""


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's head. `headers` are end-to-end only; `length` is the body's size where it is announced."""

    status: int
    reason: bytes
    headers: RawHeaders
    length: int | None
    framed: bool
    """False: the body ends with the connection, so that its end may as well be a break."""
    content_type: str
    content_encoding: str
    request_id: str | None


class Answer:
    """A provider's answer: `head`, then `read` until it returns b"". `close` gives it up at any point."""

    def __init__(self, response: aiohttp.ClientResponse, head: Head) -> None:
        self.head = head
        self._response = response

    async def read(self) -> bytes:
        """The next piece of the body, as soon as there is one; b"" at its proper end. Raises `UpstreamError`."""
        try:
            return await self._response.content.readany()
        except TimeoutError:
            raise UpstreamError("idle_timeout", sent=True, timeout=True) from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise UpstreamError("broken_body", sent=True) from None

    def close(self) -> None:
        """Drop the connection unless the body was read to its end."""
        self._response.close()


class Upstream:
    """Connections to one provider."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._base = provider.base_url.rstrip("/")
        if PROFILES[provider.dialect].family == "anthropic" and not self._base.endswith("/v1"):
            # Anthropic's base URLs end before the version, OpenAI's after it.
            self._versioned = self._base + "/v1"
        else:
            self._versioned = self._base
        self._own_headers = _own_headers(provider)
        self._own_names = frozenset(name.lower().encode() for name in self._own_headers)
        self._secrets = [secret.encode() for secret in provider.credentials if len(secret) >= _SECRET_CHARS_MIN]
        context: ssl.SSLContext | bool = True
        if provider.tls_ca_file is not None:
            context = ssl.create_default_context(cafile=provider.tls_ca_file)
        elif not provider.tls_verify:
            context = False
        self._connector = _Connector(
            limit=provider.connections_max, ssl=context, keepalive_timeout=IDLE_CONNECTION_S, ttl_dns_cache=60
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=provider.connect_timeout_s, sock_read=provider.idle_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=HEAD_BYTES_MAX,
            max_field_size=HEAD_BYTES_MAX,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            trust_env=False,
        )
        # aiohttp sends a GET again by itself when the connection broke: a second request without a row.
        self._session._retry_connection = False

    def url(self, suffix: str, *, versioned: bool) -> str:
        """Where a target's suffix lies at this provider: after its version if it followed farebox's `/v1`."""
        return (self._versioned if versioned else self._base) + suffix

    async def send(
        self,
        method: str,
        url: str,
        headers: CIMultiDict[str],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> Answer:
        """Send a request; return once the answer's head is there. Raises `UpstreamError`, `NeverSent`."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self.provider.response_timeout_s):
                response = await self._session.request(
                    method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as exc:
            raise UpstreamError(_connect_kind(exc), sent=False) from None
        except TimeoutError:
            sent = task not in self._connector.waiting
            raise UpstreamError("response_timeout", sent=sent, timeout=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise UpstreamError(_kind(exc), sent=True) from None
        except asyncio.CancelledError:
            if task in self._connector.waiting:
                raise NeverSent from None
            raise
        finally:
            self._connector.waiting.discard(task)
        try:
            raw = without(response.raw_headers, self._secrets)
            head = read_head(response.status, response.reason or "", raw)
        except UpstreamError:
            response.close()
            raise
        return Answer(response, head)

    def headers(self, raw: RawHeaders, *, credentials: bool, identity: bool, length: int | None) -> CIMultiDict[str]:
        """The client's header fields as they go up.

        Dropped: hop-by-hop fields and those named in `Connection`, the client's credentials (kept
        with `credentials`, for passthrough), and everything that is farebox's to say.
        `identity` asks the provider not to compress; `length` announces a streamed body's size.
        """
        named = connection_options(raw)
        out: CIMultiDict[str] = CIMultiDict()
        spelt: dict[bytes, str] = {}
        for name, value in raw:
            low = name.lower()
            if low in _HOP_BY_HOP or low in named or low.startswith(b"x-farebox-"):
                continue
            if low in _FAREBOX_REQUEST or low in self._own_names:
                # With passthrough the client's credential stands, even if the provider has one configured.
                if not (credentials and low in _CREDENTIALS):
                    continue
            elif identity and low == b"accept-encoding":
                continue
            # aiohttp keeps only the last of repeated names that differ in case.
            out.add(spelt.setdefault(low, _text(name)), _text(value))
        if identity:
            out["Accept-Encoding"] = "identity"
        if length is not None:
            out["Content-Length"] = str(length)
        for name_, value_ in self._own_headers.items():
            if not credentials or name_.lower().encode() not in _CREDENTIALS:
                out[name_] = value_
        return out

    def quotes_credential(self, body: bytes) -> bool:
        """Whether `body` repeats what farebox authenticates with there."""
        return any(secret in body for secret in self._secrets)

    async def close(self) -> None:
        await self._session.close()


_CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"))


def connection_options(raw: RawHeaders) -> frozenset[bytes]:
    """Field names that a `Connection` header makes hop-by-hop, lower-case."""
    options = {
        token.strip().lower() for name, value in raw if name.lower() == b"connection" for token in value.split(b",")
    }
    return frozenset(options) - _NEVER_AN_OPTION


_NEVER_AN_OPTION = _CREDENTIALS | frozenset(
    b" close content-length content-type content-encoding content-range host".split(b" ")
)
"""Fields nobody may have removed: farebox or whoever is next would understand the message otherwise."""


class _Handler(ResponseHandler):
    """aiohttp's reader of answers, which would let whoever reads a body wait for ever once its chunks do not
    parse, and takes a reset for the proper end of a body that ends with its connection."""

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _NO_CAUSE) -> None:
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


class _Connector(aiohttp.TCPConnector):
    """aiohttp's pool, which hands out a connection although bytes came on it while it was idle: they would
    be taken for the answer to the next request, which may be another client's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        handler: type[ResponseHandler] = _Handler
        self._factory = functools.partial(handler, loop=self._loop)
        self.waiting: set[asyncio.Task[Any] | None] = set()
        """Who has no connection yet. One that gave up stays in it, to be told that it sent nothing."""

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        task = asyncio.current_task()
        self.waiting.add(task)
        connection = await super().connect(req, traces, timeout)
        self.waiting.discard(task)
        return connection

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                break
            connection.close()
        return connection


def without(raw: RawHeaders, secrets: Iterable[bytes]) -> RawHeaders:
    """The fields that repeat none of `secrets`: farebox's credential does not go to its clients."""
    values = b"\n".join([value for _, value in raw])
    for secret in secrets:
        if secret in values:
            raw = tuple(field for field in raw if secret not in field[1])
    return raw


def read_head(status: int, reason: str, raw: RawHeaders) -> Head:
    """An answer's head without what belongs to the connection it came on.

    Raises `UpstreamError` for one that can't be passed on: a status that ends no exchange, a
    transfer-encoding that would have to be undone.
    """
    if not 200 <= status <= 999:
        raise UpstreamError("broken_answer", sent=True)
    named = connection_options(raw)
    kept: list[tuple[bytes, bytes]] = []
    length: int | None = None
    chunked = False
    content_type = content_encoding = ""
    request_id: str | None = None
    for name, value in raw:
        low = name.lower()
        if low == b"content-length":
            length = int(value) if value.isdigit() else None
            continue
        if low == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise UpstreamError("broken_answer", sent=True)
            chunked = True
        if low in _HOP_BY_HOP or low in named or low.startswith(b"x-farebox-"):
            continue
        if low == b"content-type":
            content_type = _text(value)
        elif low == b"content-encoding":
            content_encoding = ",".join(filter(None, (content_encoding, _text(value).strip().lower())))
        elif low in (b"x-request-id", b"request-id"):
            request_id = request_id or _text(value)[:128]
        kept.append((name, value))
    return Head(
        status=status,
        reason=_CONTROL.sub(b"", reason.encode("utf-8", "surrogateescape")),  # aiohttp decoded it so
        headers=tuple(kept),
        length=None if chunked else length,
        framed=chunked or length is not None,
        content_type=content_type,
        content_encoding="" if content_encoding == "identity" else content_encoding,
        request_id=request_id,
    )


_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def _own_headers(provider: Provider) -> Mapping[str, str]:
    headers = dict(provider.headers)
    if provider.api_key is not None and provider.auth_header != "none":
        secret = provider.api_key.reveal()
        if provider.auth_header == "bearer":
            headers["Authorization"] = f"Bearer {secret}"
        else:
            headers[provider.auth_header] = secret
    return headers


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _connect_kind(exc: Exception) -> str:
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return "connect_timeout"
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(exc, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return "tls"
    return "connect"


def _kind(exc: Exception) -> str:
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "disconnected"
    if isinstance(exc, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError, ValueError)):
        return "broken_answer"
    return "connection_lost"
