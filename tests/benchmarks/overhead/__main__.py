"""What farebox costs beside nginx and a bare aiohttp proxy: `make bench`. Linux.

One run measures the whole table and prints it as Markdown. The proxies take turns, each on the last core this process
may use; provider, clients and Postgres have the others. Costs are CPU time from /proc (user and system, of all of a
proxy's processes), compared within a round only: on a shared machine the microseconds change from hour to hour, their
ratios hardly. Nothing else should run meanwhile: how much did is printed. nginx is measured where it is installed.

    --rounds N          3 by default; of streams two at most
    --only A,B          of the parts: small, alone, 100 kB, 1 MB, streams, counts, memory, cold, workers, keys, long,
                        stalls; none takes two minutes
    --tree DIR          measure the farebox of another working copy
    --check             a minute's worth for CI, mostly of counts: `check.py`; exits 1 where something is worse
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from benchmarks.overhead import counts, special, table, turns
from benchmarks.overhead.check import check
from benchmarks.overhead.scenarios import SCENARIOS, Sample, Scenario
from benchmarks.overhead.special import Memory
from benchmarks.overhead.table import Line
from benchmarks.overhead.targets import Bench

SPECIAL = ("counts", "memory", "cold", "workers", "keys", "long", "stalls")
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
            return check(bench) if args.check else Run(bench, args.rounds).table(args.only.split(","))
        finally:
            bench.close()


class Run:
    """One run: what was measured so far."""

    def __init__(self, bench: Bench, rounds: int) -> None:
        self._bench, self._rounds = bench, rounds
        self._samples: list[Sample] = []
        self._lines: list[Line] = []
        self._memories: list[Memory] = []
        self._failed = False

    def table(self, wanted: Sequence[str]) -> int:
        """Measure what is wanted and print it; 1 where a part could not be measured."""
        chosen = [SCENARIOS[name] for name in wanted if name in SCENARIOS]
        if chosen:
            self._part(", ".join(one.name for one in chosen), lambda: self._in_turns(chosen))
        for name in SPECIAL:
            if name in wanted:
                self._part(name, getattr(self, f"_{name}"))
        found = table.Samples(self._samples)
        print(table.markdown(table.lines(found) + self._lines))
        if chosen:
            print("\n" + table.absolutes(found))
        for memory in self._memories:
            print(f"\n{memory.target}: {memory.idle_mb:.0f} MB idle, {memory.streams_mb:.0f} MB with 5,000 streams")
        # The provider asked directly has the clients' core to itself, and what it does there is no noise.
        noise = max((sample.others for sample in self._samples if sample.target != "direct"), default=0.0)
        print(f"\nOther processes used up to {noise:.2f} of a core{' (too much)' if noise > NOISE else ''}.")
        return 1 if self._failed else 0

    def _part(self, name: str, measure: Callable[[], None]) -> None:
        """One part. What goes wrong in it is said, and the others are measured all the same."""
        began = time.monotonic()
        try:
            measure()
        except (RuntimeError, OSError, AssertionError) as exc:
            self._failed = True
            turns.say(f"{name}: not measured: {exc!r}")
        turns.say(f"{name}: {time.monotonic() - began:.0f} s")

    def _in_turns(self, chosen: Sequence[Scenario]) -> None:
        self._samples += turns.regular(self._bench, chosen, self._rounds)

    def _counts(self) -> None:
        self._lines += table.counts_lines(counts.of_farebox(self._bench), counts.of_bare(self._bench))

    def _memory(self) -> None:
        self._memories = special.memories(self._bench)
        self._lines += table.memory_lines(self._memories)

    def _cold(self) -> None:
        self._lines += table.cold_lines(special.cold_start_s(self._bench.farebox("cold")))

    def _workers(self) -> None:
        self._samples += special.workers(self._bench, self._rounds)

    def _keys(self) -> None:
        self._samples += special.many_keys(self._bench, self._rounds)

    def _long(self) -> None:
        self._samples += special.long_streams(self._bench)

    def _stalls(self) -> None:
        self._lines += table.stall_lines(special.stalls(self._bench))


if __name__ == "__main__":
    sys.exit(main())
