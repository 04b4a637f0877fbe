"""What metering one whole answer costs: `python tests/benchmarks/whole_answer.py` (with `src` and `tests` importable).

Prints microseconds of CPU an answer, best of several rounds: reading it, and settling its attempt (its row built and
priced) as an event, and in the short form with its JSON, for a usual answer of a chat and for others. What becomes of
the row afterwards is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from farebox.accounting import Attempt
from farebox.dialects import PROFILES
from farebox.kinds import Kind
from farebox.meter import Meter, Reading
from farebox.paths import parse
from farebox.pricing import Pricer
from farebox.proxy.call import Clock
from farebox.proxy.settle import Settler
from farebox.records import Caller, Operation, UsageEvent
from farebox.rows import Ordinary, ordinary
from support.pricing import publishers

ROUNDS = 15
TIMES = 2_000

TEXT = b"A meter that stands in the way of every call must add next to nothing to it. " * 12
USAGE = (
    b'"usage":{"prompt_tokens":97,"completion_tokens":118,"total_tokens":215,"prompt_tokens_details":{"cached_tokens":'
    b'0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)
CHAT = (
    b'{"id":"chatcmpl-BwL9nTz1Y0Qdd7k3uQJz8iFqXvT2a","object":"chat.completion","created":1753114567,'
    b'"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"%b","refusal":null,'
    b'"annotations":[]},"logprobs":null,"finish_reason":"stop"}],%b,"service_tier":"default",'
    b'"system_fingerprint":"fp_07871e2ad8"}'
) % (TEXT, USAGE)
TOOLS = CHAT.replace(
    b'"refusal":null',
    b'"refusal":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"look_up",'
    b'"arguments":"{\\"city\\":\\"Ulm\\"}"}}]',
)
MESSAGES = (
    b'{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5-20250929","content":[{"type":"text",'
    b'"text":"%b"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":97,'
    b'"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,'
    b'"ephemeral_1h_input_tokens":0},"output_tokens":118,"service_tier":"standard"}}'
) % TEXT
ANSWERS: dict[str, tuple[Operation, str, bytes]] = {
    "chat": ("chat", "openai", CHAT),
    "chat, a tool": ("chat", "openai", TOOLS),
    "chat, indented": ("chat", "openai", CHAT.replace(b'":', b'": ').replace(b',"', b',\n  "')),
    "messages": ("messages", "anthropic", MESSAGES),
}


def meter(operation: Operation, dialect: str, body: bytes) -> Meter:
    """A meter that has read a whole answer."""
    profile = PROFILES[dialect]
    reader = Meter(
        operation=operation,
        family=profile.family,
        profile=profile,
        stream=False,
        withhold_usage=False,
        status=200,
        content_type="application/json",
        content_encoding="",
        event_bytes_max=1 << 20,
    )
    reader.feed(body, 1.0)
    reader.eof()
    return reader


def finished(operation: Operation, dialect: str, body: bytes) -> Reading:
    return meter(operation, dialect, body).finish()


def attempt(operation: Operation, provider: str) -> Attempt:
    return Attempt(
        id=UUID(int=1),
        request_id=UUID(int=1),
        number=1,
        kind=Kind(
            caller=Caller(kind="virtual", key_id=UUID(int=2), key_name="a key", team="a team"),
            target=parse("POST", "/v1/messages" if operation == "messages" else "/v1/chat/completions"),
            provider=provider,
            dialect=provider,
            model="gpt-4o-mini" if provider == "openai" else "claude-sonnet-4-5",
        ),
        request_bytes=500,
        started_at=datetime(2025, 11, 21, 12, tzinfo=UTC),
        received=10.0,
        sent=10.001,
        status=200,
        upstream_request_id="req_1",
        last_byte=10.5,
    )


def cost(work: Callable[[], object]) -> float:
    """Microseconds of CPU for one run of `work`."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(TIMES):
            work()
        best = min(best, time.process_time() - began)
    return best / TIMES * 1e6


class Short:
    """Takes ordinary rows, and keeps the last."""

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer
        self.last: Ordinary | None = None

    def ordinary(self, attempt: Attempt, reading: Reading, finished: float) -> Ordinary | None:
        return ordinary(attempt, reading, finished, self.pricer)

    def post(self, ordinary: Ordinary) -> None:
        self.last = ordinary


def settling(pricer: Pricer, reading: Reading, operation: Operation, provider: str, *, short: bool) -> float:
    """In its short form with its JSON, or as an event."""
    rows: list[UsageEvent] = []
    taken = Short(pricer) if short else None

    async def nobody_counts(*_: object) -> None:
        raise AssertionError

    settler = Settler(
        record=lambda event: rows.__setitem__(slice(None), [event]),
        estimate=nobody_counts,  # type: ignore[arg-type]
        price=pricer.price,
        clock=Clock(lambda: 10.6, lambda: datetime.now(UTC)),
        ordinary=taken,
    )

    class Over:
        ticket = facts = meter = None
        gone = False
        decoded = b""
        attempt: Attempt | None = None

    call, over = Over(), attempt(operation, provider)

    def run() -> None:
        call.attempt = over
        assert settler.at_once(call, reading, "whole")  # type: ignore[arg-type]

    found = cost(run)
    assert taken.last and taken.last[0].cost_usd if taken else rows[0].cost_usd
    return found


def main() -> None:
    pricer = publishers()
    print(f"{'':16} {'read':>8} {'settle':>8} {'in short':>8}  µs")
    for name, (operation, provider, body) in ANSWERS.items():
        reading = meter(operation, provider, body).finish()
        assert reading.has_usage and reading.complete
        read = cost(partial(finished, operation, provider, body))
        event, row = (settling(pricer, reading, operation, provider, short=short) for short in (False, True))
        print(f"{name:16} {read:8.2f} {event:8.2f} {row:8.2f}")


if __name__ == "__main__":
    main()
