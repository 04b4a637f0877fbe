"""The provider's side: send one request, hand back the answer's head and raw body pieces as they arrive.

It decides nothing: which provider, whether to fall back and what a failure means for the row are
`proxy`'s. Bodies are never decoded, redirects never followed, cookies never kept, nothing sent twice.

Read it in this order: `Upstream` here writes requests; `pool` keeps connections, `opening` makes them
and `proxies` says what lies between; a `link` is one of them; what comes back on it is an `answer` with
a `head`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import SplitResult, urlsplit

from farebox.config import Provider
from farebox.dialects import PROFILES
from farebox.upstream.answer import READ_BUFFER_BYTES, Answer
from farebox.upstream.errors import NeverSent, Unusable, UpstreamError
from farebox.upstream.head import CREDENTIALS, HOP_BY_HOP, Head, RawHeaders, connection_options
from farebox.upstream.link import FIELD_BYTES_MAX, Link
from farebox.upstream.opening import Opener
from farebox.upstream.pool import IDLE_CONNECTION_S, Pool
from farebox.upstream.shapes import Shapes

__all__ = [
    "FIELD_BYTES_MAX",
    "IDLE_CONNECTION_S",
    "READ_BUFFER_BYTES",
    "Answer",
    "Fields",
    "Head",
    "NeverSent",
    "RawHeaders",
    "Unusable",
    "Upstream",
    "UpstreamError",
]

Fields = list[tuple[bytes, bytes]]

_SECRET_CHARS_MIN = 8
"""A shorter credential is a stand-in like `none`, for a local server, which ordinary values contain."""
_JOINED_BYTES = 128 * 1024
"""Up to this size a body goes out in one write with its head; past it the copy costs more than a second write."""
_AT_ONCE_BYTES = 1024 * 1024
"""Up to this size it goes out at once; a larger one in such pieces, so that it is not copied whole where the kernel
has no room. Smaller pieces cost a wait each, because the kernel takes a few hundred kilobytes at most at a time."""
_BODIES = frozenset(("POST", "PUT", "PATCH", "DELETE"))
"""Methods whose requests say that they have no body."""
_FAREBOX_REQUEST = frozenset(
    b"host content-length expect authorization x-api-key api-key x-goog-api-key cookie2 http2-settings".split()
)


class Upstream:
    """Connections to one provider, made by `opener` (its own, if None). Raises `Unusable` when it is made."""

    def __init__(self, provider: Provider, opener: Opener | None = None) -> None:
        self.provider = provider
        self._base = provider.base_url.rstrip("/")
        if PROFILES[provider.dialect].family == "anthropic" and not self._base.endswith("/v1"):
            # Anthropic's base URLs end before the version, OpenAI's after it.
            self._versioned = self._base + "/v1"
        else:
            self._versioned = self._base
        self._own = _own_headers(provider)
        self._own_names = frozenset(name.lower() for name, _ in self._own)
        self._secrets = [secret.encode() for secret in provider.credentials if len(secret) >= _SECRET_CHARS_MIN]
        self._shapes = Shapes(self._secrets)
        opener = opener or Opener(provider)
        self.proxy = "" if opener.via is None else f"{opener.via.host}:{opener.via.port}"
        """The proxy its connections go through, if any."""
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(opener, limit=provider.connections_max)
        origin = urlsplit(self._base)
        self._origin = "" if opener.absolute else f"{origin.scheme}://{origin.netloc}"
        self._first = [b"Host: %b" % _host(origin), *opener.fields]

    def url(self, suffix: str, *, versioned: bool) -> str:
        """Where a target's suffix lies at this provider: after its version if it followed farebox's `/v1`."""
        return (self._versioned if versioned else self._base) + suffix

    def start(self, method: str, url: str, fields: Fields) -> bytes:
        """A request's head, but for what its body's framing says: the same for all requests like it, to be kept."""
        lines = [b"%b %b HTTP/1.1" % (method.encode(), _target(url.removeprefix(self._origin))), *self._first]
        lines += [b"%b: %b" % field for field in fields]
        return b"\r\n".join((*lines, b""))

    async def send(
        self,
        method: str,
        start: bytes,
        body: bytes | AsyncIterator[bytes] | None,
        *,
        length: int | None = None,
    ) -> Answer:
        """Send a request; return once the answer's head is there. Raises `UpstreamError`, `NeverSent`.

        `start`: its head, from `start`. `length`: of a body that comes in pieces, where it is known; else it is
        sent chunked.
        """
        now = self._loop.time()
        head_by = now + self.provider.response_timeout_s
        link = self._pool.take() or await self._connect(head_by - now)
        answer = self._begin(link, method, start, body, length, self._loop.time(), head_by)
        if not answer.begun:
            await answer.started()
        return answer

    def begin(self, method: str, start: bytes, body: bytes) -> Answer | None:
        """`send` as far as it goes without waiting: the answer's head is yet to be waited for, with `Answer.started`.
        None, and nothing is sent, where no connection is free."""
        link = self._pool.take()
        if link is None:
            return None
        now = self._loop.time()
        return self._begin(link, method, start, body, None, now, now + self.provider.response_timeout_s)

    def _begin(
        self,
        link: Link,
        method: str,
        start: bytes,
        body: bytes | AsyncIterator[bytes] | None,
        length: int | None,
        now: float,
        head_by: float,
    ) -> Answer:
        answer = Answer(
            self._loop, link, shapes=self._shapes, idle_timeout_s=self.provider.idle_timeout_s, head_by=head_by
        )
        if isinstance(body, bytes) and len(body) <= _JOINED_BYTES:
            whole = b"%bContent-Length: %d\r\n\r\n%b" % (start, len(body), body)
            link.begin(answer, whole, now, bodiless=method == "HEAD")
        else:
            self._send_apart(link, answer, method, start, body, length, now)
        return answer

    def _send_apart(
        self,
        link: Link,
        answer: Answer,
        method: str,
        start: bytes,
        body: bytes | AsyncIterator[bytes] | None,
        length: int | None,
        now: float,
    ) -> None:
        """Send the head of a request, and its body, if it has one, after it."""
        framing = b""
        upload: AsyncIterator[bytes] | None = None
        rest: bytes | None = None
        if isinstance(body, bytes):
            length = len(body)
            if length <= _AT_ONCE_BYTES:
                rest = body
            else:
                upload = _pieces(body)
        elif body is not None:
            upload = body
        else:
            length = 0 if method in _BODIES else None
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif upload is not None:
            framing = b"Transfer-Encoding: chunked\r\n"
        head = b"%b%b\r\n" % (start, framing)
        link.begin(answer, head, now, rest, bodiless=method == "HEAD", uploading=upload is not None)
        if upload is not None:
            answer.uploading = self._loop.create_task(_upload(link, answer, upload, chunked=length is None))

    async def _connect(self, timeout_s: float) -> Link:
        """A connection that is not there yet."""
        connect_s = self.provider.connect_timeout_s
        try:
            return await self._pool.get(min(timeout_s, connect_s))
        except asyncio.CancelledError:
            raise NeverSent from None
        except UpstreamError as failure:
            if failure.timeout and timeout_s < connect_s:
                raise UpstreamError("response_timeout", sent=False, timeout=True) from None
            raise

    def fields(self, raw: RawHeaders, *, credentials: bool, identity: bool, without: bytes = b"") -> Fields:
        """The client's header fields as they go up.

        Dropped: hop-by-hop fields and those named in `Connection`, the client's credentials (kept
        with `credentials`, for passthrough), `without`, and everything that is farebox's to say.
        `identity` asks the provider not to compress.
        """
        named = connection_options(raw)
        out: Fields = []
        for field in raw:
            low = field[0].lower()
            if low in HOP_BY_HOP or low in named or low.startswith(b"x-farebox-"):
                continue
            if low in _FAREBOX_REQUEST or low in self._own_names:
                # With passthrough the client's credential stands, even if the provider has one configured.
                if not (credentials and low in CREDENTIALS):
                    continue
            elif low == without or (identity and low == b"accept-encoding"):
                continue
            out.append(field)
        if identity:
            out.append((b"Accept-Encoding", b"identity"))
        out += [field for field in self._own if not credentials or field[0].lower() not in CREDENTIALS]
        return out

    def quotes_credential(self, body: bytes) -> bool:
        """Whether `body` repeats what farebox authenticates with there."""
        return any(secret in body for secret in self._secrets)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._pool.closed

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()


async def _upload(link: Link, answer: Answer, body: AsyncIterator[bytes], *, chunked: bool) -> None:
    """Send a body after its head; a body that breaks off breaks the exchange."""
    try:
        async for piece in body:
            if piece:
                await link.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if not link.serves(answer):
                return
        if chunked:
            await link.write(b"0\r\n\r\n")
        link.sent(answer)
    except Exception:
        if link.serves(answer):
            link.abandon()
            answer.fail(UpstreamError("connection_lost", sent=True))


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for at in range(0, len(body), _AT_ONCE_BYTES):
        yield view[at : at + _AT_ONCE_BYTES]  # type: ignore[misc]


def _host(origin: SplitResult) -> bytes:
    """What the Host field says: without the port that the scheme implies."""
    ordinary = ":443" if origin.scheme == "https" else ":80"
    return origin.netloc.removesuffix(ordinary).encode()


def _target(target: str) -> bytes:
    return target.encode("utf-8", "surrogateescape")


def _own_headers(provider: Provider) -> Fields:
    fields = {name: value.encode() for name, value in provider.headers.items()}
    if provider.api_key is not None and provider.auth_header != "none":
        secret = provider.api_key.reveal().encode()
        if provider.auth_header == "bearer":
            fields["Authorization"] = b"Bearer " + secret
        else:
            fields[provider.auth_header] = secret
    return [(name.encode(), value) for name, value in fields.items()]
