"""Reports against a second opinion: the same sums, computed from the same calls in plain Python."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from farebox.payload import encode
from farebox.records import ToolCall, UsageEvent
from farebox.store import Store, UsageFilter
from farebox.store.reports import GROUPINGS, Reports, Sums
from support.events import event

BEGIN = datetime(2024, 10, 25, tzinfo=UTC)
CALLS = 400
BERLIN = ZoneInfo("Europe/Berlin")
"""Its clock goes back in the middle of the calls."""
ERRORS = ("upstream_error", "upstream_cut", "farebox_cut")


def some_calls(chance: random.Random) -> list[UsageEvent]:
    """Calls of all kinds over five days; a third of everything is unknown."""

    def maybe(value: Any) -> Any:
        return None if chance.random() < 1 / 3 else value

    made = []
    for _ in range(CALLS):
        tools = [ToolCall(name, chance.randint(1, 3), chance.randint(0, 99)) for name in "fgh" if chance.random() < 0.2]
        started = BEGIN + timedelta(seconds=chance.randrange(5 * 86400))
        made.append(
            event(
                started_at=started,
                finished_at=started + timedelta(seconds=chance.randrange(900)),
                key_name=maybe(chance.choice("ab")),
                team=maybe(chance.choice(["réd", "=blue"])),
                project=maybe("p"),
                end_user=maybe(chance.choice("xyz")),
                session=maybe(f"s{chance.randrange(9)}"),
                provider=chance.choice(["openai", "claude"]),
                model=maybe(chance.choice(["m1", "m2"])),
                requested_model=maybe(chance.choice(["m1", "alias"])),
                operation=chance.choice(["chat", "messages"]),
                endpoint=chance.choice(["/v1/a", "/v1/b"]),
                outcome=chance.choice(["complete", "complete", "client_gone", *ERRORS[:2]]),
                status=maybe(chance.choice([200, 429, 500])),
                usage_source=chance.choice(["provider", "estimate", "none"]),
                tags={"tier": chance.choice(["1", "2"])} if chance.random() < 0.5 else {},
                input_tokens=maybe(chance.randrange(10**6)),
                cache_read_tokens=maybe(chance.randrange(100)),
                output_tokens=maybe(chance.randrange(10**4)),
                reasoning_tokens=maybe(chance.randrange(100)),
                cost_usd=maybe(Decimal(chance.randrange(10**12)).scaleb(-chance.randrange(9, 16))),
                duration_ms=maybe(chance.random() * 1000),
                ttft_ms=maybe(chance.random() * 100),
                tool_calls=tools,
                tool_calls_count=sum(tool.count for tool in tools),
            )
        )
    return made


def hour_in(zone: ZoneInfo, at: datetime) -> str:
    """The hour's beginning; its offset is the moment's own."""
    return at.astimezone(zone).replace(minute=0, second=0).isoformat(timespec="minutes")


LABELS: dict[str, Callable[[UsageEvent], str | None]] = {
    "key": lambda call: call.key_name,
    "team": lambda call: call.team,
    "project": lambda call: call.project,
    "user": lambda call: call.end_user,
    "session": lambda call: call.session,
    "provider": lambda call: call.provider,
    "model": lambda call: call.model or call.requested_model,
    "operation": lambda call: call.operation,
    "endpoint": lambda call: call.endpoint,
    "outcome": lambda call: call.outcome,
    "status": lambda call: None if call.status is None else str(call.status),
    "usage_source": lambda call: call.usage_source,
    "tag:tier": lambda call: call.tags.get("tier"),
    "minute": lambda call: call.started_at.astimezone(BERLIN).isoformat(timespec="minutes"),
    "hour": lambda call: hour_in(BERLIN, call.started_at),
    "day": lambda call: f"{call.started_at.astimezone(BERLIN):%Y-%m-%d}",
    "week": lambda call: f"{(local := call.started_at.astimezone(BERLIN)) - timedelta(days=local.weekday()):%Y-%m-%d}",
    "month": lambda call: f"{call.started_at.astimezone(BERLIN):%Y-%m}",
}

FILTERS: list[tuple[UsageFilter, Callable[[UsageEvent], bool]]] = [
    (UsageFilter(), lambda call: True),
    (UsageFilter(key_name="a"), lambda call: call.key_name == "a"),
    (
        UsageFilter(model="m1", provider="openai"),
        lambda c: (c.model or c.requested_model) == "m1" and c.provider == "openai",
    ),
    (UsageFilter(tags={"tier": "2"}, team="=blue"), lambda call: call.tags.get("tier") == "2" and call.team == "=blue"),
    (
        UsageFilter(since=BEGIN + timedelta(days=1), until=BEGIN + timedelta(days=3), outcome="complete"),
        lambda c: BEGIN + timedelta(days=1) <= c.started_at < BEGIN + timedelta(days=3) and c.outcome == "complete",
    ),
    (
        UsageFilter(finished_since=BEGIN + timedelta(days=4), user="x", session="s3"),
        lambda c: c.finished_at >= BEGIN + timedelta(days=4) and c.end_user == "x" and c.session == "s3",
    ),
    (UsageFilter(project="nobody's"), lambda call: False),
]


def total_of(calls: list[UsageEvent]) -> dict[str, Any]:
    """The sums of some calls, as a report's columns."""

    def known(name: str) -> list[Any]:
        return [value for call in calls if (value := getattr(call, name)) is not None]

    both = [
        (call.input_tokens or 0) + (call.output_tokens or 0)
        for call in calls
        if call.input_tokens is not None or call.output_tokens is not None
    ]
    names = ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens")
    return {
        "calls": len(calls),
        **{name: sum(values) if (values := known(name)) else None for name in names},
        "total_tokens": sum(both) if both else None,
        "cost_usd": sum(costs) if (costs := known("cost_usd")) else None,
        "unknown_cost": sum(call.cost_usd is None for call in calls),
        "errors": sum(call.outcome in ERRORS for call in calls),
        "duration_p50_ms": round(statistics.median(times), 3) if (times := known("duration_ms")) else None,
        "first_at": min(call.started_at for call in calls),
        "last_at": max(call.started_at for call in calls),
    }


