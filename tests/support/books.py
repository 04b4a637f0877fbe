"""A small ledger whose sums were computed by hand.

Five calls, two keys, three sessions and two days. The last one was first posted as cut off at 0.50 USD
and then corrected to 0.25. In Berlin the third one began after midnight.

    n  key    session      model        started (UTC)   in   out  cost USD   duration  ttft  outcome
    1  ci     s-1          gpt-5-2026   22nd, 10:00   1000   200  0.01           1000   100  complete
    2  ci     s-1          gpt-5-2026   22nd, 10:30    500   100  0.0000005      3000   300  complete
    3  ci     s-2          claude-x     22nd, 23:30    300     -  unknown         500     -  upstream_cut
    4  batch  -            gpt-4o       23rd, 01:00      -     -  0                50     -  upstream_error
    5  batch  ünï/cødé     =gpt         23rd, 02:00     10     5  0.25             20     -  complete
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from farebox.payload import encode
from farebox.records import ToolCall
from farebox.store import Store
from support.events import event

SESSION = "ünï/cødé"
CI_KEY = UUID(int=77)
LAST = UUID("00000000-0000-0001-0000-000000000005")
"""The id of the call that was corrected."""
_IDS = LAST.int - 5


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """A time in November 2024, UTC."""
    return datetime(2024, 11, day, hour, minute, tzinfo=UTC)


def known() -> list[bytes]:
    """The five calls, in order."""
    ci: dict[str, Any] = {"key_name": "ci", "key_id": CI_KEY, "team": "research", "status": 200}
    gpt = {**ci, "session": "s-1", "requested_model": "gpt-5", "model": "gpt-5-2026", "tags": {"tier": "gold"}}
    batch: dict[str, Any] = {"key_name": "batch", "provider": "openai"}
    rows = [
        {
            **gpt,
            "started_at": at(22, 10),
            "input_tokens": 1000,
            "cache_read_tokens": 400,
            "output_tokens": 200,
            "reasoning_tokens": 50,
            "cost_usd": Decimal("0.01"),
            "duration_ms": 1000.0,
            "ttft_ms": 100.0,
            "tool_calls": [ToolCall("search", 2, 40), ToolCall("read", 1, 8)],
            "tool_calls_count": 3,
            "usage_source": "provider",
            "end_user": "ann",
        },
        {
            **gpt,
            "started_at": at(22, 10, 30),
            "input_tokens": 500,
            "output_tokens": 100,
            "cost_usd": Decimal("0.0000005"),
            "duration_ms": 3000.0,
            "ttft_ms": 300.0,
            "tool_calls": [ToolCall("search", 1, 2)],
            "tool_calls_count": 1,
            "usage_source": "provider",
        },
        {
            **ci,
            "session": "s-2",
            "provider": "claude",
            "operation": "messages",
            "endpoint": "/v1/messages",
            "model": "claude-x",
            "started_at": at(22, 23, 30),
            "input_tokens": 300,
            "outcome": "upstream_cut",
            "duration_ms": 500.0,
            "tags": {"tier": "silver"},
            "usage_source": "partial",
        },
        {
            **batch,
            "requested_model": "gpt-4o",
            "started_at": at(23, 1),
            "status": 429,
            "outcome": "upstream_error",
            "cost_usd": Decimal(0),
            "cost_source": "none",
            "duration_ms": 50.0,
        },
        {
            **batch,
            "session": SESSION,
            "model": "=gpt",
            "started_at": at(23, 2),
            "status": 200,
            "input_tokens": 10,
            "output_tokens": 5,
            "cost_usd": Decimal("0.25"),
            "duration_ms": 20.0,
            "usage_source": "provider",
        },
    ]
    return [encode(event(id=UUID(int=_IDS + n), **row)) for n, row in enumerate(rows, 1)]


async def keep(store: Store) -> None:
    """Write the five calls; the last one as a correction."""
    *others, last = known()
    cut = event(id=LAST, key_name="batch", started_at=at(23, 2), outcome="farebox_cut", cost_usd=Decimal("0.5"))
    await store.insert_events([*others, encode(cut)])
    await store.insert_events([last])
