"""A budgeted call on its way through farebox: what is held, what is charged, and what a caller without room is told."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from farebox.journal import JournalFull
from farebox.store.budgets import BudgetStore
from support.app import Farebox, config_of, running
from support.clock import stop_clock
from support.http import Answer, RawClient
from support.money import (
    FREE_INPUT,
    Books,
    answered,
    begin_stream,
    budgeted,
    chat,
    closing_frames,
    settings,
    spoken,
    usd,
    word_frame,
)
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Wire, plain, stream
from support.traffic import CHAT

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Home:
    """One farebox for all of these tests: each has a config, a provider and keys of its own."""

    farebox: Farebox
    database: str
    folder: Path


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def home(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    async with (
        postgres.database(priced=True) as database,
        FakeProvider() as provider,
        running(settings(database, folder, provider)) as farebox,
    ):
        await stop_clock(database)
        yield Home(farebox, database, folder)


@dataclass
class Scene:
    farebox: Farebox
    provider: FakeProvider
    books: Books

    async def key(self, name: str, *budgets: dict[str, Any], **more: Any) -> Farebox:
        """A key of that name and a number, so that each is its own."""
        return await budgeted(self.farebox, f"{name}-{uuid4().hex[:8]}", *budgets, **more)

    async def plain_key(self) -> Farebox:
        """A key without a budget."""
        return await self.farebox.with_key(f"plain-{uuid4().hex[:8]}")

    async def under_way(self, key: Farebox) -> tuple[asyncio.Task[Answer], asyncio.Event]:
        """A call that the provider has, and answers once the event is set."""
        go = asyncio.Event()

        async def slow(_: Received, wire: Wire) -> None:
            await go.wait()
            await plain(answered(10))(_, wire)

        self.provider.then(slow)
        call = asyncio.create_task(key.call(CHAT, chat(100)))
        while not self.provider.requests:
            await asyncio.sleep(0.005)
        return call, go


@asynccontextmanager
async def scene(home: Home, **sections: Any) -> AsyncIterator[Scene]:
    """The farebox with a provider and settings of the test's own; nothing may be held at the end."""
    async with FakeProvider() as provider:
        farebox = home.farebox
        await farebox.app.reload(config_of(settings(home.database, home.folder, provider, **sections)))
        made = Scene(farebox, provider, Books(home.database))
        yield made
        await farebox.idle()
        await farebox.rows()
        await made.books.check()
        assert not provider.failures


async def test_a_call_is_held_while_it_runs_and_charged_when_it_is_over(home: Home) -> None:
    """Before the provider has a byte the bound is held; afterwards the row's cost is spent, to the last digit."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        seen: list[Any] = []

        async def look(_: Received, wire: Wire) -> None:
            seen.append(await at.books.window(key))
            await plain(answered(20))(_, wire)

        at.provider.then(look)
        answer = await key.call(CHAT, chat(100))
        assert (answer.status, answer.clean) == (200, True)
        row = await key.row()
        assert row.cost_usd == usd("0.000207")  # 7 in, 20 out
        [held] = seen
        assert held["open"] == 1 and held["reserved_usd"] >= usd("0.001007") and held["spent_usd"] == 0
        assert row.budget_ids == [str(held["budget_id"])]
        remaining = answer.header("x-farebox-budget-remaining-usd")
        assert remaining is not None and Decimal(remaining) == 1 - held["reserved_usd"]
        after = await at.books.window(key)
        assert (after["spent_usd"], after["reserved_usd"], after["requests"]) == (usd("0.000207"), 0, 1)


async def test_who_has_no_room_is_told_once_and_nothing_goes_up(home: Home) -> None:
    """A refusal names the budget and what was needed, and leaves no row and no hold."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.0015"), "window": "day"})
        at.provider.then(plain(answered(100)))
        assert (await key.call(CHAT, chat(100))).status == 200
        answer = await key.call(CHAT, chat(100))
        assert answer.status == 402 and answer.header("retry-after") is None
        error = json.loads(answer.body)["error"]
        assert error["type"] == error["code"] == "insufficient_quota"
        for part in (f"key:{key.key_name}:day", "0.0015 USD", "0.001 spent", "0.001 needed", "resets at"):
            assert part in error["message"]
        assert len(at.provider.requests) == 1 and len(await key.rows()) == 1


async def test_a_budget_may_refuse_with_429(home: Home) -> None:
    """`refusal_status: 429` tells SDKs by a header not to try again."""
    async with scene(home, metering={"refusal_status": 429}) as at:
        key = await at.key("k", {"limit_usd": usd("0")})
        answer = await key.call(CHAT, chat(100))
        assert (answer.status, answer.header("x-should-retry"), answer.header("retry-after")) == (429, "false", None)


