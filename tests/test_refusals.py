"""Refusals by budgets, as clients meet them: the sentence, the dialect, the headers; and that no SDK asks twice.

The official SDKs keep their own habits of trying again. Requests are counted on a wire between them
and farebox.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import pytest_asyncio

from farebox.errors import (
    SHORTFALLS_NAMED_MAX,
    BudgetExceeded,
    NoBound,
    PathClosed,
    RateLimit,
    RateLimited,
    Refusal,
    Shortfall,
    Unpriced,
)
from farebox.metrics.families import REASONS
from support import speech
from support.app import ADMIN_TOKEN, Farebox
from support.live import Serving, eventually, serving
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Wire, plain
from support.sdks import Sdk, anthropic_sdk, openai_sdk
from support.tap import Tap, tapped

on_wire = pytest.mark.asyncio(loop_scope="module")

NOW = datetime(2026, 3, 31, 22, 0, tzinfo=UTC)
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
PNG = "data:image/png;base64," + base64.b64encode(b"not one").decode()


def short(**more: Any) -> Shortfall:
    fields = {
        "budget": "team-day",
        "scope": "team",
        "window": "day",
        "unit": "USD",
        "limit": Decimal("1E+2"),
        "spent": Decimal("99.5000"),
        "held": Decimal("0.40"),
        "needed": Decimal("0.000000123"),
        "resets_at": NOW,
    }
    return Shortfall(**{**fields, **more})


# -- what they say ---------------------------------------------------------------------------------


def test_a_budget_refusal_says_which_what_and_until_when() -> None:
    """Name, limit, window and scope; spent, held and needed in exact digits; the instant of the reset in UTC."""
    east = NOW.astimezone(tz=None)
    assert BudgetExceeded([short(resets_at=east)]).message == (
        "The budget 'team-day' (100 USD a day for this key's team) has no room for this call: 99.5 spent, "
        "0.4 held by open calls, 0.000000123 needed. It resets at 2026-03-31T22:00:00Z. "
        "Asking for less output (max_tokens) needs less."
    )


def test_a_smaller_call_is_advised_only_where_it_may_fit() -> None:
    """Once a budget is used up, or where it counts requests, asking for less output would not help."""
    used_up = short(spent=Decimal("99.6"))
    for others in ([], [short()]):
        assert BudgetExceeded([*others, used_up]).message.endswith("It resets at 2026-03-31T22:00:00Z.")
    assert "max_tokens" not in BudgetExceeded([short(unit="requests", limit=5, spent=4, held=0, needed=2)]).message


def test_a_budget_without_end_says_so() -> None:
    """A total never resets, a global budget is nobody's own, tokens are counted in whole numbers."""
    total = short(
        scope="global", window="total", unit="tokens", limit=500, spent=400, held=0, needed=101, resets_at=None
    )
    assert BudgetExceeded([total]).message == (
        "The budget 'team-day' (500 tokens in total) has no room for this call: 400 spent, 0 held by open calls, "
        "101 needed. It does not reset. Asking for less output (max_tokens) needs less."
    )


def test_only_the_first_few_budgets_are_named() -> None:
    """However many budgets refuse, and however long their names, the message ends."""
    refusal = BudgetExceeded([short(budget=f"b{n}" + "x" * 500) for n in range(20)])
    assert [f"b{n}" in refusal.message for n in range(5)] == [n < SHORTFALLS_NAMED_MAX for n in range(5)]
    assert len(refusal.message) < 1200


def test_a_budget_refusal_in_both_dialects() -> None:
    """402 with OpenAI's insufficient_quota and Anthropic's billing_error, and nothing that invites a retry."""
    refusal = BudgetExceeded([short()])
    body = json.loads(refusal.body("openai"))
    assert body == {
        "error": {
            "message": refusal.message,
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
        }
    }
    error = {"type": "billing_error", "message": refusal.message}
    assert json.loads(refusal.body("anthropic", "r1")) == {"type": "error", "error": error, "request_id": "r1"}
    assert (refusal.status, refusal.headers) == (402, {})


