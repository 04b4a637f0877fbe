"""What is asked of each target, and one measurement of it."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.overhead import machine
from benchmarks.overhead.targets import Target

LOAD = Path(__file__).with_name("load.py")
_WORDS = "Please explain how a proxy that meters can count the tokens of a streamed answer without holding it up. "
_DRAIN_S = 0.4
"""After the calls, before Postgres's time is read: the rows are written meanwhile."""


@dataclass(frozen=True)
class Scenario:
    """Calls in a closed loop: `connections` clients for `seconds`, with a request of `body_bytes`.

    `spread_s`: the first calls begin over this time. `model` steers the mock. `targets` take turns, `rounds_max` times
    at most.
    """

    name: str
    model: str
    connections: int
    seconds: float
    body_bytes: int = 500
    spread_s: float = 0.0
    targets: tuple[str, ...] = ("nginx", "bare", "farebox")
    rounds_max: int = 99

    @property
    def streams(self) -> bool:
        return self.model.startswith("stream-")

    @property
    def unit(self) -> str:
        """What its costs are told for."""
        return "chunk" if self.streams else "request"

    @property
    def body(self) -> str:
        """The request, padded with prose to its size."""
        system = {"role": "system", "content": "You are a helpful assistant. Answer briefly."}
        user = {"role": "user", "content": ""}
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [system, user],
            "temperature": 0.7,
            "max_tokens": 64,
        }
        if self.streams:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        room = max(0, self.body_bytes - len(json.dumps(request, separators=(",", ":"))))
        user["content"] = (_WORDS * (room // len(_WORDS) + 1))[:room]
        return json.dumps(request, separators=(",", ":"))


SMALL = Scenario("small", "whole", 32, 2.0, targets=("nginx", "bare", "farebox", "budgeted"))
ALONE = Scenario("alone", "whole", 1, 2.0, targets=("direct", "nginx", "bare", "farebox"))
PROMPT_100K = Scenario("100 kB", "whole", 16, 2.0, 100_000)
PROMPT_1M = Scenario("1 MB", "whole", 4, 2.0, 1_000_000)
STREAMS = Scenario("streams", "stream-50-100", 1000, 5.0, spread_s=5.0, targets=ALONE.targets, rounds_max=2)
"""1,000 at a time, an event each 100 ms in each: they begin over five seconds, and end over the five after."""
SCENARIOS = {one.name: one for one in (SMALL, ALONE, PROMPT_100K, PROMPT_1M, STREAMS)}


@dataclass(frozen=True)
class Sample:
    """One measurement. Times in µs of CPU for each unit: a call, or an event of a stream.

    `others`: the share of one core that processes which have nothing to do with this used meanwhile.
    """

    target: str
    scenario: str
    turn: int
    cpu_us: float
    postgres_us: float
    rate: float
    busy: float
    others: float
    came: dict[str, Any]


def plan(target: Target, scenario: Scenario, **more: Any) -> dict[str, Any]:
    """What load.py is told."""
    return {
        "port": target.port,
        "connections": scenario.connections,
        "seconds": scenario.seconds,
        "spread_s": scenario.spread_s,
        "body": scenario.body,
        "keys": list(target.secrets),
        **more,
    }


def load(target: Target, scenario: Scenario, **more: Any) -> dict[str, Any]:
    """Ask, and say what came. Raises RuntimeError if any call failed."""
    came = ended(loading(target, scenario, **more))
    if came["failed"] or not came["calls"]:
        raise RuntimeError(f"{target.name}, {scenario.name}: {came['failed']} calls failed: {came['first_fault']}")
    return came


def loading(target: Target, scenario: Scenario, **more: Any) -> subprocess.Popen[str]:
    """The same, begun only."""
    command = [machine.PYTHON, str(LOAD)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(plan(target, scenario, **more)))
    process.stdin.close()
    return process


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What came, once it is all there."""
    assert process.stdout is not None
    said = process.stdout.read()
    process.wait()
    return dict(json.loads(said))


def measure(target: Target, scenario: Scenario, helpers: list[int], turn: int = 0) -> Sample:
    """Ask, and say what it cost. `helpers`: pids whose work belongs to the measurement (mock, ...)."""

    def used() -> tuple[float, float, float, float]:
        own = machine.cpu_s(target.process.pid) if target.process else 0.0
        postgres = machine.cpu_s(target.postgres) if target.postgres else 0.0
        return own, postgres, machine.machine_busy_s() - sum(map(machine.cpu_s, helpers)), time.monotonic()

    before = used()
    came = load(target, scenario)
    if target.postgres:
        time.sleep(_DRAIN_S)
    own, postgres, machine_s, wall_s = (after - was for after, was in zip(used(), before, strict=True))
    units = came["events"] if scenario.streams else came["calls"]
    return Sample(
        target=target.name,
        scenario=scenario.name,
        turn=turn,
        cpu_us=own / units * 1e6,
        postgres_us=postgres / came["calls"] * 1e6,
        rate=units / came["seconds"],
        busy=own / came["seconds"],
        others=max(0.0, machine_s - own - postgres) / wall_s,
        came=came,
    )
