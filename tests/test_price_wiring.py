"""Calls through a running farebox have their exact cost in the row, or none where no price is known."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from farebox.pricing import Period
from farebox.records import UsageRow
from support.answers import DONE, chunk, finish, frame, usage, usage_frame
from support.app import config_of, running, settings_of
from support.live import PROVIDER_KEY, Desk, Serving, eventually, serving
from support.postgres import PostgresServer
from support.prices import price, publish, tier, usd
from support.provider import FakeProvider, plain, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
PRICED = price("m", "0.125", "2", variants=(tier("flex", "0.05", "1"), tier("priority", "0.25", "4")))
CACHING = price("cached", periods=(Period(rates=usd("3", "15", cache_read="0.30", cache_write="3.75")),))


def charging(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    """One provider under several names: with OpenAI's prices, with its own, with none."""
    one = {"dialect": "openai", "base_url": fakes["up"].base_url, "api_key": PROVIDER_KEY}
    own = {"m*": {"input_usd_per_mtok": 7, "output_usd_per_mtok": "0.000001"}}
    providers = {
        "up": one,
        "own": {**one, "prices": own},
        "unlisted": {**one, "price_book": "none"},
        "local": {**one, "dialect": "vllm"},
    }
    return providers, [{"match": {}, "to": ["up"]}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], charging, metering={"price_poll_s": 0.05}) as serving_:
        app = serving_.farebox.app
        await publish(app.store, PRICED, CACHING)
        await eventually(lambda: app.prices.pricer.book.get(PRICED.id))
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


def answer(model: str = "m", prompt: int = 1000, completion: int = 10, **more: Any) -> bytes:
    """A whole chat answer."""
    counts = usage(prompt, completion, **more.pop("usage", {}))
    return json.dumps({"model": model, "choices": [], "usage": counts, **more}).encode()


def costs(row: UsageRow) -> tuple[Decimal | None, str | None, str | None]:
    return row.cost_usd, row.cost_source, row.price_id


async def called(desk: Desk, body: bytes, target: str = CHAT, model: str = "m") -> UsageRow:
    """The row of one call that gets this answer."""
    desk.provider.then(plain(body))
    assert (await desk.call(target, {"model": model, "messages": []})).status == 200
    return await desk.row()


async def test_a_row_has_its_exact_cost_and_the_price_it_came_from(desk: Desk) -> None:
    """1,000 tokens at $0.125 a million and 10 at $2: $0.000145, by the entry that price_id names."""
    row = await called(desk, answer())
    assert costs(row) == (Decimal("0.000145"), "prices", PRICED.id)


async def test_the_smallest_amount_is_kept_to_its_last_digit(desk: Desk) -> None:
    """One token at $0.125 a million is 0.000000125 through meter, journal and database, never rounded."""
    row = await called(desk, answer(prompt=1, completion=0))
    assert row.cost_usd == Decimal("0.000000125")
    async with desk.app.store.connection() as connection:
        text = await connection.fetchval("SELECT cost_usd::text FROM farebox.usage WHERE id = $1", row.id)
    assert text == "0.000000125"


async def test_a_rows_price_is_found_in_sql(desk: Desk) -> None:
    """JOIN farebox.prices_all USING (price_id) shows the rates of a row, of a published price and of the config's."""
    await called(desk, answer())
    desk.provider.then(plain(answer()))
    await desk.call("/p/own/chat/completions", {"model": "m", "messages": []})
    await desk.rows(2)
    async with desk.app.store.connection() as connection:
        rows = await connection.fetch(
            "SELECT book, input_usd_per_mtok FROM farebox.usage JOIN farebox.prices_all USING (price_id) "
            "WHERE key_name = $1 ORDER BY started_at",
            desk.farebox.key_name,
        )
    assert [tuple(row) for row in rows] == [("openai", Decimal("0.125")), ("config:own", Decimal(7))]