def as_said(sums: Sums) -> dict[str, Any]:
    """The same columns of a report."""
    said = {name: getattr(sums, name) for name in total_of([event()])}
    return said | {"cost_usd": None if sums.cost_usd is None else Decimal(sums.cost_usd)}


async def test_every_report_is_what_plain_python_says(store: Store) -> None:
    """Groupings alone, in pairs and triples, under filters: every group and total, exact to the last digit."""
    chance = random.Random(20241027)
    calls = some_calls(chance)
    await store.insert_events([encode(call) for call in calls])
    reports = Reports(store)
    assert set(LABELS) >= set(GROUPINGS) - {"tool"}
    several = [*itertools.combinations(LABELS, 2), *itertools.combinations(LABELS, 3)]
    for by in [*((name,) for name in LABELS), *chance.sample(several, 40)]:
        where, holds = chance.choice(FILTERS)
        mine = [call for call in calls if holds(call)]
        groups: dict[tuple[str | None, ...], list[UsageEvent]] = defaultdict(list)
        for call in mine:
            groups[tuple(LABELS[name](call) for name in by)].append(call)
        report = await reports.sums(where, by=by, zone="Europe/Berlin")
        assert {group.labels: as_said(group.sums) for group in report.groups} == {
            labels: total_of(some) for labels, some in groups.items()
        }, (by, where)
        assert len(report.groups) == len(groups) and not report.more
        assert as_said(report.total) == (total_of(mine) if mine else as_said(Sums())), (by, where)


async def test_every_session_and_row_is_what_plain_python_says(store: Store) -> None:
    """Under each filter: the sessions with their sums and names, and the rows, newest first."""
    calls = some_calls(random.Random(7))
    await store.insert_events([encode(call) for call in calls])
    reports = Reports(store)
    for where, holds in FILTERS:
        mine = [call for call in calls if holds(call)]
        ordered = sorted(mine, key=lambda call: (call.started_at, call.id), reverse=True)
        found: list[UUID] = []
        async for rows in reports.pages(where, page_rows=37):
            found += [row["id"] for row in rows]
        assert found == [call.id for call in ordered]
        sessions: dict[str, list[UsageEvent]] = defaultdict(list)
        for call in mine:
            if call.session is not None:
                sessions[call.session].append(call)
        said, _ = await reports.sessions(where)
        assert {session.session: as_said(session.sums) for session in said} == {
            name: total_of(some) for name, some in sessions.items()
        }
        for session in said:
            some = sessions[session.session]
            assert set(session.tools) == {tool.name for call in some for tool in call.tool_calls}
            assert set(session.models) == {name for call in some if (name := LABELS["model"](call)) is not None}
            assert set(session.keys) == {call.key_name for call in some} - {None}
        tools = {tool.tool: (tool.calls, tool.tool_calls) for tool in await reports.tools(where)}
        assert tools == {
            name: (
                sum(any(tool.name == name for tool in call.tool_calls) for call in mine),
                sum(tool.count for call in mine for tool in call.tool_calls if tool.name == name),
            )
            for name in {tool.name for call in mine for tool in call.tool_calls}
        }
