"""The table: each line a ratio or a figure of one run, the bar it is held to, and whether it was met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.overhead.counts import Count
from benchmarks.overhead.scenarios import SCENARIOS, Sample
from benchmarks.overhead.special import Memory

ALL_TARGETS = ("direct", "nginx", "bare", "farebox", "budgeted")
_MORE_THAN_A_CORE = 1.2
_ADDED_US_MIN = 10.0
"""Less than this is noise, and a ratio to it says nothing."""


@dataclass(frozen=True)
class Line:
    """`value` None: not measured. `bar` None: stated only."""

    what: str
    value: float | None
    bar: float | None = None
    unit: str = ""
    spread: tuple[float, float] | None = None
    least: bool = False
    """The bar is a least, not a most."""

    @property
    def met(self) -> bool | None:
        if self.value is None or self.bar is None:
            return None
        return self.value >= self.bar if self.least else self.value <= self.bar

    def cells(self) -> list[str]:
        value = "-" if self.value is None else f"{_figure(self.value)}{self.unit}"
        if self.spread is not None:
            value += f" ({_figure(self.spread[0])} to {_figure(self.spread[1])})"
        bar = "stated" if self.bar is None else f"{'≥' if self.least else '≤'} {self.bar:g}{self.unit}"
        met = {None: "", True: "met", False: "missed"}[self.met]
        return [self.what, bar, value, met]


class Samples:
    """All samples of a run, round by round, and ratios between targets of the same round."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._found: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            self._found.setdefault((sample.target, sample.scenario), []).append(sample)

    def of(self, target: str, scenario: str) -> Sequence[Sample]:
        return self._found.get((target, scenario), ())

    def median(self, target: str, scenario: str, pick: Callable[[Sample], float]) -> float | None:
        values = [pick(sample) for sample in self.of(target, scenario)]
        return statistics.median(values) if values else None

    def _together(self, scenario: str, *targets: str) -> list[list[Sample]]:
        """The samples of these targets, one of each, of every round that has them all."""
        by_turn = [{sample.turn: sample for sample in self.of(target, scenario)} for target in targets]
        return [[of[turn] for of in by_turn] for turn in by_turn[0] if all(turn in of for of in by_turn)]

    def ratio(
        self, what: str, over: str, under: str, scenario: str, bar: float, pick: Callable[[Sample], float]
    ) -> Line:
        """The median of `over` ÷ `under`, round by round."""
        pairs = self._together(scenario, over, under)
        return _ratio(what, bar, [pick(a) / pick(b) for a, b in pairs])

    def added(
        self, what: str, over: str, under: str, scenario: str, bar: float, pick: Callable[[Sample], float]
    ) -> Line:
        """The same of what each adds to the provider asked directly, of rounds in which `under` added anything."""
        triples = self._together(scenario, over, under, "direct")
        added = [(pick(a) - pick(d), pick(b) - pick(d)) for a, b, d in triples]
        return _ratio(what, bar, [a / b for a, b in added if b >= _ADDED_US_MIN])


def lines(samples: Samples) -> list[Line]:
    """What was measured in turns, as far as it was."""
    found = [
        samples.ratio("CPU per small request ÷ nginx", "farebox", "nginx", "small", 3.8, cpu),
        samples.ratio("CPU per small request ÷ bare aiohttp", "farebox", "bare", "small", 0.45, cpu),
        samples.ratio("CPU per streamed chunk ÷ nginx, 1,000 streams", "farebox", "nginx", "streams", 1.4, cpu),
        samples.ratio("CPU per streamed chunk ÷ bare aiohttp", "farebox", "bare", "streams", 1.0, cpu),
        samples.ratio("100 kB prompt, CPU ÷ bare aiohttp", "farebox", "bare", "100 kB", 0.8, cpu),
        samples.ratio("1 MB prompt, CPU ÷ bare aiohttp", "farebox", "bare", "1 MB", 0.8, cpu),
        samples.added("added latency, one connection, p50 ÷ bare aiohttp's", "farebox", "bare", "alone", 0.7, p50),
        samples.added("added latency, one connection, p99 ÷ bare aiohttp's", "farebox", "bare", "alone", 1.0, p99),
        samples.added("first token added, p99, 1,000 streams ÷ nginx's", "farebox", "nginx", "streams", 2.0, token),
        samples.added("first token added, p99, 1,000 streams ÷ bare's", "farebox", "bare", "streams", 1.0, token),
        samples.ratio("a budgeted key ÷ an unbudgeted one, CPU", "budgeted", "farebox", "small", 1.3, cpu),
        Line("Postgres CPU per 1,000 requests", samples.median("farebox", "small", postgres), None, " ms"),
        Line("Postgres CPU per 1,000 budgeted requests", samples.median("budgeted", "small", postgres), None, " ms"),
        _postgres_share(samples),
        samples.ratio("2 workers ÷ 1, CPU per request", "2 workers", "1 worker", "workers", 1.1, cpu),
        samples.ratio("1,000 keys ÷ 10 keys, CPU per request", "1,000 keys", "10 keys", "keys", 1.1, cpu),
        samples.ratio("100,000 keys ÷ 10 keys, CPU per request", "100,000 keys", "10 keys", "keys", 1.1, cpu),
        samples.ratio("streams of 10,000 ÷ of 1,000, CPU per chunk", "10,000 chunks", "1,000 chunks", "long", 1.1, cpu),
        _throughput(samples),
    ]
    return [line for line in found if line.value is not None]


