"""Keys with budgets in front of a scripted provider whose prices are plain, and what the books say afterwards."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg

from farebox.store.budgets import BudgetStore
from support.app import Farebox, settings_of
from support.provider import FakeProvider, Received, Wire

PRICES = {"*": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10}}
"""A million tokens in for a dollar, out for ten."""
FREE_INPUT = {"*": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 10}}
"""What a call costs is what it may write: the hold of a call that uses its limit is its cost."""


def settings(
    database: str,
    folder: Path,
    provider: FakeProvider,
    *,
    prices: dict[str, Any] = PRICES,
    more: dict[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """One provider `p` with `prices`, and `more`."""
    providers = {"p": {"dialect": "openai", "base_url": provider.base_url, "prices": prices}, **(more or {})}
    return settings_of(database, folder, providers, **sections)


async def budgeted(
    farebox: Farebox,
    name: str,
    *budgets: dict[str, Any],
    rpm: int | None = None,
    tpm: int | None = None,
    max_parallel: int | None = None,
    **facts: Any,
) -> Farebox:
    """The same farebox seen by a new key with these budgets of its own (by default strict, a total, no wait)."""
    secret, record = await farebox.new_key(name, **facts)
    plain: dict[str, Any] = {"window": "total", "admission": "strict", "wait_s": 0}
    wanted = [plain | budget for budget in budgets]
    store = BudgetStore(farebox.app.store)
    await store.set_key_limits(record.id, record.name, wanted, rpm, tpm, max_parallel, "test")
    await farebox.app.budgets.refresh()
    return Farebox(farebox.app, secret, name)


def usd(amount: str) -> Decimal:
    return Decimal(amount)


def chat(max_tokens: int | None = 100, *, stream: bool = False, model: str = "m", **members: Any) -> dict[str, Any]:
    """A chat request."""
    limit = {} if max_tokens is None else {"max_tokens": max_tokens}
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **limit, **members}


def answered(output: int, *, prompt: int = 7, model: str = "m") -> bytes:
    """A whole chat answer that used so many tokens."""
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    return json.dumps({"id": "c", "model": model, "choices": [choice], "usage": usage}).encode()


def word_frame(text: str = "abc", *, model: str = "m") -> bytes:
    """A chunk with text: three bytes of it count as a token while it streams."""
    return (
        b"data: "
        + json.dumps(
            {"id": "c", "model": model, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        ).encode()
        + b"\n\n"
    )


def closing_frames(output: int, *, prompt: int = 7, model: str = "m") -> list[bytes]:
    """The end of a stream: finish, usage, [DONE]."""
    finish = {"id": "c", "model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    counted = {"id": "c", "model": model, "choices": [], "usage": usage}
    return [*(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in (finish, counted)), b"data: [DONE]\n\n"]


def spoken(output: int, *, per_frame: int = 50) -> list[bytes]:
    """A whole stream of so many tokens, 3 bytes each."""
    frames = [word_frame("abc" * min(per_frame, output - at)) for at in range(0, output, per_frame)]
    return [*frames, *closing_frames(output)]


async def begin_stream(wire: Wire) -> None:
    await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])


def asked_tokens(received: Received) -> int:
    """The output limit a request at the provider had."""
    value = json.loads(received.body)["max_tokens"]
    assert isinstance(value, int)
    return value


class Books:
    """What stands in the database."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._dsn)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args)
            return rows
        finally:
            await connection.close()

    async def windows(self) -> list[asyncpg.Record]:
        """All counters of budgets (not of rates)."""
        return await self.fetch(
            "SELECT w.*, b.name, b.purpose FROM farebox.budget_window AS w "
            "JOIN farebox.budget AS b ON b.id = w.budget_id WHERE b.purpose = 'budget' ORDER BY w.id"
        )

    async def window(self, key: Farebox) -> asyncpg.Record:
        """The only counter of a key's own budgets."""
        rows = [row for row in await self.windows() if row["name"].startswith(f"key:{key.key_name}:")]
        assert len(rows) == 1, rows
        return rows[0]

    async def in_use(self) -> int:
        """Calls that hold something, rates included, and floats."""
        [row] = await self.fetch(
            "SELECT (SELECT count(*) FROM farebox.reservation WHERE state = 'open') "
            "+ (SELECT count(*) FROM farebox.budget_float) AS held, "
            "(SELECT coalesce(sum(open), 0) FROM farebox.budget_window) AS counted"
        )
        held: int = row["held"]
        assert (held == 0) == (row["counted"] == 0)
        return held

    async def nothing_held(self, timeout_s: float = 30) -> None:
        """Until nothing is: what a client left behind in the middle of a reserve is given back in the background."""
        async with asyncio.timeout(timeout_s):
            while await self.in_use():
                await asyncio.sleep(0.02)

    async def check(self) -> None:
        """Nothing is held, and what each counter says is spent is the sum of its rows, each attempt one row."""
        await self.nothing_held()
        wrong = await self.fetch(
            "SELECT w.id, w.spent_usd, w.reserved_usd, w.reserved_tokens, w.open, sum(e.cost_usd) AS rows_usd "
            "FROM farebox.budget_window AS w LEFT JOIN LATERAL ("
            "  SELECT DISTINCT ON (id) id, cost_usd, window_ids FROM farebox.usage_entry "
            "  WHERE window_ids @> ARRAY[w.id] ORDER BY id, posting_no DESC) AS e ON true "
            "GROUP BY w.id HAVING w.spent_usd <> coalesce(sum(e.cost_usd), 0) "
            "  OR w.reserved_usd <> 0 OR w.reserved_tokens <> 0 OR w.open <> 0"
        )
        assert not wrong, wrong
