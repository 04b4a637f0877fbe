"""Sessions: what each came to, from the header a client sends to the table an operator reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from farebox.payload import encode
from farebox.store import Store, UsageFilter
from farebox.store.reports import Reports
from support.app import ADMIN_TOKEN, running, settings_of
from support.books import LAST, SESSION, keep
from support.bulk import fill
from support.cli import Cli, commands
from support.events import STARTED, event
from support.provider import FakeProvider, plain

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
OK = plain(b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}')


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str
) -> Iterator[Cli]:
    """Commands on a fresh database."""
    monkeypatch.chdir(tmp_path)
    for made in commands(capsys):
        made.configured(
            tmp_path / "farebox.yaml", {"server": {"admin_token": ADMIN_TOKEN}, "database": {"url": database}}
        )
        yield made


@pytest.fixture
async def books(cli: Cli, store: Store) -> Cli:
    """Commands on the ledger of `support.books`."""
    await keep(store)
    return cli


async def test_sessions_are_those_summed_by_hand(books: Cli) -> None:
    """The last seen first; each with its first and last call, sums, errors, and the names that are in it."""
    third, second, first = await books.json("sessions")
    assert first == {
        "session": "s-1",
        "calls": 2,
        "input_tokens": 1500,
        "cache_read_tokens": 400,
        "cache_write_tokens": None,
        "output_tokens": 300,
        "reasoning_tokens": 50,
        "total_tokens": 1800,
        "cost_usd": "0.0100005",
        "unknown_cost": 0,
        "errors": 0,
        "tool_calls": 4,
        "duration_p50_ms": 2000.0,
        "duration_p95_ms": 2900.0,
        "ttft_p50_ms": 200.0,
        "ttft_p95_ms": 290.0,
        "first_at": "2024-11-22T10:00:00Z",
        "last_at": "2024-11-22T10:30:00Z",
        "models": ["gpt-5-2026"],
        "keys": ["ci"],
        "users": ["ann"],
        "providers": ["openai"],
        "tools": ["read", "search"],
    }
    assert (second["session"], second["errors"], second["unknown_cost"], second["cost_usd"]) == ("s-2", 1, 1, None)
    assert (third["session"], third["cost_usd"], third["calls"], third["tools"]) == (SESSION, "0.25", 1, [])


async def test_one_session_is_shown_call_by_call(books: Cli) -> None:
    """`farebox sessions ID` lists its calls, newest first, and sums them; an unknown one is named."""
    rows = await books.json("sessions", "s-1")
    assert [(row["session"], row["input_tokens"]) for row in rows] == [("s-1", 500), ("s-1", 1000)]
    ran = await books.aside("sessions", "s-1")
    assert len(ran.output.splitlines()) == 3
    assert ran.errors == "\n2 calls, 1,800 tokens, 0.0100 USD\n"
    assert [row["id"] for row in await books.json("sessions", SESSION)] == [str(LAST)]
    missing = await books.aside("sessions", "nobody's")
    assert (missing.code, missing.output) == (1, "")
    assert missing.errors == """farebox: there is no session "nobody's"\n"""


async def test_sessions_in_every_format(books: Cli) -> None:
    """A table, CSV, JSON and JSON lines say the same; a table fits what it is printed on."""
    listed = await books.json("sessions")
    lines = (await books.aside("sessions", "--format", "jsonl")).output.splitlines()
    assert [json.loads(line) for line in lines] == listed
    rows = list(csv.DictReader(io.StringIO((await books.aside("sessions", "--format", "csv")).output)))
    assert [row["session"] for row in rows] == [row["session"] for row in listed]
    assert json.loads(rows[2]["tools"]) == ["read", "search"]
    table = (await books.aside("sessions")).output.splitlines()
    assert table[0].split()[:4] == ["session", "first", "last", "calls"]
    assert [line.split()[0] for line in table[1:]] == [SESSION, "s-2", "s-1"]


async def test_sessions_are_filtered(books: Cli) -> None:
    """Filters choose the calls that are summed; a session none of whose calls match is not there."""
    assert [row["session"] for row in await books.json("sessions", "--key", "ci")] == ["s-2", "s-1"]
    [part] = await books.json("sessions", "--since", "2024-11-22T10:30Z", "--model", "gpt-5-2026")
    assert (part["session"], part["calls"], part["tools"]) == ("s-1", 1, ["search"])
    assert [row["session"] for row in await books.json("sessions", "--user", "ann")] == ["s-1"]
    assert await books.json("sessions", "--key", "nobody") == []


async def test_how_many_sessions_is_said_once(books: Cli) -> None:
    """`--limit` shows so many; beside `--all`, or below 1, it is bad use."""
    assert len(await books.json("sessions", "--limit", "2")) == 2
    for argv in (("--limit", "0"), ("--limit", "5", "--all")):
        ran = await books.aside("sessions", *argv)
        assert (ran.code, ran.output) == (2, ""), argv
        assert "--limit takes a number" in ran.errors


async def test_no_sessions_yet(cli: Cli, store: Store) -> None:
    """Calls without a session are in none: every format is empty, exit 0."""
    await store.insert_events([encode(event())])
    ran = await cli.aside("sessions")
    assert (ran.code, ran.output, ran.errors) == (0, "", "no sessions yet\n")
    assert (await cli.aside("sessions", "--format", "json")).output == "[]\n"
    assert (await cli.aside("sessions", "--format", "jsonl")).output == ""
    assert (await cli.aside("sessions", "--format", "csv")).output.count("\n") == 1


async def test_all_sessions_page_by_page(cli: Cli, store: Store) -> None:
    """Following the pages gives each session once, the last seen first, also where many were seen at one moment."""
    moments = [STARTED + timedelta(minutes=number // 4) for number in range(21)]
    await store.insert_events(
        [encode(event(session=f"s-{number:02}", started_at=at)) for number, at in enumerate(moments)]
    )
    expected = [f"s-{number:02}" for number in range(20, -1, -1)]
    reports, found, after = Reports(store), [], None
    for _ in range(10):
        page, after = await reports.sessions(after=after, rows_max=5)
        found += [session.session for session in page]
        if after is None:
            break
    assert found == expected
    assert [row["session"] for row in await cli.json("sessions", "--all")] == expected
    shown = await cli.aside("sessions", "--limit", "2")
    assert len(shown.output.splitlines()) == 3 and "the last 2 sessions" in shown.errors


async def test_names_of_a_session_end_after_twenty(store: Store) -> None:
    """However many models or tools a session names, a report has twenty of each."""
    await store.insert_events(
        [
            encode(
                event(
                    session="s",
                    model=f"m-{n:02}",
                    tool_calls=[{"name": f"t-{n:02}", "count": 1, "argument_bytes": 0}],
                    tool_calls_count=1,
                )
            )
            for n in range(30)
        ]
    )
    [session], _ = await Reports(store).sessions()
    assert (len(session.models), len(session.tools), session.sums.calls) == (20, 20, 30)


async def test_a_session_is_found_by_its_index(database: str, store: Store) -> None:
    """The calls of one session are not searched for among all others."""
    await fill(database, 20_000, datetime(2026, 11, 1, tzinfo=UTC))
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("ANALYZE farebox.usage_entry")
        where = UsageFilter(session="session-7").values()
        statement = store.sql["report_rows"]
        plan = await connection.fetch("EXPLAIN " + statement, *where, None, None, 100)
    finally:
        await connection.close()
    text = "\n".join(row[0] for row in plan)
    assert "usage_entry_session" in text, text
    assert "Seq Scan on usage_entry" not in text, text


# -- from the wire -------------------------------------------------------------------------------

SOURCES: list[tuple[list[tuple[str, str]], dict[str, Any]]] = [
    ([("x-farebox-session", "one")], {}),
    ([("X-Claude-Code-Session-Id", "one")], {}),
    ([("x-litellm-session-id", "one")], {}),
    ([("Session-Id", "one")], {"session_id": "not this one"}),
    ([("conversation_id", "one")], {}),
    ([("Helicone-Session-Id", "one")], {}),
    ([("baggage", "session.id=one")], {}),
    ([], {"session_id": "one"}),
    ([], {"metadata": {"session_id": "one"}}),
    ([], {"metadata": {"user_id": "user_1_session_one"}}),
    ([], {"metadata": {"user_id": '{"device_id":"d","session_id":"one"}'}}),
    ([], {"conversation": {"id": "one"}}),
]


async def test_every_source_of_a_session_is_one_session(database: str, tmp_path: Path) -> None:
    """However a client names its session, in a header or in the body, the calls come to one session's sums."""
    async with FakeProvider(OK) as provider:
        up = {
            "dialect": "openai",
            "base_url": provider.base_url,
            "prices": {"*": {"input_usd_per_mtok": "1", "output_usd_per_mtok": "1"}},
        }
        async with running(settings_of(database, tmp_path, {"up": up}, [{"match": {}, "to": ["up"]}])) as farebox:
            for headers, members in SOURCES:
                answer = await farebox.call("/v1/chat/completions", {**CHAT, **members}, headers=headers)
                assert answer.status == 200
            await farebox.rows(len(SOURCES))
            [session], more = await Reports(farebox.app.store).sessions()
    assert more is None
    assert (session.session, session.sums.calls) == ("one", len(SOURCES))
    assert session.sums.total_tokens == 9 * len(SOURCES)
    assert session.sums.cost_usd == f"0.{9 * len(SOURCES):06}"
