"""Repricing: what was costed wrong is put right by more postings, once, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from farebox.cli.reprice import expression
from farebox.payload import encode
from farebox.pricebook import seeded
from farebox.pricing import Period, Price, PriceBook, Pricer, Variant
from farebox.records import ToolCall, UsageEvent
from farebox.repricing import Tally, reprice
from farebox.store import PriceLists, Store
from farebox.store.corrections import Corrections, Cost, Wanted
from support.config import OPENAI, providers, read
from support.events import STARTED, event
from support.pgbouncer import pgbouncer
from support.prices import price, tier, usd

PROVIDERS = read(providers(OPENAI)).providers
EVER = Wanted(since=datetime(2000, 1, 1, tzinfo=UTC), until=datetime(2100, 1, 1, tzinfo=UTC), providers=["openai"])
CENT = Decimal("0.01")


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection, as a person with psql has."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
def corrections(store: Store) -> Corrections:
    return Corrections(store)


def pricer(*prices: Price) -> Pricer:
    return Pricer(PriceBook(prices), PROVIDERS)


def call(**fields: Any) -> UsageEvent:
    """A call of model `m` with 10,000 tokens in and none out: a dollar a million makes a cent."""
    plain = {"model": "m", "input_tokens": 10_000, "output_tokens": 0, "usage_source": "provider"}
    return event(**plain | fields)


async def record(store: Store, by: Pricer, events: Iterable[UsageEvent]) -> list[UUID]:
    """Put these calls into the ledger, costed by `by`; their ids."""
    events = list(events)
    for one in events:
        by.price(one)
    await store.insert_events([encode(one) for one in events])
    return [one.id for one in events]


async def total(sql: asyncpg.Connection) -> Decimal | None:
    amount: Decimal | None = await sql.fetchval("SELECT sum(cost_usd) FROM farebox.usage")
    return amount


async def postings(sql: asyncpg.Connection, id: UUID) -> list[tuple[Any, ...]]:
    """Kind and cost of each posting of a call."""
    query = "SELECT posting_kind, cost_usd FROM farebox.usage_entries WHERE id = $1 ORDER BY posting_no"
    return [tuple(row) for row in await sql.fetch(query, id)]


async def test_a_wrong_price_is_put_right_by_corrections(
    store: Store, sql: asyncpg.Connection, corrections: Corrections
) -> None:
    """The sum is what the right price makes it; the original and its correction can both be shown."""
    wrong, right = price("m", "10"), price("m", "1")
    ids = await record(store, pricer(wrong), [call() for _ in range(10)])
    assert await total(sql) == 100 * CENT
    tally = await reprice(corrections, pricer(right).price, EVER)
    assert tally == Tally(rows=10, corrected=10, down_usd=90 * CENT)
    assert await total(sql) == 10 * CENT
    assert await postings(sql, ids[0]) == [("original", 10 * CENT), ("correction", CENT)]
    assert await store.cost_corrections() == (0, 90 * CENT)
    assert await sql.fetchval("SELECT count(DISTINCT price_id) FROM farebox.usage") == 1
    assert await sql.fetchval("SELECT price_id FROM farebox.usage LIMIT 1") == right.id


async def test_repeating_finds_nothing_to_do(store: Store, sql: asyncpg.Connection, corrections: Corrections) -> None:
    """A second run with the same prices writes no posting; a third with the first prices writes them back."""
    before, after = pricer(price("m", "10")), pricer(price("m", "1.5"))
    [id] = await record(store, before, [call()])
    await reprice(corrections, after.price, EVER)
    assert await reprice(corrections, after.price, EVER) == Tally(rows=1)
    tally = await reprice(corrections, before.price, EVER)
    assert (tally.corrected, tally.up_usd) == (1, Decimal("0.085"))
    assert [cost for _, cost in await postings(sql, id)] == [10 * CENT, Decimal("0.015"), 10 * CENT]
    assert await store.cost_corrections() == (Decimal("0.085"), Decimal("0.085"))


async def test_the_same_amount_by_another_entry_is_no_correction(store: Store, corrections: Corrections) -> None:
    """An entry that changed in what costs nothing, as the size of the context, leaves rows as they are."""
    await record(store, pricer(price("m")), [call()])
    other = price("m", context_window=1)
    assert other.id != price("m").id
    assert await reprice(corrections, pricer(other).price, EVER) == Tally(rows=1)


async def test_a_correction_differs_in_its_cost_only(
    store: Store, sql: asyncpg.Connection, corrections: Corrections
) -> None:
    """Who, what, when, tokens, raw usage: all as it was in the posting before."""
    full = call(
        key_id=UUID(int=7),
        key_name="ci",
        team="t",
        project="p",
        end_user="u",
        session="s",
        tags={"a": "b"},
        requested_model="m",
        service_tier="default",
        stream=True,
        status=200,
        upstream_request_id="req",
        cache_read_tokens=1,
        cache_write_tokens=2,
        cache_write_1h_tokens=1,
        reasoning_tokens=0,
        audio_input_tokens=0,
        audio_output_tokens=0,
        image_tokens=0,
        usage_raw=msgspec.Raw(b'{"x": 1}'),
        provider_cost_usd=Decimal("0.3"),
        budget_ids=["b"],
        duration_ms=1.5,
        ttft_ms=0.5,
        upstream_ms=1.0,
        overhead_ms=0.25,
        tool_calls_count=1,
        tool_calls=[ToolCall("f", 1, 2)],
        error_type="e",
        error_code="c",
        unparsed_events=3,
    )
    await record(store, pricer(price("m", "2")), [full])
    await reprice(corrections, pricer(price("m", "1")).price, EVER)
    before, after = await sql.fetch("SELECT * FROM farebox.usage_entry ORDER BY posting_no")
    changed = {name for name in before.keys() if before[name] != after[name]}  # noqa: SIM118 (a Record's own)
    assert changed == {"posting_no", "posted_at", "cost_usd", "price_id"}


async def test_prices_hold_on_the_day_of_the_call(
    store: Store, sql: asyncpg.Connection, corrections: Corrections
) -> None:
    """A price that changed on a day is corrected on both sides of it, each by its own rate."""
    day = date(2024, 11, 22)
    changed = price("m", periods=(Period(rates=usd("2", "2")), Period(rates=usd("1", "1"), since=day)))
    eve = call(started_at=datetime(2024, 11, 21, 23, 59, 59, tzinfo=UTC))
    ids = await record(store, pricer(price("m", "7")), [eve, call(started_at=datetime(2024, 11, 22, tzinfo=UTC))])
    await reprice(corrections, pricer(changed).price, EVER)
    assert [(await postings(sql, id))[-1][1] for id in ids] == [2 * CENT, CENT]


async def test_tiers_and_raw_usage_are_priced_as_the_call_was(store: Store, corrections: Corrections) -> None:
    """What priced the live call prices it again the same: service tier, units, words of the raw usage object."""
    fast = Variant(when={"speed": "fast"}, rates=usd("6", "6"))
    same = pricer(price("m", variants=(tier("flex", "0.5", "0.5"), fast)))
    await record(
        store,
        same,
        [
            call(service_tier="flex"),
            call(usage_raw=msgspec.Raw(b'{"speed":"fast"}')),
            call(units={"web_searches": 2}),
            call(model=None, requested_model="m"),
        ],
    )
    costs = {row.cost_usd for row in (await store.list_usage()).rows}
    assert costs == {CENT / 2, 6 * CENT, None, CENT}
    assert await reprice(corrections, same.price, EVER) == Tally(rows=4)


async def test_what_had_no_price_gets_one(store: Store, sql: asyncpg.Connection, corrections: Corrections) -> None:
    """Calls of a model that was unknown are priced once it is known; what is still unknown stays NULL."""
    known, unknown = await record(store, pricer(), [call(), call(model="nobody")])
    tally = await reprice(corrections, pricer(price("m")).price, EVER)
    assert tally == Tally(rows=2, corrected=1, up_usd=CENT, newly_priced=1)
    assert await postings(sql, known) == [("original", None), ("correction", CENT)]
    assert await postings(sql, unknown) == [("original", None)]


async def test_what_lost_its_price_keeps_its_cost(
    store: Store, sql: asyncpg.Connection, corrections: Corrections
) -> None:
    """A model that left the book was still paid for: its calls keep their cost, unless they are to lose it."""
    [id] = await record(store, pricer(price("m")), [call(provider_cost_usd=Decimal(9))])
    [bare] = await record(store, pricer(price("m")), [call()])
    assert await reprice(corrections, pricer().price, EVER) == Tally(rows=2, kept=2)
    assert await total(sql) == 2 * CENT
    tally = await reprice(corrections, pricer().price, EVER, unprice=True)
    assert (tally.corrected, tally.unpriced, tally.kept) == (2, 1, 0)
    assert (await postings(sql, bare))[-1] == ("correction", None)
    assert (await postings(sql, id))[-1] == ("correction", Decimal(9))  # what the provider said of it


async def test_what_was_not_billable_stays(store: Store, corrections: Corrections) -> None:
    """A refused call costs 0 and what is not metered costs nothing known, whatever the book says."""
    await record(
        store,
        pricer(),
        [call(usage_source="none", cost_usd=Decimal(0), cost_source="none"), call(usage_source="none")],
    )
    assert await reprice(corrections, pricer(price("m")).price, EVER) == Tally()


async def test_what_was_held_or_an_operator_said_stays(store: Store, corrections: Corrections) -> None:
    """A charge at the hold and an operator's word stay; a hold for want of a price gets its price."""
    held = call(usage_source="hold", outcome="farebox_cut", cost_usd=Decimal(3), cost_source="hold")
    said = call(cost_usd=Decimal(2), cost_source="operator")
    unpriced = call(cost_usd=Decimal(5), cost_source="hold")
    unknown = call(model="x", cost_usd=Decimal(4), cost_source="hold")
    await store.insert_events([encode(one) for one in (held, said, unpriced, unknown)])
    await reprice(corrections, pricer(price("m", "1")).price, EVER, unprice=True)
    page = await store.list_usage()
    costs = {row.id: (row.cost_usd, row.cost_source) for row in page.rows}
    assert costs == {
        held.id: (3, "hold"),
        said.id: (2, "operator"),
        unpriced.id: (CENT, "prices"),
        unknown.id: (4, "hold"),
    }