def test_the_429_form_tells_sdks_not_to_retry() -> None:
    """By the switch the same refusal is a 429 with `x-should-retry: false`, and still without `retry-after`."""
    refusal = BudgetExceeded([short()], status=429)
    assert (refusal.status, refusal.headers) == (429, {"x-should-retry": "false"})
    assert json.loads(refusal.body("openai"))["error"]["type"] == "insufficient_quota"
    assert json.loads(refusal.body("anthropic"))["error"]["type"] == "rate_limit_error"


def test_a_rate_limit_tells_what_sdks_look_for() -> None:
    """`retry-after` in whole seconds rounded up, and limit, rest and reset of each of the key's limits."""
    soon = NOW + timedelta(seconds=12.2)
    refusal = RateLimited(
        "tokens", now=NOW, requests=RateLimit(60, 58, soon), tokens=RateLimit(1000, -5, soon), parallel_max=3
    )
    assert refusal.headers == {
        "retry-after": "13",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "13s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "13s",
    }
    error = json.loads(refusal.body("openai"))["error"]
    assert (refusal.status, error["type"], error["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert json.loads(refusal.body("anthropic"))["error"]["type"] == "rate_limit_error"
    late = RateLimited("requests", now=NOW, requests=RateLimit(1, 0, NOW))
    assert (late.headers["retry-after"], late.type) == ("1", "requests")


def test_parallel_calls_are_worth_another_try_soon() -> None:
    """A slot may be free in a moment: a second is enough to wait."""
    refusal = RateLimited("parallel", now=NOW, parallel_max=2)
    assert refusal.headers == {"retry-after": "1"}
    assert refusal.message == "This key is at its limit of parallel requests, 2. Try again in 1 s."


def test_a_call_larger_than_a_minute_is_not_tried_again() -> None:
    """Tokens that are left and needed are told; where a whole minute has too few, no SDK is sent to wait for it."""
    fits = RateLimited("tokens", now=NOW, tokens=RateLimit(1000, 290, NOW + timedelta(seconds=8)), needed=400)
    assert fits.message == (
        "This key's limit of 1000 tokens a minute has 290 left, and this call needs 400. Try again in 8 s."
    )
    assert (fits.headers["retry-after"], "x-should-retry" in fits.headers) == ("8", False)
    never = RateLimited("tokens", now=NOW, tokens=RateLimit(1000, 1000, NOW + timedelta(seconds=8)), needed=1001)
    assert never.message.endswith("needs 1001. A minute never has as many: ask for less output.")
    assert (never.headers["x-should-retry"], "retry-after" in never.headers) == ("false", False)


def test_whose_budget_and_how_often_is_said_in_words() -> None:
    """The counter that refuses is the caller's own: this key's, its team's, this session's; an hour, a day."""
    said = [BudgetExceeded([short(scope=scope, window="hour")]).message for scope in ("key", "user", "session")]
    assert [
        "USD an hour for this key)" in said[0],
        "for this key's user)" in said[1],
        "for this session)" in said[2],
    ] == [True] * 3


@pytest.mark.parametrize(
    ("refusal", "status", "type_", "says"),
    [
        (PathClosed("POST", "/v1/batches"), 403, "permission_error", "POST /v1/batches"),
        (Unpriced("m-1", "local"), 400, "invalid_request_error", "providers.local.prices"),
        (NoBound("an image", "team-day"), 400, "invalid_request_error", "an image has none"),
    ],
)
def test_the_others_say_what_would_help(refusal: Refusal, status: int, type_: str, says: str) -> None:
    """A closed path, a model without a price, a call without a bound: client errors that name the way out."""
    assert (refusal.status, refusal.anthropic_type) == (status, type_)
    assert says in refusal.message
    assert refusal.headers == {}
    assert refusal.code in REASONS


def test_what_a_client_chose_is_repeated_only_so_far() -> None:
    """A model's name or a path of any length does not make a message of any length."""
    assert len(Unpriced("m" * 5000, "p").message) < 500
    assert len(PathClosed("POST", "/v1/" + "x" * 5000).message) < 400


# -- on the wire -------------------------------------------------------------------------------------

BUDGETS = [
    {"name": "empty", "scope": "team", "only": "poor", "limit_usd": 0, "window": "day", "wait_s": 0},
    {"name": "exact", "scope": "team", "only": "strict", "limit_usd": 50, "admission": "strict", "wait_s": 0},
    {"name": "plenty", "scope": "team", "only": "rich", "limit_usd": 1000},
    {"name": "watched", "scope": "team", "only": "warned", "limit_usd": 0, "on_exceed": "warn"},
]


def _settings(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    key = {"api_key": "sk-of-the-provider-1234"}
    up = fakes["up"]
    providers = {
        "up": {"dialect": "openai", "base_url": up.base_url, **key},
        "claude": {"dialect": "anthropic", "base_url": up.origin, **key},
    }
    return providers, [{"match": {"model": "claude-*"}, "to": ["claude"]}, {"match": {}, "to": ["up"]}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], _settings, budgets=BUDGETS) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served_429(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], _settings, budgets=BUDGETS, metering={"refusal_status": 429}) as found:
        yield found


class Caller:
    """Both SDKs with one key, as they come, over a wire that counts."""

    def __init__(self, serving: Serving, farebox: Farebox, tap: Tap, openai_: Sdk, anthropic_: Sdk) -> None:
        self.provider = serving.providers["up"]
        self.farebox = farebox
        self.tap = tap
        self.openai = openai_.client
        self.anthropic = anthropic_.client

    async def refused(self, call: Callable[[], Awaitable[Any]], kind: type[Exception]) -> Any:
        """The error of a call that farebox refuses: one request on the wire, none at the provider, no row."""
        before = len(self.tap.requests)
        with pytest.raises(kind) as caught:
            await call()
        assert type(caught.value) is kind
        assert len(self.tap.requests) - before == 1
        assert not self.provider.requests
        assert await self.farebox.rows() == []
        return caught.value

    async def chat(self, **more: Any) -> Any:
        settings = {"model": "gpt-4o", "messages": HELLO, **more}
        return await self.openai.chat.completions.create(**settings)

    async def message(self, **more: Any) -> Any:
        settings = {"model": "claude-opus-4-6", "messages": HELLO, "max_tokens": 9, **more}
        return await self.anthropic.messages.create(**settings)


@asynccontextmanager
async def caller(serving: Serving, **key: Any) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        desk = await serving.desk(**key)
        tap = await stack.enter_async_context(tapped(desk.farebox.port))
        openai_ = await stack.enter_async_context(openai_sdk(tap.origin, desk.key, "async"))
        anthropic_ = await stack.enter_async_context(anthropic_sdk(tap.origin, desk.key, "async"))
        yield Caller(serving, desk.farebox, tap, openai_, anthropic_)


@on_wire
async def test_an_empty_budget_is_told_once(served: Serving) -> None:
    """Chat, stream, completions, responses, embeddings and messages: 402 at once, and no SDK asks again."""
    async with caller(served, team="poor") as one:
        client = one.openai
        calls: list[Callable[[], Awaitable[Any]]] = [
            one.chat,
            lambda: one.chat(stream=True),
            lambda: client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello!"),
            lambda: client.responses.create(model="gpt-4o", input="Hello!"),
            lambda: client.embeddings.create(model="text-embedding-3-small", input="Hello!"),
        ]
        for call in calls:
            error = await one.refused(call, openai.APIStatusError)
            assert (error.status_code, error.code, error.type) == (402, "insufficient_quota", "insufficient_quota")
            assert "The budget 'empty' (0 USD a day for this key's team)" in error.message
            assert "retry-after" not in error.response.headers
            assert error.response.headers["x-farebox-request-id"]
        for message in (one.message, lambda: one.message(stream=True)):
            refused = await one.refused(message, anthropic.PaymentRequiredError)
            assert (refused.status_code, refused.body["error"]["type"]) == (402, "billing_error")
            assert "It resets at " in refused.message
        assert str(one.farebox.key) not in str(error.response.text)


@on_wire
async def test_as_429_it_is_told_once_too(served_429: Serving) -> None:
    """By `refusal_status: 429` both SDKs raise RateLimitError and, told not to, do not ask again."""
    async with caller(served_429, team="poor") as one:
        error = await one.refused(one.chat, openai.RateLimitError)
        assert (error.code, error.response.headers["x-should-retry"]) == ("insufficient_quota", "false")
        assert "retry-after" not in error.response.headers
        refused = await one.refused(one.message, anthropic.RateLimitError)
        assert refused.body["error"]["type"] == "rate_limit_error"


@on_wire
async def test_a_closed_path_is_told_once(served: Serving) -> None:
    """What could spend past the meter is 403 for a key with a budget, whatever is in it."""
    async with caller(served, team="rich") as one:
        client = one.openai
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "POST /v1/images/generations": lambda: client.images.generate(model="gpt-image-1", prompt="a cat"),
            "POST /v1/audio/speech": lambda: client.audio.speech.create(model="tts-1", voice="alloy", input="Hi"),
            "POST /v1/audio/transcriptions": lambda: client.audio.transcriptions.create(
                model="whisper-1", file=("a.wav", bytes(3 << 20))
            ),
            "POST /v1/batches": lambda: client.batches.create(
                input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"
            ),
            "POST /v1/realtime/client_secrets": lambda: client.realtime.client_secrets.create(),
            "POST /v1/vector_stores": lambda: client.vector_stores.create(),
            "POST /v1/fine_tuning/jobs": lambda: client.fine_tuning.jobs.create(model="m", training_file="file-1"),
        }
        for path, call in calls.items():
            error = await one.refused(call, openai.PermissionDeniedError)
            assert error.code == "path_closed"
            assert path in error.message
        batch = {"custom_id": "a", "params": {"model": "claude-opus-4-6", "max_tokens": 9, "messages": HELLO}}
        refused = await one.refused(
            lambda: one.anthropic.messages.batches.create(requests=[batch]), anthropic.PermissionDeniedError
        )
        assert refused.body["error"]["type"] == "permission_error"
        assert "POST /v1/messages/batches" in refused.message


