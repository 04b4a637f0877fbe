"""GET /v1/models of a running farebox: fetched behind the requests' back, shown as the routes and the key allow."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from farebox.config import Models, Provider, Secret
from farebox.models import Catalogue, FetchError, Known, Offer, Refresher, fetch, overview
from farebox.pricing import PriceBook, Pricer
from farebox.records import Caller, Model
from farebox.store import ModelLists, Store, StoreUnavailable
from support import speech
from support.app import ADMIN_TOKEN, Farebox, config_of, running, settings_of
from support.http import call
from support.live import eventually
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Script, Wire, plain, stream
from support.sdks import FLAVOURS, Flavour, anthropic_sdk, openai_sdk

KEY = "sk-up-0123456789abcdef"
SETTINGS = Models(timeout_s=5)


def body(document: Any) -> bytes:
    return json.dumps(document).encode()


def claude(*ids: str, more: bool = False) -> bytes:
    """A page of Anthropic's list."""
    data = [{"type": "model", "id": id, "display_name": id.title(), "created_at": "2025-11-24T00:00:00Z"} for id in ids]
    return body({"data": data, "has_more": more, "first_id": ids[0], "last_id": ids[-1]})


def provider(fake: FakeProvider, dialect: str = "openai", **more: Any) -> Provider:
    anthropics = dialect == "anthropic"
    header = "x-api-key" if anthropics else "bearer"
    return Provider(
        name="p",
        dialect=dialect,
        base_url=fake.origin if anthropics else fake.base_url,
        **{"api_key": Secret(KEY), "auth_header": header, **more},
    )


# -- one fetch -----------------------------------------------------------------------------------


async def test_a_provider_is_asked_with_its_own_credential_and_headers() -> None:
    """The request for a list carries what calls carry: the key where the dialect wants it, and the config's headers."""
    async with FakeProvider(plain(speech.models("m"))) as fake:
        assert [m.id for m in await fetch(provider(fake, headers={"OpenAI-Project": "proj_1"}), SETTINGS)] == ["m"]
        (request,) = fake.requests
        assert (request.method, request.target) == ("GET", "/v1/models")
        assert request.header("authorization") == f"Bearer {KEY}"
        assert (request.header("openai-project"), request.header("accept")) == ("proj_1", "application/json")


async def test_anthropics_list_is_read_to_its_end() -> None:
    """Pages are asked for one after the other, with Anthropic's headers, until there are no more."""
    async with FakeProvider() as fake:
        fake.then(plain(claude("a", "b", more=True)), plain(claude("c")))
        assert [model.id for model in await fetch(provider(fake, "anthropic"), SETTINGS)] == ["a", "b", "c"]
        assert [request.target for request in fake.requests] == [
            "/v1/models?limit=1000",
            "/v1/models?limit=1000&after_id=b",
        ]
        assert {request.header("x-api-key") for request in fake.requests} == {KEY}
        assert {request.header("anthropic-version") for request in fake.requests} == {"2023-06-01"}


async def test_a_list_that_never_ends_is_ended() -> None:
    """A provider that gives the same page again, or ever new ones, is left with what it gave."""
    async with FakeProvider(plain(claude("a", more=True))) as fake:
        assert [model.id for model in await fetch(provider(fake, "anthropic"), SETTINGS)] == ["a"]
        assert len(fake.requests) == 2

    async def another(request: Received, wire: Wire) -> None:
        await plain(claude(f"m{len(fake.requests)}", more=True))(request, wire)

    async with FakeProvider(another) as fake:
        assert len(await fetch(provider(fake, "anthropic"), SETTINGS)) == 50


async def test_a_long_list_is_cut_at_its_bound() -> None:
    """Of more than models_max models the first ones are kept, in the provider's order."""
    async with FakeProvider(plain(speech.models(*(f"m{n}" for n in range(400))))) as fake:
        kept = await fetch(provider(fake), Models(models_max=250))
    assert [model.id for model in kept] == [f"m{n}" for n in range(250)]


