"""How many function calls a call and a chunk cost: `counted.py` runs the proxy, one client calls, twenty have streams.

Unlike CPU time this says the same on a busy machine; timers that go off meanwhile make it differ by a percent or two.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.overhead import scenarios
from benchmarks.overhead.counted import COUNTING
from benchmarks.overhead.scenarios import Scenario
from benchmarks.overhead.targets import Bench, Target

CALL = Scenario("call", "whole", 1, 60.0)
STREAM = Scenario("stream", "stream-200-20", 20, 60.0)
"""Events of a stream come so far apart that each is read alone on a busy machine too: there only the event loop's turns
are shared among streams."""
CALLS = 400
_TIMES = 2
_WAIT_S = 10.0


@dataclass(frozen=True)
class Count:
    """Function calls for each unit: of Python's functions, of built-in ones, and of each that is called most."""

    python: float
    builtin: float
    most: Mapping[str, float]

    @property
    def total(self) -> float:
        return self.python + self.builtin


def of_farebox(bench: Bench) -> dict[str, Count]:
    """A small call, an event of a stream, and a small call of a key with a budget."""
    farebox = bench.farebox("counted")
    file = farebox.counts = bench.folder / "counted-farebox.json"
    target = farebox.start()
    budgeted = target.also("budgeted", farebox.new_keys(1, budget_usd=100_000))
    # A budget has its timers: it comes last.
    found = {"call": _call(target, file), "chunk": _chunk(target, file), "budgeted call": _call(budgeted, file)}
    _stop(target)
    return found


def of_bare(bench: Bench) -> dict[str, Count]:
    """A small call and an event of a stream."""
    file = bench.folder / "counted-bare.json"
    target = bench.bare(counts=file)
    found = {"call": _call(target, file), "chunk": _chunk(target, file)}
    _stop(target)
    return found


def _call(target: Target, file: Path) -> Count:
    scenarios.load(target, CALL, calls=CALLS)
    return _least(_counted(target, file, CALL, CALLS) for _ in range(_TIMES))


def _chunk(target: Target, file: Path) -> Count:
    """Head and end of the stream are spread over its events."""
    scenarios.load(target, replace(STREAM, model="stream-20-20"), calls=STREAM.connections)
    return _least(_counted(target, file, STREAM, STREAM.connections) for _ in range(_TIMES))


def _least(found: Iterable[Count]) -> Count:
    """The one with the fewest timers between."""
    return min(found, key=lambda one: one.total)


def _counted(target: Target, file: Path, scenario: Scenario, calls: int) -> Count:
    assert target.process is not None
    file.unlink(missing_ok=True)
    os.kill(target.process.pid, signal.SIGUSR1)
    _said(file, counting=True)
    came = scenarios.load(target, scenario, calls=calls)
    os.kill(target.process.pid, signal.SIGUSR2)
    said = _said(file, counting=False)
    units = came["events"] if scenario.streams else came["calls"]
    most = {name: number / units for name, number in said["most"]}
    return Count(said["python"] / units, said["builtin"] / units, most)


def _said(file: Path, *, counting: bool) -> dict[str, Any]:
    """What the counted process last wrote, as soon as that is whether it counts, or what it counted."""
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        if file.exists() and ((said := dict(json.loads(file.read_text()))) == COUNTING) is counting:
            return said
        time.sleep(0.01)
    raise RuntimeError(f"{file.name}: nothing was counted")


def _stop(target: Target) -> None:
    assert target.process is not None
    target.process.stop()