async def test_all_budgets_of_a_call_hold_or_none(home: Home) -> None:
    """Where one of several has no room nothing is held in the others."""
    async with scene(home) as at:
        store = BudgetStore(at.farebox.app.store)
        tight = {"scope": "team", "limit_usd": usd("0.0000001"), "wait_s": 0}
        await store.put_budget("team", tight, "api", "test")
        key = await at.key("k", {"limit_usd": usd("1")}, team="t")
        answer = await key.call(CHAT, chat(100))
        assert answer.status == 402 and "'team'" in json.loads(answer.body)["error"]["message"]
        assert not at.provider.requests


async def test_an_unbudgeted_key_goes_its_way(home: Home) -> None:
    """Without a budget nothing is reserved, no header is added, and the row names none."""
    async with scene(home) as at:
        await at.key("other", {"limit_usd": usd("0")})
        key = await at.plain_key()
        at.provider.then(plain(answered(20)))
        before = await at.books.fetch("SELECT FROM farebox.budget_window")
        answer = await key.call(CHAT, chat(100))
        assert answer.status == 200 and answer.header("x-farebox-budget-remaining-usd") is None
        assert (await key.row()).budget_ids is None
        assert await at.books.fetch("SELECT FROM farebox.budget_window") == before


async def test_an_error_of_the_provider_gives_the_hold_back(home: Home) -> None:
    """A 4xx costs nothing; the client gets it word for word."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        at.provider.then(plain(b'{"error":{"message":"no"}}', status=400))
        answer = await key.call(CHAT, chat(100))
        assert (answer.status, answer.body) == (400, b'{"error":{"message":"no"}}')
        row = await key.row()
        assert (row.cost_usd, row.usage_source) == (0, "none")
        assert (await at.books.window(key))["spent_usd"] == 0


async def test_a_provider_that_cannot_be_reached_gives_the_hold_back(home: Home) -> None:
    """Nothing went up, so nothing is charged."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        at.provider._server.close()
        assert (await key.call(CHAT, chat(100))).status == 502
        assert (await key.row()).cost_usd == 0
        assert (await at.books.window(key))["spent_usd"] == 0


async def test_an_unpriced_model_is_refused_to_budgeted_keys(home: Home) -> None:
    """The refusal says how to price it; keys without a budget in dollars may call it."""
    only = {"known": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}}
    async with scene(home, prices=only) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        counted = await at.key("t", {"limit_tokens": 100_000})
        at.provider.default = plain(answered(20))
        refused = await key.call(CHAT, chat(100))
        assert refused.status == 400 and "providers.p.prices" in json.loads(refused.body)["error"]["message"]
        assert (await at.farebox.call(CHAT, chat(100))).status == 200
        assert (await counted.call(CHAT, chat(100))).status == 200
        [row] = await counted.rows(1)
        assert row.cost_usd is None, "unknown is not 0"


@pytest.mark.parametrize("unpriced", ["pass", "refuse"])
async def test_unpriced_models_may_be_passed_or_refused_to_all(home: Home, unpriced: str) -> None:
    """`pass` lets budgeted keys call them, `refuse` nobody."""
    only = {"known": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}}
    async with scene(home, prices=only, metering={"unpriced": unpriced}) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        at.provider.default = plain(answered(20))
        expected = 200 if unpriced == "pass" else 400
        assert (await key.call(CHAT, chat(100))).status == expected
        assert (await at.farebox.call(CHAT, chat(100))).status == expected


@pytest.mark.parametrize("member", ["model", "stream", "max_tokens", "max_completion_tokens", "n", "best_of", "tools"])
async def test_a_repeated_member_is_refused_to_budgeted_keys(home: Home, member: str) -> None:
    """Two readings of a body could be two prices, so it goes nowhere; a key without a budget may send it."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        body = json.dumps(chat(100))[:-1].encode() + b', "%b": 1, "%b": 1}' % (member.encode(), member.encode())
        answer = await key.call(CHAT, body)
        assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, member)
        at.provider.then(plain(answered(20)))
        assert (await at.farebox.call(CHAT, body)).status == 200


async def test_paths_that_could_spend_past_a_budget_are_closed(home: Home) -> None:
    """A path that may cost what nobody counts is refused to a budgeted key, not to one that is only warned."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        warned = await at.key("w", {"limit_usd": usd("0"), "on_exceed": "warn"}, rpm=10)
        answer = await key.call("/v1/images/generations", {"prompt": "a cat"})
        assert answer.status == 403 and "/v1/images/generations" in json.loads(answer.body)["error"]["message"]
        at.provider.then(plain(b"{}"))
        assert (await warned.call("/v1/images/generations", {"prompt": "a cat"})).status == 200


