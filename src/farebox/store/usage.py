"""What is asked of the ledger and what it answers: filters, pages, sums."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal, get_args
from uuid import UUID

import msgspec

from farebox.records import UsageRow

Grouping = Literal[
    "key",
    "team",
    "project",
    "user",
    "session",
    "provider",
    "model",
    "operation",
    "endpoint",
    "outcome",
    "status",
    "usage_source",
    "day",
    "hour",
]
"""What usage can be summed by. `user` is the claimed end user; days and hours are UTC."""
GROUPINGS: tuple[str, ...] = get_args(Grouping)

GROUPS_MAX = 10_000
"""Groups in one answer; the smallest are left out past that."""


class UsageFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempts; None: any. `since` is included, `until` is not; `model`: that answered, else was asked for."""

    since: datetime | None = None
    until: datetime | None = None
    key_id: UUID | None = None
    key_name: str | None = None
    provider: str | None = None
    model: str | None = None
    session: str | None = None
    request_id: UUID | None = None


ANY = UsageFilter()


class Page(msgspec.Struct, frozen=True):
    """Rows, newest first, and where the next page starts (None: there is none)."""

    rows: list[UsageRow]
    next: tuple[datetime, UUID] | None


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over attempts. A sum is None where nothing is known; `unknown_cost` attempts are not in `cost_usd`."""

    label: str | None
    attempts: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    total_tokens: int | None
    cost_usd: Decimal | None
    unknown_cost: int
    tool_calls: int
    first_at: datetime
    last_at: datetime


class ToolTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one tool. `attempts`: in how many answers it was called."""

    name: str | None
    attempts: int
    calls: int | None
    argument_bytes: int | None
