"""The quick look at a whole chat request: whether every member of it is one that plainly changes nothing.

One decode in C, by a struct that names the members most SDKs send. What passes has no member that need be
looked at again; whatever does not is looked at member by member, which knows more and says the same of
what passes here. So a member that is missing here costs time and nothing else. `plain` is the same for the
turns alone.

Most of what passes is plainer still. Each name and each text in a request stands between two quotes; where those of
the members and turns that were read are all that the body has, it has no other member, none twice, and no quote in
a text. Where besides all texts are ASCII without a backslash, nothing in them grows (`growth`). So a count of one
byte saves two searches, which take three times as long for a small body and thirty for a prompt with line breaks.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import astuple

from farebox.bounds import plain
from farebox.bounds.growth import growth_of
from farebox.bounds.outputs import TOKENS_MAX
from farebox.bounds.plain import RENDERED_TIMES, Turn
from farebox.jsontext import BACKSLASH
from farebox.records import Operation

BYTES_MAX = 64 * 1024
"""A longer body is only read the general way, which builds no texts."""

_RAW = msgspec.Raw()


class Ordinary(msgspec.Struct, frozen=True, gc=False):
    """What is to be known of a request of text for text, without tools, whose numbers make sense."""

    size: int
    """Bytes that the model may read: of its body, what normalising adds, and calls of tools as often as they count."""
    limit: int | None
    """Tokens of one answer, as `outputs.limit_of`; None where it does not say."""
    choices: int
    """Answers asked for, as `outputs.choices_of`."""
    once: bool
    """No member can stand twice in it, however it is spelt. False: it may."""


class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Any other member, or another type of one, and it is not ordinary."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    stream_options: msgspec.Raw = _RAW
    stop: msgspec.Raw = _RAW
    stop_sequences: msgspec.Raw = _RAW
    metadata: msgspec.Raw = _RAW
    system: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


_REQUEST = msgspec.json.Decoder(_Request)
_NUMBERS = slice(_Request.__struct_fields__.index("max_tokens"), _Request.__struct_fields__.index("stream_options"))
_TEXTS = slice(_Request.__struct_fields__.index("system"), None)
"""Where members stand that are no text, and those that are; between them what is kept as it came."""


def read(operation: Operation, body: bytes) -> Ordinary | None:
    """`body`, if it is an ordinary chat or messages request; None: look at it member by member. Never raises."""
    if operation not in ("chat", "messages") or len(body) > BYTES_MAX:
        return None
    try:
        request = _REQUEST.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    limit, other, choices = request.max_tokens, request.max_completion_tokens, 1
    if other is not None:
        if operation != "chat" or other <= 0:
            return None
        if limit is None or 0 < limit < other:
            limit = other
    if request.n is not None and operation == "chat":
        choices = request.n
    if not 0 < choices <= TOKENS_MAX or (limit is not None and not 0 < limit <= TOKENS_MAX):
        return None
    if _is_all(request, body):
        return Ordinary(len(body), limit, choices, True)
    rendered = plain.of_turns(request.messages)
    return Ordinary(len(body) + growth_of(body) + (RENDERED_TIMES - 1) * rendered, limit, choices, False)


def _is_all(request: _Request, body: bytes) -> bool:
    """Whether `body` has no quotes but those around what `request` has of it, and its texts nothing that may grow.

    What `request` does not count here (a block, a call of a tool, a `null`) only makes the body have more quotes.
    """
    values, turns = astuple(request), request.messages
    numbers, texts = values[_NUMBERS], values[_TEXTS]
    for turn in turns:
        if type(turn.content) is not str:
            return False
    # In quotes are names and texts: of the model both, of the turns' list the name, of a turn both of both members.
    quoted = 3 + len(numbers) - numbers.count(None) + 2 * (len(texts) - texts.count(None)) + 4 * len(turns)
    if body.count(b'"') != 2 * quoted or not body.isascii():
        return False
    if BACKSLASH not in body:
        return True
    said = [request.model, *[text for text in texts if text is not None]]
    for turn in turns:
        said += turn.role, turn.content
    text = "".join(said)
    return text.isascii() and "\\" not in text
