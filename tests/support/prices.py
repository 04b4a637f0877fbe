"""Prices of made-up models, whose costs can be worked out in one's head."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from farebox.pricing import Match, Period, Price, Rates, Variant
from farebox.store import PriceLists, Store

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def usd(input: str, output: str, **more: str) -> Rates:
    """Rates in US dollars per million tokens."""
    return Rates(usd={name: Decimal(rate) for name, rate in {"input": input, "output": output, **more}.items()})


def price(model: str, input: str = "1", output: str = "2", *, book: str = "openai", **fields: Any) -> Price:
    """A model that is called by its name and nothing else."""
    fields.setdefault("periods", (Period(rates=usd(input, output)),))
    return Price(book=book, model=model, match=Match(equals=(model,)), **fields)


def tier(name: str, input: str, output: str) -> Variant:
    """Rates of a service tier."""
    return Variant(when={"service_tier": name}, rates=usd(input, output))


async def publish(store: Store, *prices: Price, at: datetime = NOW) -> int:
    """Put a list in force as `farebox prices sync` does; its revision."""
    revision = await PriceLists(store).put("published", "sync", at, prices)
    assert revision is not None
    return revision