async def test_a_budget_that_only_warns_stops_nothing(home: Home) -> None:
    """Far beyond its limit calls pass and are counted."""
    async with scene(home) as at:
        key = await at.key("w", {"limit_usd": usd("0.0000001"), "on_exceed": "warn"})
        at.provider.default = plain(answered(20))
        for _ in range(2):
            assert (await key.call(CHAT, chat(100))).status == 200
        await key.rows(2)
        assert (await at.books.window(key))["spent_usd"] == usd("0.000414")


async def test_a_strict_budget_admits_only_what_has_a_bound(home: Home) -> None:
    """A picture may cost anything: strict budgets refuse it, expected ones hold the model's allowance."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [picture]}], "max_tokens": 10}
    async with scene(home, metering={"allowances_usd": {"*": 0.25}}) as at:
        strict = await at.key("s", {"limit_usd": usd("1")})
        expected = await at.key("e", {"limit_usd": usd("1"), "admission": "expected"})
        answer = await strict.call(CHAT, body)
        assert answer.status == 400 and "an image" in json.loads(answer.body)["error"]["message"]
        at.provider.then(plain(answered(20)))
        answer = await expected.call(CHAT, body)
        assert (answer.status, answer.header("x-farebox-budget-remaining-usd")) == (200, "0.75")


async def test_a_background_response_is_charged_what_was_held(home: Home) -> None:
    """It works on after its answer, so what it says of itself is not the end; strict budgets do not take it."""
    body = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 50}
    queued = json.dumps({"id": "resp_1", "object": "response", "status": "queued", "model": "m", "usage": None})
    async with scene(home, metering={"allowances_usd": {"*": 0.25}}) as at:
        strict = await at.key("s", {"limit_usd": usd("1")})
        assert (await strict.call("/v1/responses", body)).status == 400
        key = await at.key("e", {"limit_usd": usd("1"), "admission": "expected"})
        at.provider.then(plain(queued.encode()))
        assert (await key.call("/v1/responses", body)).status == 200
        row = await key.row()
        assert (row.usage_source, row.cost_usd) == ("hold", usd("0.25"))


async def test_a_moderation_costs_nothing(home: Home) -> None:
    """It needs neither a price nor room."""
    only = {"known": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}}
    async with scene(home, prices=only) as at:
        key = await at.key("k", {"limit_usd": usd("0")})
        at.provider.then(plain(b'{"id": "x", "model": "mod", "results": []}'))
        assert (await key.call("/v1/moderations", {"model": "mod", "input": "hi"})).status == 200
        assert (await key.row()).cost_usd == 0


async def test_an_azure_deployment_is_priced_by_its_name(home: Home) -> None:
    """Its body names no model, its path does."""
    only = {"depl": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 10}}
    async with scene(home, prices=only) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
        at.provider.then(plain(answered(10, model="depl")))
        assert (await key.call("/p/p/openai/deployments/depl/chat/completions?api-version=1", body)).status == 200
        assert (await key.call("/p/p/openai/deployments/other/chat/completions?api-version=1", body)).status == 400
        await key.row()


async def test_what_a_body_says_beside_a_deployment_is_a_claim(home: Home) -> None:
    """The deployment answers and is paid for: naming a cheap model beside it lowers no hold and passes no limit."""
    dear, cheap = ({"input_usd_per_mtok": 0, "output_usd_per_mtok": rate} for rate in (1000, 1))
    body = {"model": "cheap", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
    async with scene(home, prices={"dear": dear, "cheap": cheap}) as at:
        key = await at.key("k", {"limit_usd": usd("0.04")})
        for path in ("openai/deployments/dear", "openai/Deployments/d%65ar", "engines/dear"):
            answer = await key.call(f"/p/p/{path}/chat/completions", body)
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (402, "insufficient_quota"), path
        answer = await key.call("/p/p/openai/deployments/unpriced/chat/completions", body)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "model_unpriced")
        at.provider.then(plain(answered(10, model="cheap")))
        assert (await key.call("/p/p/openai/deployments/cheap/chat/completions", body)).status == 200
        assert len(at.provider.requests) == 1
        await key.row()
        limited = await at.farebox.with_key("cheap-only", models=["cheap"])
        answer = await limited.call("/p/p/openai/deployments/dear/chat/completions", body)
        assert (answer.status, len(at.provider.requests)) == (404, 1)
        answer = await limited.call(CHAT, body | {"models": ["cheap", "dear"]})
        assert (answer.status, len(at.provider.requests)) == (404, 1)


async def test_no_header_makes_another_method_of_a_call(home: Home) -> None:
    """What may be done free is told by the method, so no header that some provider obeys may change it there."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        for name in ("X-HTTP-Method-Override", "x-method-override", "X-Http-Method"):
            answer = await key.call(CHAT, chat(10), method="GET", headers={name: "POST"})
            assert (answer.status, at.provider.requests) == (400, []), name
        at.provider.then(plain(b"{}"))
        answer = await key.call("/v1/files/f", method="GET", headers={"X-HTTP-Method-Override": "get"})
        assert answer.status == 200


