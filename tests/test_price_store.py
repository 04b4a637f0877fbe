"""The price book in Postgres: seeded once, never overwritten, the same for all, and every price_id leads somewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs

from farebox.config import Config
from farebox.payload import encode
from farebox.pricebook import Prices, current_pricer, loaded, put_configured, seeded
from farebox.pricing import Period, Price, PriceBook, Pricer, Rates, Step, config_entries, shipped
from farebox.store import PriceLists, Store, StoreUnavailable
from farebox.store.migrations import migrate
from farebox.store.migrations import shipped as migrations
from farebox.store.prices import PriceList
from support.config import OPENAI, providers, read
from support.events import event
from support.live import eventually
from support.postgres import PostgresServer
from support.prices import NOW, price, publish, tier, usd

Connection = asyncpg.Connection
SHIPPED = shipped()


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a database without prices: what puts them there is looked at here."""
    async with postgres.database() as dsn:
        yield dsn


@pytest.fixture
async def sql(database: str) -> AsyncIterator[Connection]:
    """A plain connection, as a person with psql has."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
def lists(store: Store) -> PriceLists:
    return PriceLists(store)


def ids(prices: Sequence[Price]) -> set[str]:
    return {price.id for price in prices}


# -- seeding ---------------------------------------------------------------------------------------


async def test_the_first_start_puts_everything_shipped_and_the_next_nothing(lists: PriceLists, sql: Connection) -> None:
    """An empty database gets the shipped prices whole; a second start finds them there."""
    book, revision = await seeded(lists)
    assert ids(book.entries) == ids(SHIPPED.entries)
    again, same = await seeded(lists)
    assert (same, ids(again.entries)) == (revision, ids(book.entries))
    assert await sql.fetchval("SELECT count(*) FROM farebox.price_list") == 1
    assert await sql.fetchval("SELECT count(*) FROM farebox.prices") == len(ids(SHIPPED.entries))


async def test_processes_that_seed_at_once_put_one_list(database: str, sql: Connection) -> None:
    """Eight replicas that start on an empty database end up with one list, and all of them with its prices."""
    stores = [Store(database) for _ in range(8)]
    for store in stores:
        await store.open()
    try:
        books = await asyncio.gather(*(seeded(PriceLists(store)) for store in stores))
    finally:
        for store in stores:
            await store.close()
    assert {revision for _, revision in books} == {books[0][1]}
    assert all(ids(book.entries) == ids(SHIPPED.entries) for book, _ in books)
    assert await sql.fetchval("SELECT count(*) FROM farebox.price_list") == 1


async def test_what_is_shipped_never_overrides_what_was_synced_later(lists: PriceLists, store: Store) -> None:
    """Prices fetched after the shipped ones were made stay in force over a restart; older ones give way."""
    mine = price("mine")
    old = await publish(store, mine, at=SHIPPED.snapshot - timedelta(days=1))
    book, revision = await seeded(lists)
    assert revision > old and ids(book.entries) == ids(SHIPPED.entries)
    new = await publish(store, mine, at=SHIPPED.snapshot + timedelta(days=1))
    book, revision = await seeded(lists)
    assert (revision, ids(book.entries)) == (new, {mine.id})


async def test_a_shipped_list_made_otherwise_by_another_version_is_taken(lists: PriceLists) -> None:
    """The same facts read better by a newer farebox replace what the older one made of them."""
    first = await lists.put("published", "shipped", SHIPPED.snapshot, [price("misread")])
    book, revision = await seeded(lists)
    assert first is not None and revision > first
    assert ids(book.entries) == ids(SHIPPED.entries)


async def test_prices_come_back_as_they_were_put(lists: PriceLists, store: Store) -> None:
    """Whatever an entry holds survives Postgres: decimals to the last digit, order, conditions."""
    cliff = Step(200_000, {"input": Decimal(7)})
    rich = price(
        "rich",
        periods=(
            Period(rates=Rates({"input": Decimal("0.10"), "output": Decimal("1E-12")}, (cliff,))),
            Period(rates=usd("3", "4"), since=date(2026, 1, 1), hours=("16:30", "00:30"), weekdays=(1, 2)),
        ),
        variants=(tier("flex", "0.5", "1"),),
        context_window=128_000,
        since=date(2025, 5, 5),
    )
    prices = [price("zz", rank=0), price("aa", rank=1), rich]
    found, unread = await lists.load(await publish(store, *prices))
    assert unread == []
    assert [one.model for one in found] == ["rich", "zz", "aa"]  # by rank, then by name
    assert next(one for one in found if one.model == "rich") == msgspec.structs.replace(rich, rank=0)
    everything = await loaded(lists, await publish(store, *SHIPPED.entries))
    plain = {one.id: msgspec.structs.replace(one, rank=0) for one in SHIPPED.entries}
    assert {one.id: msgspec.structs.replace(one, rank=0) for one in everything.entries} == plain


@pytest.mark.parametrize("match", ['{"equals": ["odd-2026-01-01"]}', "{}", '{"sounds_like": ["odd"]}', "[]"])
async def test_a_price_a_newer_farebox_wrote_is_unknown(
    lists: PriceLists, store: Store, sql: Connection, match: str
) -> None:
    """An entry with a member that is not known here makes its model unpriced, and no other is priced in its place."""
    known = price("odd")  # what a snapshot of that name would cost, were it not listed by itself
    revision = await publish(store, known, at=NOW)
    await sql.execute(
        "WITH list AS (INSERT INTO farebox.price_list (name, source, snapshot, digest, prices) "
        "SELECT 'published', 'sync', snapshot, 'x', prices || 'openai/odd/1'::text FROM farebox.price_list "
        "WHERE revision = $1 RETURNING revision) INSERT INTO farebox.price (id, book, model, entry, revision) "
        "SELECT 'openai/odd/1', 'openai', 'odd-2026-01-01', $2::text::jsonb, revision FROM list",
        revision,
        '{"id": "openai/odd/1", "book": "openai", "model": "odd-2026-01-01", "periods": [], "full_moon_usd": "1", '
        f'"match": {match}}}',
    )
    prices, unread = await lists.load(revision + 1)
    assert (ids(prices), unread) == ({known.id, "openai/odd/1"}, ["openai/odd/1"])
    pricer = Pricer(PriceBook(prices), read(providers(OPENAI)).providers)
    assert pricer.quote("openai", "odd", NOW) is not None
    assert pricer.quote("openai", "odd-2026-01-01", NOW) is None
    used: dict[str, Any] = {"input_tokens": 1, "output_tokens": 1, "usage_source": "provider"}
    assert pricer.cost(event(model="odd-2026-01-01", **used)) is None


# -- rules of the tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE farebox.price SET entry = '{}'",
        "DELETE FROM farebox.price",
        "TRUNCATE farebox.price",
        "UPDATE farebox.price_list SET snapshot = now()",
        "DELETE FROM farebox.price_list",
        "TRUNCATE farebox.price_list CASCADE",
    ],
)
async def test_prices_are_only_ever_added(store: Store, sql: Connection, statement: str) -> None:
    """No statement changes or removes a price that was ever in force."""
    await publish(store, price("m"))
    with pytest.raises(asyncpg.RestrictViolationError, match="only ever added"):
        await sql.execute(statement)


async def test_a_price_that_is_gone_stays_known_and_may_come_back(store: Store, sql: Connection) -> None:
    """The view `prices` has what the newest list has; `prices_all` what there ever was, each once."""

    async def current() -> list[str]:
        return [row[0] for row in await sql.fetch("SELECT model FROM farebox.prices ORDER BY 1")]

    first, second = price("a"), price("b")
    await publish(store, first, second)
    assert await current() == ["a", "b"]
    await publish(store, second)
    assert await current() == ["b"]
    everything = await sql.fetch("SELECT price_id, current FROM farebox.prices_all ORDER BY model")
    assert [tuple(row) for row in everything] == [(first.id, False), (second.id, True)]
    await publish(store, first)
    assert await current() == ["a"]
    assert await sql.fetchval("SELECT count(*) FROM farebox.price") == 2


async def test_the_view_shows_rates_that_people_can_read(store: Store, sql: Connection) -> None:
    """US dollars per million tokens as of today: the last period that has begun; NULL where there is no price."""
    today = datetime.now(UTC).date()
    dated = price(
        "dated",
        periods=(
            Period(rates=usd("9", "9")),
            Period(rates=usd("1.25", "10", cache_read="0.125"), since=today - timedelta(days=3)),
            Period(rates=usd("7", "7"), hours=("16:30", "00:30")),
            Period(rates=usd("8", "8"), since=today + timedelta(days=3)),
        ),
        context_window=400_000,
    )
    await publish(store, dated, price("unknown", periods=(Period(rates=Rates()),)))
    row, unknown = await sql.fetch("SELECT * FROM farebox.prices ORDER BY model")
    assert (row["input_usd_per_mtok"], row["output_usd_per_mtok"]) == (Decimal("1.25"), Decimal(10))
    assert (row["cache_read_usd_per_mtok"], row["cache_write_usd_per_mtok"]) == (Decimal("0.125"), None)
    assert (row["since"], row["context_window"], row["source"]) == (today - timedelta(days=3), 400_000, "sync")
    assert (unknown["model"], unknown["input_usd_per_mtok"]) == ("unknown", None)


# -- a running process's book ------------------------------------------------------------------------


def config_with(prices: str) -> Config:
    """OpenAI with prices of its own."""
    return read(providers(OPENAI[:-1] + f", prices: {prices}}}"))


async def test_the_configs_prices_can_be_joined_to_rows(store: Store, lists: PriceLists, sql: Connection) -> None:
    """Each price_id a config override gives resolves in SQL; a changed override leaves the old one known."""
    before, after = (
        config_with(f'{{"m*": {{input_usd_per_mtok: {rate}, output_usd_per_mtok: 2}}}}') for rate in ("0.10", "0.30")
    )
    for config in (before, before, after):
        await put_configured(lists, config.providers, NOW)
    query = "SELECT price_id, current, input_usd_per_mtok, source FROM farebox.prices_all WHERE book = 'config:openai'"
    rows = {row["price_id"]: tuple(row)[1:] for row in await sql.fetch(query)}
    [old], [new] = config_entries(before.providers["openai"]), config_entries(after.providers["openai"])
    assert rows == {old.id: (False, Decimal("0.10"), "config"), new.id: (True, Decimal("0.30"), "config")}
    await put_configured(lists, read(providers(OPENAI)).providers, NOW)
    assert await sql.fetchval("SELECT count(*) FROM farebox.prices WHERE book = 'config:openai'") == 0
    # And one that never had any leaves no trace.
    assert await sql.fetchval("SELECT count(*) FROM farebox.price_list") == 3


async def test_any_name_a_config_may_have_makes_an_id_that_a_row_can_hold(store: Store, lists: PriceLists) -> None:
    """The longest globs, in any alphabet, give ids of at most 200 characters that are still told apart."""
    long = "🦊" * 255
    prices = ", ".join(f'"{long}{end}": {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}' for end in "ab")
    config = config_with(f"{{{prices}}}")
    entries = config_entries(config.providers["openai"])
    assert len(ids(entries)) == 2 and all(len(entry.id) <= 200 for entry in entries)
    await put_configured(lists, config.providers, NOW)
    pricer = await current_pricer(store, config.providers)
    one = event(model=long + "a", input_tokens=1, output_tokens=0, usage_source="provider")
    pricer.price(one)
    assert one.price_id == entries[0].id
    assert msgspec.json.decode(encode(one))["price_id"] == one.price_id


def cost(prices: Prices, model: str, **fields: object) -> Decimal | None:
    """What a million tokens in and none out cost."""
    fields = {"model": model, "input_tokens": 1_000_000, "output_tokens": 0, "usage_source": "provider", **fields}
    one = event(**fields)
    prices.price(one)
    return one.cost_usd


async def test_a_list_put_elsewhere_is_in_force_within_a_poll(store: Store, lists: PriceLists) -> None:
    """Another process puts prices; this one takes them up without a restart, whole."""
    prices = Prices(lists, read(providers(OPENAI)).providers, poll_s=0.01)
    await publish(store, price("m", "1"))
    await prices.start()
    try:
        assert cost(prices, "m") == 1
        await publish(store, price("m", "1.5"), price("new", "3"))
        await eventually(lambda: cost(prices, "m") == Decimal("1.5"))
        assert cost(prices, "new") == 3
        await publish(store, price("new", "3"))
        await eventually(lambda: cost(prices, "m") is None)
    finally:
        await prices.close()


class Unreliable(PriceLists):
    """Lists on a database that may be away."""

    away = False
    asked = 0

    async def newest(self, name: str = "published") -> PriceList | None:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("the database is away")
        return await super().newest(name)


async def test_while_the_database_is_away_prices_stay_and_it_is_said_once(store: Store) -> None:
    """Polls that fail change nothing and leave one line in the log; when it is back, new prices come."""
    lists = Unreliable(store)
    prices = Prices(lists, read(providers(OPENAI)).providers, poll_s=0.005)
    await publish(store, price("m", "1"))
    await prices.start()
    try:
        with capture_logs() as logs:
            lists.away, asked = True, lists.asked
            await publish(store, price("m", "2"))
            await eventually(lambda: lists.asked > asked + 5)
            assert cost(prices, "m") == 1
            lists.away = False
            await eventually(lambda: cost(prices, "m") == 2)
    finally:
        await prices.close()
    said = [line["event"] for line in logs if "looked up" in line["event"]]
    assert said == ["prices can't be looked up: those in memory stay", "prices can be looked up again"]


async def test_a_new_config_prices_at_once_and_the_last_calls_of_a_provider_that_is_gone(
    store: Store, lists: PriceLists, sql: Connection
) -> None:
    """A reload's overrides hold from its return on and get into the database; calls under way are priced, too."""
    before = config_with('{"m": {input_usd_per_mtok: 5, output_usd_per_mtok: 5}}')
    after = read(
        providers(
            'other: {dialect: openai, base_url: "http://localhost:1/v1", '
            'prices: {"m": {input_usd_per_mtok: 7, output_usd_per_mtok: 7}}}'
        )
    )
    prices = Prices(lists, before.providers, poll_s=3_600)
    await prices.start()
    try:
        prices.change(after.providers, poll_s=3_600)
        assert cost(prices, "m", provider="other") == 7
        assert cost(prices, "m", provider="openai") == 5
        async with asyncio.timeout(10):
            while not await sql.fetchval("SELECT count(*) FROM farebox.prices WHERE book = 'config:other'"):
                await asyncio.sleep(0.01)
    finally:
        await prices.close()