async def test_a_compressed_list_is_read() -> None:
    """A provider that compresses although it was asked not to is understood."""
    packed = gzip.compress(speech.models("m"))
    async with FakeProvider(plain(packed, headers=[("Content-Encoding", "gzip")])) as fake:
        assert [model.id for model in await fetch(provider(fake), SETTINGS)] == ["m"]
        assert fake.requests[0].header("accept-encoding") == "identity"


async def hang(_: Received, wire: Wire) -> None:
    await wire.hung_up()


async def hang_up(_: Received, wire: Wire) -> None:
    wire.close()


QUOTED = body({"error": {"message": f"Incorrect API key provided: {KEY}"}})
FAILURES: dict[str, tuple[Script, str]] = {
    "its error": (plain(QUOTED, status=401), "status 401"),
    "a redirect": (plain(b"", status=302, headers=[("Location", "http://127.0.0.1:1/")]), "status 302"),
    "no list": (plain(b"<html>maintenance</html>", content_type="text/html"), "unreadable"),
    "its credential": (plain(body({"data": [{"id": "m", "owned_by": KEY}]})), "quotes the credential"),
    "too much": (stream([b"[" + b" " * 70_000] * 20), "too_large"),
    "a bomb": (plain(gzip.compress(b" " * (2 << 20)), headers=[("Content-Encoding", "gzip")]), "too_large"),
    "a coding nobody knows": (plain(b"x", headers=[("Content-Encoding", "rot13")]), "unreadable"),
    "nothing": (hang, "timeout"),
    "a connection cut off": (hang_up, "disconnected"),
    "half a list": (stream([b'{"data":['], cut="close"), "broken_body"),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_a_failure_is_told_in_a_word(case: str) -> None:
    """Whatever a provider does instead of giving a list ends in time and memory, as a word that quotes nothing."""
    script, kind = FAILURES[case]
    async with FakeProvider(script) as fake:
        with pytest.raises(FetchError) as caught:
            await fetch(provider(fake), Models(timeout_s=0.3, list_mb_max=1))
    assert caught.value.kind == kind


async def test_a_provider_that_is_slow_to_connect_is_a_failure_like_others() -> None:
    """Nothing went up yet when the time was over: that is told, and cancels nobody who waits for the list."""
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    base_url = f"https://127.0.0.1:{silent.sockets[0].getsockname()[1]}/v1"
    try:
        with pytest.raises(FetchError, match="timeout"):
            await fetch(Provider(name="p", dialect="openai", base_url=base_url), Models(timeout_s=0.2))
    finally:
        silent.close()


async def test_a_provider_that_is_not_there_is_a_failure_too() -> None:
    """Nobody listens, or its certificate file is gone."""
    gone = Provider(name="p", dialect="openai", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(FetchError, match="connect"):
        await fetch(gone, SETTINGS)
    with pytest.raises(FetchError, match="tls_ca_file"):
        await fetch(Provider(name="p", dialect="openai", base_url=gone.base_url, tls_ca_file="/nowhere.pem"), SETTINGS)


# -- the schedule --------------------------------------------------------------------------------


class Bench:
    """Refreshers on one database with one clock, and a provider that does as it is told."""

    def __init__(self, store: Store, **settings: Any) -> None:
        self.lists = ModelLists(store)
        self.now = datetime(2026, 11, 22, tzinfo=UTC)
        self.asked: list[str] = []
        self.lists_given = 0
        self.failing: str | None = None
        up = {"dialect": "openai", "base_url": "http://127.0.0.1:1/v1"}
        self.config = config_of(
            {"providers": {"p": up, "q": up}, "models": {"refresh_s": 86_400, "retry_s": 900, **settings}}
        )

    def refresher(self) -> Refresher:
        return Refresher(self.lists, self._fetch, lambda: self.now)

    async def _fetch(self, provider: Provider, _: Models) -> list[Model]:
        self.asked.append(provider.name)
        await asyncio.sleep(0)
        if self.failing is not None and provider.name == "p":
            raise FetchError(self.failing)
        self.lists_given += 1
        return [Model(id=f"{provider.name}-{self.lists_given}")]

    async def due(self, refresher: Refresher, *, eager: bool = False) -> list[str]:
        """Who was asked in one round."""
        self.asked.clear()
        await refresher.ask_due(self.config, eager=eager)
        return sorted(self.asked)

    async def stored(self, name: str) -> Any:
        one = self.config.providers[name]
        (row,) = await self.lists.read([(name, one.base_url)])
        return row


async def test_lists_are_asked_for_once_a_day(store: Store) -> None:
    """At first, and then whenever the stored list is older than refresh_s; never in between."""
    bench = Bench(store)
    refresher = bench.refresher()
    assert await bench.due(refresher) == ["p", "q"]
    for hours, asked in ((0, []), (23, []), (1, ["p", "q"]), (12, []), (12, ["p", "q"])):
        bench.now += timedelta(hours=hours)
        assert await bench.due(refresher) == asked, hours


async def test_a_stored_list_that_is_young_is_not_asked_for_after_a_restart(store: Store) -> None:
    """Another process on the same database, now or later, goes by what is stored."""
    bench = Bench(store)
    await bench.due(bench.refresher())
    bench.now += timedelta(hours=20)
    assert await bench.due(bench.refresher(), eager=True) == []


async def test_of_many_processes_one_asks(store: Store) -> None:
    """Ten workers that find a list due at the same moment send one request between them."""
    bench = Bench(store)
    await asyncio.gather(*(bench.refresher().ask_due(bench.config, eager=True) for _ in range(10)))
    assert sorted(bench.asked) == ["p", "q"]


async def test_a_failure_keeps_the_last_good_list_and_is_tried_again(store: Store) -> None:
    """After retry_s, not a day; the list and its date stay, and the note of the failure goes when it is over."""
    bench = Bench(store)
    refresher = bench.refresher()
    await bench.due(refresher)
    fetched_at = bench.now
    good = (await bench.stored("p")).models
    bench.failing = "status 500"
    bench.now += timedelta(days=1)
    assert await bench.due(refresher) == ["p", "q"]
    bench.now += timedelta(minutes=14)
    assert await bench.due(refresher) == []
    bench.now += timedelta(minutes=1)
    assert await bench.due(refresher) == ["p"]
    row = await bench.stored("p")
    assert (row.models, row.fetched_at, row.error, row.attempted_at) == (good, fetched_at, "status 500", bench.now)
    bench.failing = None
    bench.now += timedelta(minutes=15)
    await bench.due(refresher)
    row = await bench.stored("p")
    assert (row.error, row.fetched_at, row.models != good) == (None, bench.now, True)


async def test_a_failure_is_not_waited_out_over_a_restart(store: Store) -> None:
    """Who mends a key and restarts sees models at once; workers that start together still ask once."""
    bench = Bench(store)
    bench.failing = "status 401"
    assert await bench.due(bench.refresher(), eager=True) == ["p", "q"]
    assert await bench.due(bench.refresher(), eager=True) == []
    bench.now += timedelta(seconds=30)
    assert await bench.due(bench.refresher()) == []
    assert await bench.due(bench.refresher(), eager=True) == ["p"]


async def test_a_failure_is_logged_when_it_changes(store: Store) -> None:
    """One line for a failure, however often it repeats and whoever asks; another for another one, and for its end."""
    bench = Bench(store)
    with capture_logs() as logged:
        for failing in ("status 500", "status 500", "timeout", "timeout", None, None):
            bench.failing = failing
            await bench.due(bench.refresher())
            bench.now += timedelta(days=2)
    assert [(line["log_level"], line.get("kind")) for line in logged] == [
        ("warning", "status 500"),
        ("warning", "timeout"),
        ("info", None),
    ]
    assert {line["provider"] for line in logged} == {"p"}


@pytest.mark.parametrize("settings", [{"refresh_s": "off"}, {"refresh_s": 0}])
async def test_the_schedule_can_be_switched_off(store: Store, settings: dict[str, Any]) -> None:
    """With refresh_s off nobody is asked; `ask_now`, the command, still does."""
    bench = Bench(store, **settings)
    assert await bench.due(bench.refresher(), eager=True) == []
    outcomes = await bench.refresher().ask_now(bench.config.providers.values(), bench.config.models)
    assert [tuple(outcome) for outcome in outcomes] == [("p", 1, None), ("q", 1, None)]


async def test_another_address_is_another_list(store: Store) -> None:
    """A provider that moved is asked at once, and does not show what it had elsewhere."""
    bench = Bench(store)
    await bench.due(bench.refresher())
    up = {"dialect": "openai", "base_url": "http://127.0.0.1:2/v1"}
    bench.config = config_of({"providers": {"p": up}})
    assert await bench.lists.read([("p", up["base_url"])]) == []
    assert await bench.due(bench.refresher()) == ["p"]


async def test_the_list_of_a_provider_that_is_gone_is_dropped_in_the_end(store: Store) -> None:
    """Ninety days after it was last asked; what is configured stays, however old."""
    bench = Bench(store)
    await bench.due(bench.refresher())
    gone, kept = bench.config.providers["p"], bench.config.providers["q"]
    bench.config = config_of({"providers": {"q": {"dialect": "openai", "base_url": kept.base_url}}})
    for days, left in ((89, 1), (2, 0)):
        bench.now += timedelta(days=days)
        assert await bench.due(bench.refresher()) == ["q"]
        assert len(await bench.lists.read([("p", gone.base_url)])) == left
        assert len(await bench.lists.read([("q", kept.base_url)])) == 1


# -- in memory -----------------------------------------------------------------------------------


class Stored(ModelLists):
    """The lists of a database that can be taken away."""

    away = False

    async def version(self) -> tuple[int, int]:
        if self.away:
            raise StoreUnavailable("the database is away")
        return await super().version()


@asynccontextmanager
async def catalogue(store: Store, models: int, **settings: Any) -> AsyncIterator[tuple[Catalogue, Stored]]:
    """A catalogue that fetches nothing, of one provider that has listed so many models."""
    up = {"dialect": "openai", "base_url": "http://127.0.0.1:1/v1"}
    config = config_of({"providers": {"p": up}, "models": {"refresh_s": "off", "poll_s": 0.05, **settings}})
    lists = Stored(store)
    now = datetime.now(UTC)
    await lists.keep("p", config.providers["p"].base_url, now, [Model(id=f"m{n}") for n in range(models)])
    pricer = Pricer(PriceBook(()), config.providers)
    made = Catalogue(
        config,
        lists=lists,
        refresher=Refresher(lists, fetch, lambda: now),
        pricer=lambda: pricer,
        known=lambda _: Known(),
        now=lambda: now,
    )
    await made.start()
    try:
        yield made, lists
    finally:
        await made.close()


async def view(of: Catalogue, *globs: str) -> Sequence[Offer]:
    return await of.listing(Caller(kind="virtual", models=globs), of.config, overview.target(), {})


async def test_a_long_list_does_not_hold_up_other_calls(store: Store) -> None:
    """While thousands of models are asked about, the loop turns: never more than a few dozen models in one turn."""
    async with catalogue(store, 3000) as (models, _):
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(turn())
        found = await view(models, "m*")
        ticking.cancel()
    assert len(found) == 3000
    assert turns >= 3000 / 50


async def test_a_list_is_worked_out_once_for_all_who_may_use_the_same(store: Store) -> None:
    """It is kept for the next one, and so are at most 64; another list in the database ends them all."""
    async with catalogue(store, 3, poll_s=600) as (models, lists):
        first = await view(models, "m*")
        assert await view(models, "m*") is first
        for number in range(64):
            await view(models, f"m{number}")
        assert await view(models, "m*") is not first
        assert await view(models, "m63") is await view(models, "m63")
        await lists.keep("p", models.config.providers["p"].base_url, datetime.now(UTC), [Model(id="m9")])
        await models.look()
        assert [offer.model.id for offer in await view(models, "m*")] == ["m9"]


async def test_known_models_outlast_the_database(store: Store) -> None:
    """While it is away the list stays as it was, one line says so, and changes are taken over when it is back."""
    async with catalogue(store, 1) as (models, lists):
        with capture_logs() as logged:
            lists.away = True
            await eventually(lambda: logged)
            assert [offer.model.id for offer in await view(models, "*")] == ["m0"]
            await asyncio.sleep(0.2)
            await lists.keep("p", models.config.providers["p"].base_url, datetime.now(UTC), [Model(id="new")])
            lists.away = False
            await eventually(lambda: "new" in models.shelf["p"].offers)
        assert len(logged) == 1


# -- served --------------------------------------------------------------------------------------


class House:
    """A running farebox in front of an OpenAI-like and an Anthropic provider whose lists it has fetched."""

    def __init__(self, farebox: Farebox, gpt: FakeProvider, claude: FakeProvider) -> None:
        self.farebox = farebox
        self.gpt = gpt
        self.claude = claude

    def asked(self) -> int:
        return len(self.gpt.requests) + len(self.claude.requests)


def two(gpt: FakeProvider, other: FakeProvider) -> dict[str, Any]:
    return {
        "gpt": {"dialect": "openai", "base_url": gpt.base_url, "api_key": KEY, "prices": PRICES},
        "claude": {"dialect": "anthropic", "base_url": other.origin, "api_key": KEY},
    }


FREE = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}
PRICES = {"gpt-5": {"input_usd_per_mtok": "1.250", "output_usd_per_mtok": 10}}
ROUTES = [
    {"match": {"model": "claude-*"}, "to": ["claude"]},
    {"match": {"model": "secret-*", "tags": {"team": "red"}}, "to": ["gpt"]},
    {"match": {"model": ["gpt-*", "org/*"]}, "to": ["gpt"]},
]
GPT = ("gpt-5", "gpt-4o", "org/model:free", "secret-1", "claude-not-here")
CLAUDE = ("claude-opus-4-5", "claude-haiku-4-5", "claude-sonnet-4-5")


def fetched(farebox: Farebox) -> bool:
    stocks = farebox.app.models.shelf.values()
    return bool(stocks) and all(stock.source == "provider" for stock in stocks)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("models")
    async with (
        postgres.database(priced=True) as dsn,
        FakeProvider(plain(speech.models(*GPT))) as gpt,
        FakeProvider(plain(claude(*CLAUDE))) as other,
        running(settings_of(dsn, folder, two(gpt, other), ROUTES, models={"refresh_s": 3600})) as farebox,
    ):
        await eventually(lambda: fetched(farebox))
        yield House(farebox, gpt, other)


module_loop = pytest.mark.asyncio(loop_scope="module")


@module_loop
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_openais_sdk_lists_and_retrieves(house: House, flavour: Flavour) -> None:
    """`client.models` of OpenAI's SDK works as against OpenAI: nothing goes up and no row is made."""
    before = house.asked()
    desk = await house.farebox.with_key(f"openai-{flavour}")
    async with openai_sdk(desk.app.base_url, desk.key, flavour, max_retries=0) as sdk:
        page = await sdk.call(sdk.client.models.list)
        one = await sdk.call(sdk.client.models.retrieve, "gpt-5")
        slashed = await sdk.call(sdk.client.models.retrieve, "org/model:free")
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.call(sdk.client.models.retrieve, "gpt-6")
    assert [model.id for model in page.data] == [*GPT, *CLAUDE]
    assert {model.object for model in page.data} == {"model"}
    assert [model.provider for model in page.data] == ["gpt"] * 5 + ["claude"] * 3
    assert [model.id for model in page.data if not model.routed] == ["secret-1", "claude-not-here"]
    assert (one.id, one.created, one.owned_by, slashed.id) == ("gpt-5", 1686935002, "system", "org/model:free")
    assert one.pricing == {**one.pricing, "input_usd_per_mtok": "1.25", "output_usd_per_mtok": "10"}
    assert (one.source, slashed.pricing) == ("provider", None)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert house.asked() == before
    assert await desk.rows() == []


@module_loop
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_anthropics_sdk_lists_and_retrieves(house: House, flavour: Flavour) -> None:
    """Anthropic's SDK gets Anthropic's shape, page by page, and its own error for a model that is not there."""
    desk = await house.farebox.with_key(f"anthropic-{flavour}", models=["claude-*", "gpt-5"])
    async with anthropic_sdk(desk.app.base_url, desk.key, flavour, max_retries=0) as sdk:
        page = await sdk.call(sdk.client.models.list, limit=3)
        rest = await sdk.call(sdk.client.models.list, limit=3, after_id=page.last_id)
        back = await sdk.call(sdk.client.models.list, limit=3, before_id=rest.first_id)
        one = await sdk.call(sdk.client.models.retrieve, "claude-opus-4-5")
        with pytest.raises(anthropic.NotFoundError) as caught:
            await sdk.call(sdk.client.models.retrieve, "gpt-4o")
        with pytest.raises(anthropic.BadRequestError):
            await sdk.call(sdk.client.models.list, limit=0)
    assert [model.id for model in page.data] == ["gpt-5", "claude-not-here", "claude-opus-4-5"]
    assert (page.has_more, page.first_id, page.last_id) == (True, "gpt-5", "claude-opus-4-5")
    assert ([model.id for model in rest.data], rest.has_more) == (["claude-haiku-4-5", "claude-sonnet-4-5"], False)
    assert [model.id for model in back.data] == [model.id for model in page.data]
    assert (one.type, one.display_name, one.created_at.year) == ("model", "Claude-Opus-4-5", 2025)
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert await desk.rows() == []


@module_loop
async def test_anthropics_sdk_pages_through_everything_by_itself(house: House) -> None:
    """Its iterator follows the cursors to the end."""
    desk = await house.farebox.with_key("pages")
    async with anthropic.AsyncAnthropic(base_url=desk.app.base_url, api_key=desk.key) as client:
        found = [model.id async for model in client.models.list(limit=1)]
    assert found == [*GPT, *CLAUDE]


@module_loop
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"models": ["claude-*opus*", "org/*"]}, ["org/model:free", "claude-opus-4-5"]),
        ({"providers": ["claude"]}, list(CLAUDE)),
        ({"tags": {"team": "red"}, "models": ["*-1"]}, ["secret-1"]),
        ({"models": ["nothing"]}, []),
    ],
)
async def test_a_key_sees_what_it_may_use(house: House, limits: dict[str, Any], expected: list[str]) -> None:
    """Its globs, its providers and its tags decide, in the list and for one entry alike."""
    desk = await house.farebox.with_key(f"limited-{sorted(limits.items())}"[:100], **limits)
    answer = await desk.call("/v1/models", method="GET")
    assert [model["id"] for model in json.loads(answer.body)["data"]] == expected
    for id in (*GPT, *CLAUDE):
        status = (await desk.call(f"/v1/models/{id}", method="GET")).status
        assert status == (200 if id in expected else 404), id


