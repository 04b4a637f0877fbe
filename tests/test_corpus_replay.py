"""Recorded bodies of two dozen providers through one running farebox: the same bytes to the client, the right row."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from functools import cache
from typing import Any

import brotli
import pytest
import pytest_asyncio

from farebox.dialects import PROFILES
from farebox.store.budgets import BudgetStore
from support.answers import DONE, chunk, cut, finish, frame, usage, usage_frame
from support.corpus import APIS, FOLDER, INCOMPLETE, MANIFEST, MEMO_EXCEPTIONS, TOTAL_ONLY, Body, bodies
from support.live import PROVIDER_KEY, Desk, Serving, serving
from support.plainly import Plain
from support.postgres import PostgresServer
from support.provider import FakeProvider
from support.replay import Case, Result, replay, without_usage_frames

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_corpus = pytest.mark.skipif(not MANIFEST.exists(), reason="the shared corpus is not here")

ALL = (*APIS, "moderations")
PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "embeddings": "/embeddings",
    "messages": "/messages",
    "moderations": "/moderations",
}
PLAIN = {"messages": "plain-anthropic"}
"""The provider with nothing but its API family known, by API; `plain` for the others."""

EXCEPTIONS: dict[str, str] = {}
"""Bodies of creating calls whose row differs from the label, by id, with the reason. None does."""


def settings(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    """Every provider of the corpus under its own name, and the two that are only their family."""
    fake = fakes["up"]
    dialects = {body.provider: body.provider for body in bodies(ALL)} | {
        "plain": "openai",
        "plain-anthropic": "anthropic",
    }
    providers = {}
    for name, dialect in dialects.items():
        dialect = dialect if dialect in PROFILES else "openai"
        base_url = fake.origin if PROFILES[dialect].family == "anthropic" else fake.base_url
        providers[name] = {"dialect": dialect, "base_url": base_url, "api_key": PROVIDER_KEY}
    return providers, [{"match": {}, "to": ["plain"]}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], settings, metering={"unpriced": "pass"}) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


# -- cases from the corpus -----------------------------------------------------------------------

NOT_CREATING = frozenset(("batches", "cancel", "input_tokens"))


def creates(body: Body) -> bool:
    """Whether a charge can come of it: a POST, and not one about stored things or counts."""
    path = (body.row["request_path"] or "").partition("?")[0]
    return body.creates and path.rpartition("/")[2] not in NOT_CREATING


def target_of(body: Body, provider: str) -> str:
    """The recorded path where it is of this API (Azure's deployments, stored objects), else the API's usual one."""
    recorded = body.row["request_path"] or ""
    path = recorded.partition("?")[0]
    fits = path.endswith(PATHS[body.api]) if creates(body) else True
    return f"/p/{provider}" + (recorded.removeprefix("/v1") if recorded and fits else PATHS[body.api])


@cache
def requests() -> dict[str, dict[str, Any]]:
    lines = (FOLDER / "requests.jsonl").read_text().splitlines()
    return {row["id"]: row["request"] for row in map(json.loads, lines)}


def case_of(body: Body, provider: str, *, asked: bool | None = None, id: str | None = None) -> Case:
    """A body as it was recorded. `asked`: make the client ask for usage in a stream, or not; None: as recorded."""
    request = dict(requests().get(body.id) or {"model": "m", "stream": bool(body.row["stream"])})
    if asked is None and body.id not in requests():
        asked = True
    if request.get("stream") is True and body.api in ("chat", "completions") and asked is not None:
        request.pop("stream_options", None)
        if asked:
            request["stream_options"] = {"include_usage": True}
    recorded = body.row["response_headers"] or {}
    kept = ("content-type", "x-request-id", "request-id", "server", "vary", "cache-control")
    streamed = body.row["kind"] == "sse"
    return Case(
        id=id or body.id,
        target=target_of(body, provider),
        method=body.row["method"] or "POST",
        request=request if body.row["method"] in (None, "POST") else None,
        answer=body.data,
        status=body.row["status"],
        headers={name: value for name, value in recorded.items() if name in kept},
        pieces=(body.data,) if streamed and body.data else (),
    )


def facts(result: Result) -> dict[str, Any]:
    """What a row says of an answer, whatever way the answer's bytes took."""
    row = result.row
    names = (
        "model service_tier status outcome input_tokens cache_read_tokens cache_write_tokens output_tokens "
        "reasoning_tokens audio_input_tokens audio_output_tokens image_tokens units usage_source cost_usd "
        "provider_cost_usd tool_calls_count tool_calls error_type error_code"
    )
    return {name: getattr(row, name) for name in names.split()}


def check_bytes(result: Result) -> bool:
    """The client has the provider's bytes, less the frame farebox asked for; whether that was all of them."""
    case, answer = result.case, result.answer
    assert answer.status == case.status, case.target
    assert answer.clean
    withheld = result.injected and case.status < 400 and "content-encoding" not in case.headers
    expected = without_usage_frames(case.answer) if withheld and case.pieces else case.answer
    assert answer.body == expected, case.id
    return expected == case.answer


@cache
def said_by(body: Body) -> Plain:
    return Plain(body.data)


def check_row(body: Body, result: Result) -> bool | None:
    """The row says what the label says; None where there is no label."""
    row, status = result.row, body.row["status"]
    assert row.status == status
    if not creates(body):
        assert (row.usage_source, row.input_tokens, row.output_tokens) == ("none", None, None), body.row["file"]
        return None
    assert row.operation == body.api, (row.endpoint, result.case.target)
    if status >= 400 or body.api == "moderations":
        assert (row.usage_source, row.cost_usd, row.input_tokens) == ("none", 0, None), body.row["file"]
        return None
    if body.id not in INCOMPLETE:
        assert row.outcome == "complete", body.row["file"]
    plain = said_by(body)
    assert (row.model, row.service_tier, row.units) == (plain.model, plain.service_tier, plain.units), body.row["file"]
    assert row.provider_cost_usd == plain.provider_cost_usd, body.row["file"]
    assert {call["name"]: call["count"] for call in row.tool_calls} == plain.tools, body.row["file"]
    assert sum(call["argument_bytes"] for call in row.tool_calls) == plain.argument_bytes, body.row["file"]
    if body.effective is None:
        reported = body.expected.get("total") if body.id in TOTAL_ONLY else None
        assert row.usage_source == ("provider" if body.id in TOTAL_ONLY else "estimate"), body.row["file"]
        assert reported is None or row.input_tokens == reported
        return None
    equal = (row.input_tokens, row.output_tokens) == (body.effective["input"], body.effective["output"])
    assert equal or body.id in EXCEPTIONS, (body.row["file"], body.effective, row)
    deviates = body.deviates(row)
    assert deviates == (MEMO_EXCEPTIONS[body.id].fields if body.id in MEMO_EXCEPTIONS else set()), body.row["file"]
    assert row.usage_source == ("partial" if body.id in INCOMPLETE else "provider"), body.row["file"]
    return equal


def report(title: str, table: dict[str, Counter[str]]) -> None:
    columns = ("bodies", "identical", "withheld", "labelled", "equal", "core", "core_equal")
    print(f"\n{title}\n{'':12}" + "".join(f"{name:>12}" for name in columns))
    for api, line in table.items():
        print(f"{api:12}" + "".join(f"{line[name]:12}" for name in columns))


async def run(desk: Desk, title: str, provider: Callable[[Body], str], asked: bool | None) -> None:
    """Replay everything and check it, with figures for each API."""
    known = {body.id: body for body in bodies(ALL)}
    cases = [case_of(body, provider(body), asked=asked) for body in known.values()]
    table: dict[str, Counter[str]] = {api: Counter() for api in ALL}
    for result in await replay(desk, desk.provider, cases):
        body = known[result.case.id]
        line = table[body.api]
        whole = check_bytes(result)
        line.update(bodies=1, identical=whole, withheld=not whole)
        equal = check_row(body, result)
        if equal is not None:
            line.update(labelled=1, equal=equal, core=body.core, core_equal=body.core and equal)
    report(title, table)
    assert sum(line["bodies"] for line in table.values()) == len(known)
    if asked:
        assert not sum(line["withheld"] for line in table.values())
    for line in table.values():
        assert line["core_equal"] == line["core"]


@needs_corpus
async def test_as_recorded(desk: Desk) -> None:
    """Each body from its own provider, to its own request: the bytes are the client's and the row is the label's."""
    await run(desk, "as recorded, each with its provider's dialect", lambda body: body.provider, None)


@needs_corpus
async def test_with_the_plain_dialect(desk: Desk) -> None:
    """Nothing known of the provider but its API family: the body itself tells, and every byte passes."""
    await run(desk, "plain dialect, usage asked for", lambda body: PLAIN.get(body.api, "plain"), True)


@needs_corpus
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)])
async def test_with_a_budget(served: Serving, desk: Desk, step: int) -> None:
    """A budget on the key changes no byte of a core body and nothing in its row; only what broke off costs its hold."""
    known = {body.id: body for body in bodies(ALL) if body.core and creates(body)}
    cases = [case_of(body, body.provider) for body in list(known.values())[::step]]
    plain = {result.case.id: result for result in await replay(desk, desk.provider, cases)}
    counted = await served.desk()
    [key] = [key for key in await counted.app.store.list_keys() if key.name == counted.farebox.key_name]
    budget = {"limit_usd": Decimal(10**6), "limit_tokens": 10**12, "window": "total"}
    await BudgetStore(counted.app.store).set_key_limits(key.id, key.name, [budget], 10**6, 10**12, 1000, "test")
    await counted.app.budgets.refresh()
    cut = 0
    for result in await replay(counted, counted.provider, cases):
        without = plain[result.case.id]
        assert (result.answer.status, result.answer.body) == (without.answer.status, without.answer.body)
        assert result.sent == without.sent
        assert result.row.budget_ids and result.answer.header("x-farebox-budget-remaining-usd")
        # A model without a price, let in all the same, costs what could be held for it.
        unknown = {"cost_usd": result.row.cost_usd} if without.row.cost_usd is None else {}
        if facts(result) == facts(without) | unknown:
            continue
        cut += 1
        assert result.row.outcome == without.row.outcome == "upstream_cut", result.case.id
        assert (result.row.output_tokens or 0) >= (without.row.output_tokens or 0)
    assert cut < len(cases) / 10


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "br": lambda data: bytes(brotli.compress(data, quality=3)),
    "zstd": lambda data: bytes(zstd.compress(data)),
}