async def test_only_what_is_wanted_is_corrected(
    store: Store, sql: asyncpg.Connection, corrections: Corrections
) -> None:
    """From `since`, before `until`, of these providers and models; a provider the config lacks is left alone."""
    times = [STARTED + timedelta(minutes=n) for n in range(4)]
    ids = await record(store, pricer(), [call(started_at=at) for at in times])
    others = await record(
        store, pricer(), [call(started_at=times[1], model="other"), call(started_at=times[1], provider="gone")]
    )
    wanted = Wanted(since=times[1], until=times[3], providers=["openai"], model=expression("M*"))
    tally = await reprice(corrections, pricer(price("m"), price("other")).price, wanted)
    assert tally.rows == tally.corrected == 2
    corrected = {row[0] for row in await sql.fetch("SELECT id FROM farebox.usage_entry WHERE posting_no = 2")}
    assert corrected == set(ids[1:3]) and not corrected & set(others)


async def test_a_dry_run_says_and_does_nothing(store: Store, sql: asyncpg.Connection, corrections: Corrections) -> None:
    """The tally is that of the real run; no posting is added."""
    await record(store, pricer(price("m", "10")), [call() for _ in range(3)])
    dry = await reprice(corrections, pricer(price("m")).price, EVER, dry_run=True)
    assert await sql.fetchval("SELECT count(*) FROM farebox.usage_entry") == 3
    assert dry == await reprice(corrections, pricer(price("m")).price, EVER)


