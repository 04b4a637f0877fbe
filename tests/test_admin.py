"""The control plane over HTTP: keys from cradle to grave, usage page by page, and the two probes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from farebox.payload import encode
from support.app import ADMIN_TOKEN, running, settings_of
from support.events import STARTED, event
from support.http import Answer, RawClient, call
from support.live import Desk, Serving, relaying, serving
from support.postgres import PostgresServer
from support.provider import FakeProvider, plain

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = "/farebox/api/keys"
USAGE = "/farebox/api/usage"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
OK = plain(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}')


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


class Api:
    """The control plane, asked with the admin token; every answer's text is kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heard = b""

    async def __call__(self, method: str, target: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """The status, and the JSON of the body."""
        answer = await self.raw(method, target, body, **more)
        return answer.status, json.loads(answer.body)

    async def raw(self, method: str, target: str, body: Any = None, *, key: str | None = ADMIN_TOKEN) -> Answer:
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        answer = await call(self.port, target, sent, method=method, key=key)
        self.heard += answer.body
        return answer

    async def made(self, **fields: Any) -> dict[str, Any]:
        """A new key, its secret in `key`."""
        status, made = await self("POST", KEYS, {"name": f"k-{uuid4()}", **fields})
        assert status == 201, made
        self.heard = b""
        key: dict[str, Any] = made
        return key

    async def works(self, secret: str) -> int:
        """The status of a call with a farebox key."""
        return (await call(self.port, "/v1/chat/completions", json.dumps(CHAT).encode(), key=secret)).status


@pytest_asyncio.fixture(loop_scope="module")
async def api(desk: Desk) -> AsyncIterator[Api]:
    desk.provider.default = OK
    yield Api(desk.app.port)


# -- who may -------------------------------------------------------------------------------------

EVERYTHING = [
    ("GET", KEYS),
    ("POST", KEYS),
    ("GET", f"{KEYS}/{UUID(int=1)}"),
    ("PATCH", f"{KEYS}/{UUID(int=1)}"),
    ("DELETE", f"{KEYS}/{UUID(int=1)}"),
    ("POST", f"{KEYS}/{UUID(int=1)}/rotate"),
    ("GET", USAGE),
    ("GET", "/farebox/api/nothing-there"),
]


@pytest.mark.parametrize(("method", "target"), EVERYTHING, ids=[" ".join(pair) for pair in EVERYTHING])
async def test_the_admin_token_and_nothing_else(api: Api, desk: Desk, method: str, target: str) -> None:
    """Without the token, with a wrong one, or with a farebox key: 401, before anything is said of the path."""
    for key in (None, "", ADMIN_TOKEN + "x", ADMIN_TOKEN[:-1], "fb-nope", desk.key, "ü"):
        answer = await api.raw(method, target, b"not even read", key=key)
        assert answer.status == 401, key
        assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"
        assert answer.header("www-authenticate") == "Bearer"


async def test_the_token_counts_in_its_header_only(api: Api) -> None:
    """The token as an SDK's other key header, as Basic, or in the query is no token."""
    basic = {"Authorization": f"Basic {ADMIN_TOKEN}"}
    for headers in ({"x-api-key": ADMIN_TOKEN}, {"x-farebox-key": ADMIN_TOKEN}, basic):
        assert (await call(api.port, KEYS, method="GET", headers=headers)).status == 401
    assert (await call(api.port, f"{KEYS}?token={ADMIN_TOKEN}&key={ADMIN_TOKEN}", method="GET")).status == 401


async def test_the_admin_token_is_no_key(api: Api, desk: Desk) -> None:
    """The data plane refuses the admin token, and no provider sees it."""
    assert await api.works(ADMIN_TOKEN) == 401
    assert desk.provider.requests == []


# -- keys ----------------------------------------------------------------------------------------


async def test_the_life_of_a_key(api: Api) -> None:
    """Made, it works; rotated, only the new secret does; revoked, none: each at once in this process."""
    made = await api.made(team="research")
    one = f"{KEYS}/{made['id']}"
    assert await api.works(made["key"]) == 200
    status, rotated = await api("POST", f"{one}/rotate")
    assert (status, rotated["id"]) == (200, made["id"])
    assert (await api.works(made["key"]), await api.works(rotated["key"])) == (401, 200)
    status, revoked = await api("DELETE", one)
    assert status == 200
    assert revoked["revoked_at"] is not None
    assert await api.works(rotated["key"]) == 401
    assert (await api("POST", f"{one}/rotate"))[0] == 404
    assert (await api("PATCH", one, {"team": "x"}))[0] == 404
    assert await api("GET", one) == (200, revoked)
    assert await api("DELETE", one) == (200, revoked), "ending what has ended changes nothing"


async def test_a_secret_is_shown_once(api: Api) -> None:
    """After its making a secret is in no answer, nor is anything of its hash."""
    made = await api.made()
    one = f"{KEYS}/{made['id']}"
    for method, target, body in (
        ("GET", KEYS, None),
        ("GET", one, None),
        ("PATCH", one, {"team": "t"}),
        ("GET", USAGE, None),
        ("DELETE", one, None),
        ("GET", f"{KEYS}?revoked=true", None),
    ):
        status, answer = await api(method, target, body)
        assert status == 200, answer
    assert made["name"].encode() in api.heard
    assert made["key"].encode() not in api.heard
    assert b"hash" not in api.heard


async def test_answers_are_not_kept_by_caches(api: Api) -> None:
    """An answer that may hold a secret says no-store."""
    answer = await api.raw("POST", KEYS, {"name": f"k-{uuid4()}"})
    assert answer.header("cache-control") == "no-store"
    assert answer.header("content-type") == "application/json"


async def test_every_field_is_kept(api: Api) -> None:
    """What is given is what is stored and listed; a time without a zone is UTC."""
    fields = {
        "team": "t",
        "project": "p",
        "user": "u",
        "models": ["gpt-*"],
        "providers": ["up"],
        "tags": {"tier": "cheap"},
        "allow_shared_objects": True,
    }
    made = await api.made(**fields, expires_at="2031-05-01T12:00:00")
    assert {name: made[name] for name in fields} == fields
    assert datetime.fromisoformat(made["expires_at"]) == datetime(2031, 5, 1, 12, tzinfo=UTC)
    del made["key"]
    assert await api("GET", f"{KEYS}/{made['id']}") == (200, made)
    _, listed = await api("GET", KEYS)
    assert made in listed["data"]


async def test_a_change_takes_hold_at_once(api: Api) -> None:
    """PATCH sets the given fields only; null empties one; the next call is judged by it."""
    made = await api.made(team="t", project="p")
    one = f"{KEYS}/{made['id']}"
    assert await api.works(made["key"]) == 200
    status, changed = await api("PATCH", one, {"models": ["o3"], "project": None})
    assert (status, changed["models"], changed["project"], changed["team"]) == (200, ["o3"], None, "t")
    assert await api.works(made["key"]) == 404
    await api("PATCH", one, {"models": []})
    assert await api.works(made["key"]) == 200
    await api("PATCH", one, {"expires_at": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()})
    assert await api.works(made["key"]) == 401


async def test_revoked_keys_are_listed_when_asked_for(api: Api) -> None:
    """The list leaves revoked keys out, `?revoked=true` has them, and a name is free again."""
    made = await api.made()
    await api("DELETE", f"{KEYS}/{made['id']}")
    _, now = await api("GET", KEYS)
    _, ever = await api("GET", f"{KEYS}?revoked=true")
    assert made["id"] not in {key["id"] for key in now["data"]}
    assert made["id"] in {key["id"] for key in ever["data"]}
    assert (await api.made(name=made["name"]))["id"] != made["id"]


async def test_a_name_in_use_is_a_conflict(api: Api) -> None:
    """A second key of a name, or one renamed to it: 409, naming it."""
    first, second = await api.made(), await api.made()
    for method, target in (("POST", KEYS), ("PATCH", f"{KEYS}/{second['id']}")):
        status, answer = await api(method, target, {"name": first["name"]})
        assert (status, answer["error"]["code"]) == (409, "conflict")
        assert first["name"] in answer["error"]["message"]


BAD_BODIES: list[tuple[Any, str]] = [
    (b"", "not a JSON object"),
    (b"{", "not a JSON object"),
    (b"[]", "`object`"),
    (b"\xff", "not a JSON object"),
    (b"[" * 100_000, ""),
    ({}, "`name`"),
    ({"name": 7}, "$.name"),
    ({"name": None}, "$.name"),
    ({"name": "x", "limit_usd": 5}, "`limit_usd`"),
    ({"name": "x", "models": "gpt-*"}, "$.models"),
    ({"name": "x", "models": [1]}, "$.models"),
    ({"name": "x", "tags": {"a": 1}}, "$.tags"),
    ({"name": "x", "expires_at": "tomorrow"}, "$.expires_at"),
    ({"name": "x", "allow_shared_objects": "yes"}, "$.allow_shared_objects"),
    ({"name": ""}, "1 to 200 characters"),
    ({"name": "x" * 201}, "$.name"),
    ({"name": "a\0b"}, "$.name"),
    ({"name": "a\nb"}, "$.name"),
    ({"name": "x", "tags": {"a": "\0"}}, "$.tags"),
    (b'{"name": "\\ud800"}', ""),
]


@pytest.mark.parametrize(("body", "named"), BAD_BODIES, ids=[str(n) for n in range(len(BAD_BODIES))])
async def test_a_bad_body_is_told_what_is_wrong(api: Api, body: Any, named: str) -> None:
    """A body that does not fit: 400 with the member that is wrong, and no key."""
    before = await api("GET", KEYS)
    status, answer = await api("POST", KEYS, body)
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert named in answer["error"]["message"]
    assert await api("GET", KEYS) == before


async def test_a_bad_change_is_told_what_is_wrong(api: Api) -> None:
    """A change of nothing, of an unknown field, of the secret or to a wrong type: 400, and the key stays as it was."""
    made = await api.made()
    one = f"{KEYS}/{made.pop('id')}"
    _, before = await api("GET", one)
    for body in ({}, {"nme": "x"}, {"key": "fb-mine"}, {"secret_hash": "x"}, {"models": None}, {"name": None}, b"7"):
        status, answer = await api("PATCH", one, body)
        assert (status, answer["error"]["code"]) == (400, "bad_request"), body
    assert await api("GET", one) == (200, before)


async def test_a_body_that_is_too_long(api: Api) -> None:
    """A body past the control plane's bound gets 413, unread."""
    status, answer = await api("POST", KEYS, b" " * (256 * 1024 + 1))
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", f"{KEYS}/{UUID(int=1)}", 404),
        ("GET", f"{KEYS}/first", 404),
        ("DELETE", f"{KEYS}/{UUID(int=1)}", 404),
        ("PATCH", f"{KEYS}/{UUID(int=1)}", 404),
        ("POST", f"{KEYS}/{UUID(int=1)}/rotate", 404),
        ("POST", f"{KEYS}/{UUID(int=1)}/explode", 404),
        ("PUT", KEYS, 405),
        ("DELETE", KEYS, 405),
        ("POST", USAGE, 405),
        ("GET", "/farebox/api/nothing", 404),
        ("GET", "/farebox/api/", 404),
        ("GET", "/farebox/nothing", 404),
        ("GET", "/farebox/", 404),
        ("POST", "/healthz", 405),
    ],
)
async def test_what_is_not_there(api: Api, method: str, target: str, status: int) -> None:
    """Unknown keys and paths are 404, known paths with another method 405, in farebox's error shape."""
    got, answer = await api(method, target, {"team": "t"} if method in ("PATCH", "POST", "PUT") else None)
    assert got == status, answer
    assert answer["error"]["message"]