def counts_lines(own: Mapping[str, Count], bare: Mapping[str, Count]) -> list[Line]:
    """Function calls, which no noise changes: against the aiohttp proxy's, and of a budget."""
    call, budgeted, chunk = own["call"].total, own["budgeted call"].total, own["chunk"].total
    return [
        Line("function calls per small request", call),
        Line("function calls per small request ÷ bare aiohttp", call / bare["call"].total),
        Line("function calls per streamed chunk", chunk),
        Line("function calls per streamed chunk ÷ bare aiohttp", chunk / bare["chunk"].total),
        Line("function calls at one connection, a budgeted key ÷ an unbudgeted one", budgeted / call),
    ]


def memory_lines(found: Sequence[Memory]) -> list[Line]:
    """Memory of farebox, where it is among them."""
    own = [one for one in found if one.target == "farebox"]
    return [Line("memory per idle stream", one.stream_kb, 40, " kB") for one in own] + [
        Line("memory at its peak, 5,000 streams", one.peak_mb, 300, " MB") for one in own
    ]


def cold_lines(seconds: float) -> list[Line]:
    return [Line("cold start to the first proxied byte", seconds, 1.0, " s")]


def stall_lines(found: Mapping[str, Mapping[str, float]]) -> list[Line]:
    """How long others wait while something large is on."""
    return [Line(f"/healthz p99 beside: {name}", took["p99"], 20, " ms") for name, took in found.items()]


def markdown(found: Sequence[Line]) -> str:
    """A Markdown table."""
    rows = [["with everything on", "bar", "measured (each round)", ""], ["---", "---", "---", "---"]]
    rows += [line.cells() for line in found]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def absolutes(samples: Samples) -> str:
    """What the ratios are made of, in µs, for who wants to compare machines."""
    rows = [["µs", *ALL_TARGETS], ["---"] * (len(ALL_TARGETS) + 1)]
    for scenario in SCENARIOS.values():
        rows.append(_row(samples, f"{scenario.name}: CPU per {scenario.unit}", scenario.name, cpu))
        if scenario.name == "alone":
            rows.append(_row(samples, "alone: latency p50", scenario.name, p50))
            rows.append(_row(samples, "alone: latency p99", scenario.name, p99))
        if scenario.streams:
            rows.append(_row(samples, f"{scenario.name}: first token p99", scenario.name, token))
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(samples: Samples, what: str, scenario: str, pick: Callable[[Sample], float]) -> list[str]:
    medians = (samples.median(target, scenario, pick) for target in ALL_TARGETS)
    return [what, *("-" if one is None or not one else _figure(one) for one in medians)]


def cpu(sample: Sample) -> float:
    return sample.cpu_us


def postgres(sample: Sample) -> float:
    return sample.postgres_us


def p50(sample: Sample) -> float:
    return float(sample.came["latency"]["p50"])


def p99(sample: Sample) -> float:
    return float(sample.came["latency"]["p99"])


def token(sample: Sample) -> float:
    return float(sample.came["first_token"]["p99"])


def _ratio(what: str, bar: float, ratios: list[float]) -> Line:
    if not ratios:
        return Line(what, None, bar)
    return Line(what, statistics.median(ratios), bar, spread=(min(ratios), max(ratios)))


def _postgres_share(samples: Samples) -> Line:
    own = samples.of("farebox", "small")
    return _ratio("Postgres' CPU ÷ farebox's own", 1.0, [one.postgres_us / one.cpu_us for one in own])


def _throughput(samples: Samples) -> Line:
    """Of two workers, where they had more than a core."""
    line = samples.ratio("2 workers ÷ 1, throughput", "2 workers", "1 worker", "workers", 1.8, lambda one: one.rate)
    busy = samples.median("2 workers", "workers", lambda one: one.busy) or 0.0
    return replace(line, least=True, value=line.value if busy > _MORE_THAN_A_CORE else None)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
