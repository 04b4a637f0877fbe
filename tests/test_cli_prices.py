"""`farebox prices`: listing what models cost, fetching newer lists, and correcting what was costed wrong."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from farebox.payload import encode
from farebox.pricing import Period, Rates, Step
from farebox.store import Store
from support.app import running, settings_of
from support.cli import Cli, commands
from support.events import event
from support.live import eventually
from support.postgres import PostgresServer
from support.prices import price, publish, tier, usd
from support.provider import FakeProvider, plain

TODAY = datetime.now(UTC).date()


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a database without prices: what puts them there is looked at here."""
    async with postgres.database() as dsn:
        yield dsn


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], database: str, tmp_path: Path) -> Iterator[Cli]:
    """The command, with a config that has OpenAI on the test's database."""
    for one in commands(capsys):
        own = {"house-*": {"input_usd_per_mtok": "0.5", "output_usd_per_mtok": 1}}
        settings = settings_of(
            database,
            tmp_path / "data",
            {
                "openai": {"dialect": "openai", "base_url": "https://api.openai.com/v1", "prices": own},
                "claude": {"dialect": "anthropic", "base_url": "https://api.anthropic.com"},
            },
        )
        one.configured(tmp_path / "config.yaml", settings)
        yield one


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection, as a person with psql has."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


# -- list ------------------------------------------------------------------------------------------


async def test_a_fresh_install_lists_the_shipped_prices(cli: Cli) -> None:
    """Before anything was served, the shipped prices are there; $2.50 and $10 for gpt-4o."""
    rows = await cli.json("prices", "list", "--book", "openai", "--model", "gpt-4o")
    [row] = rows
    assert (row["model"], row["input_usd_per_mtok"], row["output_usd_per_mtok"]) == ("gpt-4o", "2.5", "10")
    assert row["price_id"].startswith("openai/gpt-4o/")


async def test_a_provider_is_charged_by_its_own_prices_and_its_publishers(cli: Cli, store: Store) -> None:
    """--provider shows both, its own first; --book and --model narrow."""
    await publish(store, price("gpt-x"), price("gpt-y"), price("claude-x", book="anthropic"))

    async def listed(*options: str) -> list[tuple[str, str]]:
        rows = await cli.json("prices", "list", *options)
        return [(row["book"], row["model"]) for row in rows]

    assert await listed("--provider", "openai") == [
        ("config:openai", "house-*"),
        ("openai", "gpt-x"),
        ("openai", "gpt-y"),
    ]
    assert await listed("--provider", "claude") == [("anthropic", "claude-x")]
    assert await listed("--model", "*-X") == [("anthropic", "claude-x"), ("openai", "gpt-x")]
    assert await listed("--model", "house-7") == [("config:openai", "house-*")]
    # A snapshot's name finds the model it is one of.
    assert await listed("--model", "gpt-x-2026-01-31", "--book", "openai") == [("openai", "gpt-x")]
    ran = await cli.aside("prices", "list", "--provider", "nobody")
    assert (ran.code, ran.output) == (2, "")
    assert "no provider 'nobody'" in ran.errors


async def test_every_format_has_the_whole_price(cli: Cli, store: Store) -> None:
    """Rates, cliffs, tiers, since when: in CSV and JSON exactly, in a table for reading."""
    rich = price(
        "rich",
        periods=(
            Period(rates=usd("9", "9")),
            Period(
                rates=Rates(
                    {"input": Decimal("0.10"), "output": Decimal(1), "cache_read": Decimal("1E-7")},
                    (Step(272_000, {"input": Decimal("0.2")}),),
                ),
                since=TODAY - timedelta(days=2),
            ),
        ),
        variants=(tier("flex", "0.05", "0.5"),),
        context_window=400_000,
    )
    await publish(store, rich)
    [row] = await cli.json("prices", "list", "--book", "openai")
    assert row == {
        "book": "openai",
        "model": "rich",
        "input_usd_per_mtok": "0.10",
        "output_usd_per_mtok": "1",
        "cache_read_usd_per_mtok": "1E-7",
        "cache_write_usd_per_mtok": "0.10",
        "above": ["272000"],
        "tiers": ["flex"],
        "since": str(TODAY - timedelta(days=2)),
        "context_window": 400_000,
        "max_output_tokens": None,
        "price_id": rich.id,
    }
    text = (await cli.aside("prices", "list", "--book", "openai", "--format", "csv")).output
    [line] = csv.DictReader(StringIO(text))
    assert (line["input_usd_per_mtok"], line["price_id"]) == ("0.10", rich.id)
    table = (await cli.aside("prices", "list", "--book", "openai")).output
    assert "rich" in table and "272000" in table and "flex" in table


