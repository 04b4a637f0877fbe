"""What farebox costs beside nginx and a bare aiohttp proxy: `make bench`. Linux.

One run measures the whole table and prints it as Markdown. The proxies take turns, each on the last core this process
may use; provider, clients and Postgres have the others. Costs are CPU time from /proc (user and system, of all of a
proxy's processes), compared within a round only: on a shared machine the microseconds change from hour to hour, their
ratios hardly. Nothing else should run meanwhile: how much did is printed. nginx is measured where it is installed.

    --rounds N          3 by default
    --only A,B          of: small, alone, 100 kB, 1 MB, streams, counts, memory, cold, workers, keys, stalls
    --tree DIR          measure the farebox of another working copy
    --check             a minute's worth for CI, mostly of counts: `check.py`; exits 1 where something is worse
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from benchmarks.overhead import counts, scenarios, special, table
from benchmarks.overhead.check import check
from benchmarks.overhead.scenarios import SCENARIOS, Sample
from benchmarks.overhead.targets import Bench, Target

SPECIAL = ("counts", "memory", "cold", "workers", "keys", "stalls")
FILES = 16_384
NOISE = 0.15
"""Share of a core that others may use before the table says so."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join([*SCENARIOS, *SPECIAL]))
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - {*SCENARIOS, *SPECIAL}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(FILES, hard), hard))
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        bench = Bench(Path(folder), args.tree)
        try:
            return check(bench) if args.check else run(bench, args.rounds, args.only.split(","))
        finally:
            bench.close()


def run(bench: Bench, rounds: int, wanted: Sequence[str]) -> int:
    """Measure what is wanted and print the table."""
    chosen = [SCENARIOS[name] for name in wanted if name in SCENARIOS]
    samples: list[Sample] = []
    if chosen:
        targets = regular(bench)
        for number in range(rounds):
            for scenario in chosen:
                turn = number % len(targets)
                for target in targets[turn:] + targets[:turn]:
                    samples += one(bench, target, scenario, number)
        for target in targets:
            if target.process is not None and target.name != "budgeted":
                target.process.stop()
    found = table.Samples(samples)
    lines = table.lines(found)
    if "counts" in wanted:
        lines += table.counts_lines(counts.of_farebox(bench), counts.of_bare(bench))
    memories = [memory_of(bench, name) for name in ("nginx", "bare", "farebox")] if "memory" in wanted else []
    lines += table.memory_lines([one for one in memories if one])
    if "workers" in wanted:
        lines += table.workers_lines(*special.workers(bench, helpers(bench)))
    if "cold" in wanted:
        farebox = bench.farebox("cold")
        lines += table.cold_lines(special.cold_start_s(farebox, farebox.new_keys(1)[0]))
    if "keys" in wanted:
        lines += table.keys_lines(special.many_keys(bench, helpers(bench)))
    if "stalls" in wanted:
        lines += table.stall_lines(special.stalls(bench))
    print(table.markdown(lines))
    if chosen:
        print("\n" + table.absolutes(found, ["nginx", "bare", "farebox", "budgeted"], [one.name for one in chosen]))
    for memory in filter(None, memories):
        print(f"\n{memory.target}: {memory.idle_mb:.0f} MB idle, {memory.streams_mb:.0f} MB with 5,000 streams")
    noise = max((sample.others for sample in samples), default=0.0)
    print(f"\nOther processes used up to {noise:.2f} of a core{' (too much)' if noise > NOISE else ''}.")
    return 0


def regular(bench: Bench) -> list[Target]:
    """All that take turns, warmed up."""
    farebox = bench.farebox()
    running = farebox.start()
    budgeted = running.also("budgeted", farebox.new_keys(1, budget_usd=100_000))
    targets = [one for one in (bench.direct(), bench.nginx(), bench.bare(), running, budgeted) if one is not None]
    for target in targets:
        scenarios.load(target, replace(scenarios.SMALL, seconds=1.0))
    return targets


def one(bench: Bench, target: Target, scenario: scenarios.Scenario, number: int) -> list[Sample]:
    """A sample; none where calls failed, as on a machine where nothing gets its turn."""
    try:
        sample = scenarios.measure(target, scenario, helpers(bench, target), number)
    except RuntimeError as exc:
        say(f"left out: {exc}")
        return []
    say(
        f"{target.name:9} {scenario.name:8} {sample.cpu_us:8.1f} µs, Postgres {sample.postgres_us:6.1f}; "
        f"{sample.rate:7.0f}/s, busy {sample.busy:.2f}, others {sample.others:.2f}"
    )
    return [sample]


def memory_of(bench: Bench, name: str) -> special.Memory | None:
    target = {"nginx": bench.nginx, "bare": bench.bare, "farebox": lambda: bench.farebox("memory").start()}[name]()
    if target is None:
        return None
    found = special.memory(replace(target, name=name))
    assert target.process is not None
    target.process.stop()
    return found


def helpers(bench: Bench, target: Target | None = None) -> list[int]:
    """The processes whose work belongs to a measurement of `target`, itself left out."""
    own = target.process if target is not None else None
    return [process.pid for process in bench.running if process is not own and not process.ended]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
