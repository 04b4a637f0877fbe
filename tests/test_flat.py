"""What a call and a chunk cost stays the same, however many keys, calls and chunks there are.

Costs are counted as CPU time of this thread, the least of several runs, and compared with one another: a cost that
grew with the number would be a hundred times as much here, so a factor of three leaves room for a busy machine. What
functions a chunk calls is counted besides.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from farebox import credentials
from farebox.dialects import PROFILES
from farebox.heads import Heads
from farebox.keys import KeyRing
from farebox.meter import Meter
from farebox.records import KeyRecord

FACTOR = 3
NOW = datetime(2026, 11, 22, tzinfo=UTC)
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)


def cpu_s(work: Callable[[], object], runs: int = 7) -> float:
    """The least CPU time of `work`."""
    took = []
    for _ in range(runs):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return min(took)


def calls(work: Callable[[], object]) -> int:
    """How many functions `work` calls, Python's and built-in ones."""
    count = 0

    def called(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def head(secret: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Host", b"h"), (b"Authorization", b"Bearer " + secret.encode()), (b"Content-Length", b"5"))


async def test_a_call_costs_the_same_with_ten_keys_and_with_many() -> None:
    """Reading a head and finding its caller takes no longer when 10,000 keys are in use, all in turn."""

    async def ring_of(secrets: list[str]) -> Callable[[], None]:
        records = {credentials.hash_secret(secret): number for number, secret in enumerate(secrets)}

        async def find(digest: bytes) -> KeyRecord | None:
            id = UUID(int=records[digest] + 1)
            return KeyRecord(id=id, name=str(id), secret_hash=digest, created_at=NOW, changed_at=NOW)

        async def unchanged(since: datetime) -> tuple[list[KeyRecord], datetime]:
            return [], since

        ring = KeyRing(
            mode="virtual",
            size=100_000,
            poll_s=60,
            stale_s=60,
            find=find,
            changed_since=unchanged,
            now=lambda: NOW,
            monotonic=lambda: 0.0,
        )
        heads = Heads("virtual")
        for secret in secrets:
            await ring.authenticate(heads.of("POST", "/v1/chat/completions", (1, 1), head(secret)).credentials)
        fields = [head(secret) for secret in secrets[:2000]] * (2000 // min(2000, len(secrets)))

        def work() -> None:
            for raw in fields:
                assert ring.recall(heads.of("POST", "/v1/chat/completions", (1, 1), raw).credentials) is not None

        return work

    secrets = [credentials.mint_secret() for _ in range(10_000)]
    few, many = await ring_of(secrets[:2000]), await ring_of(secrets)
    assert cpu_s(many) < FACTOR * cpu_s(few)


def test_the_ten_thousandth_chunk_costs_what_the_first_ones_cost() -> None:
    """A meter that has read 10,000 chunks reads the next as fast as one that has read 5,000, by the same calls."""

    def meter(read: int) -> Meter:
        one = Meter(
            operation="chat",
            family="openai",
            profile=PROFILES["openai"],
            stream=True,
            withhold_usage=False,
            status=200,
            content_type="text/event-stream",
            content_encoding="",
            event_bytes_max=1 << 20,
        )
        for _ in range(read):
            one.feed(CHUNK, 1.0)
        return one

    def feeding(one: Meter) -> Callable[[], object]:
        return lambda: [one.feed(CHUNK, 1.0) for _ in range(200)]

    # Both have more text by then than is kept: until then a chunk takes other calls.
    young, old = feeding(meter(5_000)), feeding(meter(10_000))
    assert calls(old) == calls(young)
    assert cpu_s(old) < FACTOR * cpu_s(young)
