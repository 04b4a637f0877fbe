"""The control plane's reports over HTTP: sums, series, tools, sessions, CSV, and what it refuses."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
import pytest_asyncio

from farebox.payload import encode
from farebox.store.reports import GROUPINGS, PAGE_ROWS
from support.app import ADMIN_TOKEN
from support.books import SESSION, keep
from support.bulk import fill
from support.events import event, events
from support.http import Answer, RawClient, call
from support.live import Serving, relaying, serving
from support.postgres import PostgresServer
from support.provider import plain

pytestmark = pytest.mark.asyncio(loop_scope="module")

API = "/farebox/api"
NEWEST = datetime(2025, 11, 1, tzinfo=UTC)
BULK = 2 * PAGE_ROWS + 7
"""Calls of `support.bulk` that lie beside the hand-computed ones, a year later."""
HAND = "until=2025-01-01"
"""The filter that leaves the hand-computed ones."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    """One farebox for all tests here: they read."""
    async with serving(postgres, ["up"], relaying) as serving_:
        await keep(serving_.farebox.app.store)
        await fill(serving_.farebox.app.store._dsn, BULK, NEWEST)
        yield serving_


class Api:
    """The control plane, asked with the admin token."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __call__(self, target: str) -> Any:
        """The JSON of an answer that must be a 200."""
        answer = await self.raw(target)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    async def refused(self, target: str, **more: Any) -> tuple[int, Any]:
        """The status and the error of an answer that must be one."""
        answer = await self.raw(target, **more)
        return answer.status, json.loads(answer.body)["error"]

    async def csv(self, target: str) -> list[dict[str, str]]:
        """The lines of an answer asked for as CSV."""
        answer = await self.raw(target, accept="text/csv")
        assert answer.status == 200, answer.body
        assert answer.header("content-type") == "text/csv; charset=utf-8"
        assert answer.header("cache-control") == "no-store"
        return list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))

    async def raw(
        self, target: str, *, accept: str | None = None, key: str | None = ADMIN_TOKEN, method: str = "GET"
    ) -> Answer:
        headers = {} if accept is None else {"Accept": accept}
        return await call(self.port, API + target, key=key, method=method, headers=headers)


@pytest_asyncio.fixture(loop_scope="module")
async def api(served: Serving) -> AsyncIterator[Api]:
    yield Api(served.farebox.port)


@pytest.mark.parametrize("target", ["/usage?group_by=key", "/timeseries", "/tools", "/sessions", "/sessions/s-1"])
async def test_reports_are_for_the_admin(api: Api, served: Serving, target: str) -> None:
    """Without the admin token, or with a farebox key: 401; another method: 405."""
    assert (await api.refused(target, key=None))[0] == 401
    assert (await api.refused(target, key=served.farebox.key))[0] == 401
    assert (await api.refused(target, method="DELETE"))[0] == 405


# -- sums ----------------------------------------------------------------------------------------


async def test_sums_are_those_computed_by_hand(api: Api) -> None:
    """`group_by=key`: both groups and the total, exact, the correction folded in, the unknown counted."""
    answer = await api(f"/usage?group_by=key&{HAND}")
    batch, ci = answer["data"]
    assert (ci["key"], ci["calls"], ci["total_tokens"], ci["cost_usd"]) == ("ci", 3, 2100, "0.0100005")
    assert (ci["unknown_cost"], ci["errors"], ci["tool_calls"], ci["duration_p95_ms"]) == (1, 1, 4, 2800.0)
    assert (batch["key"], batch["calls"], batch["cost_usd"], batch["errors"]) == ("batch", 2, "0.25", 1)
    total = answer["total"]
    assert (total["calls"], total["input_tokens"], total["output_tokens"]) == (5, 1810, 305)
    assert (total["cost_usd"], total["unknown_cost"]) == ("0.2600005", 1)
    assert answer["more"] is False


async def test_every_grouping_is_answered(api: Api) -> None:
    """Each grouping, and a tag: the groups hold all five calls (by tool, those that called one)."""
    for by in (*GROUPINGS, "tag:tier"):
        groups = (await api(f"/usage?group_by={by}&{HAND}"))["data"]
        assert sum(group["calls"] for group in groups) == (3 if by == "tool" else 5), by
        assert all(by in group for group in groups)


async def test_groupings_combine_and_follow_a_time_zone(api: Api) -> None:
    """`group_by=day,model&timezone=`: members of both names; the call after midnight in Berlin is the next day's."""
    groups = (await api(f"/usage?group_by=day,model&timezone=Europe/Berlin&{HAND}"))["data"]
    assert [(group["day"], group["model"]) for group in groups] == [
        ("2024-11-23", "=gpt"),
        ("2024-11-23", "gpt-4o"),
        ("2024-11-23", "claude-x"),
        ("2024-11-22", "gpt-5-2026"),
    ]


