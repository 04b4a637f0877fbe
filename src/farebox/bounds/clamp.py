"""Lower what a request lets the model write to what a budget still pays, by changing as few bytes as possible.

The number of the limit is replaced, in every spelling that is above it, or a limit put in where there
is none; every other byte stays. Where the dialect would refuse the result, or nobody can say what it
would do, the answer is None and the request is judged as it came.
"""

from __future__ import annotations

import re

import msgspec

from farebox.bounds import outputs
from farebox.bounds.contents import holds
from farebox.bounds.outputs import LIMITS, OBJECT, RAISING, Members
from farebox.jsontext import Member, decode_members, top_members
from farebox.records import Operation
from farebox.request import RequestFacts
from farebox.tokens import is_own

OUTPUT_TOKENS_MIN = 16
"""The shortest answer worth a clamp, and the least that the Responses API takes as a limit."""

_OLDER = re.compile(r"gpt-3|gpt-4|chatgpt-4|gpt-oss")
_INSERTED: dict[Operation, str] = {
    "chat": "max_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
}


def clamp(body: bytes, operation: Operation, facts: RequestFacts, tokens: int) -> bytes | None:
    """`body` with a limit such that all its answers together have at most `tokens` tokens; None to leave it alone.

    None when the limit is that low already, when less than OUTPUT_TOKENS_MIN or no more than the request's own
    allowance for thinking would be left for each answer, when a limit or the number of answers is odd or repeated,
    when there is a prediction (it is charged beside the limit), and where an operation has no limit. `body` is
    decoded, `facts` are its; the limit that holds then is `output_tokens_max` of the facts of what is returned.
    """
    members = decode_members(body, OBJECT)
    places = top_members(body) if members is not None else None
    if members is None or not places or operation not in LIMITS or not _is_utf8(body):
        return None
    most = _each(operation, members, tokens)
    if most is None or len({place.name for place in places}) < len(places):
        return None
    limits = [place for place in places if place.name in LIMITS[operation] or place.name in RAISING]
    given = [(place, outputs.whole(members[place.name])) for place in limits if holds(members[place.name])]
    if any(limit is None for _, limit in given):
        return None
    edits = [(place.start, place.end, b"%d" % most) for place, limit in given if limit is not None and limit > most]
    if not any(place.name in LIMITS[operation] for place, _ in given):
        inserted = _inserted(body, operation, facts, limits, most)
        if inserted is None:
            return None
        edits.append(inserted)
    for start, end, new in sorted(edits, reverse=True):
        body = b"".join((memoryview(body)[:start], new, memoryview(body)[end:]))
    return body if edits else None


def _inserted(
    body: bytes, operation: Operation, facts: RequestFacts, places: list[Member], most: int
) -> tuple[int, int, bytes] | None:
    """A limit where there is none, as (start, end, text): in the place of a null, or as the last member."""
    if operation == "messages":
        return None  # it must have one: the provider refuses it, and costs nothing
    null = next((place for place in places if place.name in LIMITS[operation]), None)
    if null is not None:
        return null.start, null.end, b"%d" % most
    name = _INSERTED[operation]
    if operation == "chat" and is_own(facts.model) and not _OLDER.search((facts.model or "").lower()):
        name = "max_completion_tokens"  # OpenAI's reasoning models refuse the older spelling
    end = len(body.rstrip(b" \t\r\n")) - 1
    return (end, end, b',"%s":%d' % (name.encode(), most)) if body[end : end + 1] == b"}" else None


def _each(operation: Operation, members: Members, tokens: int) -> int | None:
    """What one answer may have; None where that is senseless."""
    choices = outputs.choices_of(operation, members)
    prompts = outputs.prompts_of(members, "prompt") if operation == "completions" else 1
    if choices is None or prompts is None or holds(members.get("prediction", msgspec.Raw())):
        return None
    most = tokens // (choices * prompts)
    return most if most >= OUTPUT_TOKENS_MIN and most > outputs.thinking_of(members) else None


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
