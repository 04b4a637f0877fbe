"""The provider's side: send one request, hand back the answer's head and raw body pieces.

Everything that knows which HTTP client is in use is in this module, so that it can be replaced.
It decides nothing: which provider, whether to fall back and what a failure means for the row are
`proxy`'s. Bodies are never decoded, redirects never followed, cookies never kept.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp
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


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's head. `headers` are end-to-end only; `length` is the body's size where it is announced."""

    status: int
    reason: bytes
    headers: RawHeaders
    length: int | None
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
        context: ssl.SSLContext | bool = True
        if provider.tls_ca_file is not None:
            context = ssl.create_default_context(cafile=provider.tls_ca_file)
        elif not provider.tls_verify:
            context = False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=provider.connections_max, ssl=context, keepalive_timeout=IDLE_CONNECTION_S, ttl_dns_cache=60
            ),
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
        """Send a request; return once the answer's head is there. Raises `UpstreamError`."""
        try:
            async with asyncio.timeout(self.provider.response_timeout_s):
                response = await self._session.request(
                    method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as exc:
            raise UpstreamError(_connect_kind(exc), sent=False) from None
        except TimeoutError:
            raise UpstreamError("response_timeout", sent=True, timeout=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise UpstreamError(_kind(exc), sent=True) from None
        return Answer(response, read_head(response.status, response.reason or "", response.raw_headers))

    def headers(self, raw: RawHeaders, *, credentials: bool, identity: bool, length: int | None) -> CIMultiDict[str]:
        """The client's header fields as they go up.

        Dropped: hop-by-hop fields and those named in `Connection`, the client's credentials (kept
        with `credentials`, for passthrough), and everything that is farebox's to say.
        `identity` asks the provider not to compress; `length` announces a streamed body's size.
        """
        named = connection_options(raw)
        out: CIMultiDict[str] = CIMultiDict()
        for name, value in raw:
            low = name.lower()
            if low in _HOP_BY_HOP or low in named or low.startswith(b"x-farebox-"):
                continue
            if low in _FAREBOX_REQUEST and not (credentials and low in _CREDENTIALS):
                continue
            if low in self._own_names or (identity and low == b"accept-encoding"):
                continue
            out.add(_text(name), _text(value))
        if identity:
            out["Accept-Encoding"] = "identity"
        if length is not None:
            out["Content-Length"] = str(length)
        for name_, value_ in self._own_headers.items():
            if not credentials or name_.lower().encode() not in _CREDENTIALS:
                out[name_] = value_
        return out

    async def close(self) -> None:
        await self._session.close()


_CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"))


def connection_options(raw: RawHeaders) -> frozenset[bytes]:
    """Field names that a `Connection` header makes hop-by-hop, lower-case."""
    options = {
        token.strip().lower() for name, value in raw if name.lower() == b"connection" for token in value.split(b",")
    }
    # A client may not have end-to-end fields removed that carry meaning for farebox or the provider's parser.
    return frozenset(options - {b"", b"close", b"content-length", b"content-type", b"host"})


def read_head(status: int, reason: str, raw: RawHeaders) -> Head:
    """An answer's head without what belongs to the connection it came on."""
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
            chunked = True
        if low in _HOP_BY_HOP or low in named or low.startswith(b"x-farebox-"):
            continue
        if low == b"content-type":
            content_type = _text(value)
        elif low == b"content-encoding":
            content_encoding = _text(value).strip().lower()
        elif low in (b"x-request-id", b"request-id"):
            request_id = request_id or _text(value)[:128]
        kept.append((name, value))
    return Head(
        status=status,
        reason=reason.encode("latin-1", "replace"),
        headers=tuple(kept),
        length=None if chunked else length,
        content_type=content_type,
        content_encoding="" if content_encoding == "identity" else content_encoding,
        request_id=request_id,
    )


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