@module_loop
async def test_tags_of_the_request_count(house: House) -> None:
    """A model that only a tag's rule reaches is listed to who sends the tag, as calls with it would be served."""
    answer = await house.farebox.call("/v1/models", method="GET", headers={"x-farebox-tags": "team=red"})
    assert "secret-1" in [model["id"] for model in json.loads(answer.body)["data"]]


@module_loop
async def test_who_has_no_key_sees_nothing(house: House) -> None:
    """Without a key, and with an expired or revoked one, the list is refused in the dialect of the client."""
    expired, _ = await house.farebox.new_key("expired", expires_at=datetime.now(UTC) - timedelta(hours=1))
    for key in ("fb-unknown", expired):
        answer = await house.farebox.call("/v1/models", method="GET", key=key)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (401, "invalid_api_key")
        headers = {"anthropic-version": "2023-06-01"}
        answer = await house.farebox.call("/v1/models/gpt-5", method="GET", key=key, headers=headers)
        assert (answer.status, json.loads(answer.body)["error"]["type"]) == (401, "authentication_error")


@module_loop
async def test_a_providers_own_list_is_passed_through(house: House) -> None:
    """/p/PROVIDER/models is the provider's answer, byte for byte, and a row, as everything else below /p."""
    desk = await house.farebox.with_key("direct")
    answer = await desk.call("/p/gpt/models", method="GET")
    assert answer.body == speech.models(*GPT)
    row = await desk.row()
    assert (row.endpoint, row.operation, row.provider, row.usage_source) == ("/v1/models", "other", "gpt", "none")