@needs_corpus
async def test_compressed(desk: Desk) -> None:
    """Each core body compressed, and each as it was compressed on the wire: the same bytes, the same row."""
    chosen = {body.id: body for body in bodies(ALL) if creates(body) and (body.core or body.wire)}
    cases = []
    for number, body in enumerate(chosen.values()):
        codec = list(CODECS)[number % len(CODECS)] if body.wire is None else "gzip"
        case = case_of(body, body.provider)
        packed = body.wire or CODECS[codec](case.answer)
        headers = {**case.headers, "content-encoding": codec}
        pieces = tuple(cut(packed, number, 5)) if case.pieces else ()
        cases.append(Case(case.id, case.target, case.request, packed, case.method, case.status, headers, pieces))
    assert any(body.wire is not None for body in chosen.values())
    for result in await replay(desk, desk.provider, cases):
        assert check_bytes(result)
        assert check_row(chosen[result.case.id], result) is not False


CUTS = 3


@needs_corpus
async def test_cut_at_random_places(desk: Desk) -> None:
    """Each core stream, asked for usage or not, cut at random places: the bytes and the row are those of the whole."""
    streams = {body.id: body for body in bodies(ALL) if body.core and body.row["kind"] == "sse" and creates(body)}
    assert len(streams) > 50
    cases = []
    for number, body in enumerate(streams.values()):
        for asked in (True, False) if body.api in ("chat", "completions") else (True,):
            whole = case_of(body, body.provider, asked=asked, id=f"{body.id}-{asked}-whole")
            cases.append(whole)
            for seed in range(CUTS):
                pieces = tuple(cut(whole.answer, 100 * number + seed, 4**seed + 1))
                name = f"{body.id}-{asked}-{seed}"
                cases.append(Case(name, whole.target, whole.request, whole.answer, "POST", 200, whole.headers, pieces))
    results = {result.case.id: result for result in await replay(desk, desk.provider, cases)}
    assert any(result.injected for result in results.values())
    withheld = 0
    for id, result in results.items():
        withheld += not check_bytes(result)
        check_row(streams[id.partition("-")[0]], result)
        assert facts(result) == facts(results[id.rpartition("-")[0] + "-whole"]), id
        assert result.answer.body == results[id.rpartition("-")[0] + "-whole"].answer.body
    assert withheld > len(streams) / 10
    print(f"\n{len(streams)} core streams in {len(cases)} cuts, {withheld} with a frame withheld")


