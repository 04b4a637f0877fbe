"""What may still be spent: how budgets stand, what is held, who was refused and what passed a limit."""

from __future__ import annotations

from collections.abc import Iterator

from grafana.panels import Column, Json, Query, graph, row, table
from grafana.queries import or_zero, selector, summed, total
from grafana.words import NO_SERIES

NO_BUDGET = "No budget yet"
REFUSED = 'reason=~"insufficient_quota|rate_limit_exceeded|no_cost_bound|model_unpriced|path_closed"'
"""Refusals that budgets and the limits of keys are the reason for."""


def told(metric: str) -> str:
    """One value for each budget. Every worker and replica tells the database's figures, so they are not added up."""
    return f"max by (budget) ({metric})"


def budgets() -> Iterator[Json]:
    yield row("Budgets")
    yield table(
        "Budgets, the fullest first",
        "budget",
        "Budget",
        Column("Limit", told("farebox_budget_limit_usd"), "currencyUSD", 2),
        Column("Spent", told("farebox_budget_spent_usd"), "currencyUSD", 2),
        Column("Held", told("farebox_budget_reserved_usd"), "currencyUSD", 2),
        Column("Used", f"1 - {told('farebox_budget_remaining_ratio')}", "percentunit", 0),
        description="Current windows. Held: for calls that are not over; it becomes spent, or is given back. other: "
        "all that have no line of their own, together. `farebox budgets list` has every one; `budgets set` changes it.",
        empty=NO_BUDGET,
        size=(12, 8),
    )
    yield graph(
        "Left, the ten fullest",
        Query(f"bottomk(10, {told('farebox_budget_remaining_ratio')})", "{{budget}}"),
        description="The part that is neither spent nor held. At 0 calls wait for what is held, then are refused until "
        "the window ends. A gap: Postgres did not answer, and old figures would lie.",
        unit="percentunit",
        empty=NO_BUDGET,
        top=1,
        size=(6, 8),
    )
    yield graph(
        "Held, the ten largest",
        Query(f"topk(10, {told('farebox_budget_reserved_usd')})", "{{budget}}"),
        description="USD held for calls that are not over. Large beside what is spent: clients ask for far more "
        "max_tokens than they use. Not falling with nothing in flight: a process died; its lease frees it.",
        unit="currencyUSD",
        empty=NO_BUDGET,
        size=(6, 8),
    )
    refused = summed(f"increase({selector('farebox_refusals_total', REFUSED)}[$__rate_interval])", "reason")
    yield graph(
        "Refused for a budget or a limit",
        Query(or_zero(f"{refused} > 0"), "{{reason}}"),
        description="insufficient_quota: used up. rate_limit_exceeded: a key's rpm, tpm, max_parallel. no_cost_bound, "
        "model_unpriced, path_closed: what a budget can't pay for in advance; the message to the client says why.",
        unit="short",
        empty=NO_SERIES,
        stacked=True,
        size=(6, 8),
    )
    yield graph(
        "Passed though used up",
        Query(or_zero(summed("increase(farebox_budget_warned_total[$__rate_interval])", "budget")), "{{budget}}"),
        description="Calls over a budget with `on_exceed: warn`, which lets them pass. Steady: the limit is too low, "
        "or it is time for `on_exceed: reject`.",
        unit="short",
        empty=NO_SERIES,
        stacked=True,
        size=(6, 8),
    )
    yield graph(
        "Overrun",
        Query(or_zero("max(increase(farebox_overrun_usd_total[$__rate_interval]))"), "above the hold"),
        description="USD by which bills were above what was held: streams that outran an `expected` hold, or were let "
        "run on by `on_extend_denied: overrun`. Growing: make the budget `strict`, or give its limit that margin.",
        unit="currencyUSD",
        empty=NO_SERIES,
        size=(6, 8),
    )
    yield table(
        "Thresholds reached, this range",
        "budget",
        "Budget",
        Column("Times", total("farebox_budget_thresholds_total", by="budget"), "short"),
        description="How many of its `thresholds` each budget reached; each is told once a window, also in the log and "
        "to `alerts.webhook_url`. All of them every day: the limit is too low for what is asked of it.",
        empty="No threshold was reached",
        size=(6, 8),
    )