async def test_a_conversation_that_runs_a_model_is_closed(home: Home) -> None:
    """Where starting a conversation asks a model (Mistral) a budget closes it; where it only stores it is open."""
    async with FakeProvider() as other:
        mistral = {"mi": {"dialect": "mistral", "base_url": other.base_url}}
        async with scene(home, more=mistral) as at:
            key = await at.key("k", {"limit_usd": usd("1")}, allow_shared_objects=True)
            for path in ("conversations", "v1/conversations", "conversations/conv_1"):
                assert (await key.call(f"/p/mi/{path}", {"inputs": "hi", "model": "m"})).status == 403
            at.provider.then(plain(b"{}"))
            assert (await key.call("/p/p/conversations", {})).status == 200
            assert not other.requests


async def test_a_long_prompt_is_counted_before_anybody_is_refused(home: Home) -> None:
    """Where the size of a prompt alone would not fit, its tokens are counted, and the call is held at that."""
    body = chat(10, model="gpt-4o")
    body["messages"][0]["content"] = "hello there " * 500
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("0.003")})
        at.provider.then(plain(answered(10, prompt=1010, model="gpt-4o")))
        assert (await key.call(CHAT, body)).status == 200


async def test_an_answer_is_clamped_to_what_the_rest_pays(home: Home) -> None:
    """With `clamp` the limit that goes up is lowered, the client is told, and every other byte is its own."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.0005"), "clamp": True})
        other = await at.key("o", {"limit_usd": usd("0.0005")})
        body = json.dumps(chat(100, seed=1)).encode()
        at.provider.then(plain(answered(50)))
        answer = await key.call(CHAT, body)
        assert (answer.status, answer.header("x-farebox-clamped")) == (200, "max_tokens=50")
        assert at.provider.requests[0].body == body.replace(b'"max_tokens": 100', b'"max_tokens": 50')
        assert (await other.call(CHAT, body)).status == 402
        assert (await key.row()).cost_usd == usd("0.0005")


async def test_a_call_waits_for_open_holds_to_settle(home: Home) -> None:
    """What another call gives back in time lets the next one in."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.0015"), "wait_s": 30})
        first, go = await at.under_way(key)
        at.provider.then(plain(answered(10)))
        second = asyncio.create_task(key.call(CHAT, chat(100)))
        while not at.farebox.app.budgets.lines.waiting:
            await asyncio.sleep(0.005)
        go.set()
        assert [(await first).status, (await second).status] == [200, 200]


async def test_a_client_that_leaves_while_it_waits_leaves_nothing(home: Home) -> None:
    """Its call ends at once, nothing is held, nothing goes up and there is no row."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.0015"), "wait_s": 30})
        first, go = await at.under_way(key)
        async with key.client() as client:
            body = json.dumps(chat(100)).encode()
            await client.send("POST", CHAT, {"Authorization": f"Bearer {key.key}"}, body)
            while not at.farebox.app.budgets.lines.waiting:
                await asyncio.sleep(0.005)
            client.abort()
            async with asyncio.timeout(15):
                while at.farebox.app.proxy.in_flight > 1:
                    await asyncio.sleep(0.005)
        assert not at.farebox.app.budgets.lines.waiting
        go.set()
        assert (await first).status == 200
        assert len(at.provider.requests) == len(await key.rows()) == 1


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_call_that_got_no_connection_is_charged_nothing(home: Home, leaves: bool) -> None:
    """The provider's only connection is taken: who leaves, or waited too long, has a row that says nothing was sent."""
    p = {"dialect": "openai", "prices": FREE_INPUT, "connections_max": 1, "response_timeout_s": 30 if leaves else 0.4}
    go = asyncio.Event()

    async def slow(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(answered(10))))])
        await go.wait()
        await wire.send(answered(10))

    async with scene(home) as at:
        p["base_url"] = at.provider.base_url
        metering = {"on_client_disconnect": "abort"}
        config = settings(home.database, home.folder, at.provider, more={"p": p}, metering=metering)
        await at.farebox.app.reload(config_of(config))
        key = await at.key("k", {"limit_usd": usd("1")})
        at.provider.then(slow)
        first = asyncio.create_task(key.call(CHAT, chat(100)))
        while not at.provider.requests:
            await asyncio.sleep(0.005)
        async with key.client() as client:
            await client.send("POST", CHAT, {"Authorization": f"Bearer {key.key}"}, json.dumps(chat(100)).encode())
            if leaves:
                while sum(call.attempt is not None for call in at.farebox.app.proxy._calls) < 2:
                    await asyncio.sleep(0.005)
                client.abort()
                while at.farebox.app.proxy.in_flight > 1:
                    await asyncio.sleep(0.005)
            else:
                assert (await client.head()).status == 504
        go.set()
        assert (await first).status == 200
        assert len(at.provider.requests) == 1
        rows = {row.outcome: (row.usage_source, row.cost_usd) for row in await key.rows()}
        ended = "client_gone" if leaves else "upstream_error"
        assert rows == {"complete": ("provider", usd("0.0001")), ended: ("none", 0)}
        assert (await at.books.window(key))["spent_usd"] == usd("0.0001")