async def test_prices_as_of_a_day(cli: Cli, store: Store) -> None:
    """--at shows what held then."""
    dated = price("m", periods=(Period(rates=usd("2", "2")), Period(rates=usd("1", "1"), since=TODAY)))
    await publish(store, dated)
    [now] = await cli.json("prices", "list", "--model", "m")
    [then] = await cli.json("prices", "list", "--model", "m", "--at", "2d")
    assert (now["input_usd_per_mtok"], then["input_usd_per_mtok"]) == ("1", "2")


# -- sync ------------------------------------------------------------------------------------------


def data(**models: float) -> bytes:
    """A data file as genai-prices publishes it: OpenAI with these models, at so much in and twice that out."""
    listed: list[dict[str, Any]] = [
        {"id": name, "match": {"equals": name}, "prices": {"input_mtok": rate, "output_mtok": 2 * rate}}
        for name, rate in models.items()
    ]
    return json.dumps([{"id": "openai", "name": "OpenAI", "api_pattern": "x", "models": listed}]).encode()


async def test_sync_puts_newer_prices_in_force_in_a_running_farebox(
    cli: Cli, database: str, store: Store, tmp_path: Path
) -> None:
    """Fetched over HTTP, put whole, counted, and the next call is costed by it; no restart."""
    await publish(store, price("a", "1"), price("b", "1"), price("c", "1"))
    async with FakeProvider() as provider:
        up = {"dialect": "openai", "base_url": provider.base_url}
        settings = settings_of(database, tmp_path / "serving", {"up": up}, metering={"price_poll_s": 0.05})
        async with running(settings) as farebox:
            provider.default = plain(data(a=1.25, b=1, d=4))
            ran = await cli.aside("prices", "sync", "--url", provider.origin + "/data.json")
            said = ran.output.splitlines()[-1]  # below what the serving farebox logs in this process
            assert (ran.code, said) == (0, "3 prices in force: 1 new, 1 changed, 1 removed")
            await eventually(lambda: any(one.model == "d" for one in farebox.app.prices.pricer.book.entries))
            counts = {"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000}
            provider.default = plain(json.dumps({"model": "a", "choices": [], "usage": counts}).encode())
            await farebox.call("/v1/chat/completions", {"model": "a", "messages": []})
            assert (await farebox.row()).cost_usd == Decimal("0.00125")


async def test_sync_reads_a_file_where_there_is_no_network(cli: Cli, store: Store, tmp_path: Path) -> None:
    """The same data from a file; decimals are read from its text, never through a float."""
    await publish(store, price("a", "0.1"))
    file = tmp_path / "data.json"
    file.write_bytes(data(a=0.1).replace(b"0.1,", b"0.10000000000000000000001,"))
    ran = await cli.aside("prices", "sync", "--file", str(file))
    assert (ran.code, ran.output) == (0, "1 prices in force: 0 new, 1 changed, 0 removed\n")
    [row] = await cli.json("prices", "list", "--model", "a")
    assert row["input_usd_per_mtok"] == "0.10000000000000000000001"
    ran = await cli.aside("prices", "sync", "--file", str(file))
    assert ran.output == "1 prices in force: 0 new, 0 changed, 0 removed\n"


@pytest.mark.parametrize(
    "broken",
    [
        *(b"", b"not json", b"{}", b"[]", b'[{"id": "openai"}]', data()),
        data(a=1).replace(b'"equals"', b'"sounds_like"'),
        *(data(a=-1), data(a=1e-41), data(a=1e10)),
    ],
    ids=[
        *("empty", "no json", "no list", "empty list", "half", "no models"),
        "unknown condition",
        *("below 0", "too many places", "too large"),
    ],
)
async def test_what_cannot_be_read_changes_nothing(
    cli: Cli, store: Store, sql: asyncpg.Connection, tmp_path: Path, broken: bytes
) -> None:
    """A data file that is not one is said to be none, with exit code 1, and the prices stay."""
    await publish(store, price("a"))
    file = tmp_path / "data.json"
    file.write_bytes(broken)
    ran = await cli.aside("prices", "sync", "--file", str(file))
    assert (ran.code, ran.output) == (1, "")
    assert "nothing was changed" in ran.errors and "Traceback" not in ran.errors
    assert await sql.fetchval("SELECT count(*) FROM farebox.price_list") == 1


async def test_a_place_that_cannot_be_reached_changes_nothing(cli: Cli, store: Store, sql: asyncpg.Connection) -> None:
    """No file, no server, a server's error: said in a line, exit code 1, the prices stay."""
    await publish(store, price("a"))
    async with FakeProvider(plain(b"gone", status=404)) as provider:
        url = provider.origin.replace("//", "//me:hush@") + "/data.json"
        tries = [("--file", "/nowhere/data.json"), ("--url", url), ("--url", "http://127.0.0.1:9/data.json")]
        for options in tries:
            ran = await cli.aside("prices", "sync", *options)
            assert (ran.code, ran.output) == (1, ""), options
            assert "nothing was changed" in ran.errors and len(ran.errors.splitlines()) == 1, ran.errors
            assert "hush" not in ran.errors
    assert await sql.fetchval("SELECT count(*) FROM farebox.price_list") == 1


async def test_a_list_that_lacks_most_models_is_taken_for_broken(cli: Cli, store: Store, tmp_path: Path) -> None:
    """Half a download would make most calls unpriced: refused, unless it is forced."""
    await publish(store, *(price(name) for name in "abcde"))
    file = tmp_path / "data.json"
    file.write_bytes(data(a=1, b=1))
    ran = await cli.aside("prices", "sync", "--file", str(file))
    assert ran.code == 1 and "3 of 5 models are not in what was read" in ran.errors
    ran = await cli.aside("prices", "sync", "--file", str(file), "--force")
    assert (ran.code, ran.output) == (0, "2 prices in force: 0 new, 0 changed, 3 removed\n")


async def test_without_the_extra_sync_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is only needed to fetch; where it is not, the way to get it is one line."""
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    ran = await cli.aside("prices", "sync")
    assert ran.code == 1 and "pip install 'farebox[prices]'" in ran.errors
    assert (await cli.aside("prices", "list", "--model", "gpt-4o")).code == 0


# -- reprice ---------------------------------------------------------------------------------------


async def test_reprice_says_what_it_corrected(cli: Cli, store: Store, sql: asyncpg.Connection) -> None:
    """The summary in a table or JSON: calls, corrections, sums up and down; again, there is nothing left."""
    calls = [
        event(
            model="m", input_tokens=1_000_000, output_tokens=0, usage_source="provider", cost_usd=cost, cost_source=by
        )
        for cost, by in ((Decimal("1.5"), "prices"), (Decimal("0.25"), "prices"), (None, None), (Decimal(1), "prices"))
    ]
    calls.append(event(model="gone", input_tokens=1, output_tokens=1, usage_source="provider"))
    calls.append(event(model="house-1", input_tokens=2_000_000, output_tokens=0, usage_source="provider"))
    await store.insert_events([encode(one) for one in calls])
    await publish(store, price("m", "1"))
    since = ("--since", "2024-01-01")
    dry = await cli.json("prices", "reprice", *since, "--dry-run")
    done = await cli.json("prices", "reprice", *since)
    assert done == {
        "rows": 6,
        "corrected": 4,
        "up_usd": "2.75",
        "down_usd": "0.5",
        "newly_priced": 2,
        "kept": 0,
        "unpriced": 0,
        "failed": 0,
        "contested": 0,
        "dry_run": False,
    }
    assert dry == done | {"dry_run": True}
    # The config's own price, too, leads somewhere, though no farebox with this config has served yet.
    assert await sql.fetchval("SELECT count(*) FROM farebox.usage JOIN farebox.prices_all USING (price_id)") == 4
    ran = await cli.aside("prices", "reprice", *since)
    assert ran.code == 0 and ran.output.split()[:4] == ["rows", "6", "corrected", "0"]


async def test_reprice_beside_a_running_farebox(cli: Cli, database: str, store: Store, tmp_path: Path) -> None:
    """Calls that come while it runs are not disturbed; the sum afterwards is exact."""
    await publish(store, price("m", "10"))
    async with FakeProvider() as provider:
        counts = {"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000}
        provider.default = plain(json.dumps({"model": "m", "choices": [], "usage": counts}).encode())
        up = {"dialect": "openai", "base_url": provider.base_url}
        settings = settings_of(database, tmp_path / "serving", {"openai": up}, metering={"price_poll_s": 0.05})
        async with running(settings) as farebox:
            for _ in range(3):
                await farebox.call("/v1/chat/completions", {"model": "m", "messages": []})
            await farebox.rows(3)
            right = price("m", "1")
            await publish(store, right)
            await eventually(lambda: farebox.app.prices.pricer.book.get(right.id))
            await farebox.call("/v1/chat/completions", {"model": "m", "messages": []})
            summary = await cli.json("prices", "reprice", "--since", "1h")
            rows = await farebox.rows(4)
    assert (summary["corrected"], summary["down_usd"]) == (3, "0.027")
    assert sum(row.cost_usd or 0 for row in rows) == Decimal("0.004")
    assert {row.price_id for row in rows} == {right.id}


async def test_pricing_needs_no_credential(
    cli: Cli, database: str, store: Store, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    """In a shell without the providers' keys their calls are repriced all the same, and their prices listed."""
    own = {"house-*": {"input_usd_per_mtok": "0.5", "output_usd_per_mtok": 1}}
    openai = {"dialect": "openai", "base_url": "https://api.openai.com/v1", "api_key": "${NOT_SET_HERE}", "prices": own}
    cli.configured(tmp_path / "config.yaml", settings_of(database, tmp_path / "data", {"openai": openai}))
    used: dict[str, Any] = {"output_tokens": 0, "usage_source": "provider"}
    calls = [event(model=name, input_tokens=1_000_000, **used) for name in ("m", "house-1")]
    await store.insert_events([encode(one) for one in calls])
    await publish(store, price("m", "1"))
    summary = await cli.json("prices", "reprice", "--since", "2024-01-01", "--provider", "openai", "--model", "m")
    assert (summary["corrected"], summary["up_usd"]) == (1, "1")
    summary = await cli.json("prices", "reprice", "--since", "2024-01-01")
    assert (summary["rows"], summary["corrected"], summary["up_usd"]) == (2, 1, "0.5")
    assert await sql.fetchval("SELECT count(*) FROM farebox.usage JOIN farebox.prices_all USING (price_id)") == 2
    rows = await cli.json("prices", "list", "--provider", "openai")
    assert [row["book"] for row in rows] == ["config:openai", "openai"]


async def test_reprice_leaves_out_whom_it_cannot_judge(cli: Cli, database: str, store: Store, tmp_path: Path) -> None:
    """A provider that is not in the config is bad use, as is no --since; no provider at all is an error."""
    ran = await cli.aside("prices", "reprice", "--since", "1h", "--provider", "nobody")
    assert ran.code == 2 and "the config has no provider 'nobody'" in ran.errors
    assert (await cli.aside("prices", "reprice")).code == 2  # --since must be said
    cli.configured(tmp_path / "config.yaml", settings_of(database, tmp_path / "data", {}))
    ran = await cli.aside("prices", "reprice", "--since", "1h")
    assert ran.code == 1 and "the config has no provider" in ran.errors
