"""The control plane's reports: usage, time series, tools, sessions, as JSON or CSV.

Rows as CSV are streamed a page at a time: a million of them takes the memory of one page, and a
client that reads slowly holds no connection of the database. Everything else is bounded and
answered whole. The numbers are `farebox.store.reports`'; parameters are read in `queries`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import msgspec
import structlog

from farebox import csvtext
from farebox.admin import queries
from farebox.admin.queries import FILTERS, PAGING
from farebox.errors import BadRequest, NotFound
from farebox.logs import exception_facts
from farebox.server import ClientGone, Reply, Request, respond
from farebox.store import Store
from farebox.store.reports import ROW_COLUMNS, SUM_COLUMNS, ReportRow, Reports, Tool, read_groupings

_PAGE_ROWS = 200
"""Rows of a stream at a time: so many are a few milliseconds of this process, in which nobody else is served."""
_STALL_S = 30.0
"""How long a client of a stream may read nothing before it is cut off."""
_NO_STORE = (b"Cache-Control", b"no-store")
_SESSION_COLUMNS = ("session", *SUM_COLUMNS, "models", "keys", "users", "providers", "tools")
_TOOL_COLUMNS = Tool.__struct_fields__

Query = dict[str, str]
Action = Callable[[Request, str, Query], Awaitable[tuple[int, Any] | Reply]]


class ReportsApi:
    """Answers reports. Each action takes the request, what the path names, and the query; raises `Refusal`."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._reports = Reports(store)
        self._now = now
        self.actions: Mapping[tuple[str, str], Action] = {
            ("GET", "/usage"): self._usage,
            ("GET", "/timeseries"): self._timeseries,
            ("GET", "/tools"): self._tools,
            ("GET", "/sessions"): self._sessions,
            ("GET", "/sessions/{id}"): self._session,
        }

    async def _usage(self, request: Request, _: str, query: Query) -> tuple[int, Any] | Reply:
        if "group_by" in query:
            return await self._sums(request, query)
        queries.check_known(query, FILTERS, PAGING)
        where, after = queries.read_filter(query), queries.read_cursor(query)
        if _wants_csv(request):
            rows_max = queries.read_stream_limit(query)
            pages = self._reports.pages(where, after=after, rows_max=rows_max, page_rows=_PAGE_ROWS)
            return await _stream(request, pages, "usage.csv")
        rows, place = await self._reports.page(where, after=after, rows_max=queries.read_limit(query))
        return 200, {"data": rows, "next": queries.cursor(place)}

    async def _sums(self, request: Request, query: Query) -> tuple[int, Any] | Reply:
        queries.check_known(query, FILTERS, frozenset(("group_by", "timezone", "limit")))
        by = read_groupings([query["group_by"]])
        report = await self._reports.sums(
            queries.read_filter(query),
            by=by,
            zone=query.get("timezone", "UTC"),
            groups_max=queries.read_groups_limit(query),
        )
        rows = [group.as_row(by) for group in report.groups]
        if _wants_csv(request):
            return _csv(request, rows, (*by, *SUM_COLUMNS), "usage.csv")
        return 200, {"data": rows, "total": report.total, "more": report.more}

    async def _timeseries(self, request: Request, _: str, query: Query) -> tuple[int, Any] | Reply:
        queries.check_known(query, FILTERS, frozenset(("metric", "interval", "group_by", "timezone")))
        metric, interval, where = queries.read_series(query, self._now())
        groupings = read_groupings([query["group_by"]]) if "group_by" in query else ()
        by = read_groupings([interval, *groupings])
        report = await self._reports.sums(where, by=by, zone=query.get("timezone", "UTC"))
        if report.more:
            raise BadRequest(
                f"This series has more than {len(report.groups):,} points: take a longer interval, a shorter time or "
                "a narrower filter.",
                param="group_by" if groupings else "interval",
            )
        columns = ("time", *groupings, "value")
        rows = [
            dict(zip(columns, (*group.labels, getattr(group.sums, metric)), strict=True))
            for group in sorted(report.groups, key=lambda group: group.labels[0] or "")
        ]
        if _wants_csv(request):
            return _csv(request, rows, columns, "timeseries.csv")
        facts = {"metric": metric, "interval": interval, "timezone": query.get("timezone", "UTC")}
        return 200, {**facts, "since": where.since, "until": where.until, "data": rows}

    async def _tools(self, request: Request, _: str, query: Query) -> tuple[int, Any] | Reply:
        queries.check_known(query, FILTERS)
        rows = [msgspec.structs.asdict(tool) for tool in await self._reports.tools(queries.read_filter(query))]
        return _csv(request, rows, _TOOL_COLUMNS, "tools.csv") if _wants_csv(request) else (200, {"data": rows})

    async def _sessions(self, request: Request, _: str, query: Query) -> tuple[int, Any] | Reply:
        queries.check_known(query, FILTERS, PAGING)
        after, rows_max = queries.read_session_cursor(query), queries.read_limit(query)
        sessions, place = await self._reports.sessions(queries.read_filter(query), after=after, rows_max=rows_max)
        rows = [session.as_row() for session in sessions]
        if _wants_csv(request):
            return _csv(request, rows, _SESSION_COLUMNS, "sessions.csv")
        return 200, {"data": rows, "next": queries.cursor(place)}

    async def _session(self, request: Request, item: str, query: Query) -> tuple[int, Any] | Reply:
        queries.check_known(query, FILTERS - {"session"}, PAGING)
        where, after = queries.read_filter(query, session=unquote(item)), queries.read_cursor(query)
        if _wants_csv(request):
            rows_max = queries.read_stream_limit(query)
            pages = self._reports.pages(where, after=after, rows_max=rows_max, page_rows=_PAGE_ROWS)
            return await _stream(request, pages, "session.csv")
        sessions, _ = await self._reports.sessions(where, rows_max=1)
        if not sessions:
            raise NotFound("There is no such session, or none of its calls match.")
        rows, place = await self._reports.page(where, after=after, rows_max=queries.read_limit(query))
        return 200, {"session": sessions[0].as_row(), "data": rows, "next": queries.cursor(place)}


def _wants_csv(request: Request) -> bool:
    return "text/csv" in request.headers.get("Accept", "").lower()


def _csv_headers(name: str) -> list[tuple[bytes, bytes]]:
    return [_NO_STORE, (b"Content-Disposition", b'attachment; filename="%b"' % name.encode())]


def _csv(request: Request, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str) -> Reply:
    body = (csvtext.header(columns) + csvtext.lines(rows, columns)).encode()
    return respond(request, 200, body, content_type=b"text/csv; charset=utf-8", headers=_csv_headers(name))


async def _stream(request: Request, pages: AsyncIterator[list[ReportRow]], name: str) -> Reply:
    """Rows as CSV, page by page. What can be refused is refused before the answer begins; a fault later on cuts it."""
    rows = await anext(pages)
    reply = Reply(request)
    headers = [(b"Content-Type", b"text/csv; charset=utf-8"), *_csv_headers(name)]
    try:
        reply.start(200, b"OK", headers, length=None)
        reply.write(csvtext.header(ROW_COLUMNS).encode())
        while True:
            reply.write(csvtext.lines(rows, ROW_COLUMNS).encode())
            if reply.congested:
                await reply.drain(_STALL_S)
            rows = await anext(pages)
    except StopAsyncIteration:
        with contextlib.suppress(ClientGone):
            reply.end()
    except ClientGone:
        reply.cut()
    except Exception as exc:
        structlog.get_logger().error("an export broke off", **exception_facts(exc))
        reply.cut()
    return reply