# -- streams on an expected hold -------------------------------------------------------------------


EXPECTED: dict[str, Any] = {"admission": "expected"}


async def test_a_stream_holds_little_at_first_and_more_as_it_goes_on(home: Home) -> None:
    """A limit of 64,000 tokens holds 2,048, then what the stream comes to, and is charged what it was."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("1"), **EXPECTED})
        held: list[Decimal] = []

        async def talk(_: Received, wire: Wire) -> None:
            await begin_stream(wire)
            held.append((await at.books.window(key))["reserved_usd"])
            for _number in range(40):
                await wire.chunk(word_frame("abc" * 100))
                await asyncio.sleep(0.001)
            held.append((await at.books.window(key))["reserved_usd"])
            for frame in closing_frames(4000):
                await wire.chunk(frame)
            await wire.end()

        at.provider.then(talk)
        answer = await key.call(CHAT, chat(64_000, stream=True))
        assert answer.clean and answer.body.endswith(b"data: [DONE]\n\n")
        assert held[0] == usd("0.02048") and held[1] >= usd("0.04")
        assert at.provider.requests[0].header("accept-encoding") == "identity"
        assert (await key.row()).cost_usd == usd("0.04")


async def test_a_stream_whose_money_ends_ends_properly(home: Home) -> None:
    """It gets a finish reason, its usage and [DONE]; the provider's connection is closed; the row says budget_cut."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.03"), **EXPECTED})
        hung_up = asyncio.Event()

        async def endless(_: Received, wire: Wire) -> None:
            await begin_stream(wire)
            try:
                while True:
                    await wire.chunk(word_frame("abc" * 20))
                    await asyncio.sleep(0.001)
            finally:
                hung_up.set()

        at.provider.then(endless)
        options = {"stream_options": {"include_usage": True}}
        answer = await key.call(CHAT, chat(64_000, stream=True, **options))
        assert answer.clean and answer.body.endswith(b"data: [DONE]\n\n")
        frames = [json.loads(part[6:]) for part in answer.body.split(b"\n\n") if part.startswith(b"data: {")]
        assert any(choice["finish_reason"] == "length" for frame in frames for choice in frame["choices"])
        # What was counted, not what was held: the input alone was held at ten times as much.
        assert frames[-1]["usage"]["completion_tokens"] > 1000 and frames[-1]["usage"]["prompt_tokens"] < 50
        await asyncio.wait_for(hung_up.wait(), 10)
        row = await key.row()
        assert row.outcome == "budget_cut" and row.cost_usd is not None
        assert row.input_tokens is not None and row.input_tokens < 50, "it is counted, not bounded by its size"
        # All of it was used, and no more than the last read beyond.
        read_last = usd("0.00001") * len(answer.body) / 10
        assert usd("0.029") <= row.cost_usd <= usd("0.03") + read_last
        assert (await key.call(CHAT, chat(3000))).status == 402


def _event(name: str, **members: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **members})}\n\n".encode()


_TEXT = "abc" * 50
MESSAGES_START = [
    _event(
        "message_start",
        message={
            "id": "x",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": "m",
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 7, "output_tokens": 1},
        },
    ),
    _event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
]
MESSAGES_DELTA = _event("content_block_delta", index=0, delta={"type": "text_delta", "text": _TEXT})
RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "status": "in_progress", "model": "m", "output": []}
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
RESPONSES_START = [
    _event("response.created", sequence_number=0, response=RESPONSE),
    _event("response.output_item.added", sequence_number=1, output_index=0, item=ITEM),
    _event(
        "response.content_part.added", sequence_number=2, item_id="msg_1", output_index=0, content_index=0, part=PART
    ),
]
RESPONSES_DELTA = _event(
    "response.output_text.delta", sequence_number=3, item_id="msg_1", output_index=0, content_index=0, delta=_TEXT
)