async def test_filters_are_those_of_the_rows(api: Api) -> None:
    """Each filter, alone and with another, leaves the same calls in rows, sums and series."""
    for query, number in {
        "key=ci": 3,
        "key_id=00000000-0000-0000-0000-00000000004d": 3,
        "team=research": 3,
        "user=ann": 1,
        "provider=claude": 1,
        "model=gpt-4o": 1,
        f"session={quote(SESSION, safe='')}": 1,
        "outcome=upstream_cut": 1,
        "tag=tier=gold": 2,
        "tag=tier=gold,other=x": 0,
        "key=ci&session=s-1": 2,
        "project=none": 0,
        "since=2024-11-22T10:30:00Z": 4,
    }.items():
        assert len((await api(f"/usage?{HAND}&{query}"))["data"]) == number, query
        assert (await api(f"/usage?group_by=month&{HAND}&{query}"))["total"]["calls"] == number, query
        if "since" not in query:
            points = (await api(f"/timeseries?metric=calls&interval=hour&{HAND}&since=2024-11-20&{query}"))["data"]
            assert sum(point["value"] for point in points) == number, query


# -- series --------------------------------------------------------------------------------------


async def test_a_time_series_goes_forward_in_time(api: Api) -> None:
    """Points of one metric, the oldest first, by group; money is text; steps without a call are left out."""
    answer = await api(f"/timeseries?metric=cost_usd&interval=day&since=2024-11-20&{HAND}")
    assert answer["data"] == [
        {"time": "2024-11-22", "value": "0.0100005"},
        {"time": "2024-11-23", "value": "0.25"},
    ]
    assert (answer["metric"], answer["interval"], answer["timezone"]) == ("cost_usd", "day", "UTC")
    assert (answer["since"], answer["until"]) == ("2024-11-20T00:00:00Z", "2025-01-01T00:00:00Z")
    hours = await api(f"/timeseries?metric=calls&interval=hour&group_by=key,model&since=2024-11-20&{HAND}")
    assert hours["data"] == [
        {"time": "2024-11-22T10:00Z", "key": "ci", "model": "gpt-5-2026", "value": 2},
        {"time": "2024-11-22T23:00Z", "key": "ci", "model": "claude-x", "value": 1},
        {"time": "2024-11-23T01:00Z", "key": "batch", "model": "gpt-4o", "value": 1},
        {"time": "2024-11-23T02:00Z", "key": "batch", "model": "=gpt", "value": 1},
    ]
    quantiles = await api(f"/timeseries?metric=duration_p95_ms&interval=month&since=2024-10-01&{HAND}&key=ci")
    assert quantiles["data"] == [{"time": "2024-11", "value": 2800.0}]


async def test_a_series_without_times_is_about_the_last_ones(api: Api, served: Serving) -> None:
    """Left out, `since` is so many steps ago that the series is readable; what began earlier is not in it."""
    now = datetime.now(UTC)
    recent = [event(session="recent", started_at=now - timedelta(days=days)) for days in (1, 29, 31)]
    await served.farebox.app.store.insert_events([encode(one) for one in recent])
    answer = await api("/timeseries?metric=calls&session=recent")
    assert [point["value"] for point in answer["data"]] == [1, 1]
    assert datetime.fromisoformat(answer["until"]) >= now
    assert abs(datetime.fromisoformat(answer["since"]) - (now - timedelta(days=30))) < timedelta(minutes=5)


# -- tools and sessions --------------------------------------------------------------------------


async def test_tools_are_counted(api: Api) -> None:
    """Calls of each tool, in how many answers, and the size of their arguments; never the arguments."""
    assert (await api(f"/tools?{HAND}"))["data"] == [
        {"tool": "search", "calls": 2, "tool_calls": 3, "argument_bytes": 42},
        {"tool": "read", "calls": 1, "tool_calls": 1, "argument_bytes": 8},
    ]
    assert [row["tool"] for row in await api.csv(f"/tools?{HAND}")] == ["search", "read"]


async def test_sessions_page_by_page(api: Api) -> None:
    """Following `next` gives each session once, the last seen first."""
    found: list[str] = []
    cursor = ""
    for _ in range(9):
        answer = await api(f"/sessions?{HAND}&limit=1{cursor}")
        found += [session["session"] for session in answer["data"]]
        if answer["next"] is None:
            break
        cursor = f"&cursor={quote(answer['next'], safe='')}"
    assert found == [SESSION, "s-2", "s-1"]


