"""Where calls go through a running farebox: routes, fallback, learning, limits of keys, modes, and straying targets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from support.answers import DONE, chunk, finish, frame, usage, usage_frame
from support.http import Answer
from support.live import PROVIDER_KEY, Desk, Serving, serving
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Script, Wire, plain, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEAD = "http://127.0.0.1:1/v1"
"""Nothing listens there (tcpmux needs root, and nobody runs it)."""


def settings(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    providers: dict[str, Any] = {
        name: {"dialect": "openai", "base_url": fake.base_url, "api_key": f"{PROVIDER_KEY}-{name}"}
        for name, fake in fakes.items()
    }
    providers["dead"] = {"dialect": "openai", "base_url": DEAD}
    providers["dead2"] = {"dialect": "openai", "base_url": DEAD}
    providers["slow"] = {**providers["a"], "response_timeout_s": 0.2}
    providers["learner"] = {**providers["a"], "stream_options": "learn"}
    providers["plain-path"] = {"dialect": "openai", "base_url": fakes["a"].origin}
    routes = [
        {"match": {"model": "only-b"}, "to": ["b"]},
        {"match": {"model": ["only-*", "solo"]}, "to": ["a"]},
        {"match": {"model": "dead-*"}, "to": ["dead", "dead2", "b"]},
        {"match": {"model": "gone-*"}, "to": ["dead", "dead2"]},
        {"match": {"model": "slow-resend-*"}, "to": ["slow", "b"], "retry_sent": True},
        {"match": {"model": "slow-*"}, "to": ["slow", "b"]},
        {"match": {"model": "learn-*"}, "to": ["learner"]},
        {"match": {"model": "m-*", "tags": {"tier": "cheap"}}, "to": ["c"]},
        {"match": {"model": "m-*"}, "to": ["a", "b", "c"]},
        {"match": {"tags": {"where": "there"}}, "to": ["b"]},
        {"match": {}, "to": ["c", "a"]},
    ]
    return providers, routes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["a", "b", "c"], settings) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


CHAT = "/v1/chat/completions"
ANSWER = plain(json.dumps({"id": "x", "choices": [], "usage": usage()}).encode())


def named(text: str) -> Script:
    """An answer that says which one it is."""
    return plain(json.dumps({"id": text, "usage": usage()}).encode())


def ask(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def error(answer: Answer) -> Any:
    return json.loads(answer.body)["error"]


def asked(desk: Desk) -> dict[str, int]:
    """How many requests each provider saw."""
    return {name: len(fake.requests) for name, fake in desk.serving.providers.items() if fake.requests}


# -- routes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tags", "to"),
    [
        ("only-b", "", "b"),
        ("only-x", "", "a"),
        ("solo", "", "a"),
        ("m-1", "", "a"),
        ("m-1", "tier=cheap", "c"),
        ("other", "where=there", "b"),
        ("other", "", "c"),
        ("ONLY-B", "", "c"),
    ],
)
async def test_the_first_rule_that_matches_gets_the_call(desk: Desk, model: str, tags: str, to: str) -> None:
    """Model globs and tags choose the provider; the row names it; the provider gets its own credential."""
    desk[to].then(ANSWER)
    answer = await desk.call(CHAT, ask(model), headers={"x-farebox-tags": tags} if tags else {})
    assert answer.status == 200
    assert asked(desk) == {to: 1}
    assert desk[to].requests[0].header("authorization") == f"Bearer {PROVIDER_KEY}-{to}"
    row = await desk.row()
    assert (row.provider, row.requested_model, row.attempt) == (to, model, 1)


async def test_without_a_model_the_rule_for_everything_decides(desk: Desk) -> None:
    """Files and the like go to the first provider of the first rule that asks for no model, and nowhere else."""
    desk["c"].then(plain(b"{}", status=503))
    answer = await desk.call("/v1/files", None, method="GET")
    assert answer.status == 503  # the second provider of the rule would not have these files
    assert asked(desk) == {"c": 1}


async def test_p_names_a_provider(desk: Desk) -> None:
    """/p/PROVIDER/... goes to that provider, path and query appended to its base URL as the client spelt them."""
    desk["b"].then(ANSWER, ANSWER)
    target = "/openai/deployments/My%20Deployment/chat/completions?api-version=2024-10-21&x=%2F"
    await desk.call("/p/b" + target, ask("only-a"))
    await desk.call("/p/b/chat/completions", ask("only-a"))
    assert [request.target for request in desk["b"].requests] == ["/v1" + target, "/v1/chat/completions"]
    rows = await desk.rows(2)
    assert [row.endpoint for row in rows] == ["/openai/deployments/{deployment}/chat/completions", CHAT]
    assert {row.provider for row in rows} == {"b"}
    assert {row.operation for row in rows} == {"chat"}


async def test_p_does_not_fall_back(desk: Desk) -> None:
    """Who names a provider gets that one or an error."""
    assert (await desk.call("/p/dead/chat/completions", ask("m-1"))).status == 502
    assert asked(desk) == {}


# -- fallback ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_the_next_provider_is_tried(desk: Desk, status: int) -> None:
    """429, 502 and 503 bring the next provider, with the same request; each attempt is a row of one request."""
    desk["a"].then(plain(b'{"error":{"type":"busy","code":"later"}}', status=status, headers=[("Retry-After", "9")]))
    desk["b"].then(plain(b"{}", status=status))
    desk["c"].then(named("third"))
    body = json.dumps(ask("m-1", stream=True)).encode()
    answer = await desk.call(CHAT, body)
    assert (answer.status, json.loads(answer.body)["id"]) == (200, "third")
    assert answer.header("retry-after") is None
    assert desk["a"].requests[0].body == desk["b"].requests[0].body == desk["c"].requests[0].body
    rows = await desk.rows(3)
    assert [(row.attempt, row.provider, row.status) for row in rows] == [
        (1, "a", status),
        (2, "b", status),
        (3, "c", 200),
    ]
    assert [row.outcome for row in rows] == ["upstream_error", "upstream_error", "complete"]
    assert (rows[0].error_type, rows[0].error_code, rows[0].usage_source, rows[0].cost_usd) == (
        "busy",
        "later",
        "none",
        0,
    )
    assert len({row.id for row in rows}) == 3
    assert {str(row.request_id) for row in rows} == {answer.header("x-farebox-request-id")}


async def test_the_last_providers_refusal_is_the_clients(desk: Desk) -> None:
    """When no provider is left, the last answer passes verbatim, retry-after included."""
    for name in ("a", "b"):
        desk[name].then(plain(b"{}", status=503))
    body = b'{"error":{"message":"slow down","type":"t","code":"c"}}'
    desk["c"].then(plain(body, status=429, headers=[("Retry-After", "20")]))
    answer = await desk.call(CHAT, ask("m-1"))
    assert (answer.status, answer.body, answer.header("retry-after")) == (429, body, "20")
    assert len(await desk.rows(3)) == 3


async def test_a_provider_that_cannot_be_reached_is_passed_over(desk: Desk) -> None:
    """A refused connection brings the next provider; the attempt is a row without status and without cost."""
    desk["b"].then(named("b"))
    answer = await desk.call(CHAT, ask("dead-1"))
    assert json.loads(answer.body)["id"] == "b"
    rows = await desk.rows(3)
    assert [(row.provider, row.status, row.outcome) for row in rows] == [
        ("dead", None, "upstream_error"),
        ("dead2", None, "upstream_error"),
        ("b", 200, "complete"),
    ]
    for row in rows[:2]:
        assert (row.usage_source, row.cost_usd, row.input_tokens, row.error_code) == ("none", 0, None, "connect")
    assert len({row.request_id for row in rows}) == 1


async def test_when_nobody_can_be_reached(desk: Desk) -> None:
    """502 in the dialect of the path, naming the request, and a row for each attempt."""
    answer = await desk.call(CHAT, ask("gone-1"))
    assert (answer.status, error(answer)["code"]) == (502, "upstream_unreachable")
    rows = await desk.rows(2)
    assert {str(row.request_id) for row in rows} == {answer.header("x-farebox-request-id")}
    answer = await desk.call("/v1/messages", ask("gone-1"))
    assert (answer.status, json.loads(answer.body)["type"], error(answer)["type"]) == (502, "error", "api_error")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 500, 501, 504, 529])
async def test_other_errors_are_not_retried_elsewhere(desk: Desk, status: int) -> None:
    """Where the provider judged the request, or may have worked on it, its answer is the answer."""
    desk["a"].then(plain(b'{"error":"no"}', status=status))
    answer = await desk.call(CHAT, ask("m-1"))
    assert (answer.status, answer.body) == (status, b'{"error":"no"}')
    assert asked(desk) == {"a": 1}


@pytest.mark.parametrize("at", ["before the head", "in the body"])
async def test_no_fallback_once_the_request_has_arrived(desk: Desk, at: str) -> None:
    """A provider that hangs up after the request, or within its answer, may bill it: no other one gets it."""

    async def script(_: Received, wire: Wire) -> None:
        if at == "in the body":
            await wire.head(200, [("Content-Length", "100")])
            await wire.send(b"{")
        wire.close()

    desk["a"].then(script)
    answer = await desk.call(CHAT, ask("m-1"))
    assert (answer.status, answer.clean) == ((200, False) if at == "in the body" else (502, True))
    assert asked(desk) == {"a": 1}
    row = await desk.row()
    assert row.usage_source == "estimate"


async def waits(_: Received, wire: Wire) -> None:
    await wire.hung_up()


async def test_a_timeout_is_not_retried_elsewhere(desk: Desk) -> None:
    """After a timeout the first provider may still bill: 504, and nobody else is asked."""
    desk["a"].then(waits)
    answer = await desk.call(CHAT, ask("slow-1"))
    assert (answer.status, error(answer)["code"]) == (504, "upstream_timeout")
    assert asked(desk) == {"a": 1}
    row = await desk.row()
    assert (row.status, row.outcome, row.usage_source, row.error_code) == (
        None,
        "upstream_error",
        "estimate",
        "response_timeout",
    )


async def test_a_timeout_is_retried_where_the_rule_says_so(desk: Desk) -> None:
    """With retry_sent the next provider is asked after a timeout; both attempts are rows, the first estimated."""
    desk["a"].then(waits)
    desk["b"].then(named("b"))
    answer = await desk.call(CHAT, ask("slow-resend-1"))
    assert json.loads(answer.body)["id"] == "b"
    rows = await desk.rows(2)
    assert [(row.provider, row.outcome, row.usage_source) for row in rows] == [
        ("slow", "upstream_error", "estimate"),
        ("b", "complete", "provider"),
    ]


async def test_no_attempt_for_a_client_that_is_gone(desk: Desk) -> None:
    """A client that leaves while the first provider is asked brings no second attempt."""
    gone = asyncio.Event()

    async def script(_: Received, wire: Wire) -> None:
        reached.set()
        await gone.wait()
        await wire.head(503, [("Content-Length", "0")])

    reached = asyncio.Event()
    desk["a"].then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", CHAT, [desk.auth], json.dumps(ask("m-1")).encode())
        await reached.wait()
    await desk.farebox.deserted()
    gone.set()
    row = await desk.row()
    assert (row.provider, row.status) == ("a", 503)
    assert asked(desk) == {"a": 1}


# -- learning ------------------------------------------------------------------------------------

STREAM = stream([frame(chunk("Hi")), frame(finish()), usage_frame(), DONE])
PLAIN = stream([frame(chunk("Hi")), frame(finish()), DONE])
REJECTIONS = {
    "Mistral's": (
        422,
        b'{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"]}]}}',
    ),
    "Azure's": (400, b'{"error":{"message":"Unrecognized request argument supplied: stream_options"}}'),
    "by the member": (400, b'{"error":{"message":"Unknown parameter","param":"stream_options.include_usage"}}'),
}


@pytest.mark.parametrize("case", REJECTIONS)
async def test_a_rejection_of_stream_options_is_learnt(desk: Desk, case: str) -> None:
    """The original is sent once more, the client sees only that answer, and the next stream goes up as it is."""
    status, body = REJECTIONS[case]
    model = f"learn-{len(case)}-{status}-{case[0]}"
    sent = json.dumps(ask(model, stream=True)).encode()
    desk["a"].then(plain(body, status=status), PLAIN, PLAIN)
    first, second = await desk.call(CHAT, sent), await desk.call(CHAT, sent)
    assert first.body == second.body == frame(chunk("Hi")) + frame(finish()) + DONE
    bodies = [request.body for request in desk["a"].requests]
    assert b"stream_options" in bodies[0]
    assert bodies[1:] == [sent, sent]
    rows = await desk.rows(3)
    assert [(row.attempt, row.status, row.usage_source) for row in rows] == [
        (1, status, "none"),
        (2, 200, "estimate"),
        (1, 200, "estimate"),
    ]
    assert rows[0].request_id == rows[1].request_id != rows[2].request_id
    assert rows[0].cost_usd == 0


async def test_what_is_learnt_is_of_one_model(desk: Desk) -> None:
    """Another model of the same provider is asked for usage again."""
    status, body = REJECTIONS["Azure's"]
    desk["a"].then(plain(body, status=status), PLAIN, STREAM)
    await desk.call(CHAT, ask("learn-one", stream=True))
    answer = await desk.call(CHAT, ask("learn-two", stream=True))
    assert b"include_usage" in desk["a"].requests[2].body
    assert answer.body == frame(chunk("Hi")) + frame(finish()) + DONE
    assert [row.usage_source for row in await desk.rows(3)] == ["none", "estimate", "provider"]


@pytest.mark.parametrize(
    ("status", "body"), [(400, b'{"error":{"param":"messages"}}'), (500, REJECTIONS["Azure's"][1])]
)
async def test_other_errors_of_a_learner_pass_verbatim(desk: Desk, status: int, body: bytes) -> None:
    """Only a 400 or 422 that names stream_options is farebox's doing; anything else is the client's to see."""
    desk["a"].then(plain(body, status=status, headers=[("x-why", "this")], pieces=3))
    answer = await desk.call(CHAT, ask("learn-verbatim", stream=True))
    assert (answer.status, answer.body, answer.header("x-why")) == (status, body, "this")
    assert answer.header("content-length") == str(len(body))
    assert asked(desk) == {"a": 1}


async def test_a_rejection_of_the_clients_own_option_passes(desk: Desk) -> None:
    """If the client itself asked for usage, the rejection is its own."""
    status, body = REJECTIONS["Azure's"]
    desk["a"].then(plain(body, status=status))
    answer = await desk.call(CHAT, ask("learn-own", stream=True, stream_options={"include_usage": True}))
    assert (answer.status, answer.body) == (status, body)
    assert asked(desk) == {"a": 1}


async def test_a_rejection_is_not_learnt_where_the_policy_is_inject(desk: Desk) -> None:
    """`inject` sends the option each time, and what the provider says to it passes."""
    status, body = REJECTIONS["Azure's"]
    desk["a"].then(plain(body, status=status))
    answer = await desk.call(CHAT, ask("only-x", stream=True))
    assert (answer.status, answer.body) == (status, body)


# -- restricted keys -----------------------------------------------------------------------------


async def test_a_key_for_some_models(served: Serving) -> None:
    """Other models are 404 in the shape SDKs know, nothing goes up, and no row is made."""
    desk = await served.desk(models=["m-*", "solo"])
    desk["a"].then(ANSWER, ANSWER)
    assert (await desk.call(CHAT, ask("m-1"))).status == 200
    assert (await desk.call(CHAT, ask("solo"))).status == 200
    for target in (CHAT, "/p/b/chat/completions"):
        answer = await desk.call(target, ask("only-b"))
        assert (answer.status, error(answer)["code"], error(answer)["param"]) == (404, "model_not_found", "model")
    answer = await desk.call("/v1/messages", ask("claude-1"))
    assert (answer.status, error(answer)["type"]) == (404, "not_found_error")
    assert asked(desk) == {"a": 2}
    assert len(await desk.rows(2)) == 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m-1","model":"only-b"}',
        b'{"model":"only-b","messages":[],"model":"m-1"}',
        rb'{"model":"only-b","mod\u0065l":"m-1"}',
        b'{"model":"m-1","stream":true,"stream":false}',
    ],
)
async def test_a_restricted_key_may_not_say_things_twice(served: Serving, body: bytes) -> None:
    """Which of two members counts is up to the parser, so a key that is limited by one gets 400; others pass."""
    desk = await served.desk(models=["m-*"])
    answer = await desk.call(CHAT, body)
    assert answer.status == 400
    assert asked(desk) == {}
    free = await served.desk()
    for fake in served.providers.values():
        fake.default = ANSWER
    assert (await free.call(CHAT, body)).status == 200


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (CHAT, b"{}"),
        (CHAT, b"not json"),
        (CHAT, b'{"model":7}'),
        ("/v1/files", b"x"),
        ("/v1/audio/speech", b'{"model":"m-1"}'),
    ],
    ids=["none", "no JSON", "no text", "upload", "unmetered"],
)
async def test_a_key_for_some_models_needs_a_model(served: Serving, target: str, body: bytes) -> None:
    """Where farebox reads no model, a key that is limited to some is refused."""
    desk = await served.desk(models=["m-*"])
    answer = await desk.call(target, body)
    assert (answer.status, error(answer)["code"]) == (403, "forbidden")
    assert asked(desk) == {}


async def test_a_key_for_some_providers(served: Serving) -> None:
    """Its routes are narrowed to them; what is left empty, or named by /p/, is 403."""
    desk = await served.desk(providers=["b", "c"])
    desk["b"].then(plain(b"{}", status=503))
    desk["c"].then(named("c"))
    assert json.loads((await desk.call(CHAT, ask("m-1"))).body)["id"] == "c"
    for target, model in ((CHAT, "solo"), ("/p/a/chat/completions", "m-1")):
        answer = await desk.call(target, ask(model))
        assert (answer.status, error(answer)["code"]) == (403, "forbidden")
    assert asked(desk) == {"b": 1, "c": 1}


# -- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/v1/organization/usage/completions?start_time=1",
        "/v1/organization",
        "/v1/Organization/api_keys",
        "/v1/%6frganization/api_keys",
        "/v1/%256frganization/api_keys",
        "/v1//organization/api_keys",
        "/v1/organization;x/api_keys",
        "/p/a/organization/api_keys",
        "/p/plain-path/v1/organization/api_keys",
        "http://127.0.0.1/v1/organization/api_keys",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_account_behind_the_keys_is_out_of_reach(desk: Desk, method: str, target: str) -> None:
    """/organization administers the credential that all keys share: no spelling of it is forwarded."""
    answer = await desk.call(target, b"{}" if method == "POST" else None, method=method)
    assert answer.status == 403
    assert asked(desk) == {}


async def test_unknown_paths_pass(desk: Desk) -> None:
    """What farebox does not know goes up as spelt, and is a row of the endpoint `{path}`."""
    desk["c"].then(plain(b"fine", content_type="text/plain"))
    answer = await desk.call("/v1/brand-new/Thing%2Fx?y=1&y=2", b"\x00\x01")
    assert (answer.status, answer.body) == (200, b"fine")
    (request,) = desk["c"].requests
    assert (request.target, request.body) == ("/v1/brand-new/Thing%2Fx?y=1&y=2", b"\x00\x01")
    assert (await desk.row()).endpoint == "{path}"


PASSES = {
    "/v1/files/a@b.example:80/content": "/v1/files/a@b.example:80/content",
    "/v1/@other.example/x": "/v1/@other.example/x",
    "/v1//other.example/x": "/v1//other.example/x",
    "/v1/http://other.example/x": "/v1/http://other.example/x",
    "/v1/%2F%2Fother.example/x": "/v1/%2F%2Fother.example/x",
    "/v1/x?u=http://other.example/&@=..": "/v1/x?u=http://other.example/&@=..",
    "/p/c/@other.example/x": "/v1/@other.example/x",
    "/p/c//other.example/x": "/v1//other.example/x",
    "/p/c/:80/x": "/v1/:80/x",
    "http://other.example/v1/x": "/v1/x",
    "http://other.example:1@127.0.0.1/v1/x": "/v1/x",
    "HTTPS://other.example/v1/x?y": "/v1/x?y",
    "/v1/x%00y": None,
    "/v1/x/../../y": None,
    "/v1/%2e%2e/y": None,
    "/v1/%252e%252e/y": None,
    "/v1/..%2fy": None,
    "/v1/.%5c..%5cy": None,
    "/v1/..;/y": None,
    "/v1/./y": None,
    "/p/c/../../y": None,
    "/p/..%2f..%2fv1/y": None,
    "//other.example/v1/x": None,
    "/\\other.example/v1/x": None,
    "/v1/x#y": None,
    "/v1": None,
    "/v1?x": None,
    "/": None,
    "/p/": None,
    "/p/c": None,
    "/p/c@other.example/x": None,
    "/p/%63/x": None,
    "/P/c/x": None,
    "/V1/x": None,
    "/v1%2fx": None,
    "/v1@other.example/x": None,
    "other.example:80": None,
    "@other.example/v1/x": None,
    "*": None,
    "ftp://other.example/v1/x": None,
    "http://other.example": None,
    "http:///v1/x": None,
}


@pytest.mark.parametrize("target", PASSES)
async def test_no_target_moves_the_host(desk: Desk, target: str) -> None:
    """However a target is spelt, it ends at the configured provider under its base path, or is refused."""
    desk["c"].default = ANSWER
    answer = await desk.call(target, None, method="GET")
    expected = PASSES[target]
    if expected is None:
        assert 400 <= answer.status < 500
        assert asked(desk) == {}
    else:
        assert answer.status == 200
        assert asked(desk) == {"c": 1}
        (request,) = desk["c"].requests
        assert request.target == expected
        assert request.header("host") == f"127.0.0.1:{desk['c'].port}"


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_methods_of_forward_proxies_are_refused(desk: Desk, method: str) -> None:
    """farebox is no forward proxy."""
    answer = await desk.call("/v1/models", None, method=method)
    assert answer.status in (400, 405)
    assert asked(desk) == {}


async def test_the_host_header_does_not_matter(desk: Desk) -> None:
    """A Host of another name changes neither the provider nor what it is told."""
    desk["a"].then(ANSWER)
    assert (await desk.call(CHAT, ask("solo"), headers={"Host": "other.example"})).status == 200
    assert desk["a"].requests[0].header("host") == f"127.0.0.1:{desk['a'].port}"


# -- modes ---------------------------------------------------------------------------------------


def own_credentials(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    """For passthrough: one provider that takes the client's credential, one that does not."""
    marked = {"dialect": "openai", "base_url": fakes["a"].base_url, "api_key": PROVIDER_KEY, "passthrough": True}
    other = {"dialect": "openai", "base_url": fakes["b"].base_url, "api_key": PROVIDER_KEY}
    routes = [
        {"match": {"model": "other-*"}, "to": ["other"]},
        {"match": {"model": "mixed-*"}, "to": ["other", "marked"]},
        {"match": {}, "to": ["marked"]},
    ]
    return {"marked": marked, "other": other}, routes