@module_loop
async def test_a_head_request_has_no_body(house: House) -> None:
    """HEAD is answered with the length of the list and nothing else."""
    whole = await house.farebox.call("/v1/models", method="GET")
    async with house.farebox.client() as client:
        await client.send("HEAD", "/v1/models", [("Authorization", f"Bearer {house.farebox.key}")])
        answer = await client.answer(has_body=False)
    assert (answer.status, answer.header("content-type")) == (200, "application/json")
    assert abs(int(answer.header("content-length") or 0) - len(whole.body)) < 50, "ages have digits"


@module_loop
async def test_the_operator_sees_everything(house: House) -> None:
    """/farebox/api/models has every model of every provider, routed or not, and how each list came about."""
    answer = await call(house.farebox.port, "/farebox/api/models", key=ADMIN_TOKEN, method="GET")
    shown = json.loads(answer.body)
    assert {(row["provider"], row["id"]) for row in shown["data"]} == {("gpt", id) for id in GPT} | {
        ("claude", id) for id in CLAUDE
    }
    assert {row["id"] for row in shown["data"] if not row["routed"]} == {"secret-1", "claude-not-here"}
    assert [(one["provider"], one["models"], one["source"], one["error"]) for one in shown["providers"]] == [
        ("gpt", 5, "provider", None),
        ("claude", 3, "provider", None),
    ]
    assert all(one["fetched_at"] and one["age_s"] >= 0 for one in shown["providers"])
    some = await call(house.farebox.port, "/farebox/api/models?provider=gpt&model=gpt-*", key=ADMIN_TOKEN, method="GET")
    assert [row["id"] for row in json.loads(some.body)["data"]] == ["gpt-5", "gpt-4o"]
    assert (await call(house.farebox.port, "/farebox/api/models", key=house.farebox.key, method="GET")).status == 401
    odd = await call(house.farebox.port, "/farebox/api/models?modle=x", key=ADMIN_TOKEN, method="GET")
    assert odd.status == 400


