"""Which metrics there are: names, help, labels, buckets. Data only; their names are a promise to dashboards.

A label is open or closed. The values of a closed one are farebox's own words, listed here. Those of
an open one come from outside (model, key, tool ...), so `series` bounds them. A histogram's buckets
reach 10 minutes where a whole answer is measured: a long generation takes that long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, get_args

from farebox.errors import Refusal
from farebox.records import Outcome, UsageSource

OTHER = "other"
"""The value of a label whose own value has no place."""
NONE = "none"
"""The value of a label for a NULL column: no answer (status), no model, no key. An empty one would be no label."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `width` samples are shown for each series, as many 8-byte values are kept."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    closed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    """Upper bounds, ascending, without +Inf."""
    largest: bool = False
    """Of a gauge: the workers' values become one as their largest, not as their sum."""
    looked_up: bool = False
    """Of a gauge: its series are those of the last look at the database, which come and go; none is kept."""

    @property
    def width(self) -> int:
        """Samples of one series: of a histogram its buckets, +Inf, sum and count."""
        return len(self.buckets) + 3 if self.kind == "histogram" else 1

    @property
    def open(self) -> bool:
        """Whether any label's values come from outside."""
        return any(label not in self.closed for label in self.labels)

    def folded(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """`values` with every open label as `other`."""
        return tuple(value if label in self.closed else OTHER for label, value in zip(self.labels, values, strict=True))

    def fallbacks(self) -> Iterator[tuple[str, ...]]:
        """All values that `folded` can give: these series always have room."""
        for values in product(*[(*self.closed[label], OTHER) for label in self.labels if label in self.closed]):
            rest = iter(values)
            yield tuple(next(rest) if label in self.closed else OTHER for label in self.labels)


def _counter(name: str, help: str, *labels: str, **closed: tuple[str, ...]) -> Family:
    return Family(name, "counter", help, (*labels, *closed), closed)


def _histogram(name: str, help: str, *buckets: float) -> Family:
    return Family(name, "histogram", help, ("provider", "model"), buckets=buckets)


def _gauge(name: str, help: str, *labels: str, largest: bool = False) -> Family:
    return Family(name, "gauge", help, labels, largest=largest)


def _standing(name: str, help: str) -> Family:
    help += " Of the current window; the same from every worker and replica, so take max by (budget)."
    return Family(name, "gauge", help, ("budget",), looked_up=True)


def _codes(kind: type[Refusal]) -> Iterator[str]:
    if kind.code is not None:
        yield kind.code
    for child in kind.__subclasses__():
        yield from _codes(child)


TOKEN_TYPES = ("input", "cache_read", "cache_write", "output", "reasoning")
ERROR_KINDS = ("4xx", "429", "5xx", "connect", "timeout", "broken", "cut", "in_band", "farebox")
RELOADS = ("ok", "failed")
GUESSED = ("partial", "estimate", "hold")
"""Usage sources of rows that cost something the provider did not vouch for."""
REASONS = tuple(sorted(set(_codes(Refusal))))

REQUESTS = _counter(
    "farebox_requests_total",
    "Attempts forwarded to a provider, by how they ended. status is none where there was no answer.",
    *("provider", "model", "endpoint", "key", "status"),
    outcome=get_args(Outcome),
)
TOKENS = _counter(
    "farebox_tokens_total",
    "Tokens, each in one type only: input without caches, cache_read, cache_write, output without reasoning, "
    "reasoning. Their sum is total_tokens.",
    *("provider", "model", "key"),
    type=TOKEN_TYPES,
)
COST = _counter(
    "farebox_cost_usd_total",
    "Cost of the attempts whose cost is known, as it was when they ended.",
    *("provider", "model", "key"),
)
CORRECTIONS = _counter(
    "farebox_cost_corrections_usd_total",
    "Cost added (up) and taken back (down) by later postings, over the whole ledger. Replicas tell the same: use max.",
    direction=("up", "down"),
)
DRIFT = _counter(
    "farebox_provider_cost_drift_usd_total",
    "How far farebox's cost by its prices is over or under the cost the provider reported for the same attempt.",
    "provider",
    direction=("over", "under"),
)
DURATION = _histogram(
    "farebox_request_duration_seconds",
    "From the request's arrival to the last byte of its answer.",
    *(0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240, 600),
)
FIRST_TOKEN = _histogram(
    "farebox_time_to_first_token_seconds",
    "From the request's arrival to the first token of its answer.",
    *(0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40, 120, 600),
)
PER_TOKEN = _histogram(
    "farebox_time_per_output_token_seconds",
    "Time after the first token for each further one, of streams that were complete.",
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.045, 0.07, 0.1, 0.2, 0.5, 1, 3),
)
OVERHEAD = _histogram(
    "farebox_overhead_seconds",
    "The part of the duration that farebox itself took.",
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
)
IN_FLIGHT = _gauge("farebox_in_flight_requests", "Requests that are not answered yet.")
TOOL_CALLS = _counter("farebox_tool_calls_total", "Calls of tools that models asked for.", "tool")
REFUSALS = _counter(
    "farebox_refusals_total",
    "Requests that farebox itself answered with an error, by its code; most of these went to no provider.",
    reason=REASONS,
)
USAGE_SOURCE = _counter(
    "farebox_usage_source_total", "Attempts by how their token counts are known.", source=get_args(UsageSource)
)
UNATTESTED = _counter(
    "farebox_unattested_cost_usd_total",
    "The part of the cost that rests on counts the provider did not report, or only in part.",
    source=GUESSED,
)
UNPRICED = _counter("farebox_unpriced_requests_total", "Billable attempts whose cost is not known.", "model")
UNPARSED = _counter("farebox_unparsed_events_total", "Stream events that could not be read.", "provider")
UPSTREAM_ERRORS = _counter(
    "farebox_upstream_errors_total", "Attempts that a provider failed.", "provider", kind=ERROR_KINDS
)
BACKLOG = _gauge("farebox_ledger_backlog_events", "Events that wait in journals and are not in the database yet.")
OLDEST = _gauge("farebox_ledger_oldest_event_seconds", "Age of the oldest event that waits.", largest=True)
LOST = _counter("farebox_ledger_lost_events_total", "Events that neither a journal nor the database took.")
RELOADS_DONE = _counter(
    "farebox_config_reloads_total", "Reloads of the config; a failed one changes nothing.", result=RELOADS
)
BUDGET_LIMIT = _standing("farebox_budget_limit_usd", "What a budget allows.")
BUDGET_SPENT = _standing("farebox_budget_spent_usd", "What a budget's calls cost.")
BUDGET_RESERVED = _standing("farebox_budget_reserved_usd", "What a budget holds for calls that are not over.")
BUDGET_REMAINING = _standing(
    "farebox_budget_remaining_ratio", "The part of a budget that is neither spent nor held, of dollars or of tokens."
)
OVERRUN = _counter(
    "farebox_overrun_usd_total",
    "What calls cost above what their budgets held for them, over the whole ledger. Replicas tell the same: use max.",
)
THRESHOLDS = _counter(
    "farebox_budget_thresholds_total",
    "Thresholds that budgets reached, each once a window, by one of all processes.",
    *("budget", "threshold"),
)
WARNED = _counter(
    "farebox_budget_warned_total", "Calls that a used-up budget let pass because it only warns.", "budget"
)
BUILD = _gauge("farebox_build_info", "Always 1; the label says which farebox this is.", "version", largest=True)

FAMILIES = (
    *(REQUESTS, TOKENS, COST, CORRECTIONS, DRIFT, DURATION, FIRST_TOKEN, PER_TOKEN, OVERHEAD, IN_FLIGHT, TOOL_CALLS),
    *(REFUSALS, USAGE_SOURCE, UNATTESTED, UNPRICED, UNPARSED, UPSTREAM_ERRORS, BACKLOG, OLDEST, LOST, RELOADS_DONE),
    *(BUDGET_LIMIT, BUDGET_SPENT, BUDGET_RESERVED, BUDGET_REMAINING, OVERRUN, THRESHOLDS, WARNED, BUILD),
)
