"""What metrics cost: `python tests/benchmarks/metrics_observe.py`.

Prints the CPU time of counting one event (of a call with everything in it, of a failed call for a
made-up model, of a call whose names are all new), and of one scrape at the bound of 20,000 samples,
with the longest time it holds the event loop at a stretch. In the memory of one process, and in
files that four workers share.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parent.parent))

from farebox.metrics import Metrics, prepare
from farebox.records import ToolCall, UsageEvent
from support.events import event
from support.scrape import metrics, worker

SERIES_MAX = 20_000
ROUNDS = 5


def answer(model: str = "gpt-5", key: str = "team-a") -> UsageEvent:
    return event(
        key_id=UUID(int=1),
        key_name=key,
        requested_model=model,
        model=model,
        status=200,
        stream=True,
        usage_source="provider",
        duration_ms=1200.5,
        ttft_ms=300.1,
        overhead_ms=0.4,
        input_tokens=100,
        cache_read_tokens=40,
        cache_write_tokens=10,
        output_tokens=50,
        reasoning_tokens=20,
        tool_calls=[ToolCall("get_weather", 1, 20)],
        cost_usd=Decimal("0.00123"),
        cost_source="prices",
        provider_cost_usd=Decimal("0.00124"),
    )


def junk(number: int) -> UsageEvent:
    fields: dict[str, Any] = {"status": 404, "outcome": "upstream_error", "key_id": UUID(int=1), "key_name": "team-a"}
    return event(requested_model=f"junk-{number}", duration_ms=20.0, overhead_ms=0.4, **fields)


def each(of: Metrics, events: Iterable[UsageEvent]) -> float:
    """Microseconds of CPU for one event."""
    made = list(events)
    start = time.process_time()
    for one in made:
        of.observe(one)
    return (time.process_time() - start) / len(made) * 1e6


def best(measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(ROUNDS))


def report(title: str, workers: list[Metrics]) -> None:
    first = workers[0]
    print(f"{title}")
    print(f"  a call with everything    {best(lambda: each(first, [answer()] * 20_000)):6.1f} us")
    print(f"  a made-up model, refused  {best(lambda: each(first, map(junk, range(5_000)))):6.1f} us")
    fresh = [answer(f"m{number % 5_000}", f"k{number % 997}") for number in range(20_000)]
    print(f"  names that are all new    {each(first, fresh):6.1f} us")
    for other in workers[1:]:
        each(other, fresh)
    longest: list[float] = []

    def scrape() -> float:
        start = last = time.process_time()
        stretch, samples = 0.0, 0
        for piece in first.pieces():
            now = time.process_time()
            stretch, last, samples = max(stretch, now - last), now, samples + piece.count(b"\n")
        longest.append(stretch)
        return (last - start) * 1e3

    print(f"  one scrape                {best(scrape):6.1f} ms, at most {min(longest) * 1e3:.1f} ms at a stretch")


def main() -> None:
    report("in one process", [metrics(series_max=SERIES_MAX)])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(prepare(Path(folder)))
        report("shared by four workers", [worker(Path(folder), slot, series_max=SERIES_MAX) for slot in range(4)])


if __name__ == "__main__":
    main()
