"""Secrets planted in every place they can come from, and everything farebox leaves behind searched for them.

A farebox that is a process of its own, logging at debug, gets all kinds of traffic; then its output, its
answers, its journal, its data folder and every row of its schema are read.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from farebox import keys
from farebox.config import Config
from farebox.embedded_postgres import running_dsn
from farebox.errors import FareboxError
from farebox.foundation import admin_token
from support.http import Answer, RawClient, call
from support.process import FareboxProcess, StartFailed, installed
from support.provider import FakeProvider, Received, Wire, plain, stream

CHAT = "/v1/chat/completions"

# Without the looks of a credential, so that nothing but being kept out of the log keeps them out of it.
ADMIN = "swordfish.of.the.admin"
PROVIDER = "swordfish.of.the.provider"
CUSTOM = "swordfish.of.a.configured.header"
PASSWORD = "swordfish.of.the.database"
CLIENTS_OWN = "swordfish.of.the.client"
GUESS = keys.mint_secret()
BROKEN = "swordfish.in.what.does.not.parse"
QUERY = "swordfish.in.a.query"
HEADER = "swordfish.in.some.header"
PROMPT = "swordfish.in.the.prompt"
COMPLETION = "swordfish.in.the.completion"
ARGUMENT = "swordfish.in.the.arguments"
MESSAGE = "swordfish.in.the.providers.message"
ECHO = "swordfish.in.the.providers.head"
WEBHOOK = "swordfish.of.the.webhook"
HOOK_QUERY = "swordfish.in.the.webhooks.address"

NEVER = (ADMIN, PROVIDER, CUSTOM, PASSWORD, CLIENTS_OWN, GUESS, BROKEN, QUERY, HEADER, WEBHOOK, HOOK_QUERY)
TEXTS = (PROMPT, COMPLETION, ARGUMENT, MESSAGE, ECHO)


def request(**more: Any) -> bytes:
    """A chat request full of text."""
    tools = [{"type": "function", "function": {"name": "look_up", "description": PROMPT, "parameters": {}}}]
    calls = [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": f'{{"q":"{ARGUMENT}"}}'}}]
    messages = [
        {"role": "system", "content": PROMPT},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": ARGUMENT},
    ]
    return json.dumps({"model": "m", "messages": messages, "tools": tools, **more}).encode()


def answer(**more: Any) -> bytes:
    """A whole answer full of text."""
    call = {"id": "c2", "function": {"name": "look_up", "arguments": f'{{"q":"{ARGUMENT}"}}'}}
    message = {"content": COMPLETION, "reasoning": COMPLETION, "refusal": COMPLETION, "tool_calls": [call]}
    return json.dumps({"model": "m-1", "choices": [{"index": 0, "message": message}], **more}).encode()


def frames(*, usage: bool = True) -> list[bytes]:
    """A streamed answer full of text."""
    call = {"index": 0, "id": "c", "function": {"name": "look_up", "arguments": ARGUMENT}}
    parts: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": COMPLETION}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]},
    ]
    if usage:
        parts.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    return [b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts]


ERROR = json.dumps(
    {"error": {"message": f"{MESSAGE}: {PROMPT}", "type": "invalid_request_error", "param": MESSAGE, "code": "odd"}}
).encode()
PRICES = {name: {"input_usd_per_mtok": 10, "output_usd_per_mtok": 10} for name in ("m", "m-1", "whole", "streamed")}
USAGE = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def raw(data: bytes) -> Any:
    async def script(_: Received, wire: Wire) -> None:
        await wire.send(data)
        wire.close()

    return script


def scripts() -> dict[str, Any]:
    """What the provider answers, by the request's model."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    text = MESSAGE.encode()
    return {
        "whole": plain(answer(**USAGE)),
        "uncounted": plain(answer()),
        "streamed": stream([*frames(), b"data: [DONE]\n\n"]),
        "uncounted stream": stream([*frames(usage=False), b"data: [DONE]\n\n"]),
        "packed": plain(gzip.compress(answer(**USAGE)), headers=[("Content-Encoding", "gzip")]),
        "badly packed": plain(text, headers=[("Content-Encoding", "gzip"), ("X-Debug", ECHO)]),
        "echo": plain(
            answer(**USAGE),
            headers=[("X-Debug", f"{ECHO} {PROVIDER}"), ("X-Request-Id", PROVIDER), ("Set-Cookie", CUSTOM)],
        ),
        "400": plain(ERROR, status=400),
        "401": plain(ERROR, status=401, headers=[("WWW-Authenticate", f"Bearer {PROVIDER}")]),
        "429": plain(ERROR, status=429),
        "422 of FastAPI": plain(json.dumps({"detail": [{"msg": MESSAGE, "input": PROMPT}]}).encode(), status=422),
        "500 in words": plain(text, status=500, content_type="text/plain"),
        "500 in HTML": plain(b"<html>" + text, status=500, content_type="text/html"),
        "an error that is a string": plain(json.dumps({"error": MESSAGE, "error_type": MESSAGE + " x"}).encode()),
        "an error in a stream": stream([*frames(usage=False), b"data: " + ERROR + b"\n\n"]),
        "an error event": stream([b"event: error\ndata: " + ERROR + b"\n\n"]),
        "no JSON": plain(b'{"choices": "' + text),
        "no events": stream([text, b"\n\n", b"data: " + text + b"\n\n"]),
        "a cut stream": stream(frames(usage=False), cut="reset"),
        "a cut body": raw(head + b"Content-Length: 9999\r\n\r\n" + answer()),
        "a head that is none": raw(head + b"X-Odd\x00: " + ECHO.encode() + b"\r\n\r\n"),
        "a field that is none": raw(head + b"X-Odd: " + ECHO.encode() + b"\x00\r\n\r\n"),
        "a long field": raw(head + b"X-Odd: " + ECHO.encode() * 5000 + b"\r\n\r\n"),
        "a reason": raw(b"HTTP/1.1 2000 " + ECHO.encode() + b"\r\n\r\n"),
        "no head": raw(ECHO.encode()),
        "a bad chunk": raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + ECHO.encode() + b"\r\n"),
        "nothing": raw(b""),
    }


