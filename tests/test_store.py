"""The store on a real PostgreSQL: rows and sums, keys, and what happens when the database goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from farebox.errors import BadRequest, Conflict, FareboxError
from farebox.payload import encode
from farebox.records import KeyRecord, ToolCall, UsageEvent
from farebox.store import Store, StoreUnavailable, UsageFilter, is_refusal, is_transient
from farebox.store.migrations import shipped
from farebox.store.reports import GROUPINGS, Reports
from support.events import STARTED, event, events
from support.pgbouncer import pgbouncer
from support.postgres import PostgresServer

SURFACE = {
    "id": "uuid",
    "request_id": "uuid",
    "attempt": "integer",
    "started_at": "timestamp with time zone",
    "finished_at": "timestamp with time zone",
    "key_id": "uuid",
    "key_name": "text",
    "team": "text",
    "project": "text",
    "end_user": "text",
    "session": "text",
    "tags": "jsonb",
    "provider": "text",
    "dialect": "text",
    "endpoint": "text",
    "operation": "text",
    "requested_model": "text",
    "model": "text",
    "service_tier": "text",
    "stream": "boolean",
    "status": "smallint",
    "outcome": "text",
    "upstream_request_id": "text",
    "input_tokens": "bigint",
    "cache_read_tokens": "bigint",
    "cache_write_tokens": "bigint",
    "output_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "audio_input_tokens": "bigint",
    "audio_output_tokens": "bigint",
    "image_tokens": "bigint",
    "total_tokens": "bigint",
    "units": "jsonb",
    "usage_source": "text",
    "usage_raw": "jsonb",
    "cost_usd": "numeric",
    "cost_source": "text",
    "provider_cost_usd": "numeric",
    "price_id": "text",
    "budget_ids": "ARRAY",
    "duration_ms": "double precision",
    "ttft_ms": "double precision",
    "upstream_ms": "double precision",
    "overhead_ms": "double precision",
    "tool_calls_count": "integer",
    "tool_calls": "jsonb",
    "error_type": "text",
    "error_code": "text",
}


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A plain connection, as a person with psql has."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def full_event() -> UsageEvent:
    """An event with every field set to something of its own."""
    return event(
        attempt=2,
        finished_at=STARTED + timedelta(seconds=1.234567),
        key_id=uuid4(),
        key_name="ci",
        team="research",
        project="atlas",
        end_user="zoë",
        session="s-1",
        tags={"tier": "cheap", "naïve": "😀"},
        requested_model="gpt-5",
        model="gpt-5-2026",
        service_tier="flex",
        stream=True,
        status=200,
        upstream_request_id="req_1",
        input_tokens=2**40,
        cache_read_tokens=3,
        cache_write_tokens=4,
        cache_write_1h_tokens=1,
        output_tokens=5,
        reasoning_tokens=6,
        audio_input_tokens=7,
        audio_output_tokens=8,
        image_tokens=9,
        units={"web_searches": 2, "seconds": 1.5},
        usage_source="provider",
        usage_raw=msgspec.Raw(b'{"prompt_tokens": 12, "odd": 1e400, "pi": 3.14159265358979323846}'),
        cost_usd=Decimal("0.000000000123456789012345678901"),
        cost_source="price book",
        provider_cost_usd=Decimal("12345678901234567890.5"),
        price_id="p1",
        budget_ids=["b1", "b2"],
        duration_ms=1234.5,
        ttft_ms=100.25,
        upstream_ms=1200.0,
        overhead_ms=0.125,
        tool_calls_count=3,
        tool_calls=[ToolCall("search", 2, 40), ToolCall("read", 1, 0)],
        error_type="a",
        error_code="b",
        unparsed_events=1,
    )


async def test_view_has_the_promised_columns(sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """`farebox.usage` has exactly the promised columns, in their order, of their types."""
    rows = await sql.fetch(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'farebox' AND table_name = 'usage' ORDER BY ordinal_position"
    )
    assert {row["column_name"]: row["data_type"] for row in rows} == SURFACE
    assert [row["column_name"] for row in rows] == list(SURFACE)


async def test_every_field_is_stored_and_read_back(store: Store) -> None:
    """What an event says is what its row says, to the last digit."""
    written = full_event()
    assert await store.insert_events([encode(written)]) == 1
    [row] = (await store.list_usage()).rows
    for name in SURFACE:
        expected: Any = getattr(written, name, None)
        if name == "total_tokens":
            expected = 2**40 + 5
        elif name == "tool_calls":
            expected = msgspec.to_builtins(written.tool_calls)
        elif name == "usage_raw":
            continue
        assert getattr(row, name) == expected, name
    raw = json.loads(bytes(row.usage_raw), parse_float=Decimal)
    assert raw == {"prompt_tokens": 12, "odd": Decimal("1e400"), "pi": Decimal("3.14159265358979323846")}


async def test_what_an_event_leaves_out_has_its_default(store: Store, sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """A field with its default is not sent, and its column says the same."""
    await store.insert_events(events(1))
    [row] = (await store.list_usage()).rows
    assert (row.tags, row.units, row.tool_calls, row.tool_calls_count) == ({}, {}, [], 0)
    assert (row.stream, row.usage_source) == (False, "none")
    assert row.input_tokens is row.total_tokens is row.cost_usd is row.usage_raw is row.budget_ids is None
    assert await sql.fetchval("SELECT unparsed_events FROM farebox.usage_entry") == 0


@pytest.mark.parametrize(
    ("counts", "total"),
    [({}, None), ({"input_tokens": 3}, 3), ({"output_tokens": 4}, 4), ({"input_tokens": 3, "output_tokens": 4}, 7)],
)
async def test_total_is_known_when_a_part_is(store: Store, counts: dict[str, int], total: int | None) -> None:
    """`total_tokens` is input and output together, NULL only when neither is known."""
    await store.insert_events(events(1, **counts))
    [row] = (await store.list_usage()).rows
    assert row.total_tokens == total


async def test_posting_again_changes_nothing(store: Store) -> None:
    """An event that is delivered twice, also within one batch, is one row."""
    batch = events(3)
    assert await store.insert_events([*batch, batch[0]]) == 3
    assert await store.insert_events(batch) == 0
    assert len((await store.list_usage()).rows) == 3


async def test_a_late_truth_corrects_a_cut(store: Store, sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """A call that was given up after a crash and then reports shows its report; both postings stay."""
    truth = event(input_tokens=10, output_tokens=5)
    cut = msgspec.structs.replace(truth, outcome="farebox_cut", input_tokens=99, output_tokens=None)
    assert await store.insert_events([encode(cut)]) == 1
    assert await store.insert_events([encode(truth)]) == 1
    [row] = (await store.list_usage()).rows
    assert (row.outcome, row.total_tokens) == ("complete", 15)
    postings = await sql.fetch(
        "SELECT posting_no, posting_kind, outcome, total_tokens FROM farebox.usage_entries ORDER BY posting_no"
    )
    assert [tuple(p) for p in postings] == [
        (1, "original", "farebox_cut", 99),
        (2, "correction", "complete", 15),
    ]
    sums = (await Reports(store).sums()).total
    assert (sums.calls, sums.total_tokens) == (1, 15)
    assert await store.insert_events([encode(truth), encode(cut)]) == 0


async def test_the_newest_of_many_corrections_holds(store: Store, sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """However often an attempt is corrected, also by hand, it is one row: the last posting of it."""
    one = event(cost_usd=Decimal(1))
    await store.insert_events([encode(one)])
    for number in (2, 3, 4):
        await sql.execute(
            "INSERT INTO farebox.usage_entry (id, posting_no, request_id, attempt, started_at, finished_at, provider, "
            "dialect, endpoint, operation, outcome, cost_usd) SELECT id, $1::int, request_id, attempt, started_at, "
            "finished_at, provider, dialect, endpoint, operation, outcome, $1::int FROM farebox.usage",
            number,
        )
        [row] = (await store.list_usage()).rows
        assert row.cost_usd == number
    assert await sql.fetchval("SELECT count(*) FROM farebox.usage_entries") == 4
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await sql.execute(
            "INSERT INTO farebox.usage_entry (id, posting_no, request_id, attempt, started_at, finished_at, provider, "
            "dialect, endpoint, operation, outcome) SELECT id, 9, request_id, attempt, started_at, finished_at, "
            "provider, dialect, endpoint, operation, outcome FROM farebox.usage"
        )


@pytest.mark.parametrize("together", [True, False])
async def test_a_cut_never_hides_the_truth(store: Store, together: bool) -> None:
    """`farebox_cut` for an id whose answer is known is ignored, also when both come in one batch."""
    truth = event(outcome="client_gone", input_tokens=10)
    pair = [encode(msgspec.structs.replace(truth, outcome="farebox_cut", input_tokens=None)), encode(truth)]
    if together:
        assert await store.insert_events(pair) == 1
    else:
        await store.insert_events(pair[1:])
        assert await store.insert_events(pair[:1]) == 0
    [row] = (await store.list_usage()).rows
    assert (row.outcome, row.input_tokens) == ("client_gone", 10)


async def test_processes_that_post_the_same_at_once(store: Store, database: str) -> None:
    """Two processes delivering the same ids at the same time, one with cuts, leave one true row each."""
    truths = [event(input_tokens=n) for n in range(200)]
    cuts = [msgspec.structs.replace(e, outcome="farebox_cut", input_tokens=None) for e in truths]
    other = Store(database)
    await other.open()
    try:
        for start in range(0, 200, 20):
            part = slice(start, start + 20)
            await asyncio.gather(
                store.insert_events([encode(e) for e in truths[part]]),
                other.insert_events([encode(e) for e in cuts[part]]),
                other.insert_events([encode(e) for e in truths[part]]),
            )
    finally:
        await other.close()
    page = await store.list_usage(rows_max=1000)
    assert len(page.rows) == 200
    assert {row.outcome for row in page.rows} == {"complete"}


@pytest.mark.parametrize(
    "bad",
    [
        {"input_tokens": -1},
        {"input_tokens": 2**63},
        {"outcome": "gone fishing"},
        {"usage_source": "guess"},
        {"cost_usd": Decimal("-0.01")},
        {"cost_usd": Decimal("NaN")},
        {"status": 70000},
        {"provider": None},
        {"usage_raw": msgspec.Raw(b'{"a": "\\u0000"}')},
        {"usage_raw": msgspec.Raw(b'{"a": "\\ud800"}')},
        {"usage_raw": msgspec.Raw(b"{")},
        {"usage_raw": msgspec.Raw(b'{"a": "\xff"}')},
    ],
    ids=lambda bad: (
        f"{next(iter(bad))}-{bytes(value) if isinstance(value := next(iter(bad.values())), msgspec.Raw) else value}"
    ),
)
async def test_a_batch_is_all_or_nothing(store: Store, bad: dict[str, Any]) -> None:
    """A batch with an event that the schema or JSON refuses adds nothing, and the error says it was the data."""
    document = msgspec.json.encode(event(**bad))
    with pytest.raises(Exception) as caught:
        await store.insert_events([*events(2), document])
    assert is_refusal(caught.value)
    assert not is_transient(caught.value)
    assert (await store.list_usage()).rows == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE farebox.usage_entry SET cost_usd = 0",
        "DELETE FROM farebox.usage_entry",
        "TRUNCATE farebox.usage_entry CASCADE",
        "UPDATE farebox.usage_superseded SET posting_no = 2",
        "DELETE FROM farebox.usage_superseded",
        "TRUNCATE farebox.usage_superseded",
        "UPDATE farebox.usage SET cost_usd = 0",
        "DELETE FROM farebox.key",
        "TRUNCATE farebox.key",
    ],
)
async def test_history_cannot_be_rewritten(
    store: Store, sql: asyncpg.Connection[asyncpg.Record], statement: str
) -> None:
    """Postings are only ever added and keys never deleted, also by hand."""
    await store.insert_events(events(1))
    with pytest.raises(asyncpg.PostgresError):
        await sql.execute(statement)
    assert len((await store.list_usage()).rows) == 1


async def test_pages_cover_everything_once(store: Store) -> None:
    """Pages go from the newest to the oldest and miss and repeat nothing where times are equal."""
    all_events = [event(started_at=STARTED + timedelta(seconds=n // 5)) for n in range(23)]
    await store.insert_events([encode(e) for e in all_events])
    seen, after = [], None
    while True:
        page = await store.list_usage(after=after, rows_max=4)
        seen += [row.id for row in page.rows]
        after = page.next
        if after is None:
            break
    expected = sorted(all_events, key=lambda e: (e.started_at, e.id), reverse=True)
    assert seen == [e.id for e in expected]


async def test_filters_narrow_rows_and_sums_alike(store: Store) -> None:
    """Each filter keeps what it names: `since` is included, `until` is not, the answering model counts."""
    key, request = uuid4(), uuid4()
    special = event(
        started_at=STARTED + timedelta(hours=1),
        request_id=request,
        key_id=key,
        key_name="k",
        provider="claude",
        requested_model="alias",
        model="real",
        session="s",
    )
    await store.insert_events([encode(special), *events(2)])
    for where in (
        UsageFilter(since=STARTED + timedelta(hours=1)),
        UsageFilter(key_id=key),
        UsageFilter(key_name="k"),
        UsageFilter(provider="claude"),
        UsageFilter(model="real"),
        UsageFilter(session="s"),
        UsageFilter(request_id=request),
    ):
        assert [row.id for row in (await store.list_usage(where)).rows] == [special.id], where
        assert (await Reports(store).sums(where)).total.calls == 1, where
    assert len((await store.list_usage(UsageFilter(until=STARTED + timedelta(hours=1)))).rows) == 2
    assert (await Reports(store).sums(UsageFilter(model="alias"))).total.calls == 0


async def test_sums_are_exact_and_say_what_is_unknown(store: Store) -> None:
    """Sums by key are exact decimals; attempts of unknown cost are counted, not taken for free."""
    await store.insert_events(
        [
            *events(10, key_name="a", cost_usd=Decimal("0.1"), input_tokens=1, tool_calls_count=2),
            *events(2, key_name="b", input_tokens=5, output_tokens=1),
        ]
    )
    a, b = (await Reports(store).sums(by=["key"])).groups
    assert (a.labels, a.sums.calls, a.sums.cost_usd, a.sums.unknown_cost) == (("a",), 10, "1", 0)
    assert (a.sums.input_tokens, a.sums.output_tokens, a.sums.total_tokens, a.sums.tool_calls) == (10, None, 10, 20)
    assert (b.labels, b.sums.cost_usd, b.sums.unknown_cost, b.sums.total_tokens) == (("b",), None, 2, 12)


@pytest.mark.parametrize("by", [by for by in GROUPINGS if by != "tool"])
async def test_every_grouping_adds_up(store: Store, by: str) -> None:
    """Whatever usage is summed by, the groups together hold every attempt."""
    full = full_event()
    await store.insert_events([encode(full), *events(2)])
    groups = (await Reports(store).sums(by=[by])).groups
    assert sum(group.sums.calls for group in groups) == 3
    labels = {group.labels[0] for group in groups}
    expected = {
        "key": "ci",
        "user": "zoë",
        "model": "gpt-5-2026",
        "status": "200",
        "minute": "2024-11-22T10:00Z",
        "hour": "2024-11-22T10:00Z",
        "day": "2024-11-22",
        "week": "2024-11-18",
        "month": "2024-11",
    }
    assert expected.get(by, getattr(full, by, None)) in labels


async def test_tools_are_summed_by_name(store: Store) -> None:
    """Tool calls add up over attempts, by name."""
    tools = [ToolCall("search", 2, 40), ToolCall("read", 1, 8)]
    await store.insert_events(events(3, tool_calls=tools, tool_calls_count=3))
    assert [(t.tool, t.calls, t.tool_calls, t.argument_bytes) for t in await Reports(store).tools()] == [
        ("search", 3, 6, 120),
        ("read", 3, 3, 24),
    ]


async def test_rows_are_found_without_reading_all(sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """A time range of the view is read by index, also just after a wave of corrections nobody has counted yet."""
    columns = "id, request_id, attempt, started_at, finished_at, provider, dialect, endpoint, operation, outcome"
    for table in ("usage_entry", "usage_superseded"):  # what is known of the tables is what this test says
        await sql.execute(f"ALTER TABLE farebox.{table} SET (autovacuum_enabled = off)")
    await sql.execute(
        f"INSERT INTO farebox.usage_entry ({columns}) SELECT gen_random_uuid(), gen_random_uuid(), 1, "
        "now() - n * interval '1 s', now(), 'p', 'd', 'e', 'chat', 'complete' FROM generate_series(1, 20000) AS n"
    )
    await sql.execute("ANALYZE farebox.usage_entry, farebox.usage_superseded")
    for corrections in (0, 2000):
        await sql.execute(
            f"INSERT INTO farebox.usage_entry (posting_no, {columns}) "
            f"SELECT 2, {columns} FROM farebox.usage_entry LIMIT {corrections}"
        )
        for query in (
            "SELECT sum(cost_usd) FROM farebox.usage WHERE started_at > now() - interval '1 minute'",
            "SELECT * FROM farebox.usage ORDER BY started_at DESC, id DESC LIMIT 100",
        ):
            plan = "\n".join(row[0] for row in await sql.fetch("EXPLAIN " + query))
            assert "usage_entry_started" in plan, plan
            assert "Seq Scan on usage_entry" not in plan, plan
    # Were each row compared with each correction, the sum of a year would take hours.
    plan = "\n".join(row[0] for row in await sql.fetch("EXPLAIN SELECT sum(cost_usd) FROM farebox.usage"))
    assert "Hash Cond" in plan, plan


# -- keys ----------------------------------------------------------------------------------------


async def test_a_key_is_stored_as_it_was_made(store: Store) -> None:
    """Every field of a key comes back, by id, by name and by its secret's hash."""
    expires = datetime(2027, 1, 1, tzinfo=UTC)
    made = await store.create_key(
        name="ci",
        secret_hash=b"h" * 32,
        team="research",
        project="atlas",
        user="ada",
        models=["gpt-*"],
        providers=["openai"],
        tags={"tier": "cheap"},
        allow_shared_objects=True,
        expires_at=expires,
    )
    assert made == KeyRecord(
        id=made.id,
        name="ci",
        secret_hash=b"h" * 32,
        team="research",
        project="atlas",
        user="ada",
        models=["gpt-*"],
        providers=["openai"],
        tags={"tier": "cheap"},
        allow_shared_objects=True,
        expires_at=expires,
        created_at=made.created_at,
        changed_at=made.created_at,
    )
    for key in (made.id, str(made.id), "ci"):
        assert await store.get_key(key) == made
    assert await store.find_key(b"h" * 32) == made
    assert await store.list_keys() == [made]
    assert await store.get_key("nobody") is await store.get_key(uuid4()) is await store.find_key(b"x" * 32) is None