# -- cases of our own ----------------------------------------------------------------------------

TOOL = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"x":1}'}}
CACHED = {"prompt_tokens_details": {"cached_tokens": 4}}
THOUGHT = {"completion_tokens_details": {"reasoning_tokens": 2}}
RESPONSE = {"id": "r", "model": "m-1", "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}}
COUNTED = {"input_tokens": 2, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1}
OWN: dict[str, tuple[str, bytes, tuple[int | None, int | None]]] = {
    "chat-own-frame": (
        "chat",
        frame(chunk("Hi")) + frame(finish()) + usage_frame(usage=usage(7, 3, **CACHED)) + DONE,
        (7, 3),
    ),
    "chat-finish-chunk": ("chat", frame(chunk("Hi")) + frame(finish(usage=usage(7, 3))) + DONE, (7, 3)),
    "chat-every-chunk": (
        "chat",
        b"".join(frame(chunk("x", usage=usage(7, n))) for n in (1, 2)) + frame(finish(usage=usage(7, 3))) + DONE,
        (7, 3),
    ),
    "chat-reasoning-beside": (
        "chat",
        frame(chunk("Hi")) + usage_frame(usage={**usage(7, 1), **THOUGHT, "total_tokens": 10}) + DONE,
        (7, 3),
    ),
    "chat-crlf": (
        "chat",
        (frame(chunk("Hi")) + frame(finish()) + usage_frame() + DONE).replace(b"\n", b"\r\n"),
        (7, 3),
    ),
    "chat-comments": ("chat", b": x\n\n" + frame(chunk("Hi")) + b": y\n\n" + usage_frame() + DONE, (7, 3)),
    "chat-tools": (
        "chat",
        frame(chunk(choices=[{"index": 0, "delta": {"tool_calls": [TOOL]}}])) + frame(finish()) + usage_frame() + DONE,
        (7, 3),
    ),
    "chat-json": (
        "chat",
        json.dumps({"model": "m-1", "choices": [{"message": {"content": "Hi"}}], "usage": usage(7, 3)}).encode(),
        (7, 3),
    ),
    "completions": (
        "completions",
        frame({"choices": [{"index": 0, "text": "Hi"}]}) + usage_frame() + DONE,
        (7, 3),
    ),
    "responses": (
        "responses",
        frame({"type": "response.created", "response": {"id": "r", "usage": None}}, event="response.created")
        + frame({"type": "response.output_text.delta", "delta": "Hi"}, event="response.output_text.delta")
        + frame({"type": "response.completed", "response": RESPONSE}, event="response.completed"),
        (7, 3),
    ),
    "responses-json": ("responses", json.dumps({**RESPONSE, "status": "completed"}, indent=1).encode(), (7, 3)),
    "messages": (
        "messages",
        frame(
            {"type": "message_start", "message": {"model": "c", "usage": {**COUNTED, "output_tokens": 1}}},
            event="message_start",
        )
        + frame({"type": "ping"}, event="ping")
        + frame(
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}}, event="content_block_delta"
        )
        + frame({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}, event="message_delta")
        + frame({"type": "message_stop"}, event="message_stop"),
        (7, 3),
    ),
    "messages-json": (
        "messages",
        json.dumps({"content": [], "usage": {**COUNTED, "output_tokens": 3}}).encode(),
        (7, 3),
    ),
    "embeddings": (
        "embeddings",
        json.dumps({"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode(),
        (7, 0),
    ),
    "moderations": ("moderations", b'{"id":"modr","results":[{"flagged":false}]}', (None, None)),
}
WAYS: dict[str, Callable[[bytes], tuple[bytes, ...]]] = {
    "whole": lambda body: (body,),
    "few": lambda body: tuple(cut(body, 1, 3)),
    "many": lambda body: tuple(cut(body, 2, 40)),
}


async def test_bodies_of_our_own(desk: Desk) -> None:
    """The same without the corpus: every wire shape, asked for usage or not, cut and compressed, one row for all."""
    cases = []
    for name, (api, body, _) in OWN.items():
        streamed = not body.startswith(b"{")
        kind = "text/event-stream" if streamed else "application/json"
        target = f"/p/{PLAIN.get(api, 'plain')}{PATHS[api]}"
        for asked in (True, False):
            options = {"stream_options": {"include_usage": True}} if asked else {}
            request = {"model": "m", "stream": streamed, **(options if streamed else {})}
            for way, cutting in WAYS.items():
                for codec in (None, *CODECS):
                    sent = CODECS[codec](body) if codec is not None else body
                    headers = {"content-type": kind} | ({"content-encoding": codec} if codec is not None else {})
                    id = f"{name}/{asked}/{way}/{codec}"
                    pieces = cutting(sent) if streamed else ()
                    cases.append(Case(id, target, request, sent, headers=headers, pieces=pieces))
    results = await replay(desk, desk.provider, cases)
    first: dict[str, dict[str, Any]] = {}
    for result in results:
        name = result.case.id.partition("/")[0]
        whole = check_bytes(result)
        assert whole or not result.case.asked
        row = result.row
        assert (row.input_tokens, row.output_tokens or 0) == (OWN[name][2][0], OWN[name][2][1] or 0), result.case.id
        assert row.outcome == "complete", result.case.id
        assert facts(result) == first.setdefault(name, facts(result)), result.case.id
    assert first["messages"]["cache_read_tokens"] == first["chat-own-frame"]["cache_read_tokens"] == 4
    assert first["chat-tools"]["tool_calls_count"] == 1
    assert any(result.injected and not check_bytes(result) for result in results)