# -- over time -----------------------------------------------------------------------------------


async def listed(farebox: Farebox) -> list[str]:
    answer = await farebox.call("/v1/models", method="GET")
    assert answer.status == 200, answer.body
    return [model["id"] for model in json.loads(answer.body)["data"]]


async def test_a_provider_that_does_not_answer_delays_nothing(database: str, tmp_path: Path) -> None:
    """farebox is up, serves and stops while a provider still owes its list."""
    async with FakeProvider(hang) as fake:
        one = {"p": {"dialect": "openai", "base_url": fake.base_url}}
        async with running(settings_of(database, tmp_path, one, models={"refresh_s": 60})) as farebox:
            await eventually(lambda: fake.requests)
            assert await listed(farebox) == []


async def test_a_failure_keeps_the_last_good_list_over_a_restart(database: str, tmp_path: Path) -> None:
    """The next process serves a stored list without asking, and goes on when asking fails; no secret shows."""
    async with FakeProvider(plain(speech.models("m"))) as fake:
        one = {"p": {"dialect": "openai", "base_url": fake.base_url, "api_key": KEY}}
        settings = settings_of(database, tmp_path, one, models={"refresh_s": 3600})
        async with running(settings) as farebox:
            await eventually(lambda: fetched(farebox))
            assert await listed(farebox) == ["m"]
        fake.default = plain(QUOTED, status=500)
        async with running(settings) as farebox:
            assert await listed(farebox) == ["m"], "what is stored is there from the start"
        assert len(fake.requests) == 1
        settings["models"] |= {"refresh_s": 0.001, "retry_s": 1}
        with capture_logs() as logged:
            async with running(settings) as farebox:
                await eventually(lambda: any(s.held and s.held.error for s in farebox.app.models.shelf.values()))
                assert await listed(farebox) == ["m"]
                shown = await call(farebox.port, "/farebox/api/models", key=ADMIN_TOKEN, method="GET")
        assert json.loads(shown.body)["providers"][0]["error"] == "status 500"
        assert KEY not in str(logged) and KEY.encode() not in shown.body
        assert [line for line in logged if line.get("kind") == "status 500"]