async def test_a_price_book_that_does_not_exist_is_said(store: Store, lists: PriceLists) -> None:
    """A misspelt `price_book` is a warning at the start and at a reload: else nobody knows why there is no price."""
    one = 'p: {{dialect: vllm, base_url: "http://localhost:1/v1", price_book: {}}}'
    books = ("opneai", "OpenAI", "none", "huggingface")
    configs = [read(providers(one.format(book))) for book in books]
    await publish(store, price("m", "1"))
    prices = Prices(lists, configs[0].providers, poll_s=3_600)
    with capture_logs() as logs:
        await prices.start()
        for config in [*configs[1:], configs[0]]:
            prices.change(config.providers, poll_s=3_600)
        await prices.close()
    said = [line["price_book"] for line in logs if "price_book" in line["event"]]
    assert said == ["opneai", "opneai"]


async def test_the_prices_of_a_config_are_written_down_however_short_it_was_in_force(
    lists: PriceLists, sql: Connection
) -> None:
    """Of two configs in a row, and a stop right behind them, every price_id that a call may have leads somewhere."""
    prices = Prices(lists, config_with("{}").providers, poll_s=3_600)
    await prices.start()
    given = set()
    for rate in ("5", "6"):
        prices.change(config_with(f'{{"m": {{input_usd_per_mtok: {rate}}}}}').providers, poll_s=3_600)
        one = event(model="m", input_tokens=1, output_tokens=0, usage_source="provider")
        prices.price(one)
        given.add(one.price_id)
    await prices.close()
    found = await sql.fetch("SELECT price_id FROM farebox.prices_all WHERE book = 'config:openai'")
    assert {row["price_id"] for row in found} == given and len(given) == 2


