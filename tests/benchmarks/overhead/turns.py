"""Targets that take turns: each round asks all of them, one after another, beginning with another one each time.

Only what was measured in the same round is compared: on a shared machine minutes differ more than proxies do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.overhead import scenarios
from benchmarks.overhead.scenarios import Sample, Scenario
from benchmarks.overhead.targets import Bench, Target


def regular(bench: Bench, chosen: Sequence[Scenario], rounds: int) -> list[Sample]:
    """The scenarios that all proxies are asked, each of those a scenario names."""
    farebox = bench.farebox()
    running = farebox.start()
    budgeted = running.also("budgeted", farebox.new_keys(1, budget_usd=100_000))
    targets = [one for one in (bench.direct(), bench.nginx(), bench.bare(), running, budgeted) if one is not None]
    for target in targets:
        scenarios.load(target, replace(scenarios.SMALL, seconds=1.0))
    found: list[Sample] = []
    for scenario in chosen:
        turns = [(target, scenario) for target in targets if target.name in scenario.targets]
        found += take(bench, turns, min(rounds, scenario.rounds_max))
    bench.stop(targets)
    return found


def take(bench: Bench, turns: Sequence[tuple[Target, Scenario]], rounds: int) -> list[Sample]:
    """So many samples of each; none where calls failed, as on a machine where nothing gets its turn."""
    found: list[Sample] = []
    for number in range(rounds):
        first = number % len(turns)
        for target, scenario in [*turns[first:], *turns[:first]]:
            try:
                found.append(scenarios.measure(target, scenario, bench.others(target), number))
            except RuntimeError as exc:
                say(f"left out: {exc}")
            else:
                _tell(found[-1])
    return found


def _tell(one: Sample) -> None:
    say(
        f"{one.target:13} {one.scenario:8} {one.cpu_us:8.1f} µs, Postgres {one.postgres_us:6.1f}; "
        f"{one.rate:7.0f}/s, busy {one.busy:.2f}, others {one.others:.2f}"
    )


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)
