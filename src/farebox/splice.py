"""Ask a stream for its usage, by changing as few bytes of its request as possible.

A provider of the OpenAI family reports the usage of a streamed answer only if the request says
`stream_options.include_usage: true`. A request that lacks it gets it spliced in: one insertion, or
one literal replaced; every other byte stays, because re-serialising a body changes numbers,
escapes, order and repeated members, and with them sometimes its meaning.

Whenever anything is in doubt the answer is None: the original goes up, and the usage is estimated.
Which path, method and provider this is for is the caller's business (`/chat/completions` and
`/completions` only), and so is withholding the frame that it causes.
"""

from __future__ import annotations

from farebox.jsontext import top_members
from farebox.request import RequestFacts, read_facts

_OPTION = b'"include_usage":true'
_OBJECT = b"{" + _OPTION + b"}"
_MEMBER = b',"stream_options":' + _OBJECT


def include_usage(body: bytes, facts: RequestFacts | None = None) -> bytes | None:
    """`body` with `stream_options.include_usage: true`, or None to leave it alone.

    None when the body is not a UTF-8 JSON object whose `stream` is exactly `true`, when it asks for
    usage already, and when `stream_options` or its `include_usage` is neither absent, null, nor of
    its proper type. A repeated member is edited where the last of them stands, which is the one
    that JSON parsers commonly keep. `facts` are those of this very body, if the caller has them.

    Costs a copy of the body where it has no `stream_options`; else also a walk over its members.
    """
    if facts is None:
        facts = read_facts("chat", body)
    if not facts.stream or facts.include_usage or not _is_utf8(body):
        return None
    if not facts.has_stream_options:
        return _append(body)
    value = _last(body, "stream_options", 0, len(body))
    if value is None:
        return None
    start, end = value
    options = body[start:end]
    if options == b"null":
        return _replace(body, start, end, _OBJECT)
    if not options.startswith(b"{"):
        return None
    members = top_members(options)
    if members is None:
        return None
    flags = [member for member in members if member.name == "include_usage"]
    if not flags:
        return _replace(body, start + 1, start + 1, _OPTION + b"," if members else _OPTION)
    flag = flags[-1]
    if options[flag.start : flag.end] not in (b"false", b"null"):
        return None
    return _replace(body, start + flag.start, start + flag.end, b"true")


def _append(body: bytes) -> bytes | None:
    """A last member for an object that has at least one."""
    end = len(body.rstrip(b" \t\r\n")) - 1
    return _replace(body, end, end, _MEMBER) if body[end : end + 1] == b"}" else None


def _last(body: bytes, name: str, start: int, end: int) -> tuple[int, int] | None:
    """Where the value of the last top-level member `name` stands."""
    members = top_members(body[start:end])
    return next(((m.start, m.end) for m in reversed(members) if m.name == name), None) if members else None


def _replace(body: bytes, start: int, end: int, new: bytes) -> bytes:
    view = memoryview(body)
    return b"".join((view[:start], new, view[end:]))


def _is_utf8(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