@on_wire
async def test_free_paths_stay_open_to_budgets(served: Serving) -> None:
    """A key with an empty budget still counts tokens and stores files: both cost nothing."""
    async with caller(served, team="poor") as one:
        one.provider.then(plain(b'{"input_tokens": 4}'), plain(b'{"id": "file-1", "object": "file"}'))
        counted = await one.anthropic.messages.count_tokens(model="claude-opus-4-6", messages=HELLO)
        assert counted.input_tokens == 4
        stored = await one.openai.files.create(file=("a.txt", b"text"), purpose="assistants")
        assert stored.id == "file-1"


@on_wire
async def test_other_keys_and_budgets_that_warn_close_nothing(served: Serving) -> None:
    """A closed path is a matter of budgets that refuse: nobody else meets it."""
    for team in (None, "warned"):
        async with caller(served, team=team) as one:
            one.provider.then(plain(b'{"id": "batch_1", "object": "batch"}'))
            batch = await one.openai.batches.create(
                input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"
            )
            assert batch.id == "batch_1"


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@on_wire
async def test_a_websocket_is_closed_to_budgets(served: Serving) -> None:
    """A socket holds many answers and no one is metered: 403 for a key with a budget, 400 as ever for others."""
    for team, status, code in (
        ("rich", 403, "path_closed"),
        ("warned", 400, "bad_request"),
        (None, 400, "bad_request"),
    ):
        desk = await served.desk(team=team)
        for path in ("/v1/responses", "/v1/realtime?model=gpt-realtime"):
            async with desk.client() as client:
                await client.send("GET", path, {**UPGRADE, "Authorization": f"Bearer {desk.key}"})
                answer = await client.answer()
            error = json.loads(answer.body)["error"]
            assert (answer.status, error["code"]) == (status, code)
            assert path.partition("?")[0] in error["message"] or team != "rich"


