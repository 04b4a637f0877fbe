"""Answers whose heads have the shape of one before: a provider sends the same fields in the same order for months.

`read_plain` looks for what matters in an ordinary head, wherever it stands. Of a shape that is known a
pattern says where it stands, so that one match gives all of it, in a third of the time. Pure.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from farebox.upstream.head import Head, read_plain, text

SHAPES_MAX = 4
"""Shapes kept of one provider, the latest: they are tried one after the other."""
UNKNOWN_MAX = 1000
"""Where there are so many already, one more is learned after so many answers of none: that takes a millisecond."""

_VALUE = rb"(?![ \t])[\t -~\x80-\xff]*+(?<![ \t])"
_DROPPED = {
    b"content-length": rb"(?P<length>[0-9]{1,9}+)",
    b"connection": rb"(?i:keep-alive)",
    b"keep-alive": _VALUE,
}
"""Fields that belong to the connection, and what an ordinary answer says in them."""
_IDS = (b"x-request-id", b"request-id")
_BODILESS = (b"204", b"304")


class Shapes:
    """Reads ordinary answers of one provider, and learns what they look like. `secrets`: what they must not repeat."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self.secrets = secrets
        self._shapes: deque[_Shape] = deque(maxlen=SHAPES_MAX)
        self._unknown = 0

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """What `read_plain` says of `data`."""
        for shape in self._shapes:
            if (found := shape.read(data, self.secrets)) is not None:
                return found
        plain = read_plain(data, self.secrets)
        if plain is not None:
            self._unknown += 1
            if len(self._shapes) < SHAPES_MAX or self._unknown > UNKNOWN_MAX:
                self._unknown = 0
                self._shapes.appendleft(_Shape(data[: len(data) - len(plain[1])]))
        return plain


class _Shape:
    """The names of a head that `read_plain` has read, in their order; the values may be others."""

    def __init__(self, head: bytes) -> None:
        names = [line.partition(b": ")[0] for line in head.split(b"\r\n")[1:-2]]
        low = [name.lower() for name in names]
        kind = max((at for at, name in enumerate(low) if name == b"content-type"), default=None)
        request_id = min((at for at, name in enumerate(low) if name in _IDS), default=None)
        pattern = rb"HTTP/1\.1 (?P<status>[2-5][0-9]{2}) (?P<reason>[!-~][ -~]*+)\r\n("
        for at, name in enumerate(names):
            if at == kind:
                value = rb"(?P<kind>%b)" % _VALUE
            elif at == request_id:
                value = rb"(?P<id>%b)" % _VALUE
            else:
                value = _DROPPED.get(low[at], _VALUE)
            line = rb"%b: %b\r\n" % (re.escape(name), value)
            # Between the groups without a name lies what is not passed on.
            pattern += rb")%b(" % line if low[at] in _DROPPED else line
        pattern += rb")\r\n" + (rb"(?P<kind>)" if kind is None else b"") + (rb"(?P<id>)" if request_id is None else b"")
        compiled = re.compile(pattern)
        named = compiled.groupindex
        passed = [group for group in range(1, compiled.groups + 1) if group not in named.values()]
        self._match = compiled.match
        self._groups = (*(named[name] for name in ("status", "reason", "length", "kind", "id")), *passed)

    def read(self, data: bytes, secrets: Sequence[bytes]) -> tuple[Head, bytes] | None:
        found = self._match(data)
        if found is None:
            return None
        status, reason, length, kind, request_id, *lines = found.group(*self._groups)
        end, size = found.end(), int(length)
        if end + size != len(data) or status in _BODILESS:
            return None
        for secret in secrets:
            if data.find(secret, 0, end) >= 0:
                return None
        # A value is never empty here: then there is no such field.
        named = text(request_id)[:128] if request_id else None
        content_type = "application/json" if kind == b"application/json" else text(kind)
        return Head(int(status), reason, b"".join(lines), size, True, content_type, "", named), data[end:]
