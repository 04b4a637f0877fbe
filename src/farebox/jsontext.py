"""JSON as text: read a few members of an object without building the rest, and find where they stand.

For looking into bodies that belong to others: nothing is judged beyond what reading takes, nothing
is written, and a place is given in bytes of the text as it came. What the members mean is for
`request` and `prompt`; changing them is for `splice`.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

import msgspec

MENDED_BYTES_MAX = 16 * 1024 * 1024
"""Largest body searched for lone surrogate escapes; a larger one that has them counts as unreadable."""

SCAN_STEPS_MAX = 250_000
"""Members and brackets `top_members` steps over before it gives up: some 0.3 s of work. Bodies of agents
with hundreds of tools and messages have a tenth of it."""

BACKSLASH = ord("\\")
"""To look for in bytes: by its number it is found in a tenth of the time that `b"\\\\" in body` takes, for which Python
first makes an error that it then drops."""

_RARE_BYTES = 1024
"""A byte is rare that stands at most once in so many."""

T = TypeVar("T")

_STR = msgspec.json.Decoder(str)


class Member(NamedTuple):
    """A member of a JSON object: its name, and where its value stands (start, end) in the text."""

    name: str
    start: int
    end: int


# Half a surrogate pair, as clients write that cut a text in the middle of an emoji, is JSON by the
# grammar and other parsers take it; msgspec refuses the whole body for it. The first group runs over
# everything else, whole escapes at a time, so that `\\ud83d` (a backslash and letters) is not one.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HEX = rb"[0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(
    rb"((?:[^\\]++|\\(?!u[dD][89a-fA-F]).|\\u[dD][89abAB]" + _HEX + rb"\\u[dD][c-fC-F]" + _HEX + rb")*+)"
    rb"(\\u[dD][89a-fA-F]" + _HEX + rb")?",
    re.DOTALL,
)


def decode_members(body: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    """`body` by `decoder` of a struct of raw members; None when it is no JSON object.

    Lone surrogate escapes are read as U+FFFD. A body nested deeper than the interpreter's recursion
    limit (1,000 or so) counts as unreadable.
    """
    try:
        return decoder.decode(body)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return None
    except msgspec.DecodeError:
        if len(body) > MENDED_BYTES_MAX or not _SURROGATE.search(body):
            return None
    mended = _LONE_SURROGATE.sub(lambda found: found[1] + (b"\\ufffd" if found[2] else b""), body)
    try:
        return decoder.decode(mended)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def holds(body: bytes, word: bytes, rare: bytes) -> bool:
    """`word in body`, by way of the byte of `word` that is likely to be rare in a prompt.

    A byte is found fifty times as fast as a word: a megabyte of prose takes 15 µs, not 620. Where the byte turns out
    to be common, the rest is searched for the word.
    """
    if len(body) < _RARE_BYTES:
        return body.find(word) >= 0
    before, at = word.index(rare), -1
    for _ in range(len(body) // _RARE_BYTES + 1):
        at = body.find(rare, at + 1)
        if at < 0:
            return False
        if body.startswith(word, max(0, at - before)):
            return True
    return body.find(word, at) >= 0


_QUOTED = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NAME = re.compile(rb"[ \t\r\n,]*+(" + _QUOTED + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_SCALAR = re.compile(_QUOTED + rb"|[^\s,{}\[\]\"]++", re.DOTALL)
_TO_BRACKET = re.compile(rb'[^"{}\[\]]*+(?:' + _QUOTED + rb'[^"{}\[\]]*+)*+([{}\[\]])', re.DOTALL)
_OPENING = (b"{", b"[")


def top_members(text: bytes) -> list[Member] | None:
    """The members of a JSON object in the order they stand, repeated ones included.

    `text` must be valid JSON: this finds places, it does not judge. None when it is no object, or
    takes more than SCAN_STEPS_MAX steps. Nesting costs no stack.
    """
    position = len(text) - len(text.lstrip(b" \t\r\n"))
    if text[position : position + 1] != b"{":
        return None
    position += 1
    steps = 0
    members: list[Member] = []
    while (name := _NAME.match(text, position)) is not None:
        start = position = name.end()
        nested = text[start : start + 1] in _OPENING
        depth = 0
        while depth or position == start:
            found = (_TO_BRACKET if nested else _SCALAR).match(text, position)
            steps += 1
            if found is None or steps > SCAN_STEPS_MAX:
                return None
            position = found.end()
            if nested:
                depth += 1 if found[1] in _OPENING else -1
        members.append(Member(_name(name[1]), start, position))
    return members


def _name(quoted: bytes) -> str:
    """A member's name; one with unreadable escapes or bytes is not one that is looked for."""
    if b"\\" not in quoted:
        return quoted[1:-1].decode("utf-8", "replace")
    try:
        return _STR.decode(quoted)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return quoted.decode("utf-8", "replace")