# -- usage ---------------------------------------------------------------------------------------


async def put(desk: Desk, **facts: Any) -> str:
    """A row in the ledger: its id."""
    made = event(**facts)
    await desk.app.store.insert_events([encode(made)])
    return str(made.id)


async def test_a_call_is_a_usage_row(api: Api, desk: Desk) -> None:
    """A call through the data plane is found by its request id, every column in place."""
    answer = await desk.call("/v1/chat/completions", CHAT)
    request_id = answer.header("x-farebox-request-id")
    await desk.row()
    status, found = await api("GET", f"{USAGE}?request_id={request_id}")
    (row,) = found["data"]
    assert (status, found["next"]) == (200, None)
    assert (row["request_id"], row["input_tokens"], row["outcome"]) == (request_id, 1, "complete")
    assert row["usage_raw"] == {"prompt_tokens": 1, "completion_tokens": 1}


async def test_usage_is_read_page_by_page(api: Api, desk: Desk) -> None:
    """Following `next` gives every row once, newest first, also where many have the same time and more arrive."""
    name = f"pages-{uuid4()}"
    moments = [STARTED + timedelta(seconds=n // 4, microseconds=1) for n in range(11)]
    ids = [await put(desk, key_name=name, started_at=moment) for moment in moments]
    seen: list[str] = []
    target = f"{USAGE}?key={name}&limit=3"
    cursor = ""
    sizes = []
    while True:
        status, page = await api("GET", target + cursor)
        assert status == 200, page
        seen += [row["id"] for row in page["data"]]
        sizes.append(len(page["data"]))
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
        await put(desk, key_name=name, started_at=STARTED + timedelta(days=1))  # a newer one, on no later page
    assert sizes == [3, 3, 3, 2]
    assert sorted(seen) == sorted(ids)
    times = [moments[ids.index(id)] for id in seen]
    assert times == sorted(times, reverse=True)


async def test_usage_is_filtered(api: Api, desk: Desk) -> None:
    """Each filter narrows the rows; filters add up; `since` is included, `until` is not."""
    team = f"f-{uuid4()}"
    key_id = uuid4()
    a = await put(desk, session=team, key_name="a", provider="x", started_at=STARTED)
    b = await put(desk, session=team, key_name="b", model="m", key_id=key_id, started_at=STARTED + timedelta(hours=1))

    async def ids(query: str) -> list[str]:
        status, page = await api("GET", f"{USAGE}?session={team}&{query}")
        assert status == 200, page
        return [row["id"] for row in page["data"]]

    hour = (STARTED + timedelta(hours=1)).isoformat()
    assert await ids("") == [b, a]
    assert await ids("key=a") == [a]
    assert await ids("provider=x") == [a]
    assert await ids("model=m") == [b]
    assert await ids(f"key_id={key_id}") == [b]
    assert await ids(f"since={hour}") == [b], "a plus sign that was not percent-encoded is understood"
    assert await ids(f"until={hour.replace('+00:00', 'Z')}") == [a]
    assert await ids("key=a&model=m") == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=%D9%A1", "limit"),
        ("limit=", "limit"),
        ("since=yesterday", "since"),
        ("until=2026-99-99", "until"),
        ("key_id=first", "key_id"),
        ("request_id=1", "request_id"),
        ("cursor=rubbish", "cursor"),
        ("cursor=2026-01-01T00:00:00_7", "cursor"),
        ("group_by=nonsense", "group_by"),
        ("since=0001-01-01T00:00:00%2B23:59", None),
        (f"cursor=0001-01-01T00:00:00%2B23:59_{UUID(int=1)}", None),
        ("key=%00", None),
    ],
)
async def test_a_bad_query_is_told_what_is_wrong(api: Api, query: str, named: str | None) -> None:
    """A parameter that is unknown or makes no sense: 400, naming it where farebox and not the database finds out."""
    status, answer = await api("GET", f"{USAGE}?{query}")
    assert (status, answer["error"]["code"]) == (400, "bad_request"), answer
    assert answer["error"]["param"] == named


