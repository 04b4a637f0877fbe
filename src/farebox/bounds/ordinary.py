"""The quick look at a whole chat request: whether every member of it is one that plainly changes nothing.

One decode in C, by a struct that names the members most SDKs send. What passes has no member that need be
looked at again; whatever does not is looked at member by member, which knows more and says the same of
what passes here. So a member that is missing here costs time and nothing else. `plain` is the same for the
turns alone.
"""

from __future__ import annotations

import msgspec

from farebox.bounds import plain
from farebox.bounds.outputs import TOKENS_MAX
from farebox.bounds.plain import Turn
from farebox.records import Operation

BYTES_MAX = 64 * 1024
"""A longer body is only read the general way, which builds no texts."""

_RAW = msgspec.Raw()


class Ordinary(msgspec.Struct, forbid_unknown_fields=True):
    """A request of text for text, without tools. Any other member, or another type of one, and it is not ordinary."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    system: str | None = None
    stream_options: msgspec.Raw = _RAW
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: msgspec.Raw = _RAW
    stop_sequences: msgspec.Raw = _RAW
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: msgspec.Raw = _RAW

    def rendered(self) -> int:
        """Bytes of calls of tools in the turns."""
        return plain.of_turns(self.messages)

    def limit(self, operation: Operation, unlimited: int) -> int | None:
        """Tokens of one answer; None where a limit is odd. As `outputs.limit_of`."""
        one, other = self.max_tokens, self.max_completion_tokens
        if other is None:
            limit = unlimited if one is None else one
        elif operation != "chat" or other <= 0:
            return None
        else:
            limit = other if one is None or 0 < one < other else one
        return limit if 0 < limit <= TOKENS_MAX else None

    def choices(self, operation: Operation) -> int | None:
        """Answers asked for; None where that is odd. As `outputs.choices_of`."""
        if self.n is None or operation != "chat":
            return 1
        return self.n if 0 < self.n <= TOKENS_MAX else None


_ORDINARY = msgspec.json.Decoder(Ordinary)


def read(operation: Operation, body: bytes) -> Ordinary | None:
    """`body`, if it is an ordinary chat or messages request; None: look at it member by member. Never raises."""
    if operation not in ("chat", "messages") or len(body) > BYTES_MAX:
        return None
    try:
        return _ORDINARY.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