async def test_pages_split_anywhere_miss_and_repeat_nothing(
    store: Store, sql: asyncpg.Connection, corrections: Corrections
) -> None:
    """Pages smaller than a moment's calls, with corrected calls among them: each call is looked at exactly once."""
    ids = await record(store, pricer(price("m", "3")), [call(started_at=STARTED) for _ in range(23)])
    await reprice(corrections, pricer(price("m", "2")).price, EVER)
    await record(store, pricer(price("m", "3")), [call(started_at=STARTED + timedelta(seconds=n)) for n in range(9)])
    for size in (1, 2, 7):
        right = pricer(price("m", f"0.0{size}"))
        tally = await reprice(corrections, right.price, EVER, page_rows=size)
        assert (tally.rows, tally.corrected) == (32, 32)
    assert len(await postings(sql, ids[0])) == 5


async def test_two_runs_at_once_correct_everything_once(database: str, sql: asyncpg.Connection) -> None:
    """Whatever their order, each call gets one correction, and the two tallies add up."""
    stores = [Store(database) for _ in range(3)]
    for store in stores:
        await store.open()
    try:
        await record(stores[0], pricer(price("m", "10")), [call() for _ in range(200)])
        right = pricer(price("m"))
        tallies = await asyncio.gather(
            *(reprice(Corrections(store), right.price, EVER, page_rows=16) for store in stores)
        )
    finally:
        for store in stores:
            await store.close()
    assert sum(tally.corrected for tally in tallies) == 200
    assert sum((tally.down_usd for tally in tallies), Decimal(0)) == 200 * 9 * CENT
    assert await sql.fetchval("SELECT max(posting_no) FROM farebox.usage_entry") == 2
    assert await total(sql) == 200 * CENT
    assert tuple(await sql.fetchrow("SELECT up_usd, down_usd FROM farebox.cost_correction")) == (0, 200 * 9 * CENT)


