"""What in a request's body could make a provider do something else than farebox read.

Members that stand twice, of which each parser takes the one it likes, and models that are named
beside `model`. Only looked for where a refusal hangs on it; what a body plainly says is `request`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Set

import msgspec

from farebox.errors import BadRequest
from farebox.jsontext import BACKSLASH, decode_members, holds, top_members
from farebox.outline import outline
from farebox.request import MEMBER_BYTES_MAX

WATCHED_MEMBERS = frozenset(
    (
        *("model", "stream", "stream_options", "service_tier"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"),
        *("messages", "prompt", "tools", "background", "conversation", "previous_response_id"),
    )
)
"""Members whose repetition could make a provider do something other than what farebox read, or cost more.

The Responses API's `input` is watched as well, where it is asked for: in other bodies tools' calls are full of it."""

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _naming(names: Iterable[str]) -> re.Pattern[bytes]:
    return re.compile(rb'"(' + b"|".join(sorted(name.encode() for name in names)) + rb')"[ \t\r\n]*:')


_WATCHED_OR_INPUT = WATCHED_MEMBERS | {"input"}
_WATCHED_NAME = _naming(WATCHED_MEMBERS)
_WATCHED_NAME_OR_INPUT = _naming(_WATCHED_OR_INPUT)
_CAPITAL_NAME = re.compile(rb'"([a-z_]{0,24}+[A-Z][A-Za-z_]{0,24}+)"[ \t\r\n]*+:')
_ESCAPED_LETTER = re.compile(rb"\\u(?:00[4567]|017[fF]|212[aA])")
_FOLDING = ("\u017f".encode(), "\u212a".encode())
"""The long s and the Kelvin sign: no ASCII, and still s and k to who ignores case."""


def duplicate_members(body: bytes, *, inputs: bool = False) -> frozenset[str]:
    """Those of WATCHED_MEMBERS (with `inputs` of `input`, too) that stand more than once at the top level of `body`.

    Exact, whatever escapes the names are spelt with, and whatever case: servers written in Go take `MODEL` for
    `model`, and the last one counts. All of them where the body takes too long to walk; none where it is no readable
    JSON object, of which `read_facts` reads nothing either.
    Costs 5 to 10 ms a megabyte of what is no long string; up to 30 if a name also stands somewhere deeper.
    """
    body = outline(body)
    if decode_members(body, _MEMBERS) is None:
        return frozenset()
    names = (_WATCHED_NAME_OR_INPUT if inputs else _WATCHED_NAME).findall(body)
    if len(names) == len(set(names)) and not _oddly_spelt(body):
        return frozenset()
    members = top_members(body)
    if members is None:
        return WATCHED_MEMBERS
    counts = Counter(member.name.casefold() for member in members)
    return frozenset(name for name in (*WATCHED_MEMBERS, *(("input",) if inputs else ())) if counts[name] > 1)


def plainly_once(body: bytes) -> bool:
    """Whether no watched member can stand twice in `body`, whose members are all known and spelt with small letters.

    True only where `duplicate_members` finds none; a third of its cost.
    """
    names = _WATCHED_NAME.findall(body)
    return len(names) == len(set(names)) and not _escaped(body)


def check_repeated(body: bytes, names: Set[str] | None = None, *, inputs: bool = False) -> None:
    """Raise `BadRequest` where one of `names` (None: all that `duplicate_members` finds) stands more than once."""
    found = duplicate_members(body, inputs=inputs)
    if twice := sorted(found if names is None else found & names):
        raise BadRequest(f"The body has more than one top-level '{twice[0]}'.", param=twice[0])


def _escaped(body: bytes) -> bool:
    # Most bodies have no escape at all, which one search in C tells.
    if BACKSLASH in body and holds(body, b"\\u", b"\\") and _ESCAPED_LETTER.search(body) is not None:
        return True
    return not body.isascii() and any(letter in body for letter in _FOLDING)


def _oddly_spelt(body: bytes) -> bool:
    """Whether a watched member may stand in `body` with capitals or escapes."""
    return _escaped(body) or any(name.decode().lower() in _WATCHED_OR_INPUT for name in _CAPITAL_NAME.findall(body))


_CHOICES = ("models", "fallbacks", "preset")
"""Members by which a router (OpenRouter, Portkey) is offered models beside `model`."""


def other_models(body: bytes) -> list[str | None]:
    """Models that `body` names beside its own, for a router to choose from; None for each that can't be read."""
    body = outline(body)
    if not any(holds(body, b'"%b"' % name.encode(), b'"') for name in _CHOICES) and not _escaped(body):
        return []
    members = decode_members(body, _MEMBERS) or {}
    found: list[str | None] = []
    for name in _CHOICES:
        value = _value(members.get(name))
        for one in value if isinstance(value, list) else [value] if value else []:
            named = one.get("model") if isinstance(one, dict) else one
            found.append(named if named and isinstance(named, str) and name != "preset" else None)
    return found


def _value(raw: msgspec.Raw | None) -> object:
    """What a member holds; what is too long to be read is a number."""
    if not raw:
        return None
    try:
        return msgspec.json.decode(bytes(raw) if memoryview(raw).nbytes <= MEMBER_BYTES_MAX else b"1")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1
