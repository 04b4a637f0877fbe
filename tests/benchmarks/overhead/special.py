"""Measurements with a farebox of their own: memory, cold start, workers, keys, long streams, a loop that answers."""

from __future__ import annotations

import statistics
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace

import asyncpg

from benchmarks.overhead import machine, scenarios, turns
from benchmarks.overhead.scenarios import Sample, Scenario
from benchmarks.overhead.targets import Bench, Farebox, Target
from farebox import keys

IDLE = Scenario("idle streams", "stream-8-1500", 5000, 4.0, spread_s=4.0)
"""5,000 streams that say something every 1.5 s; the last begins after 4 s, the first ends after 10 s."""
COLD_STARTS = 5
KEYS = (10, 1_000, 100_000)
WORKERS = ("1 worker", "2 workers")
BUSY = replace(scenarios.SMALL, name="workers", connections=128)
LONG = (Scenario("1,000", "stream-1000-3", 20, 24.0), Scenario("10,000", "stream-10000-3", 20, 1.0))
"""Twenty at a time, an event each 3 ms in each, half a minute altogether."""
_ANSWER_S = 30.0


@dataclass(frozen=True)
class Memory:
    """`idle_mb`: before the first stream; `streams_mb`: with all open; `peak_mb`: the most it ever was."""

    target: str
    idle_mb: float
    streams_mb: float
    peak_mb: float

    @property
    def stream_kb(self) -> float:
        """For each idle stream."""
        return (self.streams_mb - self.idle_mb) * 1024 / IDLE.connections


def memories(bench: Bench) -> list[Memory]:
    """Of nginx, where it is installed, the aiohttp proxy, and farebox."""
    found = []
    for name, start in (("nginx", bench.nginx), ("bare", bench.bare), ("farebox", bench.farebox("memory").start)):
        if (target := start()) is not None:
            found.append(memory(replace(target, name=name)))
            bench.stop([target])
    return found


def memory(target: Target) -> Memory:
    """Memory of a process that was just started, without and with streams that are mostly silent."""
    assert target.process is not None
    pid = target.process.pid
    scenarios.load(target, replace(scenarios.SMALL, seconds=0.5))
    idle_mb = machine.memory_mb(pid)
    machine.forget_peak(pid)
    load = scenarios.loading(target, IDLE, calls=IDLE.connections)
    time.sleep(IDLE.spread_s + 4.0)
    streams_mb = machine.memory_mb(pid)
    came = scenarios.ended(load)
    if came["failed"]:
        raise RuntimeError(f"{target.name}: {came['failed']} streams failed: {came['first_fault']}")
    return Memory(target.name, idle_mb, streams_mb, machine.memory_mb(pid, "VmHWM"))


def cold_start_s(farebox: Farebox) -> float:
    """From the start of the process to the first byte of a provider's answer: the median of a few starts."""
    took = []
    (secret,) = farebox.new_keys(1)
    body = scenarios.SMALL.body.encode()
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{farebox.port}/v1/chat/completions", body, headers)
    for _ in range(COLD_STARTS):
        began = time.perf_counter()
        process = farebox.spawn()
        while time.perf_counter() < began + _ANSWER_S:
            try:
                with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                    answer.read(1)
                break
            except urllib.error.HTTPError:
                raise
            except OSError:
                time.sleep(0.005)
        took.append(time.perf_counter() - began)
        process.stop()
    return statistics.median(took)


def workers(bench: Bench, rounds: int) -> list[Sample]:
    """The same load on one worker and on two. With fewer than four cores both have the one core of the proxy."""
    cores = machine.CORES[-2:] if len(machine.CORES) >= 4 else machine.CORES[-1:]
    targets = [bench.farebox(name, workers=number, cores=cores).start() for number, name in enumerate(WORKERS, 1)]
    for target in targets:
        scenarios.load(target, BUSY)
    found = turns.take(bench, [(target, BUSY) for target in targets], rounds)
    bench.stop(targets)
    return found


def many_keys(bench: Bench, rounds: int) -> list[Sample]:
    """A small call with so many keys in use, in turn, each known already."""
    farebox = bench.farebox("keys")
    farebox.settings["auth"] = {"key_cache_size": 2 * KEYS[-1]}
    farebox.write()
    secrets = bench.runner.run(insert_keys(farebox.dsn, KEYS[-1]))
    running = farebox.start()
    scenarios.load(running.also("all keys", secrets), scenarios.SMALL, calls=len(secrets), seconds=120)
    asked = [running.also(f"{number:,} keys", secrets[:number]) for number in KEYS]
    found = turns.take(bench, [(target, replace(scenarios.SMALL, name="keys")) for target in asked], rounds)
    bench.stop([running])
    return found


def long_streams(bench: Bench) -> list[Sample]:
    """As many chunks of streams of a thousand, and of streams of ten thousand."""
    running = bench.farebox("long").start()
    scenarios.load(running, scenarios.SMALL)
    found = turns.take(bench, [(running.also(f"{one.name} chunks", running.secrets), one) for one in LONG], 1)
    bench.stop([running])
    return [replace(sample, scenario="long") for sample in found]


async def insert_keys(dsn: str, number: int) -> list[str]:
    secrets = [keys.mint_secret() for _ in range(number)]
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "INSERT INTO farebox.key (name, secret_hash) SELECT * FROM unnest($1::text[], $2::bytea[])",
            [f"many-{place}" for place in range(number)],
            [keys.hash_secret(secret) for secret in secrets],
        )
    finally:
        await connection.close()
    return secrets


def healthz(target: Target, seconds: float) -> dict[str, float]:
    """How long `/healthz` took, in ms, asked every 5 ms."""
    asking = Scenario("healthz", "", 1, seconds)
    came = scenarios.load(target, asking, body=None, path="/healthz", gap_s=0.005, keys=None)
    return {name: value / 1000 for name, value in came["latency"].items()}


STALLS = {
    "nothing else": None,
    "1 MB prompts, counted": replace(scenarios.PROMPT_1M, model="unpriced", connections=1, seconds=4.0),
    "50 MB bodies": replace(scenarios.PROMPT_1M, connections=1, seconds=4.0, body_bytes=50_000_000),
    "a new config each half second": None,
}


def stalls(bench: Bench) -> dict[str, dict[str, float]]:
    """`/healthz` while something large is on: p50, p99 and max in ms."""
    farebox = bench.farebox("stalls")
    farebox.settings["server"]["reload_poll_s"] = 0.1
    farebox.write()
    target = farebox.start()
    found = {}
    for name, beside in STALLS.items():
        load = scenarios.loading(target, beside) if beside is not None else None
        rewriting = threading.Thread(target=_rewrite, args=(farebox, 4.0)) if "config" in name else None
        if rewriting is not None:
            rewriting.start()
        found[name] = healthz(target, 4.0)
        if load is not None and (came := scenarios.ended(load))["failed"]:
            raise RuntimeError(f"{name}: {came['first_fault']}")
        if rewriting is not None:
            rewriting.join()
    assert target.process is not None
    target.process.stop()
    return found


def _rewrite(farebox: Farebox, seconds: float) -> None:
    """Another config every half second."""
    for number in range(int(seconds * 2)):
        farebox.settings["limits"]["connections_max"] = 7000 + number
        farebox.write()
        time.sleep(0.5)