@asynccontextmanager
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider that answers by the name in its request's model."""
    known = scripts()

    async def choose(request: Received, wire: Wire) -> None:
        try:
            name = json.loads(request.body)["model"]
        except (ValueError, KeyError, TypeError):
            name = "whole"
        await known.get(name, known["whole"])(request, wire)

    async with FakeProvider(choose) as fake:
        yield fake


@asynccontextmanager
async def no_tls() -> AsyncIterator[str]:
    """The https base URL of a server that answers a TLS hello with words."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 400 {MESSAGE}\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


def settings(folder: Path, fake: FakeProvider, tls: str = "https://127.0.0.1:1/v1", **sections: Any) -> dict[str, Any]:
    up = {"dialect": "openai", "base_url": fake.base_url, "api_key": PROVIDER, "connect_timeout_s": 2}
    out: dict[str, Any] = {
        "server": {"port": 0, "admin_token": ADMIN, "shutdown_timeout_s": 2},
        "database": {"data_dir": str(folder / "data")},
        "log": {"level": "debug", "format": "json"},
        "limits": {"client_stall_timeout_s": 2, "body_mb_max": 1},
        "models": {"refresh_s": "off"},
        "alerts": {"webhook_url": f"http://127.0.0.1:1/hook?token={HOOK_QUERY}", "webhook_secret": WEBHOOK},
        "budgets": [{"name": "watched", "scope": "global", "limit_usd": "0.0001", "on_exceed": "warn"}],
        "providers": {
            "up": up | {"headers": {"x-upstream-auth": CUSTOM}, "prices": PRICES},
            "tls": up | {"base_url": tls},
            "away": up | {"base_url": "http://127.0.0.1:1/v1"},
        },
        "routes": [
            {"match": {"model": "tls-*"}, "to": ["tls"]},
            {"match": {"model": "away-*"}, "to": ["away", "tls"]},
            {"match": {}, "to": ["up"]},
        ],
    }
    for name, values in sections.items():
        out[name] = {**out.get(name, {}), **values}
    return out


MALFORMED = [
    "GET / HTTP/1.1\r\nHost: a\r\nAuthorization Bearer %s\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer %s\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \x00%s\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\x01\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n %s\r\n\r\n",
    "GET / HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: %s\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nx: " + "a" * 40_000 + "%s\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nx: %s" + "a" * 40_000 + "\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n" + "h: 1\r\n" * 300 + "x: %s\r\n\r\n",
    "GET /?key=%s" + "a" * 100_000 + " HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /?key=%s HTTP/9.x\r\n\r\n",
    "GET http://%s:x/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /\xff?key=%s HTTP/1.1\r\nHost: a\r\n\r\n",
    "%s / HTTP/1.1\r\nHost: a\r\n\r\n",
    "%s\r\n\r\n",
    "CONNECT %s:99999999 HTTP/1.1\r\nHost: a\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n%s",
    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03%s",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nx: %s\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %s\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%s\r\n\r\n",
    "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n%s\r\n\r\n",
    "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n%s",
    "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key1: %s\r\n\r\n",
]


async def misuse(process: FareboxProcess, key: str) -> list[bytes]:
    """Send what does not parse, with secrets in it; all that came back."""
    said = []
    for secret in (key, BROKEN):
        for line in MALFORMED:
            async with RawClient(process.port) as client, asyncio.timeout(20):
                client.writer.write(line.replace("%s", secret).encode("latin-1"))
                client.writer.write_eof()
                said.append(await client.rest())
    return said


async def use(process: FareboxProcess, key: str) -> list[Answer]:
    """All kinds of calls that reach a provider, or try to; the answers."""
    bearer = {"Authorization": f"Bearer {key}"}
    answers = [
        await call(process.port, CHAT, request(model=name, stream=streamed), headers={**bearer, "Cookie": HEADER})
        for name in scripts()
        for streamed in (False, True)
    ]
    calls: list[tuple[str, bytes | None, dict[str, str]]] = [
        (CHAT, request(), {"x-api-key": key}),
        (CHAT, request(), {"x-farebox-key": key, "Authorization": f"Bearer {CLIENTS_OWN}", "x-api-key": CLIENTS_OWN}),
        (CHAT, request(), {**bearer, "Proxy-Authorization": f"Basic {CLIENTS_OWN}", "api-key": CLIENTS_OWN}),
        (CHAT + f"?api-version=1&key={QUERY}", request(), bearer),
        (f"/v1/files/{QUERY}/content?key={QUERY}", None, bearer),
        (f"/v1/{QUERY}/{QUERY}", None, bearer),
        (CHAT, request(model="tls-1"), bearer),
        (CHAT, request(model="away-1"), bearer),
        (CHAT, PROMPT.encode(), bearer),
        ("/v1/embeddings", json.dumps({"model": "m", "input": PROMPT}).encode(), bearer),
        ("/v1/completions", json.dumps({"model": "m", "prompt": PROMPT}).encode(), bearer),
        ("/v1/responses", json.dumps({"model": "m", "input": PROMPT, "instructions": PROMPT}).encode(), bearer),
        ("/v1/messages", json.dumps({"model": "m", "system": PROMPT, "messages": []}).encode(), bearer),
    ]
    return answers + [await _one(process, *each) for each in calls]


async def spend(process: FareboxProcess) -> tuple[list[str], list[Answer]]:
    """Keys whose budgets hold, refuse and close paths, and the answers."""
    limits: list[dict[str, Any]] = [
        {"budgets": [{"limit_usd": "0", "wait_s": "0"}]},
        {"budgets": [{"limit_usd": "1", "admission": "strict"}], "rpm": 4},
    ]
    keys_, answers = [], []
    for number, limit in enumerate(limits):
        form = json.dumps({"name": f"budgeted-{number}", **limit}).encode()
        made = await call(process.port, "/farebox/api/keys", form, key=ADMIN)
        assert made.status == 201, made.body
        keys_.append(str(json.loads(made.body)["key"]))
        bearer = {"Authorization": f"Bearer {keys_[-1]}"}
        bodies = (request(max_tokens=5), request(max_tokens=5, stream=True), request(model="unpriced"))
        answers += [await _one(process, CHAT, body, bearer) for body in (*bodies, b'{"n":1,"n":2}')]
        answers.append(await _one(process, f"/v1/unknown?key={QUERY}", None, bearer))
    return keys_, answers


async def be_refused(process: FareboxProcess, key: str) -> list[Answer]:
    """Calls that farebox itself says no to; the answers."""
    bearer = {"Authorization": f"Bearer {key}"}
    calls: list[tuple[str, bytes | None, dict[str, str]]] = [
        (CHAT, request(), {"Authorization": f"Bearer {GUESS}"}),
        (CHAT, request(), {"Authorization": f"Bearer {ADMIN}"}),
        (CHAT, request(), {"Authorization": f"Bearer {PROVIDER}"}),
        (CHAT, request(), {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}),
        (CHAT, request(), {"Authorization": key}),
        (f"{CHAT}?key={key}", request(), {}),
        (f"{CHAT}?key={key}", request(), bearer),
        (f"/{key}", None, bearer),
        (f"/p/{key}/x", None, bearer),
        (CHAT, request(user=key), bearer),
        (CHAT, request(model=key), bearer),
        (CHAT, request(), {**bearer, "x-farebox-session": key, "x-farebox-tags": f"a={key}"}),
        (CHAT, request(), {**bearer, "Cookie": f"k={key}"}),
        (CHAT, PROMPT.encode(), {**bearer, "Content-Encoding": "gzip"}),
        (CHAT, PROMPT.encode(), {**bearer, "Content-Encoding": f"{HEADER} {HEADER}"}),
        (CHAT, PROMPT.encode() * 100_000, bearer),
        ("/v1/organization/admin_api_keys", None, bearer),
        (f"/v1/files/../{QUERY}", None, bearer),
        (f"/{QUERY}", None, bearer),
    ]
    return [await _one(process, *each) for each in calls]


async def _one(process: FareboxProcess, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    return await call(process.port, target, body, headers=headers, method="POST" if body else "GET")


async def administer(process: FareboxProcess, key: str) -> list[Answer]:
    """Good and bad calls to the control plane, except those that show a new key."""
    api = "/farebox/api"
    calls: list[tuple[str, str, bytes | None, str]] = [
        ("GET", "/keys", None, ADMIN),
        ("GET", "/usage?limit=1000", None, ADMIN),
        ("GET", f"/usage?provider=%00{QUERY}", None, ADMIN),
        ("GET", f"/usage?nonsense={QUERY}", None, ADMIN),
        ("GET", f"/keys/{QUERY}", None, ADMIN),
        ("POST", "/keys", b'{"name":"\\u0000' + BROKEN.encode() + b'"}', ADMIN),
        ("POST", "/keys", BROKEN.encode(), ADMIN),
        ("GET", "/keys", None, key),
        ("GET", "/keys", None, PROVIDER),
        ("GET", "/keys", None, ADMIN + "0"),
        ("GET", f"/keys?token={ADMIN}", None, ""),
        ("PUT", "/budgets", b'{"name":"team","scope":"team","limit_usd":"1"}', ADMIN),
        ("PUT", "/budgets/team", b'{"scope":"team","limit_usd":"2"}', ADMIN),
        ("PUT", "/budgets", b'{"name":"x","limit_usd":"%b"}' % BROKEN.encode(), key),
        ("GET", f"/budgets?name={QUERY}", None, ADMIN),
        ("GET", "/audit", None, ADMIN),
        ("GET", "/integrity", None, ADMIN),
        ("GET", "/me", None, key),
        ("GET", "/me", None, ADMIN),
        ("POST", "/keys", json.dumps({"name": ADMIN}).encode(), GUESS),
    ]
    return [await call(process.port, api + path, body, key=token, method=method) for method, path, body, token in calls]


async def new_key(process: FareboxProcess, name: str) -> str:
    """A key made through the control plane, rotated once; the secrets of before end with it."""
    made = await call(process.port, "/farebox/api/keys", json.dumps({"name": name}).encode(), key=ADMIN)
    assert made.status == 201, made.body
    rotate = f"/farebox/api/keys/{json.loads(made.body)['id']}/rotate"
    rotated = await call(process.port, rotate, key=ADMIN)
    assert rotated.status == 200
    return str(json.loads(rotated.body)["key"])


async def rows_of(dsn: str) -> str:
    """Everything in the schema, as text."""
    connection = await asyncpg.connect(dsn)
    try:
        named = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'farebox'"
        tables = [record[0] for record in await connection.fetch(named)]
        assert {"usage", "usage_entry", "key"} <= set(tables)
        rows = [
            r[0] for t in tables for r in await connection.fetch(f'SELECT row_to_json(t)::text FROM farebox."{t}" t')
        ]
    finally:
        await connection.close()
    return "\n".join(rows)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, the admin's token apart, which is there to be read."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "admin-token"
    }


def found(secrets: tuple[str, ...], text: str | bytes) -> list[str]:
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return [secret for secret in secrets if secret.encode() in data]


async def leave_a_call_open(process: FareboxProcess, key: str, fake: FakeProvider) -> asyncio.Task[Answer]:
    """A stream that is under way when farebox is killed."""
    begun = asyncio.Event()

    async def endless(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(frames()[0])
        begun.set()
        await wire.hung_up()

    fake.then(endless)
    body = request(stream=True)
    open_call = asyncio.ensure_future(call(process.port, CHAT, body, key=key, headers={"x-farebox-session": "s-open"}))
    await begun.wait()
    return open_call


async def test_no_secret_is_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After any traffic, a kill and a restart: no credential, no text in output, rows, journal, files or refusals."""
    async with (
        provider() as fake,
        no_tls() as tls,
        installed(tmp_path, settings(tmp_path, fake, tls)) as farebox,
    ):
        process = await farebox.start()
        first_key = farebox.key
        key = await new_key(process, "planted")
        answers = await use(process, key)
        budgeted, spent = await spend(process)
        answers += spent
        refusals = await be_refused(process, key)
        administered = await administer(process, key)
        said = await misuse(process, key)
        open_call = await leave_a_call_open(process, key, fake)
        assert b"s-open" in b"".join(files_of(tmp_path / "data" / "journal").values())
        await process.kill()
        open_call.cancel()
        journal = files_of(tmp_path / "data" / "journal")
        again = await farebox.start()
        listed = await asyncio.gather(
            farebox.run("keys", "list", "--format", "json"), farebox.run("usage", "--format", "json")
        )
        dsn = await running_dsn(tmp_path / "data")
        assert dsn is not None
        rows = await _all_rows(dsn, len(fake.requests))
        assert await again.stop() == 0
        files = files_of(tmp_path / "data")

    never = (*NEVER, key, *budgeted)
    banner, _, _ = process.output.partition("Then see its row:")
    assert banner.count(first_key) == 2, "shown at the first start, with the curl line"
    output = process.output.replace(first_key, "") + again.output + "".join(capfd.readouterr())
    assert found((*never, *TEXTS), output) == []
    assert found((first_key,), again.output) == []
    assert found((*never, first_key, *TEXTS), rows) == []
    assert '"s-open"' in rows and '"action":"create"' in rows, "the rows are what was looked at"
    told = {one.status for one in spent}
    assert {200, 400, 402, 403} <= told, "budgets held, and refused"
    for place, data in (*journal.items(), *files.items()):
        assert found((*never, first_key, *TEXTS), data) == [], place
    for ran in listed:
        assert ran.code == 0
        assert found((*never, first_key, *TEXTS), ran.output + ran.errors) == []
    for whole in said:
        assert found(never, whole) == [], whole
    for given in (*answers, *refusals, *administered):
        # The provider's own words pass to the client; no credential does.
        assert found((*never, first_key), repr(given)) == [], given
    for given in refusals:
        assert given.status >= 400
        assert found(TEXTS, repr(given)) == [], given
    events = {line["event"] for line in process.log("")}
    assert not events & {"call failed", "request failed", "connection failed", "event loop error"}, events
    assert {"malformed request"} <= events, "the log is what was looked at"