async def test_caches_are_charged_apart(desk: Desk) -> None:
    """600 uncached at $3, 300 read at $0.30, 100 written at $3.75, 10 out at $15."""
    details = {"prompt_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 100}}
    row = await called(desk, answer("cached", usage=details), model="cached")
    assert (row.input_tokens, row.cache_read_tokens, row.cache_write_tokens) == (1000, 300, 100)
    assert row.cost_usd == Decimal("0.0018") + Decimal("0.00009") + Decimal("0.000375") + Decimal("0.00015")


@pytest.mark.parametrize(("named", "expected"), [("flex", "0.00006"), ("priority", "0.00029"), ("default", "0.000145")])
async def test_the_tier_that_served_decides(desk: Desk, named: str, expected: str) -> None:
    """What counts is the tier the answer names, whatever was asked for."""
    row = await called(desk, answer(service_tier=named))
    assert (row.service_tier, row.cost_usd, row.price_id) == (named, Decimal(expected), PRICED.id)


@pytest.mark.parametrize(
    ("body", "target"),
    [
        (answer("nobody-knows"), CHAT),
        (answer(service_tier="turbo"), CHAT),
        (answer(), "/p/unlisted/chat/completions"),
        (answer(), "/p/local/chat/completions"),
    ],
    ids=["model", "tier", "no book", "own server"],
)
async def test_what_has_no_price_has_no_cost(desk: Desk, body: bytes, target: str) -> None:
    """Unknown is NULL, never 0 and never another model's, tier's or publisher's price."""
    row = await called(desk, body, target, model="nobody-knows" if b"nobody" in body else "m")
    assert costs(row) == (None, None, None)
    assert row.total_tokens == 1010


async def test_the_configs_price_goes_before_the_book(desk: Desk) -> None:
    """A provider's own prices are what its calls cost, here $7 in and a millionth of a dollar out."""
    row = await called(desk, answer(), "/p/own/chat/completions")
    assert (row.cost_usd, row.cost_source) == (Decimal("0.00700000001"), "prices")
    assert row.price_id is not None and row.price_id.startswith("config:own/m*/")


async def test_a_reported_cost_stands_beside_ours_or_in_for_it(desk: Desk) -> None:
    """Where a price is known it counts, with the provider's figure beside it; where none is, the figure counts."""
    row = await called(desk, answer(usage={"cost": 0.5}))
    assert (costs(row)[:2], row.provider_cost_usd) == ((Decimal("0.000145"), "prices"), Decimal("0.5"))
    desk.provider.then(plain(answer("nobody-knows", usage={"cost": 0.25})))
    await desk.call(CHAT, {"model": "nobody-knows", "messages": []})
    row = (await desk.rows(2))[-1]
    assert (costs(row), row.provider_cost_usd) == ((Decimal("0.25"), "provider", None), Decimal("0.25"))


async def test_a_refusal_by_the_provider_costs_nothing(desk: Desk) -> None:
    """A 4xx is not billed: cost 0, known, by no price."""
    desk.provider.then(plain(b'{"error": {"message": "no"}}', status=429))
    await desk.call(CHAT, {"model": "m", "messages": []})
    assert costs(await desk.row()) == (Decimal(0), "none", None)


async def test_a_stream_is_priced_like_a_document(desk: Desk) -> None:
    """The usage of the last frame, at the model's price."""
    desk.provider.then(stream([frame(chunk("Hi", model="m")), frame(finish(model="m")), usage_frame(model="m"), DONE]))
    await desk.call(CHAT, {"model": "m", "stream": True, "messages": []})
    assert costs(await desk.row()) == (Decimal("0.000006875"), "prices", PRICED.id)  # 7 in, 3 out


async def test_an_estimate_is_priced_and_says_that_it_is_one(desk: Desk) -> None:
    """A client that leaves early still has a cost in its row, from counted tokens: usage_source tells."""
    desk.provider.then(stream([frame(chunk("Hello there, ", model="m"))] * 50, gap_s=0.05))
    async with desk.client() as client:
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
        await client.send("POST", CHAT, [desk.auth], body)
        await client.reader.readuntil(b"there")
        client.abort()
    row = await desk.row()
    assert (row.outcome, row.usage_source, row.cost_source, row.price_id) == (
        "client_gone",
        "estimate",
        "prices",
        PRICED.id,
    )
    assert row.input_tokens and row.output_tokens
    assert row.cost_usd == (row.input_tokens * Decimal("0.125") + row.output_tokens * 2) / 1_000_000


async def test_a_new_price_is_in_force_without_a_restart(desk: Desk) -> None:
    """`farebox prices sync` elsewhere: the next calls cost the new price, the rows before keep theirs."""
    dearer = price("later", "1", "2")
    first = await called(desk, answer("later"), model="later")
    assert first.cost_usd is None
    await publish(desk.app.store, PRICED, CACHING, dearer)
    await eventually(lambda: desk.app.prices.pricer.book.get(dearer.id))
    desk.provider.then(plain(answer("later")))
    await desk.call(CHAT, {"model": "later", "messages": []})
    before, after = await desk.rows(2)
    assert (before.cost_usd, costs(after)) == (None, (Decimal("0.00102"), "prices", dearer.id))


async def test_a_reload_changes_what_calls_cost(postgres: PostgresServer, tmp_path: Path) -> None:
    """An override in a reloaded config is the price of the next call."""
    async with postgres.database() as dsn, FakeProvider() as provider:
        provider.default = plain(answer())

        def settings(rate: str) -> dict[str, Any]:
            own = {"m": {"input_usd_per_mtok": rate, "output_usd_per_mtok": 0}}
            up = {"dialect": "openai", "base_url": provider.base_url, "prices": own}
            return settings_of(dsn, tmp_path, {"up": up})

        async with running(settings("1")) as farebox:
            await farebox.call(CHAT, {"model": "m", "messages": []})
            await farebox.app.reload(config_of(settings("1.10")))
            await farebox.call(CHAT, {"model": "m", "messages": []})
            rows = await farebox.rows(2)
        assert [row.cost_usd for row in rows] == [Decimal("0.001"), Decimal("0.0011")]
        connection = await asyncpg.connect(dsn)
        try:
            found = await connection.fetch(
                "SELECT price_id FROM farebox.usage JOIN farebox.prices_all USING (price_id)"
            )
        finally:
            await connection.close()
        assert {row.price_id for row in rows} == {row[0] for row in found}


async def test_a_fresh_farebox_knows_the_shipped_prices(postgres: PostgresServer, tmp_path: Path) -> None:
    """Without a network and without the library, a well-known model has a cost at the first call."""
    async with postgres.database() as dsn, FakeProvider() as provider:
        provider.default = plain(answer("gpt-4o-mini-2024-07-18"))
        up = {"dialect": "openai", "base_url": provider.base_url}
        async with running(settings_of(dsn, tmp_path, {"up": up})) as farebox:
            await farebox.call(CHAT, {"model": "gpt-4o-mini", "messages": []})
            row = await farebox.row()
        # $0.15 and $0.60 a million, as published since July 2024.
        assert (row.cost_usd, row.cost_source) == (Decimal("0.000156"), "prices")