async def test_passthrough(postgres: PostgresServer) -> None:
    """The client's own credential goes up, to a marked provider only, is never replaced, and is known by its hash."""
    async with serving(postgres, ["a", "b"], own_credentials, auth={"mode": "passthrough"}) as served:
        desk = await served.desk()
        desk["a"].default = plain(b"{}", status=503)
        mine = {"Authorization": "Bearer sk-mine-0001", "OpenAI-Organization": "org-1"}
        for model in ("m-1", "mixed-1"):  # a route with one marked provider is narrowed to it: no fallback
            assert (await desk.call(CHAT, ask(model), key=None, headers=mine)).status == 503
        assert [r.header("authorization") for r in desk["a"].requests] == ["Bearer sk-mine-0001"] * 2
        assert asked(desk) == {"a": 2}
        desk["a"].default = ANSWER

        for target, model in ((CHAT, "other-1"), ("/p/other/chat/completions", "m-1")):
            answer = await desk.call(target, ask(model), key=None, headers=mine)
            assert (answer.status, error(answer)["code"]) == (403, "forbidden")
        assert (await desk.call(CHAT, ask("m-1"), key=None)).status == 401
        assert (await desk.call(CHAT, ask("m-1"), key=None, headers={"x-api-key": "sk-mine-0002"})).status == 200
        assert desk["a"].requests[-1].header("x-api-key") == "sk-mine-0002"
        assert desk["a"].requests[-1].header("authorization") is None

        both = [("x-farebox-key", desk.key), ("Authorization", "Bearer sk-mine-0001")]
        assert (await desk.call(CHAT, ask("m-1"), key=None, headers=both)).status == 200
        assert desk["a"].requests[-1].header("authorization") == "Bearer sk-mine-0001"
        assert asked(desk) == {"a": 4}
        for request in desk["a"].requests:
            assert PROVIDER_KEY not in repr(request)
            assert desk.key not in repr(request)
        assert (await desk.call("/v1/organization/x", None, method="GET", key=None, headers=mine)).status == 200

        rows = await served.farebox.rows(5)
        names = [row.key_name for row in rows]
        assert names[0] == names[1] != names[2]
        assert names[3] == desk.farebox.key_name
        assert all("sk-mine" not in repr(row) for row in rows)


