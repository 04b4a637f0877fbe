"""What pricing one call costs: `python tests/benchmarks/price_event.py` (with `src` and `tests` importable).

Prints microseconds of CPU a call, best of several rounds: for usual calls, for calls that need more
than usual, and for a model name nobody has seen, as a hostile client would send them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

import msgspec

from farebox.pricing import PriceBook, shipped
from support.pricing import publishers, used

ROUNDS = 5
RAW = msgspec.Raw(
    b'{"prompt_tokens":1000,"completion_tokens":100,"total_tokens":1100,"prompt_tokens_details":{"cached_tokens":500,'
    b'"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":64,"audio_tokens":0}}'
)
EVENTS = {
    "chat": used("gpt-5-2025-08-07", 1_000, 100, cache_read_tokens=500, service_tier="default", usage_raw=RAW),
    "flex": used("gpt-5-2025-08-07", 1_000, 100, cache_read_tokens=500, service_tier="flex", usage_raw=RAW),
    "messages": used(
        "claude-sonnet-4-5",
        1_000,
        100,
        by="anthropic",
        cache_read_tokens=500,
        cache_write_tokens=100,
        cache_write_1h_tokens=0,
        usage_raw=RAW,
    ),
    "by the hour": used("deepseek-v4-flash", 1_000, 100, by="deepseek", usage_raw=RAW),
    "audio": used("gpt-audio", 1_000, 100, audio_input_tokens=500, audio_output_tokens=50, usage_raw=RAW),
    "unknown": used("no-such-model", 1_000, 100, usage_raw=RAW),
}


def best(what: Callable[[], object], times: int) -> float:
    """Microseconds of CPU for one of `times` runs, in the best of some rounds."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            what()
        found.append((time.process_time() - began) / times)
    return min(found) * 1e6


def main() -> None:
    pricer = publishers()
    for name, event in EVENTS.items():
        print(f"{name:12} {best(lambda event=event: pricer.price(event), 10_000):8.2f} µs")  # type: ignore[misc]
    numbers = count()
    for by in ("openai", "openrouter", "bedrock"):
        new = best(lambda by=by: pricer.price(used(f"made-up-{next(numbers)}", 1, 1, by=by)), 1_000)  # type: ignore[misc]
        print(f"{'new name':12} {new:8.2f} µs  {by}")
    print(f"{'load':12} {best(shipped, 3) / 1_000:8.2f} ms")
    entries = shipped().entries
    print(f"{'index':12} {best(lambda: PriceBook(entries), 10) / 1_000:8.2f} ms")


if __name__ == "__main__":
    main()
