"""kill -9 under load, round after round, and what the rows must say afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from support.process import Installation
from support.traffic import Traffic


@dataclass
class Tally:
    """What came of a run of rounds."""

    rounds: int = 0
    attempts: int = 0
    """Requests the provider saw."""
    whole: int = 0
    """Answers a client had in full."""
    cut: int = 0
    """Rows marked farebox_cut of attempts the provider saw."""
    unsent: int = 0
    """Rows marked farebox_cut of attempts that were journalled and did not reach the provider."""


def _nothing(number: int) -> None:
    pass


async def crash_rounds(
    farebox: Installation,
    traffic: Traffic,
    *,
    rounds: int,
    clients: int,
    before_kill: Callable[[int], None] = _nothing,
) -> Tally:
    """Start, load, kill -9 at a random moment; so often. Nothing runs afterwards. `before_kill` is told the round."""
    tally, rng = Tally(), traffic.rng
    for number in range(rounds):
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, clients)
        await traffic.asked(rng.randint(1, 6 * clients))
        await asyncio.sleep(rng.uniform(0, 0.03))  # not to wait for anything: the moment is to be any
        before_kill(number)
        await process.kill()
        await traffic.end()
        assert not traffic.refused, traffic.refused
        tally.rounds += 1
    return tally


def compare(rows: dict[str, str], traffic: Traffic, tally: Tally, *, clients: int) -> None:
    """Rows = attempts the provider saw, none twice; whole answers are `complete`; the rest says why it is not."""
    seen = traffic.seen
    assert max(seen.values()) == 1, "the provider was asked twice for one call"
    missing = seen.keys() - rows.keys()
    assert not missing, f"{len(missing)} of {len(seen)} attempts have no row: {sorted(missing)[:10]}"
    assert {model: rows[model] for model in traffic.whole if rows[model] != "complete"} == {}
    by_outcome = Counter(rows[model] for model in seen)
    assert set(by_outcome) <= {"complete", "farebox_cut"}, by_outcome
    extra = {model: outcome for model, outcome in rows.items() if model not in seen}
    assert set(extra.values()) <= {"farebox_cut"}, extra
    assert len(extra) <= tally.rounds * clients
    tally.attempts, tally.whole = len(seen), len(traffic.whole)
    tally.cut, tally.unsent = by_outcome["farebox_cut"], len(extra)
    assert tally.cut > 0, "no call was in flight at any kill: this shows nothing"
