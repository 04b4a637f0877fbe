"""What a request's head alone says, worked out once: clients send the same one again and again.

Everything here follows from the method, the target, the version and the header fields, and from a config
that does not change while a `Heads` lives. What may change between two requests (whether a key is revoked,
what is open, the body) is not here: it is looked at for every call. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from farebox import paths
from farebox.credentials import CREDENTIAL_HEADERS, Credentials, credentials, misplaced
from farebox.errors import BadRequest, Forbidden, MethodNotAllowed
from farebox.identity import Identity, identify
from farebox.paths import Target

RawHeaders = tuple[tuple[bytes, bytes], ...]
Mode = Literal["virtual", "passthrough", "open"]

HEADS_MAX = 2048
"""Heads remembered of one generation; there are two, so at most twice as many, and as many again as differ in more
than credentials. One that is forgotten is read again."""
REMEMBERED_BYTES_MAX = 8 * 1024
"""Names and values of a head that is remembered; a larger one is read for every request."""
GENERATION_BYTES_MAX = 8 * 1024 * 1024
"""What the heads of a generation may weigh, with `_FIELD_BYTES` for each field; past it the next one begins. Two
thousand heads of an SDK weigh 6 MiB; those that somebody without a key makes up must not weigh more than the calls."""
_FIELD_BYTES = 128
"""What a field costs in memory besides its bytes."""

_LENGTH = b"content-length"
_CREDENTIALS = frozenset(name.encode() for name in CREDENTIAL_HEADERS)
_OTHER_METHODS = ("x-http-method-override", "x-http-method", "x-method-override")


@dataclass(frozen=True, slots=True, eq=False)
class RequestHead:
    """The facts of one head. Holds credentials, so nothing of it is printed; shared by calls, so nothing changes it."""

    method: str
    version: tuple[int, int]
    raw: RawHeaders = field(repr=False)
    """The header fields as they came, in order, without Content-Length."""
    target: Target = field(repr=False)
    credentials: Credentials = field(repr=False)
    identity: Identity = field(repr=False)
    """What the header fields alone claim; `request.claims` adds the body's."""
    encoding: str
    """The body's Content-Encoding in lower case; empty for none."""
    expects_continue: bool
    """The client waits for `100 Continue` before it sends its body."""
    websocket: bool
    """It asks to go on as a WebSocket."""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What others derive from this head, by keys of their own; of no more kinds than there are providers and flags.
    It ends with the head, and at the latest with the config. In virtual mode the heads of all keys that differ in
    nothing else share it: what depends on who calls must not be taken from here without comparing the caller."""

    kinds: dict[Any, Any] = field(default_factory=dict, repr=False)
    """The kinds of attempts with this very head (`kinds.kind_of`)."""

    def with_key(self, raw: RawHeaders, credentials: Credentials) -> RequestHead:
        """A head that differs from this one in its credentials alone: it shares `memo`, and has `kinds` of its own."""
        return RequestHead(
            self.method, self.version, raw, self.target, credentials, self.identity, self.encoding,
            self.expects_continue, self.websocket, self.memo,
        )  # fmt: skip


class Heads:
    """The heads of late, read and remembered. One for a config: `mode` is its `auth.mode`.

    Those of two generations: when the younger one is full, the older one is forgotten. A hit costs no
    more than the look-up, and what is in use is kept.
    """

    __slots__ = ("_credential_at", "_kin", "_length_at", "_mode", "_older", "_weight", "_younger")

    def __init__(self, mode: Mode) -> None:
        self._mode: Mode = mode
        self._younger: dict[object, RequestHead] = {}
        self._older: dict[object, RequestHead] = {}
        self._kin: dict[object, RequestHead] = {}
        """In virtual mode: one of those that differ in their credentials alone. Begun anew with each generation."""
        self._weight = 0
        self._length_at: dict[int, int] = {}
        """By the number of fields, which `server.headers_max` bounds."""
        self._credential_at: dict[int, int] = {}
        """Likewise."""

    def __len__(self) -> int:
        return len(self._younger.keys() | self._older.keys())

    def of(self, method: str, target: str, version: tuple[int, int], raw: RawHeaders) -> RequestHead:
        """The head of a request: `target` as on the request line, `raw` its header fields, of which at most one
        is Content-Length.

        Raises `Refusal` for a head that farebox takes from nobody; such a one is not remembered.
        """
        # Where the length stands among so many fields: SDKs keep their order, so it is mostly where it was.
        at = self._length_at.get(len(raw), 0)
        if not raw or raw[at][0].lower() != _LENGTH:
            at = self._find_length(raw)
        fields = raw[:at] + raw[at + 1 :]
        key = (fields, target, method, version)
        head = self._younger.get(key)
        if head is None:
            head = self._older.get(key)
            if head is None:
                head = self._read(method, target, version, fields)
            size = _size(target, fields)
            if size <= REMEMBERED_BYTES_MAX:
                self._remember(key, head, size + _FIELD_BYTES * len(fields))
        return head

    def _read(self, method: str, target: str, version: tuple[int, int], fields: RawHeaders) -> RequestHead:
        """`read_head`. Of many keys in turn few heads are known, but one that differs in its key is: 12 µs, not 40."""
        if self._mode != "virtual":
            return read_head(method, target, version, fields, self._mode)
        # Where the credential stands among so many fields: mostly where it was, as with the length. What is found
        # under the rest has none in it, for it was put there below.
        at = self._credential_at.get(len(fields), 0)
        if fields and fields[at][0].lower() in _CREDENTIALS:
            name, value = fields[at]
            kin = self._kin.get((fields[:at] + fields[at + 1 :], target, method, version))
            if kin is not None:
                own = {name.lower().decode(): _text(value)}
                return kin.with_key(fields, credentials(own))
        # A credential says who calls and nothing else there, and is passed on to nobody.
        others = tuple([one for one in fields if one[0].lower() not in _CREDENTIALS])
        if len(others) == len(fields) - 1:
            self._credential_at[len(fields)] = next(i for i, one in enumerate(fields) if one not in others)
        key = (others, target, method, version)
        kin = self._kin.get(key)
        if kin is not None:
            own = {
                name.lower().decode(): _text(value) for name, value in reversed(fields) if name.lower() in _CREDENTIALS
            }
            return kin.with_key(fields, credentials(own))
        head = read_head(method, target, version, fields, self._mode)
        if _size(target, fields) <= REMEMBERED_BYTES_MAX:
            self._kin[key] = head
        return head

    def _find_length(self, raw: RawHeaders) -> int:
        """Where Content-Length stands; behind the last field where it is none of them."""
        for at, (name, _) in enumerate(raw):
            if name.lower() == _LENGTH:
                self._length_at[len(raw)] = at
                return at
        return len(raw)

    def _remember(self, key: object, head: RequestHead, weight: int) -> None:
        if len(self._younger) >= HEADS_MAX or self._weight + weight > GENERATION_BYTES_MAX:
            self._older, self._younger = self._younger, {}
            self._kin.clear()
            self._weight = 0
        self._weight += weight
        self._younger[key] = head


def read_head(method: str, target: str, version: tuple[int, int], raw: RawHeaders, mode: Mode) -> RequestHead:
    """The facts of a head, as `Heads.of`."""
    if method in ("CONNECT", "TRACE"):
        raise MethodNotAllowed(f"{method} is not forwarded.")
    fields = [(name.decode("utf-8", "surrogateescape").lower(), _text(value)) for name, value in raw]
    first = dict(reversed(fields))
    _check_framing(first.get("transfer-encoding"), version)
    _check_method(method, fields)
    parsed = paths.parse(method, target)
    if mode == "open":
        _check_local(first)
    if place := misplaced(raw, target, passthrough=mode == "passthrough"):
        raise misplaced_key(f"the {place}")
    encoding = ",".join(value for name, value in fields if name == "content-encoding").strip().lower()
    return RequestHead(
        method=method,
        version=version,
        raw=raw,
        target=parsed,
        credentials=credentials(first),
        identity=identify(fields, None),
        encoding="" if encoding == "identity" else encoding,
        expects_continue=first.get("expect", "").lower() == "100-continue" and version >= (1, 1),
        # An offer of another protocol (`h2c`, which Java's client makes) may be passed over; a WebSocket may not.
        websocket="websocket" in first.get("upgrade", "").lower(),
    )


def _size(target: str, fields: RawHeaders) -> int:
    return len(target) + sum(map(len, chain.from_iterable(fields)))


def misplaced_key(place: str) -> BadRequest:
    """The refusal of a request that has a farebox key where it would be passed on, or stored."""
    return BadRequest(
        f"A farebox key stands in {place} of this request, from where it would be passed on. "
        "Its place is the x-farebox-key header."
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _check_framing(coding: str | None, version: tuple[int, int]) -> None:
    """Refuse a body whose framing means something else to others than to farebox."""
    if coding is None:
        return
    if coding.strip().lower() != "chunked":
        # The coding is hop-by-hop: the provider would get the coded bytes and not be told.
        raise BadRequest("No transfer-encoding but chunked is taken.")
    if version < (1, 1):
        raise BadRequest("HTTP/1.0 has no transfer-encoding.")


def _check_method(method: str, fields: Sequence[tuple[str, str]]) -> None:
    """What a call may do is decided by its method; some providers (Google's) take another one from these headers."""
    for other in _OTHER_METHODS:
        if any(name == other and value.strip().upper() != method for name, value in fields):
            raise BadRequest(f"farebox forwards no request whose {other} is another method than its own.", param=other)


def _check_local(headers: Mapping[str, str]) -> None:
    """In open mode whoever reaches the port may call: let nobody in who was led here by a page from elsewhere."""
    if not paths.loopback_name(headers.get("host", "")):
        raise Forbidden("In open mode farebox answers only to a loopback name in the Host header.")
    scheme, mark, place = headers.get("origin", "app://").partition("://")
    # `null` is what a sandboxed frame says; applications and extensions have schemes of their own.
    if not mark or (scheme.lower() in ("http", "https") and not paths.loopback_name(place)):
        raise Forbidden("In open mode farebox answers no page from elsewhere (Origin header).")