async def _all_rows(dsn: str, requests: int) -> str:
    """The rows, once there is one for each request that reached the provider."""
    async with asyncio.timeout(20):
        while (rows := await rows_of(dsn)).count('"posting_no":1') < requests:
            await asyncio.sleep(0.05)
    return rows


async def test_passthrough_and_a_database_of_ones_own(
    database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The client's own credential reaches its provider and nothing else; the database's password is told nobody."""
    parts = urlsplit(database)
    dsn = parts._replace(netloc=f"farebox:{PASSWORD}@{parts.netloc.rpartition('@')[2]}").geturl()
    async with provider() as fake:
        up = {"dialect": "openai", "base_url": fake.base_url, "passthrough": True}
        sections = settings(tmp_path, fake, auth={"mode": "passthrough"}, database={"url": dsn})
        sections |= {"providers": {"up": up}, "routes": [{"match": {}, "to": ["up"]}]}
        async with installed(tmp_path, sections) as farebox:
            process = await farebox.start()
            key = await new_key(process, "planted")
            bearer = {"Authorization": f"Bearer {CLIENTS_OWN}"}
            names = [name for name in scripts() if name not in ("echo", "401")]
            answers = [await call(process.port, CHAT, request(model=name), headers=bearer) for name in names]
            answers.append(await call(process.port, CHAT, request(), headers={**bearer, "x-farebox-key": key}))
            answers.append(await call(process.port, CHAT, request(), headers={**bearer, "x-farebox-key": GUESS}))
            answers.append(await call(process.port, CHAT, request(), headers={"Authorization": f"Bearer {key}"}))
            assert [answer.status for answer in answers[-3:]] == [200, 401, 400]
            said = await misuse(process, CLIENTS_OWN)
            rows = await _all_rows(database, len(fake.requests))
            assert await process.stop() == 0
            listed = await farebox.run("usage", "--format", "json")
    assert all(request.header("authorization") == f"Bearer {CLIENTS_OWN}" for request in fake.requests)
    assert all(found((key, GUESS), repr(request)) == [] for request in fake.requests)
    for text in (process.output, "".join(capfd.readouterr()), rows, listed.output, listed.errors):
        assert found((*NEVER, key, *TEXTS), text) == []
    for data in files_of(tmp_path / "data").values():
        assert found((*NEVER, key, *TEXTS), data) == []
    for whole in (*said, *(answer.body for answer in answers)):
        assert found((*NEVER, key), whole) == []


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://farebox:{PASSWORD}@127.0.0.1:1/x",
        f"postgresql://farebox:{PASSWORD}@127.0.0.1:99999/x",
        f"postgresql://farebox:/{PASSWORD}@h/x",
    ],
)
async def test_a_start_that_fails_tells_no_secret(tmp_path: Path, url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever keeps farebox from starting is told without the database's password or any other credential."""
    async with FakeProvider() as fake:
        config = settings(tmp_path, fake, database={"url": url, "connect_timeout_s": 0.2})
        async with installed(tmp_path, config) as farebox:
            with pytest.raises(StartFailed) as failed:
                await farebox.start()
    assert failed.value.code in (1, 2)
    for text in (failed.value.output, "".join(capfd.readouterr())):
        assert found(NEVER, text) == []
        assert "Traceback" not in text


async def test_what_is_left_on_disk_is_the_owners_alone(tmp_path: Path) -> None:
    """The data folder that farebox makes, and the admin token in it, can be read by nobody else."""
    async with FakeProvider() as fake:
        config = settings(tmp_path, fake)
        del config["server"]["admin_token"]
        async with installed(tmp_path, config) as farebox:
            before = os.umask(0)
            try:
                process = await farebox.start()
            finally:
                os.umask(before)
            token = (tmp_path / "data" / "admin-token").read_text().strip()
            listed = await call(process.port, "/farebox/api/keys", method="GET", key=token)
            assert listed.status == 200
            assert await process.stop() == 0
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert (tmp_path / "data" / "admin-token").stat().st_mode & 0o177 == 0
    assert found((token,), process.output) == []
    assert [name for name, data in files_of(tmp_path / "data").items() if token.encode() in data] == []


def test_an_admin_token_that_is_empty_opens_nothing(tmp_path: Path) -> None:
    """A token file left empty by a full disk is no token: farebox does not start with it, and says what to do."""
    path = tmp_path / "admin-token"
    path.write_text("\n")
    with pytest.raises(FareboxError, match=r"admin-token is empty\. Remove it"):
        admin_token(Config(), tmp_path)
    path.unlink()
    token, made = admin_token(Config(), tmp_path)
    assert made == path and len(token) > 32 and admin_token(Config(), tmp_path) == (token, path)


def test_the_places_are_distinct() -> None:
    """No planted secret is a part of another one, so each find is what it says."""
    every = (*NEVER, *TEXTS)
    assert not [(a, b) for a in every for b in every if a != b and a in b]