@pytest.mark.parametrize(
    ("path", "limit", "start", "delta", "ends"),
    [
        ("/v1/messages", "max_tokens", MESSAGES_START, MESSAGES_DELTA, (b'"max_tokens"', b"message_stop")),
        ("/v1/responses", "max_output_tokens", RESPONSES_START, RESPONSES_DELTA, (b"response.incomplete",)),
    ],
    ids=["messages", "responses"],
)
async def test_a_cut_stream_ends_in_its_own_dialect(
    home: Home, path: str, limit: str, start: list[bytes], delta: bytes, ends: tuple[bytes, ...]
) -> None:
    """Messages say `max_tokens`, Responses `response.incomplete`, each with the usage it always has."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.025"), **EXPECTED})

        async def endless(_: Received, wire: Wire) -> None:
            await begin_stream(wire)
            for frame in start:
                await wire.chunk(frame)
            while True:
                await wire.chunk(delta)
                await asyncio.sleep(0.001)

        at.provider.then(endless)
        body = {"model": "m", limit: 64_000, "stream": True}
        said = "input" if path.endswith("responses") else "messages"
        body[said] = "hi" if said == "input" else [{"role": "user", "content": "hi"}]
        answer = await key.call(path, body)
        assert answer.clean and all(end in answer.body for end in ends)
        row = await key.row()
        assert row.input_tokens is not None and row.input_tokens < 50
        assert row.outcome == "budget_cut" and row.cost_usd is not None and row.cost_usd >= usd("0.02048")


async def test_a_stream_may_overrun(home: Home) -> None:
    """`on_extend_denied: overrun` lets it go on to its end; what it cost beyond is on record."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.03"), "on_extend_denied": "overrun", **EXPECTED})
        at.provider.then(stream(spoken(5000)))
        answer = await key.call(CHAT, chat(64_000, stream=True))
        assert answer.clean and answer.body == b"".join(spoken(5000)[:-2]) + b"data: [DONE]\n\n"
        row = await key.row()
        assert (row.outcome, row.cost_usd) == ("complete", usd("0.05"))
        window = await at.books.window(key)
        assert window["overrun_usd"] >= window["spent_usd"] - window["limit_usd"] == usd("0.02")


@pytest.mark.parametrize("beside", ["overrun", "pace"])
async def test_what_lets_a_stream_run_leaves_other_budgets_their_limit(home: Home, beside: str) -> None:
    """Beside a full budget that lets streams overrun, or a full pace, the one that cuts holds more and is kept."""
    async with scene(home, prices=FREE_INPUT) as at:
        cuts = {"limit_usd": usd("0.1"), "limit_tokens": 20_000, **EXPECTED}
        lets = {"limit_usd": usd("0.05"), "window": "day", "on_extend_denied": "overrun", **EXPECTED}
        key = await at.key("k", cuts, *([lets] if beside == "overrun" else []), tpm=5000 if beside == "pace" else None)
        at.provider.default = stream(spoken(20_000), gap_s=0.001)
        answers = await asyncio.gather(*(key.call(CHAT, chat(64_000, stream=True)) for _ in range(2)))
        assert {answer.status for answer in answers} == {200}
        assert {row.outcome for row in await key.rows(2)} == {"budget_cut"}
        [window] = [row for row in await at.books.windows() if row["name"] == f"key:{key.key_name}:total"]
        assert usd("0.095") < window["spent_usd"] < usd("0.12"), "each passes it by its last chunk"


async def test_a_compressed_stream_is_cut_without_a_terminal(home: Home) -> None:
    """What cannot be added to breaks off: the money counts first."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.03"), **EXPECTED})

        async def packed(_: Received, wire: Wire) -> None:
            head = [
                ("Content-Type", "text/event-stream"),
                ("Transfer-Encoding", "chunked"),
                ("Content-Encoding", "gzip"),
            ]
            await wire.head(200, head)
            while True:
                await wire.chunk(gzip.compress(word_frame("abc" * 100)))
                await asyncio.sleep(0.001)

        at.provider.then(packed)
        answer = await key.call(CHAT, chat(64_000, stream=True))
        assert not answer.clean
        row = await key.row()
        assert row.outcome == "budget_cut" and row.cost_usd is not None and row.cost_usd >= usd("0.02048")


async def test_a_short_answer_of_a_stream_frees_what_it_held(home: Home) -> None:
    """What a stream did not use is there for the next one at once."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("0.03"), "wait_s": 5, **EXPECTED})
        at.provider.default = stream(spoken(100))
        for _ in range(10):
            assert (await key.call(CHAT, chat(64_000, stream=True))).status == 200
        assert sum(row.cost_usd or 0 for row in await key.rows(10)) == usd("0.01")