async def test_it_works_through_pgbouncer_in_transaction_mode(database: str) -> None:
    """Prices are put and calls corrected through a pooler that gives every transaction another connection."""
    async with pgbouncer(database, server_connections=2) as through:
        store = Store(through, pool_size_max=4)
        await store.open()
        try:
            books = await asyncio.gather(*(seeded(PriceLists(store)) for _ in range(4)))
            assert len({revision for _, revision in books}) == 1
            await record(store, pricer(price("m", "10")), [call() for _ in range(30)])
            right = pricer(price("m"))
            runs = (reprice(Corrections(store), right.price, EVER, page_rows=4) for _ in range(4))
            assert sum(tally.corrected for tally in await asyncio.gather(*runs)) == 30
        finally:
            await store.close()


class Interrupted(Corrections):
    """Before corrections are posted, something else happens; so often."""

    def __init__(self, store: Store, events: Sequence[UsageEvent]) -> None:
        super().__init__(store)
        self.store = store
        self.events = list(events)

    async def post(self, costs: Sequence[Cost]) -> set[UUID]:
        if self.events:
            await self.store.insert_events([encode(self.events.pop(0))])
        return await super().post(costs)


async def test_a_late_truth_that_comes_between_is_not_overwritten(store: Store, sql: asyncpg.Connection) -> None:
    """A call's real answer is posted while it is repriced: what the answer says is priced, by the new price."""
    cut = call(outcome="farebox_cut", usage_source="estimate")
    [id] = await record(store, pricer(price("m", "10")), [cut])
    late = call(id=id, request_id=id, outcome="complete", input_tokens=20_000, cost_usd=20 * CENT, cost_source="prices")
    tally = await reprice(Interrupted(store, [late]), pricer(price("m")).price, EVER)
    assert (tally.rows, tally.corrected, tally.contested) == (1, 1, 0)
    row = (await store.list_usage()).rows[0]
    assert (row.outcome, row.input_tokens, row.cost_usd) == ("complete", 20_000, 2 * CENT)
    assert [cost for _, cost in await postings(sql, id)] == [10 * CENT, 20 * CENT, 2 * CENT]


async def test_a_late_truth_that_nothing_was_billed_stands(store: Store) -> None:
    """The answer that comes between was a refusal: it costs 0, and no price has a say."""
    [id] = await record(store, pricer(price("m", "10")), [call(outcome="farebox_cut", usage_source="estimate")])
    refused = call(id=id, request_id=id, outcome="upstream_error", usage_source="none")
    refused.cost_usd, refused.cost_source = Decimal(0), "none"
    tally = await reprice(Interrupted(store, [refused]), pricer(price("m")).price, EVER)
    assert (tally.rows, tally.corrected, tally.contested) == (1, 0, 0)
    row = (await store.list_usage()).rows[0]
    assert (row.outcome, row.cost_usd, row.cost_source) == ("upstream_error", 0, "none")


async def test_a_row_that_pricing_fails_on_stops_no_other(store: Store, corrections: Corrections) -> None:
    """It is counted and left as it is; the calls after it are corrected."""
    ids = await record(store, pricer(price("m", "10")), [call(), call(), call()])
    right = pricer(price("m"))

    def fail_on_one(one: UsageEvent) -> None:
        if one.id == ids[0]:
            raise ZeroDivisionError
        right.price(one)

    tally = await reprice(corrections, fail_on_one, EVER)
    assert (tally.rows, tally.corrected, tally.failed) == (3, 2, 1)
    assert {row.id: row.cost_usd for row in (await store.list_usage()).rows}[ids[0]] == 10 * CENT