async def test_one_session_is_its_sums_and_its_calls(api: Api) -> None:
    """`/sessions/ID`, percent-encoded: totals and rows, newest first, page by page; an unknown one is a 404."""
    answer = await api("/sessions/s-1?limit=1")
    assert (answer["session"]["calls"], answer["session"]["cost_usd"]) == (2, "0.0100005")
    assert answer["session"]["tools"] == ["read", "search"]
    rest = await api(f"/sessions/s-1?cursor={quote(answer['next'], safe='')}")
    assert [row["cost_usd"] for row in answer["data"] + rest["data"]] == ["0.0000005", "0.01"]
    assert rest["next"] is None
    odd = await api(f"/sessions/{quote(SESSION, safe='')}")
    assert odd["session"]["session"] == SESSION
    assert [row["session"] for row in await api.csv("/sessions/s-1")] == ["s-1", "s-1"]
    assert (await api.refused("/sessions/nobody"))[0] == 404


# -- rows ----------------------------------------------------------------------------------------


async def test_rows_as_csv_are_streamed_whole(api: Api) -> None:
    """`Accept: text/csv` gives every row that matches, over as many pages as it takes, chunked; JSON the same rows."""
    answer = await api.raw("/usage?since=2025-10-01&until=2025-11-02", accept="text/csv")
    assert answer.header("transfer-encoding") == "chunked"
    rows = list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))
    assert len({row["id"] for row in rows}) == len(rows) == BULK
    assert [row["started_at"] for row in rows] == sorted((row["started_at"] for row in rows), reverse=True)
    page = await api("/usage?since=2025-10-01&until=2025-11-02&limit=1000")
    assert [row["id"] for row in page["data"]] == [row["id"] for row in rows[:1000]]
    assert len(await api.csv("/usage?since=2025-10-01&until=2025-11-02&limit=1500")) == 1500
    rest = await api.csv(f"/usage?since=2025-10-01&until=2025-11-02&cursor={quote(page['next'], safe='')}")
    assert [row["id"] for row in rest] == [row["id"] for row in rows[1000:]]


async def test_csv_of_sums_and_rows_is_safe_and_exact(api: Api) -> None:
    """A model that reads as a formula is quoted for a spreadsheet; money is digits; unknown is empty."""
    models = {row["model"]: row for row in await api.csv(f"/usage?group_by=model&{HAND}")}
    assert set(models) == {"'=gpt", "gpt-4o", "gpt-5-2026", "claude-x"}
    assert (models["claude-x"]["cost_usd"], models["gpt-4o"]["cost_usd"]) == ("", "0")
    rows = await api.csv(f"/usage?{HAND}&session=s-1")
    assert [row["cost_usd"] for row in rows] == ["0.0000005", "0.01"]
    series = await api.csv(f"/timeseries?metric=calls&since=2024-11-20&{HAND}")
    assert series == [{"time": "2024-11-22", "value": "3"}, {"time": "2024-11-23", "value": "2"}]
    assert [row["session"] for row in await api.csv(f"/sessions?{HAND}")] == [SESSION, "s-2", "s-1"]


async def test_money_in_rows_is_digits(api: Api) -> None:
    """A row's cost is written out in JSON, however small."""
    rows = (await api(f"/usage?{HAND}&session=s-1"))["data"]
    assert [row["cost_usd"] for row in rows] == ["0.0000005", "0.01"]


async def test_a_client_that_leaves_an_export_costs_nothing(api: Api, served: Serving) -> None:
    """A reader that goes away in the middle ends the stream; the next export and every connection are fine."""
    before = served.farebox.app.store
    for _ in range(6):
        async with RawClient(api.port) as client:
            fields = [("Authorization", f"Bearer {ADMIN_TOKEN}"), ("Accept", "text/csv")]
            await client.send("GET", f"{API}/usage", fields)
            assert await client.reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await served.farebox.deserted()
    async with asyncio.timeout(10):
        await before.ping(5)
    assert len(await api.csv("/usage?since=2025-10-01&until=2025-11-02")) == BULK


# -- what is refused -----------------------------------------------------------------------------