@on_wire
async def test_a_model_without_a_price_is_told_once(served: Serving) -> None:
    """Nobody knows what it costs, so a key with a budget may not use it; the message says how to price it."""
    async with caller(served, team="rich") as one:
        error = await one.refused(lambda: one.chat(model="our-own-model"), openai.BadRequestError)
        assert (error.code, error.param) == ("model_unpriced", "model")
        assert "providers.up.prices" in error.message
        refused = await one.refused(lambda: one.message(model="claude-of-our-own"), anthropic.BadRequestError)
        assert refused.body["error"]["type"] == "invalid_request_error"


@on_wire
async def test_a_call_without_a_bound_is_told_once_by_a_strict_budget(served: Serving) -> None:
    """A strict budget admits no image: nothing bounds what one costs."""
    async with caller(served, team="strict") as one:
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]
        error = await one.refused(lambda: one.chat(messages=image, max_tokens=9), openai.BadRequestError)
        assert error.code == "no_cost_bound"
        assert "The budget 'exact' is strict" in error.message
        source = {"type": "base64", "media_type": "image/png", "data": PNG.partition(",")[2]}
        shown = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        refused = await one.refused(lambda: one.message(messages=shown), anthropic.BadRequestError)
        assert "is strict" in refused.message


@on_wire
async def test_a_member_that_stands_twice_is_refused(served: Serving) -> None:
    """Where a refusal depends on `max_tokens`, which of two counts must not be the parser's choice."""
    desk = await served.desk(team="rich")
    body = b'{"model": "gpt-4o", "max_tokens": 1, "max_tokens": 90000, "messages": []}'
    answer = await desk.call("/v1/chat/completions", body)
    assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, "max_tokens")