async def test_a_correction_that_is_committed_meanwhile_is_built_upon(
    store: Store, sql: asyncpg.Connection, corrections: Corrections, database: str
) -> None:
    """Another process's correction, not yet committed, is waited for; then it is the posting to be corrected."""
    [id] = await record(store, pricer(price("m", "10")), [call()])
    other = await asyncpg.connect(database)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(
            "INSERT INTO farebox.usage_entry (id, posting_no, request_id, attempt, started_at, finished_at, provider, "
            "dialect, endpoint, operation, outcome, model, input_tokens, output_tokens, usage_source, cost_usd, "
            "cost_source) SELECT id, 2, request_id, attempt, started_at, finished_at, provider, dialect, endpoint, "
            "operation, outcome, model, input_tokens, output_tokens, usage_source, 5, 'prices' "
            "FROM farebox.usage_entry WHERE id = $1",
            id,
        )
        running = asyncio.ensure_future(reprice(corrections, pricer(price("m")).price, EVER))
        async with asyncio.timeout(10):
            while not await sql.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
                await asyncio.sleep(0.01)
        await transaction.commit()
        tally = await running
    finally:
        await other.close()
    assert (tally.rows, tally.corrected, tally.contested) == (1, 1, 0)
    assert [cost for _, cost in await postings(sql, id)] == [10 * CENT, Decimal(5), CENT]


class Contending(Corrections):
    """Somebody else always corrects first, and otherwise."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.rounds = 0

    async def post(self, costs: Sequence[Cost]) -> set[UUID]:
        self.rounds += 1
        await super().post([msgspec.structs.replace(cost, cost_usd=Decimal(self.rounds)) for cost in costs])
        return await super().post(costs)


async def test_a_call_that_others_keep_correcting_is_left_to_a_later_run(store: Store) -> None:
    """The fight ends after a few rounds, and the tally says that there was one."""
    await record(store, pricer(price("m", "10")), [call()])
    contending = Contending(store)
    tally = await reprice(contending, pricer(price("m")).price, EVER)
    assert (tally.rows, tally.corrected, tally.contested) == (1, 0, 1)
    assert contending.rounds < 10
    tally = await reprice(Corrections(store), pricer(price("m")).price, EVER)
    assert (tally.corrected, (await store.list_usage()).rows[0].cost_usd) == (1, CENT)


async def test_an_interrupted_run_is_finished_by_the_next(
    store: Store, sql: asyncpg.Connection, corrections: Corrections
) -> None:
    """What was corrected stays so, the rest is corrected later, nothing twice."""
    await record(store, pricer(price("m", "10")), [call() for _ in range(10)])

    def stop(tally: Tally, _: datetime) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await reprice(corrections, pricer(price("m")).price, EVER, page_rows=4, progress=stop)
    assert await total(sql) == 4 * CENT + 6 * 10 * CENT
    tally = await reprice(corrections, pricer(price("m")).price, EVER, page_rows=4)
    assert (tally.rows, tally.corrected) == (10, 6)
    assert await total(sql) == 10 * CENT
    assert await sql.fetchval("SELECT count(*) FROM farebox.usage_entry") == 20


@pytest.mark.parametrize(
    "glob", ["m", "gpt-*", "*", "?pt-4o", "gpt-[45]*", "gpt-[!5]*", "a.b+c(d)", "[", "x]", "a[^b]"]
)
async def test_globs_mean_the_same_in_the_database(sql: asyncpg.Connection, glob: str) -> None:
    """The expression made of a glob fits exactly the names that the glob fits, upper and lower case alike."""
    names = ["m", "M", "gpt-4o", "GPT-4o", "gpt-5", "ipt-4o", "a.b+c(d)", "axb+c(d)", "[", "x]", "a^", "ab", "ac", "\\"]
    found = [name for name in names if await sql.fetchval("SELECT $1::text ~ $2", name, expression(glob))]
    assert found == [name for name in names if fnmatchcase(name.lower(), glob.lower())]