# -- corrections -------------------------------------------------------------------------------------

_CORRECT = (
    "INSERT INTO farebox.usage_entry (id, posting_no, request_id, attempt, started_at, finished_at, provider, dialect, "
    "endpoint, operation, outcome, cost_usd) SELECT id, $2, request_id, attempt, started_at, finished_at, provider, "
    "dialect, endpoint, operation, outcome, $3 FROM farebox.usage_entry WHERE id = $1 AND posting_no = 1"
)


async def test_corrections_are_summed_by_direction(store: Store, sql: Connection) -> None:
    """Up and down apart, to the last digit; what was unknown counts as nothing; originals count for neither."""
    assert await store.cost_corrections() == (0, 0)
    one, two, three = event(cost_usd=Decimal("0.3")), event(), event(cost_usd=Decimal(5))
    await store.insert_events([encode(e) for e in (one, two, three)])
    assert await store.cost_corrections() == (0, 0)
    for number, (id, amount) in enumerate(
        [(one.id, "0.1"), (one.id, "0.1000000000000000000001"), (one.id, None)], start=2
    ):
        await sql.execute(_CORRECT, id, number, None if amount is None else Decimal(amount))
    assert await store.cost_corrections() == (Decimal("1E-22"), Decimal("0.3000000000000000000001"))
    await sql.execute(_CORRECT, two.id, 2, Decimal(2))
    up, down = await store.cost_corrections()
    assert (up, down) == (Decimal("2.0000000000000000000001"), Decimal("0.3000000000000000000001"))
    originals = await sql.fetchval("SELECT sum(cost_usd) FROM farebox.usage_entry WHERE posting_no = 1")
    assert originals + up - down == await sql.fetchval("SELECT sum(cost_usd) FROM farebox.usage")


async def test_corrections_made_before_the_upgrade_are_counted(postgres: PostgresServer) -> None:
    """A database of an older farebox has the sums of its corrections once it is migrated."""
    async with postgres.database(migrated=False) as dsn:
        connection = await asyncpg.connect(dsn)
        try:
            await migrate(connection, migrations()[:2])
            id = event().id
            await connection.execute(
                "INSERT INTO farebox.usage_entry (id, request_id, attempt, started_at, finished_at, provider, dialect, "
                "endpoint, operation, outcome, cost_usd) VALUES ($1, $1, 1, now(), now(), 'p', 'd', 'e', 'chat', "
                "'complete', 2)",
                id,
            )
            await connection.execute(_CORRECT, id, 2, Decimal("3.5"))
            await connection.execute(_CORRECT, id, 3, Decimal(1))
            await migrate(connection, migrations())
            assert tuple(await connection.fetchrow("SELECT up_usd, down_usd FROM farebox.cost_correction")) == (
                Decimal("1.5"),
                Decimal("2.5"),
            )
        finally:
            await connection.close()