# -- clients that leave ----------------------------------------------------------------------------


async def leave_after(key: Farebox, provider: FakeProvider, body: dict[str, Any], size: int) -> None:
    """Ask, read `size` bytes of the answer's body, and leave without a word."""
    async with key.client() as client:
        headers = {"Authorization": f"Bearer {key.key}"}
        before = len(provider.requests)
        await client.send("POST", CHAT, headers, json.dumps(body).encode())
        if size:
            await client.head()
            await client.chunks(size)
        while len(provider.requests) == before:
            await asyncio.sleep(0.002)
        client.abort()
    await key.deserted()


async def test_a_budgeted_stream_whose_client_left_is_read_to_its_end(home: Home) -> None:
    """It is charged what the provider says it cost."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        go = asyncio.Event()

        async def halting(_: Received, wire: Wire) -> None:
            frames = spoken(200)
            await begin_stream(wire)
            await wire.chunk(frames[0])
            await go.wait()
            for frame in frames[1:]:
                await wire.chunk(frame)
            await wire.end()

        at.provider.then(halting)
        await leave_after(key, at.provider, chat(1000, stream=True), 10)
        go.set()
        row = await key.row()
        assert (row.outcome, row.usage_source, row.cost_usd) == ("client_gone", "provider", usd("0.002007"))


@pytest.mark.parametrize("admission", ["strict", "expected"])
async def test_an_aborted_stream_is_charged_its_hold(home: Home, admission: str) -> None:
    """With `abort` nobody knows what it cost: strict budgets are charged the bound, expected ones what they held."""
    async with scene(home, prices=FREE_INPUT, metering={"on_client_disconnect": "abort"}) as at:
        key = await at.key("k", {"limit_usd": usd("1"), "admission": admission})

        async def endless(_: Received, wire: Wire) -> None:
            await begin_stream(wire)
            while True:
                await wire.chunk(word_frame())
                await asyncio.sleep(0.005)

        at.provider.then(endless)
        await leave_after(key, at.provider, chat(64_000, stream=True), 10)
        row = await key.row()
        assert (row.outcome, row.usage_source, row.cost_source) == ("client_gone", "hold", "hold")
        assert row.cost_usd == (usd("0.64") if admission == "strict" else usd("0.02048"))


# -- several providers -----------------------------------------------------------------------------


DEAR = {"*": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 100}}


@asynccontextmanager
async def two_providers(home: Home) -> AsyncIterator[tuple[Scene, FakeProvider]]:
    """`dear` at ten times the price of `p`, which is asked first."""
    async with FakeProvider() as second:
        dear = {"dear": {"dialect": "openai", "base_url": second.base_url, "prices": DEAR}}
        routes = [{"match": {}, "to": ["p", "dear"]}]
        async with scene(home, prices=FREE_INPUT, more=dear, routes=routes) as at:
            yield at, second


async def test_each_attempt_holds_at_its_own_provider(home: Home) -> None:
    """A fallback is a reservation of its own, at the next provider's price, and one request of a key's pace."""
    async with two_providers(home) as (at, second):
        key = await at.key("k", {"limit_usd": usd("1")}, rpm=5)
        at.provider.then(plain(b"{}", status=503))
        second.then(plain(answered(100)))
        answer = await key.call(CHAT, chat(100))
        # The first attempt's hold may not be settled yet.
        assert answer.status == 200 and answer.header("x-farebox-budget-remaining-usd") in ("0.99", "0.989")
        failed, row = await key.rows(2)
        assert (failed.cost_usd, row.cost_usd) == (0, usd("0.01"))
        [rate] = await at.books.fetch(
            "SELECT w.requests FROM farebox.budget_window AS w JOIN farebox.budget AS b ON b.id = w.budget_id "
            "WHERE b.name = $1",
            f"key:{key.key_name}:rpm",
        )
        assert rate["requests"] == 1


async def test_what_a_failed_attempt_held_pays_for_the_next(home: Home) -> None:
    """With money for one attempt at a time a fallback is admitted: the first one cost nothing."""
    async with two_providers(home) as (at, second):
        key = await at.key("k", {"limit_usd": usd("0.01")})
        at.provider.then(plain(b"{}", status=503))
        second.then(plain(answered(100)))
        assert (await key.call(CHAT, chat(100))).status == 200
        assert [row.cost_usd for row in await key.rows(2)] == [0, usd("0.01")]
        assert (await key.call(CHAT, chat(100))).status == 402


async def test_a_fallback_that_is_too_dear_is_refused_by_name(home: Home) -> None:
    """The first attempt is a row that cost nothing; the second is never made."""
    async with two_providers(home) as (at, second):
        key = await at.key("k", {"limit_usd": usd("0.005")})
        at.provider.then(plain(b"{}", status=503))
        answer = await key.call(CHAT, chat(100))
        assert answer.status == 402 and f"key:{key.key_name}:total" in json.loads(answer.body)["error"]["message"]
        assert (await key.row()).cost_usd == 0 and not second.requests


# -- limits of a key's pace ------------------------------------------------------------------------


async def test_requests_a_minute(home: Home) -> None:
    """One more gets 429, told when to come back."""
    async with scene(home) as at:
        key = await at.key("k", rpm=2)
        at.provider.default = plain(answered(5))
        assert [(await key.call(CHAT, chat())).status for _ in range(2)] == [200, 200]
        answer = await key.call(CHAT, chat())
        assert answer.status == 429 and int(answer.header("retry-after") or 0) >= 1
        assert answer.header("x-ratelimit-limit-requests") == "2"
        assert answer.header("x-ratelimit-remaining-requests") == "0"
        assert len(at.provider.requests) == 2


async def test_tokens_a_minute_do_not_cut_what_was_let_in(home: Home) -> None:
    """A stream may pass its key's pace and goes on being held in dollars; the next call has to wait."""
    async with scene(home, prices=FREE_INPUT) as at:
        key = await at.key("k", {"limit_usd": usd("1"), **EXPECTED}, tpm=3000)
        at.provider.default = stream(spoken(5000), gap_s=0.002)
        answer = await key.call(CHAT, chat(64_000, stream=True))
        assert answer.status == 200 and answer.body.endswith(b"data: [DONE]\n\n")
        row = await key.row()
        assert (row.outcome, row.cost_usd) == ("complete", usd("0.05"))
        assert (await at.books.window(key))["overrun_usd"] == 0, "its hold went along"
        answer = await key.call(CHAT, chat(64_000, stream=True))
        assert answer.status == 429 and answer.header("x-ratelimit-limit-tokens") == "3000"


