"""How many tokens a request may make a model write: its limits in all their spellings, times its answers.

A limit that is there and is no plain whole number above 0 (-1, 0, 5.5, "5", true) might mean anything
to a provider, so it counts as none given, also beside a good one. An odd number of answers has no
such way out: there is no bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from farebox.bounds.contents import holds, opens, size
from farebox.jsontext import decode_members
from farebox.records import Operation

TOKENS_MAX = 10**12
"""No bound is above it, whatever a request asks for: more than any model writes in a year, and nine million
such holds still fit a `bigint`."""

LIMITS: dict[Operation, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
"""Members that limit an answer, as every provider of the operation takes them."""
RAISING = ("max_completion_tokens", "max_output_tokens", "max_new_tokens", "n_predict")
"""Members that only some take for one: llama.cpp's `n_predict` outranks the others there, TGI's `max_new_tokens` is
ignored elsewhere. They can raise a limit and never stand for it."""

CHOICES = "a number of answers that is no whole number above 0"
PROMPTS = "prompts farebox cannot count"

_INT = msgspec.json.Decoder(int)
ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
"""Any JSON list, its elements unread."""
OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
"""Any JSON object, its members unread."""
_DIGITS = bytes.maketrans(b"0123456789,[] \t\r\n", b"1111111111       ")
_DIGITS_MAX = 20
Members = Mapping[str, msgspec.Raw]


def whole(raw: msgspec.Raw) -> int | None:
    """The plain whole number above 0 that a member holds, at most TOKENS_MAX; None for anything else.

    A number too long to be read is a large one.
    """
    text = bytes(raw) if size(raw) <= 4096 else b""
    if not text.isdigit():
        return None
    if len(text) > _DIGITS_MAX:
        return TOKENS_MAX
    try:
        value = _INT.decode(text)
    except msgspec.DecodeError:
        return TOKENS_MAX if text[:1] != b"0" else None
    return min(value, TOKENS_MAX) if value > 0 else None


def limit_of(operation: Operation, members: Members, unlimited: int) -> int:
    """Tokens of one answer: the largest limit given; `unlimited` at least, where none is or one of them is odd.

    A budget for thinking above the limit raises it, and so does a prediction: what of it the model rejects is
    charged as output beside the answer.
    """
    names = LIMITS.get(operation, ())
    given = [members[name] for name in names if name in members and holds(members[name])]
    beside = [members[name] for name in RAISING if name not in names and name in members and holds(members[name])]
    limits = [whole(raw) for raw in (*given, *beside)]
    known = [limit for limit in limits if limit is not None]
    limit = max(known, default=0)
    if not given or len(known) < len(limits):
        limit = max(limit, unlimited)
    prediction = members.get("prediction")
    predicted = size(prediction) if prediction is not None and holds(prediction) else 0
    return min(TOKENS_MAX, max(limit, thinking_of(members)) + predicted)


def choices_of(operation: Operation, members: Members) -> int | None:
    """Answers written for one prompt: the larger of `n` and `best_of`; None where either is odd."""
    most = 1
    for name in ("n", "best_of") if operation in ("chat", "completions") else ():
        raw = members.get(name)
        if raw is None or not holds(raw):
            continue
        number = whole(raw)
        if number is None:
            return None
        most = max(most, number)
    return most


def prompts_of(members: Members, name: str) -> int | None:
    """Prompts in `prompt`, or texts to embed in `input`: 1, or the elements of a list; None if it can't be read."""
    raw = members.get(name)
    if raw is None or not opens(raw, b"["):
        return 1
    ids = token_ids(raw)
    if ids is not None:
        return max(1, bytes(raw).count(b"[") - 1)
    items = decode_members(raw, ITEMS)
    return None if items is None else max(1, len(items))


def token_ids(raw: msgspec.Raw) -> int | None:
    """How many token ids a list of them, or of such lists, has; None for any other list."""
    start = bytes(memoryview(raw)[:64]).translate(None, b"[ \t\r\n")
    if not start[:1].isdigit():
        return None
    plain = bytes(raw).translate(_DIGITS)
    return None if plain.strip(b"1 ") else plain.count(b" 1")  # the bracket became the blank before the first


def thinking_of(members: Members) -> int:
    """Tokens that a request allows for thinking alone: Anthropic's `thinking`, OpenRouter's `reasoning`."""
    most = 0
    for name, inner in (("thinking", "budget_tokens"), ("reasoning", "max_tokens")):
        raw = members.get(name)
        if raw is not None and opens(raw, b"{"):
            value = (decode_members(raw, OBJECT) or {}).get(inner)
            most = max(most, (whole(value) or 0) if value is not None else 0)
    return most
