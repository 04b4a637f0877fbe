"""`make bench ARGS=--check`: a minute that says whether a call or a chunk has become dearer.

What decides is the number of function calls. `MOST` is a tenth above what it was when last looked at, so a change that
makes the ordinary way longer shows here, on a busy machine too; who makes it shorter lowers `MOST`. CPU against the
aiohttp proxy's is looked at besides, for what such counts don't show (a dear pattern, a copy too many): its margin is
wide and the best of a few rounds counts.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.overhead import counts, scenarios
from benchmarks.overhead.targets import Bench

MOST = {"call": 350, "chunk": 62, "budgeted call": 431}
"""Function calls on the event loop's thread, of Python's and built-in ones, everything on."""
RATIOS = {"small": (1.3, 1.5), "streams": (1.7, 4.0)}
"""CPU ÷ bare aiohttp at most, and seconds a turn."""
_ROUNDS = 3
_SHOWN = 0.5


def check(bench: Bench) -> int:
    """Print what was found; 1 where anything is above its margin."""
    return 1 if _calls_worse(bench) | _cpu_worse(bench) else 0


def _calls_worse(bench: Bench) -> bool:
    found = counts.of_farebox(bench)
    worse = {what for what, count in found.items() if count.total > MOST[what]}
    for what, count in found.items():
        print(f"{what}: {count.total:.1f} function calls, {count.python:.1f} of them Python's; at most {MOST[what]}")
        if what in worse:
            print("\n".join(f"{number:9.2f} {name}" for name, number in count.most.items() if number >= _SHOWN))
    return bool(worse)


def _cpu_worse(bench: Bench) -> bool:
    """Whether the CPU of a small call or of a chunk is above its margin in every round."""
    farebox, bare, worse = bench.farebox().start(), bench.bare(), False
    for target in (farebox, bare):
        scenarios.load(target, replace(scenarios.SMALL, seconds=0.5))
    for name, (most, seconds) in RATIOS.items():
        scenario = replace(scenarios.SCENARIOS[name], seconds=seconds)
        if scenario.streams:
            scenario = replace(scenario, model="stream-10-100", connections=300, spread_s=1.0)
        ratios: list[float] = []
        while len(ratios) < _ROUNDS and min(ratios, default=most + 1) > most:
            own, yardstick = (scenarios.measure(target, scenario, []) for target in (farebox, bare))
            ratios.append(own.cpu_us / yardstick.cpu_us)
        print(f"{name}: CPU ÷ bare aiohttp {', '.join(f'{ratio:.2f}' for ratio in ratios)}; at most {most}")
        worse |= min(ratios) > most
    return worse
