"""What bounding a request costs: `python tests/benchmarks/bound_request.py` (with `src` and `tests` importable).

Prints microseconds of CPU a call, best of several rounds, beside those of reading the facts.
Bodies of 1 kB, 100 kB and 1 MB, of English in messages and of Japanese raw and in escapes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from farebox.bounds import bound_of
from farebox.request import read_facts
from support.pricing import NOON, publishers

ENGLISH = "The quick brown fox jumps\n over the lazy dog. " * 20
JAPANESE = "これは日本語の文章です。漢字とかな。" * 20
BODIES: dict[str, Callable[[int], bytes]] = {
    "English": lambda turns: body(ENGLISH[:900], turns, escaped=True),
    "Japanese": lambda turns: body(JAPANESE[:300], turns, escaped=False),
    "Japanese, escaped": lambda turns: body(JAPANESE[:150], turns, escaped=True),
}


def body(text: str, turns: int, *, escaped: bool) -> bytes:
    messages = [{"role": "user", "content": text} for _ in range(turns)]
    return json.dumps({"model": "gpt-5", "messages": messages, "max_tokens": 500}, ensure_ascii=escaped).encode()


def microseconds(call: Callable[[], object], times: int) -> float:
    """CPU of one call: the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(times):
            call()
        best = min(best, (time.process_time() - start) / times)
    return best * 1e6


def main() -> None:
    pricer = publishers()
    print(f"{'body':20}{'bytes':>10}{'facts':>10}{'bound':>10}   µs")
    for name, make in BODIES.items():
        for turns in (1, 100, 1_000):
            data = make(turns)
            facts = read_facts("chat", data)
            times = max(3, 2_000 // turns)
            reading = microseconds(lambda data=data: read_facts("chat", data), times)  # type: ignore[misc]
            bounding = microseconds(
                lambda data=data, facts=facts: bound_of(  # type: ignore[misc]
                    "chat", data, facts, max_output=None, assumed_max_output=1
                ),
                times,
            )
            print(f"{name:20}{len(data):>10}{reading:>10.1f}{bounding:>10.1f}")
    for dearest in (False, True):
        cost = microseconds(
            lambda dearest=dearest: pricer.bound(  # type: ignore[misc]
                "openai", "gpt-5", None, 1_000, 500, NOON, dearest=dearest
            ),
            2_000,
        )
        print(f"the price of a bound, dearest={dearest}: {cost:.1f} µs")


if __name__ == "__main__":
    main()