async def test_two_fareboxes_on_one_database_ask_once(database: str, tmp_path: Path) -> None:
    """Replicas share the lists: one fetches, both show."""
    async with FakeProvider(plain(speech.models("m"))) as fake:
        one = {"p": {"dialect": "openai", "base_url": fake.base_url}}
        first = settings_of(database, tmp_path / "a", one, models={"refresh_s": 3600})
        second = settings_of(database, tmp_path / "b", one, models={"refresh_s": 3600})
        async with running(first) as left, running(second) as right:
            await eventually(lambda: fetched(left) and fetched(right))
            assert await listed(left) == await listed(right) == ["m"]
        assert len(fake.requests) == 1


async def test_a_reloaded_config_brings_its_models(database: str, tmp_path: Path) -> None:
    """A provider that a new config adds is asked, one that it leaves out is gone; no restart, no waiting for a day."""
    async with FakeProvider(plain(speech.models("a"))) as old, FakeProvider(plain(speech.models("b"))) as new:
        one = {"p": {"dialect": "openai", "base_url": old.base_url}}
        settings = settings_of(database, tmp_path, one, models={"refresh_s": 3600, "poll_s": 600})
        async with running(settings) as farebox:
            await eventually(lambda: fetched(farebox))
            assert await listed(farebox) == ["a"]
            settings["providers"] = {"q": {"dialect": "openai", "base_url": new.base_url, "prices": {"b": FREE}}}
            await farebox.app.reload(config_of(settings))
            await eventually(lambda: "q" in farebox.app.models.shelf and fetched(farebox))
            assert await listed(farebox) == ["b"]
            assert farebox.app.models.shelf["q"].offers["b"].quote is not None
            settings["providers"]["q"]["prices"] = {}
            await farebox.app.reload(config_of(settings))
            await eventually(lambda: farebox.app.models.shelf["q"].offers["b"].quote is None)


