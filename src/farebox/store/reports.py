"""Reports over the ledger: rows page by page, sums by up to three groupings, sessions.

All of it reads the view `farebox.usage`, so corrections are folded in. Nothing of a request becomes
part of a statement: groupings are values that the SQL compares with the names it knows. Each call
is one statement or one short read-only transaction; a long export is many pages, and between two of
them no connection is held, so a slow reader costs the pool nothing. Half of the pool is never taken:
rows are stored and keys looked up while reports over millions of rows take their time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from farebox.errors import BadRequest
from farebox.records import UsageRow
from farebox.store.failures import StoreUnavailable
from farebox.store.usage import ANY, UsageFilter

if TYPE_CHECKING:
    from asyncpg import Record

    from farebox.store.store import Store

ROW_COLUMNS = UsageRow.__struct_fields__
"""The columns of a row: those of the view, in its order."""

TIMES = ("minute", "hour", "day", "week", "month")
"""Groupings by when a call started. Weeks begin on Monday. All but minutes follow the time zone asked for."""
GROUPINGS = (
    *("key", "team", "project", "user", "session", "provider", "model", "operation", "endpoint", "outcome"),
    *("status", "usage_source", "tool"),
    *TIMES,
)
"""What usage can be summed by, besides `tag:NAME`. `user` is the claimed end user."""
GROUPINGS_MAX = 3
GROUPS_MAX = 10_000
"""Groups in one answer unless it asks for more."""
GROUPS_LIMIT = 100_000
"""Groups in any answer; they are held in memory. What is past that is counted in the total only."""
PAGE_ROWS = 1000
"""Rows fetched at a time: some 3 MB at most usual sizes, 20 MB if every row has a large `usage_raw`."""
_TURN_S = 30.0
"""How long a report waits for others to be done; then it is refused."""
_TAG_CHARS_MAX = 64
_GROUPS_A_TURN = 200
"""Groups read in one go: a few milliseconds in which nothing else is served."""

ReportRow = dict[str, Any]
"""A row: values by ROW_COLUMNS. Money is text, exact; tags, units, usage_raw and tool_calls are `msgspec.Raw`."""
Place = tuple[datetime, UUID]
"""Where a page ends: the last row's `started_at` and `id`."""


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over attempts. None where nothing is known; what `unknown_cost` attempts cost is not in `cost_usd`.

    `cost_usd` is an exact decimal in digits; times are milliseconds, medians and 95th percentiles.
    `errors`: the provider failed or its answer was cut short; a client that left is none.
    """

    calls: int = 0
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    total_tokens: int | None = None
    cost_usd: str | None = None
    unknown_cost: int = 0
    errors: int = 0
    tool_calls: int | None = None
    duration_p50_ms: float | None = None
    duration_p95_ms: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    first_at: datetime | None = None
    last_at: datetime | None = None


SUM_COLUMNS = Sums.__struct_fields__


class Group(msgspec.Struct, frozen=True):
    """The sums of what has these labels, one for each grouping (None: it had none)."""

    labels: tuple[str | None, ...]
    sums: Sums

    def as_row(self, by: Sequence[str]) -> dict[str, Any]:
        """Labels under the names of the groupings, then the sums, one flat object."""
        return dict(zip(by, self.labels, strict=True)) | msgspec.structs.asdict(self.sums)


class Report(msgspec.Struct, frozen=True):
    """Groups, the latest time first and then the most expensive, and the sums of everything that matches.

    By tool, a call stands under each tool it called, so the groups come to more than the total.
    """

    groups: list[Group]
    total: Sums
    more: bool
    """There were more groups than asked for."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one tool: in how many `calls` of the provider it was called, how often, and the arguments' size."""

    tool: str | None
    calls: int
    tool_calls: int | None
    argument_bytes: int | None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What one session came to. Lists of names end after 20."""

    session: str
    sums: Sums
    models: list[str]
    keys: list[str]
    users: list[str]
    providers: list[str]
    tools: list[str]

    def as_row(self) -> dict[str, Any]:
        """One flat object."""
        lists = {name: getattr(self, name) for name in ("models", "keys", "users", "providers", "tools")}
        return {"session": self.session} | msgspec.structs.asdict(self.sums) | lists


class Reports:
    """What is asked of a store's ledger. Calls raise like the store's, and BadRequest for what makes no sense."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(max(1, store.pool_size_max // 2))

    async def page(
        self, where: UsageFilter = ANY, *, after: Place | None = None, rows_max: int = 100
    ) -> tuple[list[ReportRow], Place | None]:
        """At most `rows_max` rows (and at most PAGE_ROWS), newest first, and where the next page starts."""
        rows_max = max(1, min(rows_max, PAGE_ROWS))
        found = await self._fetch("report_rows", *where.values(), *(after or (None, None)), rows_max + 1)
        rows = [_row(record) for record in found[:rows_max]]
        return rows, (rows[-1]["started_at"], rows[-1]["id"]) if len(found) > rows_max else None

    async def pages(
        self,
        where: UsageFilter = ANY,
        *,
        after: Place | None = None,
        rows_max: int | None = None,
        page_rows: int = PAGE_ROWS,
    ) -> AsyncIterator[list[ReportRow]]:
        """All rows, or the first `rows_max`, a page at a time and each once; at least one page, which may be empty.

        What is older than the first row and there when this begins is in; what comes later may be.
        """
        left = rows_max
        while True:
            wanted = page_rows if left is None else min(left, page_rows)
            rows, after = await self.page(where, after=after, rows_max=wanted)
            yield rows
            if left is not None:
                left -= len(rows)
            if after is None or left == 0:
                return

    async def count(self, where: UsageFilter = ANY) -> int:
        """How many rows match."""
        [row] = await self._fetch("report_count", *where.values())
        calls: int = row["calls"]
        return calls

    async def spend(self, where: UsageFilter = ANY) -> Sums:
        """Calls, tokens, cost and errors alone, which is several times quicker than `sums`."""
        [row] = await self._fetch("report_spend", *where.values())
        return Sums(**dict(row))

    async def sums(
        self, where: UsageFilter = ANY, *, by: Sequence[str] = (), zone: str = "UTC", groups_max: int = GROUPS_MAX
    ) -> Report:
        """Sums by up to GROUPINGS_MAX of GROUPINGS or `tag:NAME`; hours, days ... are those of `zone`."""
        by, place = read_groupings(by), read_zone(zone)
        groups_max = max(1, min(groups_max, GROUPS_LIMIT))
        asked = [*by, *([None] * (GROUPINGS_MAX - len(by)))]
        statement = self._store.sql["report_sums"]
        async with (
            self._turn(),
            self._store.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            totals = await connection.fetch(statement, *where.values(), None, None, None, zone, 1, False)
            found = []
            if by and totals:
                more = groups_max + 1
                found = await connection.fetch(statement, *where.values(), *asked, zone, more, "tool" in by)
        groups: list[Group] = []
        for record in found[:groups_max]:
            groups.append(Group(_labels(record, by, place), _sums(record)))
            if len(groups) % _GROUPS_A_TURN == 0:
                await asyncio.sleep(0)
        return Report(groups, _sums(totals[0]) if totals else Sums(), len(found) > groups_max)

    async def tools(self, where: UsageFilter = ANY) -> list[Tool]:
        """Tools by name, the most called first, at most GROUPS_MAX."""
        return [Tool(**dict(row)) for row in await self._fetch("report_tools", *where.values(), GROUPS_MAX)]

    async def sessions(
        self, where: UsageFilter = ANY, *, after: tuple[datetime, str] | None = None, rows_max: int = 100
    ) -> tuple[list[Session], tuple[datetime, str] | None]:
        """Sessions, the last seen first, summed over the rows that match; and where the next page starts."""
        rows_max = max(1, min(rows_max, PAGE_ROWS))
        found = await self._fetch("report_sessions", *where.values(), *(after or (None, None)), rows_max + 1)
        page = found[:rows_max]
        return [_session(record) for record in page], (
            (page[-1]["last_at"], page[-1]["session"]) if len(found) > rows_max else None
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise StoreUnavailable("other reports take all the time there is; ask again later") from None
        try:
            yield
        finally:
            self._turns.release()

    async def _fetch(self, query: str, *args: object) -> list[Record]:
        async with self._turn():
            return await self._store.fetch(query, *args)


def read_groupings(texts: Sequence[str]) -> tuple[str, ...]:
    """`["day,model", "tag:tier"]` as `("day", "model", "tag:tier")`. Raises BadRequest."""
    by = tuple(part.strip() for text in texts for part in text.split(","))
    for grouping in by:
        if grouping.startswith("tag:"):
            if not 4 < len(grouping) <= 4 + _TAG_CHARS_MAX or "\0" in grouping:
                raise BadRequest(f"tag:NAME has a name of 1 to {_TAG_CHARS_MAX} characters.", param="group_by")
        elif grouping not in GROUPINGS:
            known = ", ".join(GROUPINGS)
            raise BadRequest(f"{grouping[:100]!r} is not a grouping. There are {known} and tag:NAME.", param="group_by")
    if len(by) > GROUPINGS_MAX or len(set(by)) < len(by):
        raise BadRequest(f"Usage is summed by at most {GROUPINGS_MAX} groupings, each named once.", param="group_by")
    return by


def read_zone(name: str) -> ZoneInfo | None:
    """The time zone of that name, None for UTC. Raises BadRequest."""
    if name == "UTC":
        return None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise BadRequest(f"{name[:100]!r} is not a time zone such as Europe/Berlin.", param="timezone") from None


def _labels(record: Record, by: Sequence[str], zone: ZoneInfo | None) -> tuple[str | None, ...]:
    labels = []
    for number, grouping in enumerate(by, 1):
        label = record[f"label_{number}"]
        if zone is not None and grouping in ("minute", "hour") and label is not None:
            label = datetime.fromisoformat(label).astimezone(zone).isoformat(timespec="minutes")
        labels.append(label)
    return tuple(labels)


def _sums(record: Record) -> Sums:
    facts = {name: record[name] for name in SUM_COLUMNS if not name.endswith("_ms")}
    for name in ("duration", "ttft"):
        half, most = record[f"{name}s_ms"] or (None, None)
        facts[f"{name}_p50_ms"], facts[f"{name}_p95_ms"] = _rounded(half), _rounded(most)
    return Sums(**facts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _session(record: Record) -> Session:
    lists = {name: record[name] or [] for name in ("models", "keys", "users", "providers", "tools")}
    return Session(session=record["session"], sums=_sums(record), **lists)


def _row(record: Record) -> ReportRow:
    row = dict(record)
    for name in ("tags", "units", "tool_calls", "usage_raw"):
        if row[name] is not None:
            # As it is stored: a provider's number may be larger than a float.
            row[name] = msgspec.Raw(row[name].encode())
    return row
