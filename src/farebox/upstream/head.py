"""Heads of answers: what of them is the client's, and what belongs to the connection they came on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from farebox.upstream.errors import UpstreamError

RawHeaders = tuple[tuple[bytes, bytes], ...]

CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"))
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers "
    b"transfer-encoding upgrade".split()
)

_NEVER_AN_OPTION = CREDENTIALS | frozenset(
    b" close content-length content-type content-encoding content-range host".split(b" ")
)
"""Fields nobody may have removed: farebox or whoever is next would understand the message otherwise."""
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


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


def connection_options(raw: RawHeaders) -> frozenset[bytes]:
    """Field names that a `Connection` header makes hop-by-hop, lower-case."""
    options = {
        token.strip().lower() for name, value in raw if name.lower() == b"connection" for token in value.split(b",")
    }
    return frozenset(options) - _NEVER_AN_OPTION


def without(raw: RawHeaders, secrets: Iterable[bytes]) -> RawHeaders:
    """The fields that repeat none of `secrets`: farebox's credential does not go to its clients."""
    values = b"\n".join([value for _, value in raw])
    for secret in secrets:
        if secret in values:
            raw = tuple(field for field in raw if secret not in field[1])
    return raw


def read_head(status: int, reason: bytes, raw: RawHeaders) -> Head:
    """An answer's head without what belongs to the connection it came on.

    Raises `UpstreamError` for one that can't be passed on: a status that ends no exchange, a
    transfer-encoding that would have to be undone.
    """
    if not 200 <= status <= 999:
        raise UpstreamError("broken_answer", sent=True)
    kept: list[tuple[bytes, bytes]] = []
    named: frozenset[bytes] | None = None
    length: int | None = None
    chunked = False
    content_type = content_encoding = ""
    request_id: str | None = None
    for field in raw:
        low = field[0].lower()
        if low == b"content-length":
            length = int(field[1]) if field[1].isdigit() else None
            continue
        if low == b"transfer-encoding":
            if field[1].strip().lower() != b"chunked":
                raise UpstreamError("broken_answer", sent=True)
            chunked = True
        elif low == b"connection" and named is None:
            named = connection_options(raw)
        if low in HOP_BY_HOP or low.startswith(b"x-farebox-"):
            continue
        if low == b"content-type":
            content_type = text(field[1])
        elif low == b"content-encoding":
            content_encoding = ",".join(filter(None, (content_encoding, text(field[1]).strip().lower())))
        elif low == b"x-request-id" or low == b"request-id":
            request_id = request_id or text(field[1])[:128]
        kept.append(field)
    if named:
        kept = [field for field in kept if field[0].lower() not in named]
    return Head(
        status=status,
        reason=_CONTROL.sub(b"", reason),
        headers=tuple(kept),
        length=None if chunked else length,
        framed=chunked or length is not None,
        content_type=content_type,
        content_encoding="" if content_encoding == "identity" else content_encoding,
        request_id=request_id,
    )


def text(raw: bytes) -> str:
    """A field's value as text, whatever it is encoded in."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
