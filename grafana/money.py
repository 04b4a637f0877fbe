"""What it costs, and what for: spend, tokens, tools."""

from __future__ import annotations

from collections.abc import Iterator

from grafana.panels import Column, Json, Query, graph, row, table
from grafana.queries import KEYED, rate, ratio, total
from grafana.words import COST, EXACT, QUIET, REQUESTS, TOKENS, TYPES


def cost() -> Iterator[Json]:
    yield row("Cost")
    for label, question in (
        ("model", "which model the money goes to"),
        ("key", "who spends it"),
        ("provider", "whose invoice it will be on"),
    ):
        yield graph(
            f"Spend / hour by {label}",
            Query(f"3600 * topk(10, {rate(COST, KEYED, by=label)})", f"{{{{{label}}}}}"),
            description=f"USD per hour at the rate of each moment, the ten largest: {question}. A step up without "
            "more requests: longer prompts, a dearer model, or a cache that no longer hits.",
            unit="currencyUSD",
            empty="No priced call yet",
            stacked=True,
        )
    for label in ("model", "key", "provider"):
        yield table(
            f"By {label}, this range",
            label,
            label.capitalize(),
            Column("Requests", total(REQUESTS, KEYED, by=label), "short"),
            Column("Tokens", total(TOKENS, KEYED, by=label), "short", 1),
            Column("Cost", total(COST, KEYED, by=label), "currencyUSD", 2),
            description=f"Requests, tokens and USD in the range chosen above right. No cost: no price is known, so "
            f"give it one under the provider's `prices`. {EXACT}",
            empty=QUIET,
        )


def tokens() -> Iterator[Json]:
    yield row("Tokens and tools")
    yield graph(
        "Tokens / s by type",
        Query(rate(TOKENS, KEYED, by="type"), "{{type}}"),
        description="Disjoint types, so the stack is all of them: input without caches, cache reads and writes, "
        "output without reasoning, reasoning.",
        unit="short",
        empty=QUIET,
        stacked=True,
        colors=TYPES,
        size=(6, 8),
    )
    reads = rate(TOKENS, KEYED, 'type="cache_read"', by="provider")
    inputs = rate(TOKENS, KEYED, 'type=~"input|cache_read|cache_write"', by="provider")
    yield graph(
        "Cache share of input",
        Query(ratio(f"{reads} or 0 * {inputs}", inputs), "{{provider}}"),
        description="Input tokens that providers read from their prompt cache, which costs a fraction. Falling: "
        "something at the beginning of prompts has begun to vary (a date, an id, the order of tools).",
        unit="percentunit",
        empty=QUIET,
        top=1,
        size=(6, 8),
    )
    yield graph(
        "Tokens / s by model, the ten largest",
        Query(f"topk(10, {rate(TOKENS, KEYED, by='model')})", "{{model}}"),
        description="Tokens of all types. Compare with spend by model: the dearest need not be the busiest.",
        unit="short",
        empty=QUIET,
        stacked=True,
        size=(6, 8),
    )
    yield table(
        "Tool calls, this range, the twenty most called",
        "tool",
        "Tool",
        Column("Calls", f"topk(20, {total('farebox_tool_calls_total', by='tool')})", "short"),
        description="Tools that models asked for, by name; not narrowed by the choices above. A tool that is called "
        "far more often than before: a loop in an agent.",
        empty="No tool was called",
        size=(6, 8),
    )