# -- the probes ----------------------------------------------------------------------------------


async def test_the_probes_take_no_credential_and_tell_nothing(api: Api, desk: Desk) -> None:
    """/healthz and /readyz answer anybody, say that all is well, and name neither provider nor database."""
    for path in ("/healthz", "/readyz", "/readyz?verbose=1"):
        answer = await api.raw("GET", path, key=None)
        assert answer.status == 200
        assert json.loads(answer.body)["status"] == "ok"
        for secret in (desk.serving.providers["up"].origin, "claude", "postgres"):
            assert secret.encode() not in answer.body
    async with RawClient(api.port) as client:
        await client.send("HEAD", "/healthz", {})
        assert (await client.answer(has_body=False)).status == 200
    assert await desk.rows() == []


async def test_readiness_follows_the_database(postgres: PostgresServer, tmp_path: Path) -> None:
    """While Postgres is away /readyz is 503 and says so, /healthz stays 200, calls of known keys go on."""
    async with postgres.database(priced=True) as dsn, FakeProvider(OK) as provider:
        providers = {"p": {"dialect": "openai", "base_url": provider.base_url}}
        settings = settings_of(dsn, tmp_path, providers)
        settings["database"]["connect_timeout_s"] = 0.5
        async with running(settings) as farebox:
            api = Api(farebox.port)
            assert await api.works(farebox.key) == 200
            assert (await api("GET", "/readyz", key=None))[0] == 200
            await asyncio.to_thread(postgres.stop)
            try:
                status, answer = await api("GET", "/readyz", key=None)
                assert (status, answer["database"], answer["journal"]) == (503, "away", "ok")
                assert (await api("GET", "/healthz", key=None))[0] == 200
                status, answer = await api("GET", KEYS)
                assert (status, answer["error"]["code"]) == (503, "unavailable")
                assert await api.works(farebox.key) == 200, "a known key goes on"
            finally:
                await asyncio.to_thread(postgres.start)
            async with asyncio.timeout(20):
                while (await api("GET", "/readyz", key=None))[0] != 200:
                    await asyncio.sleep(0.05)
            assert len(await farebox.rows(2)) == 2