async def test_in_passthrough_mode_the_provider_answers(database: str, tmp_path: Path) -> None:
    """There the client's own credential decides what exists: the list is forwarded verbatim, and not fetched."""
    async with FakeProvider(plain(speech.models("mine"))) as fake:
        one = {"p": {"dialect": "openai", "base_url": fake.base_url, "passthrough": True}}
        settings = settings_of(database, tmp_path, one, auth={"mode": "passthrough"}, models={"refresh_s": 3600})
        async with running(settings) as farebox:
            answer = await call(farebox.port, "/v1/models", key="sk-clients-own", method="GET")
            assert answer.body == speech.models("mine")
            (row,) = await farebox.rows(1)
            assert row.endpoint == "/v1/models"
        assert [request.header("authorization") for request in fake.requests] == ["Bearer sk-clients-own"]


async def test_without_a_provider_there_is_the_demos_model(database: str, tmp_path: Path) -> None:
    """The demo's model is listed without asking it, in open mode too."""
    settings = settings_of(database, tmp_path, {}, auth={"mode": "open"}, models={"refresh_s": 60})
    async with running(settings) as farebox:
        answer = await call(farebox.port, "/v1/models", method="GET")
        (model,) = json.loads(answer.body)["data"]
        assert (model["id"], model["provider"], model["owned_by"], model["age_s"]) == (
            "farebox-demo",
            "demo",
            "farebox",
            None,
        )