async def limited(serving: Serving, **limits: int) -> str:
    """A key made by the API with these limits; its secret."""
    desk = await serving.desk()
    body = {"name": f"limited-{desk.farebox.key_name}", **limits}
    made = await desk.farebox.call("/farebox/api/keys", body, key=ADMIN_TOKEN)
    assert made.status == 201, made.body
    secret: str = json.loads(made.body)["key"]
    return secret


@on_wire
async def test_a_full_minute_is_told_with_what_sdks_wait_by(served: Serving) -> None:
    """The second request of a key with one a minute: 429 with retry-after and the x-ratelimit headers."""
    secret = await limited(served, rpm=1, tpm=100_000)
    served.providers["up"].then(plain(speech.chat()))
    async with openai_sdk(f"http://127.0.0.1:{served.farebox.port}", secret, "async", max_retries=0) as sdk:
        create = sdk.client.chat.completions.create
        await create(model="gpt-4o", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as caught:
            await create(model="gpt-4o", messages=HELLO)
    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(headers["retry-after"]) <= 60
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert headers["x-ratelimit-limit-tokens"] == "100000"
    assert "x-should-retry" not in headers


@on_wire
async def test_a_call_no_minute_has_room_for_is_told_once(served: Serving) -> None:
    """A key with fewer tokens a minute than one call needs: one refusal, and no SDK waits a minute for the next."""
    secret = await limited(served, tpm=50)
    async with openai_sdk(f"http://127.0.0.1:{served.farebox.port}", secret, "async", max_retries=0) as sdk:
        with pytest.raises(openai.RateLimitError, match="50 left, and this call needs ") as caught:
            await sdk.client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=100)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers


@on_wire
async def test_sdks_try_again_when_a_slot_was_taken(served: Serving) -> None:
    """A key with one parallel call: the SDK waits as told, asks again, and gets its answer."""
    secret = await limited(served, max_parallel=1)
    let_go = asyncio.Event()

    async def slow(request: Received, wire: Wire) -> None:
        await let_go.wait()
        await plain(speech.chat())(request, wire)

    async def refused(response: httpx2.Response) -> None:
        if response.status_code == 429:
            let_go.set()

    up = served.providers["up"]
    up.then(slow, plain(speech.chat()))
    hooked = httpx2.AsyncClient(event_hooks={"response": [refused]})
    async with tapped(served.farebox.port) as tap, openai_sdk(tap.origin, secret, "async", http_client=hooked) as sdk:
        create = sdk.client.chat.completions.create
        first = asyncio.create_task(create(model="gpt-4o", messages=HELLO))
        await eventually(lambda: len(up.requests) == 1)
        second = await create(model="gpt-4o", messages=HELLO)
        assert (await first).choices and second.choices
        assert len(tap.requests) == 3
    assert len(up.requests) == 2