async def test_a_farebox_key_does_not_pass_through(postgres: PostgresServer) -> None:
    """In passthrough a farebox key in a credential header would go to the provider, so it is refused."""
    async with serving(postgres, ["a", "b"], own_credentials, auth={"mode": "passthrough"}) as served:
        desk = await served.desk()
        desk["a"].default = ANSWER
        for header in ("Authorization", "x-api-key", "api-key", "x-goog-api-key"):
            value = f"Bearer {desk.key}" if header == "Authorization" else desk.key
            answer = await desk.call(CHAT, ask("m-1"), key=None, headers={header: value})
            assert 400 <= answer.status < 500, header
        assert asked(desk) == {}


async def test_open(postgres: PostgresServer) -> None:
    """No key is needed, but the Host must be a loopback name: a page in a browser cannot use it."""
    async with serving(postgres, ["a", "b", "c"], settings, auth={"mode": "open"}) as served:
        desk = await served.desk()
        desk["a"].default = ANSWER
        port = served.farebox.port
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "127.8.8.8", f"[::1]:{port}", "LOCALHOST."):
            assert (await desk.call(CHAT, ask("solo"), key=None, headers={"Host": host})).status == 200, host
        good = len(desk["a"].requests)
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.1",
        ):
            answer = await desk.call(CHAT, ask("solo"), key=None, headers={"Host": host})
            assert (answer.status, error(answer)["code"]) == (403, "forbidden"), host
        assert (await desk.call("/v1/organization/x", None, method="GET", key=None)).status == 403
        assert asked(desk) == {"a": good}
        rows = await served.farebox.rows(good)
        assert {row.key_name for row in rows} == {None}
        assert all(request.header("authorization") == f"Bearer {PROVIDER_KEY}-a" for request in desk["a"].requests)