async def test_a_name_is_unique_among_keys_in_use(store: Store) -> None:
    """Two keys in use never share a name; a revoked key gives its name back."""
    first = await store.create_key(name="ci", secret_hash=b"1" * 32)
    with pytest.raises(Conflict, match="'ci' is in use"):
        await store.create_key(name="ci", secret_hash=b"2" * 32)
    await store.revoke_key(first.id)
    second = await store.create_key(name="ci", secret_hash=b"3" * 32)
    assert await store.get_key("ci") == second
    assert await store.list_keys() == [second]
    assert {key.id for key in await store.list_keys(include_revoked=True)} == {first.id, second.id}


async def test_rotating_ends_the_old_secret(store: Store) -> None:
    """After a rotation the key is found by its new secret only."""
    key = await store.create_key(name="ci", secret_hash=b"1" * 32)
    rotated = await store.rotate_key(key.id, b"2" * 32)
    assert rotated is not None
    assert rotated.changed_at > key.changed_at
    assert await store.find_key(b"1" * 32) is None
    assert await store.find_key(b"2" * 32) == rotated


async def test_revoking_is_final(store: Store, sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """A revoked key keeps the time of its end, and can't be rotated, changed or revived."""
    key = await store.create_key(name="ci", secret_hash=b"1" * 32)
    revoked = await store.revoke_key(key.id)
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert await store.revoke_key(key.id) == revoked
    assert await store.rotate_key(key.id, b"2" * 32) is None
    assert await store.change_key(key.id, {"team": "x"}) is None
    assert await store.revoke_key(uuid4()) is None
    with pytest.raises(asyncpg.RestrictViolationError):
        await sql.execute("UPDATE farebox.key SET revoked_at = NULL")


async def test_changing_sets_only_what_is_named(store: Store) -> None:
    """A change sets the given fields, to nothing too, and leaves the others."""
    key = await store.create_key(name="ci", secret_hash=b"1" * 32, team="a", models=["x"], tags={"t": "1"})
    changes = {"name": "cd", "user": "ada", "team": None, "models": ["y", "z"], "tags": {}}
    changed = await store.change_key(key.id, changes | {"expires_at": "2027-01-01T00:00:00Z"})
    assert changed is not None
    assert changed == msgspec.structs.replace(
        key,
        name="cd",
        user="ada",
        team=None,
        models=["y", "z"],
        tags={},
        expires_at=datetime(2027, 1, 1, tzinfo=UTC),
        changed_at=changed.changed_at,
    )
    await store.create_key(name="ci", secret_hash=b"2" * 32)
    with pytest.raises(Conflict):
        await store.change_key(key.id, {"name": "ci"})


@pytest.mark.parametrize(
    "changes", [{"secret_hash": "x"}, {"name": ""}, {"name": "n" * 201}, {"models": None}, {"tags": []}, {"name": "\0"}]
)
async def test_a_change_that_makes_no_sense_is_refused(store: Store, changes: dict[str, Any]) -> None:
    """Fields that are not for changing, and values that can't be, are refused in words, and nothing is changed."""
    key = await store.create_key(name="ci", secret_hash=b"1" * 32)
    with pytest.raises(BadRequest):
        await store.change_key(key.id, changes)
    assert await store.get_key(key.id) == key


async def test_changes_are_told_to_who_asks(store: Store, sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """Every change of a key since a moment is told, made through farebox or by hand, and none that is older."""
    a = await store.create_key(name="a", secret_hash=b"a" * 32)
    b = await store.create_key(name="b", secret_hash=b"b" * 32)
    records, asked_at = await store.keys_changed_since(datetime.fromtimestamp(0, UTC))
    assert {key.id for key in records} == {a.id, b.id}
    assert a.changed_at < asked_at
    # The overlap reaches back some seconds, so the test asks from that much later.
    later = asked_at + timedelta(seconds=10)
    assert await store.keys_changed_since(later) == ([], pytest.approx(asked_at, abs=timedelta(minutes=1)))
    await store.revoke_key(a.id)
    await sql.execute("UPDATE farebox.key SET team = 'x' WHERE name = 'b'")
    records, _ = await store.keys_changed_since(later)
    assert {key.name: (key.revoked_at is not None, key.team) for key in records} == {
        "a": (True, None),
        "b": (False, "x"),
    }


# -- the database goes away ----------------------------------------------------------------------


async def test_a_restart_of_postgres_is_survived(postgres: PostgresServer, store: Store) -> None:
    """While Postgres is down calls fail as unavailable; once it is back the same store works."""
    await store.insert_events(events(1))
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailable):
            await store.ping(1.0)
        with pytest.raises(StoreUnavailable) as caught:
            await store.insert_events(events(1))
        assert is_transient(caught.value)
        assert not is_refusal(caught.value)
    finally:
        postgres.start()
    await store.ping(5.0)
    assert await store.insert_events(events(1)) == 1
    assert len((await store.list_usage()).rows) == 2


async def test_a_connection_cut_by_the_server_is_replaced(
    store: Store, sql: asyncpg.Connection[asyncpg.Record]
) -> None:
    """A connection that an administrator ends costs at most the call that was using it."""
    await store.ping(5.0)
    assert await sql.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = 'farebox' AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(2):
        try:
            await store.ping(5.0)
            break
        except StoreUnavailable:
            continue
    assert await store.insert_events(events(1)) == 1


async def test_a_slow_database_is_unavailable(store: Store, sql: asyncpg.Connection[asyncpg.Record]) -> None:
    """A ping that gets no connection in time says so instead of waiting on."""
    async with sql.transaction():
        await sql.execute("LOCK TABLE farebox.usage_entry")
        waiting = [asyncio.create_task(store.insert_events(events(1))) for _ in range(8)]
        try:
            while await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 8:
                await asyncio.sleep(0.01)
            with pytest.raises(StoreUnavailable):
                await store.ping(0.05)
        except BaseException:
            for task in waiting:
                task.cancel()
            raise
    assert await asyncio.gather(*waiting) == [1] * 8


async def test_passwords_stay_out_of_errors(postgres: PostgresServer) -> None:
    """No error about the database's address, whatever is wrong with it, shows the password."""
    for dsn in (
        "postgresql://farebox:hunter2@127.0.0.1:1/farebox",
        "postgresql://farebox:hunter2/x@127.0.0.1/farebox",
        "postgresql://farebox:hunter2@127.0.0.1:port/farebox",
        "mysql://farebox:hunter2@127.0.0.1/farebox",
        "postgresql://farebox:hunter2@[::1/farebox",
        postgres.dsn("no_such_database").replace("farebox@", "farebox:hunter2@"),
    ):
        with pytest.raises(FareboxError) as caught:
            await Store(dsn, connect_timeout_s=0.5).open()
        shown: BaseException | None = caught.value
        while shown is not None:
            assert "hunter2" not in f"{shown!r} {shown}"
            shown = None if shown.__suppress_context__ else shown.__context__


async def test_a_closed_store_says_so() -> None:
    """A store that is not open is unavailable, not broken."""
    with pytest.raises(StoreUnavailable):
        await Store("postgresql://localhost/x").ping(1.0)


async def test_closing_waits_no_longer_than_it_is_told_to(database: str) -> None:
    """A connection that is not given back does not keep who was interrupted: it is ended."""
    store = Store(database)
    await store.open()
    async with store.connection() as kept:
        async with asyncio.timeout(10):
            await store.close(within_s=0.1)
        with pytest.raises(asyncpg.InterfaceError):
            await kept.fetchval("SELECT 1")


async def test_pgbouncer_in_transaction_mode(postgres: PostgresServer) -> None:
    """Migrations, events and keys work for many clients that share two server connections."""
    async with postgres.database(migrated=False) as dsn, pgbouncer(dsn, server_connections=2) as through:
        stores = [Store(through, pool_size_max=4) for _ in range(4)]
        for store in stores:
            await store.open()
        try:
            applied = await asyncio.gather(*(store.migrate() for store in stores))
            assert sorted(name for names in applied for name in names) == [m.name for m in shipped()]

            async def work(store: Store, number: int) -> None:
                assert await store.insert_events(events(5, session=str(number))) == 5
                assert len((await store.list_usage(UsageFilter(session=str(number)))).rows) == 5
                key = await store.create_key(name=f"k{number}", secret_hash=number.to_bytes(32, "big"))
                assert await store.find_key(number.to_bytes(32, "big")) == key

            await asyncio.gather(*(work(stores[n % 4], n) for n in range(60)))
            sums = (await Reports(stores[0]).sums()).total
            assert sums.calls == 300
        finally:
            for store in stores:
                await store.close()


@pytest.mark.parametrize(
    ("error", "transient", "refusal"),
    [
        (asyncpg.CannotConnectNowError(), True, False),
        (asyncpg.AdminShutdownError(), True, False),
        (asyncpg.TooManyConnectionsError(), True, False),
        (asyncpg.DiskFullError(), True, False),
        (asyncpg.ReadOnlySQLTransactionError(), True, False),
        (asyncpg.DeadlockDetectedError(), True, False),
        (asyncpg.SerializationError(), True, False),
        (asyncpg.QueryCanceledError(), True, False),
        (asyncpg.ConnectionDoesNotExistError(), True, False),
        (asyncpg.InterfaceError("closed"), True, False),
        (asyncpg.InternalClientError("out of step"), True, False),
        (ConnectionRefusedError(), True, False),
        (TimeoutError(), True, False),
        (asyncpg.CheckViolationError(), False, True),
        (asyncpg.NumericValueOutOfRangeError(), False, True),
        (asyncpg.InvalidTextRepresentationError(), False, True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), False, True),
        (asyncpg.UndefinedTableError(), False, False),
        (asyncpg.InsufficientPrivilegeError(), False, False),
        (KeyError("x"), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_are_told_apart(error: Exception, transient: bool, refusal: bool) -> None:
    """What may pass is retried, what the data says is not; a fault in farebox or its set-up is neither."""
    assert (is_transient(error), is_refusal(error)) == (transient, refusal)
