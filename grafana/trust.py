"""Can the figures be trusted: where they come from, what has no price, whether every row arrived."""

from __future__ import annotations

from collections.abc import Iterator

from grafana.panels import DATASOURCE, Column, Json, Query, good_until, graph, row, stat, steps, table
from grafana.queries import MODEL_ONLY, PROVIDED, or_zero, rate, summed, total
from grafana.words import NO_SERIES, QUIET, SOURCES


def trust() -> Iterator[Json]:
    yield row("Can the figures be trusted")
    yield graph(
        "Where counts come from",
        Query(rate("farebox_usage_source_total", by="source"), "{{source}}"),
        description="provider: reported, exact. partial, estimate: farebox counted where the provider said nothing, "
        "mostly for answers that were cut. Many estimates: see `stream_options` of the provider.",
        unit="reqps",
        empty=QUIET,
        stacked=True,
        colors=SOURCES,
    )
    yield graph(
        "Cost that rests on estimates, per hour",
        Query(f"3600 * {rate('farebox_unattested_cost_usd_total', by='source')}", "{{source}}"),
        description="USD per hour of calls whose counts the provider did not report in full. It is what an invoice "
        "may differ by: keep it small beside Spend / hour.",
        unit="currencyUSD",
        empty=NO_SERIES,
        stacked=True,
        colors=SOURCES,
    )
    yield table(
        "Without a price, this range",
        "model",
        "Model",
        Column("Requests", total("farebox_unpriced_requests_total", MODEL_ONLY, by="model"), "short"),
        description="Calls whose cost is unknown, and so in no sum. Give the model a price under its provider's "
        "`prices`, or `farebox prices sync`; then `farebox prices reprice` makes the past right.",
        empty="Every call has a price",
        size=(8, 8),
    )
    yield graph(
        "Provider's own cost against ours, per hour",
        Query(
            or_zero(f"3600 * {rate('farebox_provider_cost_drift_usd_total', PROVIDED, by='provider, direction')}"),
            "{{provider}} {{direction}}",
        ),
        description="USD per hour by which costs that providers report differ from the price book's. Steady: a price "
        "has changed; `farebox prices sync`, then `farebox prices reprice`.",
        unit="currencyUSD",
        empty=NO_SERIES,
    )
    yield graph(
        "Corrections of cost",
        Query(
            # Every instance tells the database's one total, so they are not added up.
            "max by (direction) (increase(farebox_cost_corrections_usd_total[$__rate_interval]))",
            "{{direction}}",
        ),
        description="USD by which rows were corrected afterwards, by `farebox prices reprice` or a later report. "
        "Corrections are new postings: reports by day already have them, the spend above keeps what was first said.",
        unit="currencyUSD",
        empty=NO_SERIES,
    )
    yield graph(
        "Events that could not be read",
        Query(or_zero(rate("farebox_unparsed_events_total", PROVIDED, by="provider")), "{{provider}}"),
        description="Pieces of streams that are no JSON or are longer than `limits.event_bytes_max`. Clients got them "
        "all the same, but counts may be estimates. Rising: the provider changed something; look at its raw stream.",
        unit="ops",
        empty=NO_SERIES,
    )


def ledger() -> Iterator[Json]:
    yield row("Ledger and config")
    yield graph(
        "Rows waiting for Postgres",
        Query("sum(farebox_ledger_backlog_events)", "events"),
        description="Calls in the journal that Postgres does not have yet. Rising for minutes: Postgres is away, slow "
        "or full. At `ledger.journal_max_mb` new calls are refused.",
        unit="short",
        empty="No farebox is read",
        size=(6, 8),
    )
    yield graph(
        "The oldest of them",
        Query("max(farebox_ledger_oldest_event_seconds)", "age"),
        description="How long the oldest has waited. A second is normal; minutes mean that nothing is written.",
        unit="s",
        empty="No farebox is read",
        thresholds=good_until(30, 300),
        size=(6, 8),
    )
    yield stat(
        "Events lost, this range",
        Query(total("farebox_ledger_lost_events_total"), instant=True),
        description="Calls that were passed unrecorded because the journal could not be written, as "
        "`metering.on_ledger_failure: pass` allows. Any: make room on the journal's disk; spend is too low by them.",
        unit="short",
        empty="No farebox is read",
        thresholds=steps((None, "green"), (1, "red")),
        decimals=0,
        size=(6, 8),
    )
    yield graph(
        "Config reloads",
        Query(
            summed("increase(farebox_config_reloads_total[$__rate_interval])", "result"),
            "{{result}}",
        ),
        description="Reloads by result. After one that failed the old config is still in force: `farebox check` says "
        "what is wrong, by line.",
        unit="short",
        empty=NO_SERIES,
        size=(6, 8),
    )


def reloads() -> Json:
    """Vertical lines where the config was reloaded."""
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": f"{summed('increase(farebox_config_reloads_total[2m])', 'result')} > 0",
        "hide": False,
        "iconColor": "purple",
        "name": "Config reloads",
        "step": "60s",
        "tagKeys": "result",
        "titleFormat": "config reload: {{result}}",
    }