BAD: list[tuple[str, str | None]] = [
    ("/usage?group_by=nonsense", "group_by"),
    ("/usage?group_by=", "group_by"),
    ("/usage?group_by=key,key", "group_by"),
    ("/usage?group_by=key,day,model,team", "group_by"),
    ("/usage?group_by=tag:", "group_by"),
    ("/usage?group_by=tag:%00", "group_by"),
    ("/usage?group_by=key);DROP TABLE farebox.key;--".replace(" ", "%20"), "group_by"),
    ("/usage?group_by=key&cursor=x", "cursor"),
    ("/usage?group_by=key&limit=10001", "limit"),
    ("/usage?group_by=day&timezone=Mars", "timezone"),
    ("/usage?group_by=day&timezone=../../etc/passwd", "timezone"),
    ("/usage?group_by=day&timezone=", "timezone"),
    ("/usage?timezone=UTC", "timezone"),
    ("/usage?outcome=fine", "outcome"),
    ("/usage?tag=novalue", "tag"),
    ("/usage?tags=a=b", "tags"),
    ("/usage?tag=a=b&tag=c=d", "tag"),
    ("/usage?cursor=2026-01-01T00:00:00_00000000-0000-0000-0000-000000000001", "cursor"),
    ("/timeseries?metric=model", "metric"),
    ("/timeseries?interval=second", "interval"),
    ("/timeseries?interval=minute&since=2026-01-01&until=2026-02-01", "interval"),
    ("/timeseries?group_by=day", "group_by"),
    ("/timeseries?group_by=key,model,team", "group_by"),
    ("/timeseries?limit=5", "limit"),
    ("/timeseries?interval=month&until=0001-01-01", "since"),
    ("/tools?limit=5", "limit"),
    ("/sessions?cursor=x", "cursor"),
    ("/sessions?limit=0", "limit"),
    ("/sessions/s-1?session=s-2", "session"),
    ("/sessions/%00", None),
    ("/usage?group_by=key&session=%00", None),
]


@pytest.mark.parametrize(("target", "named"), BAD, ids=range(len(BAD)))
async def test_a_bad_query_is_told_what_is_wrong(api: Api, target: str, named: str | None) -> None:
    """What makes no sense is a 400 that names the parameter, as JSON and where CSV was asked for."""
    for accept in (None, "text/csv"):
        status, error = await api.refused(target, accept=accept)
        assert (status, error["code"], error["param"]) == (400, "bad_request", named), (accept, error)


async def test_a_series_that_is_too_long_is_refused(api: Api, served: Serving) -> None:
    """More points than an answer may have: a 400 that says what to do, not a part of them."""
    many = [event(session=f"many-{n}", started_at=datetime(2025, 6, 1, tzinfo=UTC)) for n in range(10_001)]
    store = served.farebox.app.store
    for at in range(0, len(many), 1000):
        await store.insert_events([encode(one) for one in many[at : at + 1000]])
    query = "/timeseries?interval=day&group_by=session&since=2025-06-01&until=2025-06-02"
    status, error = await api.refused(query)
    assert (status, error["param"]) == (400, "group_by")
    assert "10,000 points" in error["message"]
    assert len((await api(query.replace("group_by=session", "metric=calls")))["data"]) == 1
    groups = await api("/usage?group_by=session&since=2025-06-01&until=2025-06-02&limit=10")
    assert (len(groups["data"]), groups["more"], groups["total"]["calls"]) == (10, True, 10_001)


async def test_an_empty_ledger_has_empty_reports(postgres: PostgresServer) -> None:
    """Without a call every report is empty: no group, a total of none, and CSV with its header alone."""
    async with serving(postgres, ["up"], relaying) as empty:
        api = Api(empty.farebox.port)
        answer = await api("/usage?group_by=key")
        assert (answer["data"], answer["total"]["calls"], answer["total"]["cost_usd"]) == ([], 0, None)
        for target in ("/timeseries", "/tools", "/sessions", "/usage"):
            assert (await api(target))["data"] == [], target
            assert await api.csv(target) == [], target
        await empty.farebox.app.store.insert_events(events(1))
        assert (await api("/usage?group_by=key"))["data"][0]["key"] is None


async def test_reports_leave_connections_to_calls(api: Api, served: Serving) -> None:
    """While reports wait for the database, a key that nobody has used yet is looked up, and its call served."""
    desk = await served.desk()
    desk.provider.then(plain(b'{"choices": []}'))
    blocking = await asyncpg.connect(served.farebox.app.store._dsn)
    try:
        async with blocking.transaction():
            await blocking.execute("LOCK TABLE farebox.usage_entry IN ACCESS EXCLUSIVE MODE")
            reports = [asyncio.create_task(api.raw("/tools")) for _ in range(8)]
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'farebox.usage_entry'::regclass"
            while not await blocking.fetchval(waiting):
                await asyncio.sleep(0.01)
            async with asyncio.timeout(5):
                assert (await desk.call("/v1/chat/completions", {"model": "m", "messages": []})).status == 200
                assert (await call(api.port, "/readyz", method="GET")).status == 200
    finally:
        await blocking.close()
    assert [answer.status for answer in await asyncio.gather(*reports)] == [200] * 8
    await served.settled()