async def test_a_parallel_slot_is_free_when_its_call_is_over(home: Home) -> None:
    """With the only slot taken a second call gets 429; after it there is room."""
    async with scene(home) as at:
        key = await at.key("k", max_parallel=1)
        first, go = await at.under_way(key)
        at.provider.then(plain(answered(10)))
        assert (await key.call(CHAT, chat())).status == 429
        go.set()
        assert (await first).status == 200
        assert (await key.call(CHAT, chat())).status == 200


# -- the journal -----------------------------------------------------------------------------------


async def test_without_a_journal_a_budgeted_call_is_not_made(home: Home) -> None:
    """Also where unbudgeted ones pass unrecorded: 503, and its hold is given back."""
    async with scene(home, metering={"on_ledger_failure": "pass"}) as at:
        key = await at.key("k", {"limit_usd": usd("1")})

        def full(*_: object) -> None:
            raise JournalFull("the disk of the journal is full")

        forwarder = at.farebox.app.proxy._forwarder
        begin, forwarder._begin = forwarder._begin, full
        try:
            assert (await key.call(CHAT, chat())).status == 503
        finally:
            forwarder._begin = begin
        assert not at.provider.requests


async def test_a_budget_that_warns_is_none_that_remains(home: Home) -> None:
    """What is left is what a client may still spend: a budget that refuses nobody takes nothing from that."""
    async with scene(home) as at:
        key = await at.key("k", {"limit_usd": usd("0"), "on_exceed": "warn", "admission": "expected"})
        at.provider.then(plain(answered(5)))
        answer = await key.call(CHAT, chat())
        assert answer.status == 200 and answer.header("x-farebox-budget-remaining-usd") is None


async def test_a_client_of_raw_http_sees_no_header_where_they_are_off(home: Home) -> None:
    """`server.response_headers: false` says nothing of what is left."""
    async with scene(home, server={"response_headers": False}) as at:
        key = await at.key("k", {"limit_usd": usd("1")})
        at.provider.then(plain(answered(5)))
        async with RawClient(key.port) as client:
            body = json.dumps(chat()).encode()
            await client.send("POST", CHAT, {"Authorization": f"Bearer {key.key}"}, body)
            answer = await client.answer()
        assert answer.status == 200 and answer.header("x-farebox-budget-remaining-usd") is None
