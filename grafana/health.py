"""Is it well, and is it fast: the line of figures at the top, traffic and errors, latency."""

from __future__ import annotations

from collections.abc import Iterator

from grafana.panels import Json, Query, good_until, graph, row, stat, steps
from grafana.queries import KEYED, MODELLED, PROVIDED, failed_ratio, known, lively, or_zero, quantile, rate, total
from grafana.words import (
    COST,
    DURATION,
    EXACT,
    NARROWED,
    NO_SERIES,
    OUTCOMES,
    OVERHEAD,
    PER_TOKEN,
    QUANTILES,
    QUIET,
    REQUESTS,
    TTFT,
)


def at_a_glance() -> Iterator[Json]:
    """One line of figures: all green means that nothing below needs a look."""
    yield stat(
        "Up",
        Query("count(farebox_in_flight_requests)", instant=True),
        description="Instances of farebox that Prometheus reads. None: see whether farebox runs (`/healthz`) and "
        "whether Prometheus reaches it (its page of targets).",
        unit="none",
        empty="DOWN",
        thresholds=steps((None, "red"), (1, "green")),
    )
    yield stat(
        "Requests / s",
        Query(rate(REQUESTS, KEYED)),
        description="Attempts at providers that ended, per second. Refused calls are not in here: see Refusals.",
        unit="reqps",
        empty=QUIET,
    )
    yield stat(
        "Errors",
        Query(failed_ratio(KEYED)),
        description="Share of calls that failed, at the provider or on the way; requests that were wrong themselves "
        "(400, 404, 413, 422) are left out. Red: see Errors by provider and Upstream errors.",
        unit="percentunit",
        empty=QUIET,
        thresholds=good_until(0.01, 0.05),
        decimals=1,
    )
    yield stat(
        "Open calls",
        Query("sum(farebox_in_flight_requests)"),
        description="Calls open now. Rising while requests / s does not: the provider has become slow.",
        unit="short",
        empty="DOWN",
    )
    yield stat(
        "First token, p95",
        Query(known(quantile(0.95, TTFT, MODELLED))),
        description=f"95 of 100 answers began within this time. {NARROWED} Red: see by which provider below.",
        unit="s",
        empty=QUIET,
        thresholds=good_until(5, 15),
        decimals=2,
    )
    yield stat(
        "Spend / hour",
        Query(f"3600 * {rate(COST, KEYED)}"),
        description="At the present rate, USD. Calls without a known price are not in it: see Without a price.",
        unit="currencyUSD",
        empty="No priced call yet",
        decimals=2,
    )
    yield stat(
        "Spend, this range",
        Query(total(COST, KEYED), instant=True),
        description=f"USD in the range chosen above right. {EXACT}",
        unit="currencyUSD",
        empty="No priced call yet",
        decimals=2,
    )
    yield stat(
        "Ledger behind by",
        Query("max(farebox_ledger_oldest_event_seconds)"),
        description="Age of the oldest call whose row is not in Postgres yet; it waits safely in the journal. "
        "Red: see whether Postgres is up and its disk has room (`/readyz`).",
        unit="s",
        empty="DOWN",
        thresholds=good_until(30, 300),
        decimals=1,
    )


def traffic() -> Iterator[Json]:
    yield row("Traffic and errors")
    yield graph(
        "Requests by outcome",
        Query(rate(REQUESTS, KEYED, by="outcome"), "{{outcome}}"),
        description="How attempts ended. client_gone: the caller left early, often its own time-out. upstream_cut: "
        "the provider broke off in the middle. farebox_cut: a stop or a crash of farebox.",
        unit="reqps",
        empty=QUIET,
        stacked=True,
        colors=OUTCOMES,
    )
    yield graph(
        "Requests by status",
        Query(rate(REQUESTS, KEYED, by="status"), "{{status}}"),
        description="Status of the provider's answer. 401 or 403: its api_key is wrong. 402: its credit is used up. "
        "429: ask for a higher limit, or route to a second provider. An answer that never came has none.",
        unit="reqps",
        empty=QUIET,
        stacked=True,
    )
    yield graph(
        "Errors by provider",
        Query(failed_ratio(KEYED, by="provider"), "{{provider}}"),
        description="Share of calls that failed, without those whose request was wrong. If only one provider is up "
        "here, its own status page knows; put another one behind it in `routes`.",
        unit="percentunit",
        empty=QUIET,
        thresholds=good_until(0.01, 0.05),
    )
    yield graph(
        "Upstream errors",
        Query(or_zero(rate("farebox_upstream_errors_total", PROVIDED, by="provider, kind")), "{{provider}} {{kind}}"),
        description="What went wrong between farebox and providers, by kind. Connections and time-outs: network, DNS, "
        "the provider's address, or a time-out in the config that is too short for its model.",
        unit="ops",
        empty=NO_SERIES,
    )
    yield graph(
        "Refusals",
        Query(or_zero(lively("farebox_refusals_total", "reason")), "{{reason}}"),
        description="Calls that farebox itself answered with an error, by its code; most reached no provider. "
        "invalid_api_key: tell the key's owner. model_not_found: no route is for it. unavailable: the journal's disk "
        "is full, Postgres is away for long, or a limit is reached; the log says which.",
        unit="reqps",
        empty=NO_SERIES,
        stacked=True,
    )
    yield graph(
        "In flight",
        Query("sum(farebox_in_flight_requests)", "open calls"),
        description="Calls open at once, over all workers. Near `limits.requests_in_flight_max` new ones get 503: "
        "add an instance, or raise the limit if memory allows.",
        unit="short",
        empty="No farebox is read",
    )


def quantiles(title: str, histogram: str, description: str) -> Json:
    """Median, slow and slowest calls of a histogram of seconds."""
    lines = [Query(quantile(q, histogram, MODELLED), name) for q, name in zip((0.5, 0.9, 0.99), QUANTILES, strict=True)]
    return graph(
        title,
        *lines,
        description=f"{description} {NARROWED}",
        unit="s",
        empty=QUIET,
        colors=QUANTILES,
        size=(6, 8),
    )


def latency() -> Iterator[Json]:
    yield row("Latency")
    yield quantiles(
        "Time to first token",
        TTFT,
        "From the request to the first piece of a streamed answer: what people wait for. High for one model only: "
        "its provider is busy, or prompts have grown.",
    )
    yield quantiles(
        "Duration",
        DURATION,
        "From the request to the answer's end. Grows with the length of answers: compare with time per output token.",
    )
    yield quantiles(
        "Time per output token",
        PER_TOKEN,
        "How fast answers flow once they have begun; 0.02 s is 50 tokens a second. High: the provider is loaded.",
    )
    yield quantiles(
        "Added by farebox",
        OVERHEAD,
        "What farebox itself costs a call. Milliseconds are normal. High: too few CPUs or workers, or a slow disk.",
    )
    yield graph(
        "First token by provider, p95",
        Query(quantile(0.95, TTFT, MODELLED, by="provider"), "{{provider}}"),
        description=f"Which provider makes people wait. {NARROWED} For a model that several offer, reorder its route.",
        unit="s",
        empty=QUIET,
        thresholds=good_until(5, 15),
        size=(12, 8),
    )
    yield graph(
        "First token by model, p95, the ten slowest",
        Query(f"topk(10, {quantile(0.95, TTFT, MODELLED, by='model')})", "{{model}}"),
        description=f"Which model makes people wait. {NARROWED} Reasoning models think before the first token.",
        unit="s",
        empty=QUIET,
        size=(12, 8),
    )
