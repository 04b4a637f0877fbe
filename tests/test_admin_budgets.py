"""Budgets over HTTP: what stands in them, changing them, who changed them, and correcting what a call cost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from support.app import ADMIN_TOKEN
from support.http import call
from support.live import Desk, Serving, relaying, serving
from support.postgres import PostgresServer
from support.spending import Spender

pytestmark = pytest.mark.asyncio(loop_scope="module")

API = "/farebox/api"
BUDGETS = f"{API}/budgets"
EVERYONE = {"name": "everyone", "scope": "global", "limit_usd": "5000", "window": "month"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying, budgets=[EVERYONE]) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk(team="research", user="ann")


class Api:
    """The control plane, asked with the admin token."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __call__(self, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status, and the JSON of the body. A `str` body is sent as it is."""
        sent = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await call(self.port, target, sent, method=method, key=ADMIN_TOKEN, headers=named)
        return answer.status, json.loads(answer.body)

    async def refused(self, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """The status and the message of a refusal."""
        status, answer = await self(method, target, body, **headers)
        assert status >= 400, answer
        return status, answer["error"]["message"]

    async def made(self, **fields: Any) -> dict[str, Any]:
        """A new budget."""
        status, made = await self(
            "PUT", BUDGETS, {"name": f"b-{uuid4()}", "scope": "team", "limit_usd": "10", **fields}
        )
        assert status == 200, made
        budget: dict[str, Any] = made
        return budget

    async def rows(self, query: str = "") -> list[dict[str, Any]]:
        status, answer = await self("GET", f"{BUDGETS}?{query}")
        assert status == 200, answer
        rows: list[dict[str, Any]] = answer["data"]
        return rows

    async def me(self, key: str, query: str = "") -> tuple[int, Any]:
        answer = await call(self.port, f"{API}/me{query}", method="GET", key=key)
        return answer.status, json.loads(answer.body)


@pytest_asyncio.fixture(loop_scope="module")
async def api(desk: Desk) -> Api:
    return Api(desk.app.port)


@pytest_asyncio.fixture(loop_scope="module")
async def spender(desk: Desk) -> Spender:
    return Spender(desk.app.store)


# -- definitions -----------------------------------------------------------------------------------


async def test_a_budget_is_made_read_changed_and_ended(api: Api) -> None:
    """A definition comes back as it was put, exact, by name and by id; after DELETE it is gone."""
    given = {
        "scope": "team",
        "only": ["research-*"],
        "limit_usd": "100.10",
        "limit_tokens": 1_000_000,
        "window": "day",
        "timezone": "Europe/Berlin",
        "thresholds": ["0.5", "1.2"],
        "on_exceed": "reject",
        "admission": "expected",
        "clamp": True,
        "wait_s": 2.5,
        "on_extend_denied": "overrun",
    }
    status, made = await api("PUT", f"{BUDGETS}/team%20day", given)
    assert status == 200, made
    id = made.pop("id")
    assert made == {**given, "name": "team day", "source": "api", "key_id": None}
    for name in ("team%20day", id):
        status, shown = await api("GET", f"{BUDGETS}/{name}")
        assert (status, {**shown, "data": 0}) == (200, {**made, "id": id, "data": 0, "next": None})
    status, changed = await api("PUT", f"{BUDGETS}/{id}", {"scope": "team", "limit_usd": 3})
    assert (status, changed["name"], changed["limit_usd"], changed["window"]) == (200, "team day", "3", "month")
    status, ended = await api("DELETE", f"{BUDGETS}/team%20day")
    assert (status, ended["name"]) == (200, "team day")
    assert (await api("GET", f"{BUDGETS}/team%20day"))[0] == 404
    assert (await api("DELETE", f"{BUDGETS}/team%20day"))[0] == 404


async def test_a_changed_limit_keeps_what_was_spent(api: Api, spender: Spender) -> None:
    """Limits and policies change under the same id, and the counter goes on; another window counts anew."""
    made = await api.made()
    await spender.spend(made["id"], "research", "4")
    status, changed = await api("PUT", f"{BUDGETS}/{made['name']}", {"scope": "team", "limit_usd": "6", "wait_s": 0})
    assert (status, changed["id"]) == (200, made["id"])
    [row] = await api.rows(f"name={made['name']}")
    assert (row["limit"], row["spent"], row["remaining"]) == ("6", "4", "2")
    status, other = await api("PUT", f"{BUDGETS}/{made['name']}", {"scope": "team", "limit_usd": "6", "window": "day"})
    assert status == 200 and other["id"] != made["id"]
    [row] = await api.rows(f"name={made['name']}")
    assert (row["spent"], row["remaining"], row["subject"]) == ("0", "6", None)


async def test_several_are_put_all_or_none(api: Api) -> None:
    """A list of definitions is put whole; with one that can't be, nothing of it."""
    names = [f"several-{number}" for number in range(3)]
    status, put = await api("PUT", BUDGETS, [{"name": name, "scope": "global", "limit_usd": 1} for name in names])
    assert status == 200 and [budget["name"] for budget in put["data"]] == names
    half = [{"name": "half", "scope": "global", "limit_usd": 1}, {**EVERYONE, "limit_usd": 1}]
    status, message = await api.refused("PUT", BUDGETS, half)
    assert status == 409 and "config" in message
    assert await api.rows("name=half") == []
    twice = [{"name": "half", "scope": "global", "limit_usd": 1}] * 2
    assert await api.refused("PUT", BUDGETS, twice) == (400, "The budget 'half' is given twice.")
    assert (await api.refused("PUT", BUDGETS, []))[0] == 400


@pytest.mark.parametrize(("method", "body"), [("PUT", {"scope": "global", "limit_usd": 1}), ("DELETE", None)])
async def test_the_configs_budgets_are_the_configs(api: Api, method: str, body: Any) -> None:
    """A budget of the YAML file answers 409 to a change and to its end, and stays as the file says."""
    status, message = await api.refused(method, f"{BUDGETS}/everyone", body)
    assert status == 409 and "config" in message
    [row] = await api.rows("name=everyone")
    assert (row["limit_usd"], row["source"], row["scope"]) == ("5000", "config", "global")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"limit_usd":"1"}', "scope is missing"),
        ('{"scope":"global"}', "limit_usd is missing; a budget needs it, limit_tokens, or both"),
        ('{"scope":"global","limit_usd":NaN}', "not a JSON object"),
        ('{"scope":"global","limit_usd":"NaN"}', "limit_usd 'NaN' is not an amount of US dollars"),
        ('{"scope":"global","limit_usd":"Infinity"}', "limit_usd 'Infinity' is not an amount"),
        ('{"scope":"global","limit_usd":-0.01}', "limit_usd '-0.01' is not an amount"),
        ('{"scope":"global","limit_usd":1e400}', "limit_usd '1e400' is not an amount"),
        ('{"scope":"global","limit_usd":true}', "limit_usd 'true' is not an amount"),
        ('{"scope":"global","limit_usd":[1]}', "limit_usd is a list"),
        ('{"scope":"global","limit_usd":{"usd":1}}', "'limit_usd' is an object"),
        ('{"scope":"global","limit_tokens":1.5}', "limit_tokens '1.5' is not a whole number"),
        ('{"scope":"global","limit_usd":1,"window":"minute"}', "window 'minute' is not one of hour"),
        ('{"scope":"global","limit_usd":1,"timezone":"Mars"}', "timezone 'Mars' is not a time zone"),
        ('{"scope":"global","limit_usd":1,"only":["a"]}', "only has no effect with scope global"),
        ('{"scope":"key","limit_usd":1,"on_exceed":"warn","admission":"strict"}', "admission is strict"),
        ('{"scope":"key","limit_usd":1,"thresholds":[0]}', "thresholds '0' is not a part"),
        ('{"scope":"key","limit_usd":1,"thresholds":[[1]]}', "'thresholds' has an item"),
        ('{"scope":"key","limit_usd":1,"source":"config"}', "'source' is not one of a budget's fields"),
        ('{"scope":"key","limit_usd":1,"key_id":"x"}', "'key_id' is not one of a budget's fields"),
        ('{"name":"other","scope":"key","limit_usd":1}', "A budget keeps its name"),
        ("[]", "The body does not fit"),
        ("", "not a JSON object"),
    ],
)
async def test_a_bad_definition_is_told_what_is_wrong(api: Api, text: str, why: str) -> None:
    """No text makes a budget that can't be, and each refusal names the member and what would be right."""
    status, message = await api.refused("PUT", f"{BUDGETS}/bad", text)
    assert status == 400 and why in message, message
    assert await api.rows("name=bad") == []


async def test_an_unknown_member_is_named_as_it_is(api: Api) -> None:
    """`param` is the member's name alone, as for any other fault."""
    status, answer = await api("PUT", f"{BUDGETS}/bad", '{"scope":"key","limit":1}')
    assert (status, answer["error"]["param"]) == (400, "limit")


async def test_no_budget_is_named_like_a_keys(api: Api) -> None:
    """Names that begin with `key:` are those of keys' own budgets."""
    status, message = await api.refused("PUT", f"{BUDGETS}/key%3Aa%3Amonth", {"scope": "key", "limit_usd": 1})
    assert status == 400 and "begins with key:" in message


async def test_what_is_given_is_exact(api: Api) -> None:
    """Digits of an amount arrive as they were written, as a number or as text; none is a float on its way."""
    for written in ("0.1", '"0.1"', "12345678901.12345678901234567890", "1_0", "0.10"):
        status, made = await api("PUT", f"{BUDGETS}/exact", f'{{"scope":"global","limit_usd":{written}}}')
        if written == "1_0":
            assert status == 400
            continue
        assert status == 200, made
        digits = written.strip('"')
        [row] = await api.rows("name=exact")
        assert (made["limit_usd"], row["remaining_usd"]) == (digits, digits.rstrip("0"))


# -- what stands in them ---------------------------------------------------------------------------


async def test_every_budget_with_each_counter(api: Api, spender: Spender) -> None:
    """A row for each subject: limit, spent, held, left, and its window, all exact; filters narrow."""
    made = await api.made(limit_usd="10", limit_tokens=1000, window="day")
    await spender.spend(made["id"], "a", "1.25", 100)
    await spender.hold(made["id"], "a", "0.5", 50)
    await spender.spend(made["id"], "b", "0.000001", 1)
    first, second = await api.rows(f"name={made['name']}")
    assert (first["subject"], second["subject"]) == ("a", "b")
    assert {name: first[name] for name in ("limit", "spent", "reserved", "remaining", "unit")} == {
        "limit": "10",
        "spent": "1.25",
        "reserved": "0.5",
        "remaining": "8.25",
        "unit": "usd",
    }
    assert [first[f"{name}_tokens"] for name in ("limit", "spent", "reserved", "remaining")] == [1000, 100, 50, 850]
    assert (second["spent_usd"], second["remaining_usd"]) == ("0.000001", "9.999999")
    assert first["window_start"] < first["resets_at"] and first["resets_at"].endswith("T00:00:00Z")
    assert first["open"] == 1
    assert await api.rows(f"name={made['name']}&subject=b") == [second]
    assert await api.rows(f"name={made['name']}&scope=key") == []
    assert await api.rows(f"name={made['name']}&source=config") == []


async def test_a_budget_nobody_used_is_shown_too(api: Api) -> None:
    """Nothing spent, all of it left, and the window it would count in; a total has no window."""
    month, total = await api.made(), await api.made(window="total", limit_usd=None, limit_tokens=7)
    [row] = await api.rows(f"name={month['name']}")
    assert (row["spent"], row["reserved"], row["remaining"]) == ("0", "0", "10")
    assert row["window_start"].endswith("-01T00:00:00Z") and row["window_start"] < row["resets_at"]
    [row] = await api.rows(f"name={total['name']}")
    assert (row["window_start"], row["resets_at"]) == (None, None)
    assert (row["unit"], row["limit"], row["remaining"]) == ("tokens", 7, 7)


async def test_what_is_left_is_never_negative(api: Api, spender: Spender) -> None:
    """A limit lowered below what was spent leaves 0, and both figures stay as they are."""
    made = await api.made()
    await spender.spend(made["id"], "research", "9")
    await api("PUT", f"{BUDGETS}/{made['name']}", {"scope": "team", "limit_usd": "2"})
    [row] = await api.rows(f"name={made['name']}")
    assert (row["limit"], row["spent"], row["remaining"]) == ("2", "9", "0")


async def test_pages_show_each_counter_once(api: Api, spender: Spender) -> None:
    """Pages of any size follow each other by name and subject, without a gap or a repeat."""
    made = await api.made()
    for subject in ("a", "b", "c", "d"):
        await spender.spend(made["id"], subject, "1")
    whole = [(row["name"], row["subject"]) for row in await api.rows("limit=1000")]
    assert len(whole) == len(set(whole)) and (made["name"], "d") in whole
    for limit in (1, 3):
        seen, cursor = [], ""
        while cursor is not None:
            status, page = await api("GET", f"{BUDGETS}?limit={limit}{cursor and '&cursor=' + cursor}")
            assert status == 200 and len(page["data"]) <= limit
            seen += [(row["name"], row["subject"]) for row in page["data"]]
            cursor = page["next"]
        assert seen == whole


@pytest.mark.parametrize(
    "query",
    ["scope=galaxy", "source=yaml", "cursor=!", "cursor=WzFd", "limit=0", "limit=1e3", "nam=a", "name=a&name=b"],
)
async def test_a_bad_query_is_refused(api: Api, query: str) -> None:
    """What means nothing is 400, not everything."""
    assert (await api.refused("GET", f"{BUDGETS}?{query}"))[0] == 400


async def test_a_keys_counter_answers_to_its_name(api: Api, desk: Desk, spender: Spender) -> None:
    """Counters of keys are known by the key's id; they are shown and found by its name as well."""
    [record] = [key for key in await desk.app.store.list_keys() if key.name == desk.farebox.key_name]
    made = await api.made(scope="key")
    await spender.spend(made["id"], str(record.id), "1")
    [row] = await api.rows(f"name={made['name']}&scope=key&subject={record.name}")
    assert (row["subject"], row["subject_name"]) == (str(record.id), record.name)


# -- who changed what ------------------------------------------------------------------------------


async def test_every_change_is_an_audit_row(api: Api) -> None:
    """Who, when, what, from and to, newest first; the request may name the person behind the token."""
    name = f"audited-{uuid4()}"
    await api("PUT", f"{BUDGETS}/{name}", {"scope": "global", "limit_usd": "10.50"}, x_farebox_actor="ann@example.com")
    await api("PUT", f"{BUDGETS}/{name}", {"scope": "global", "limit_usd": "20"})
    await api("DELETE", f"{BUDGETS}/{name}", x_farebox_actor="bob")
    status, answer = await api("GET", f"{API}/audit?name={name}")
    assert status == 200
    seen = [
        (row["actor"], row["action"], (row["from"] or {}).get("limit_usd"), (row["to"] or {}).get("limit_usd"))
        for row in answer["data"]
    ]
    assert seen == [
        ("admin: bob", "delete", "20", None),
        ("admin", "change", "10.50", "20"),
        ("admin: ann@example.com", "create", None, "10.50"),
    ]
    assert all(row["at"] and row["kind"] == "budget" for row in answer["data"])


async def test_the_audit_is_read_in_pages(api: Api) -> None:
    """Pages of the audit follow each other, each row once."""
    for _ in range(3):
        await api.made()
    seen: list[int] = []
    cursor: str | None = ""
    while cursor is not None and len(seen) < 6:
        _, page = await api("GET", f"{API}/audit?limit=2&kind=budget{cursor and '&cursor=' + cursor}")
        seen += [row["id"] for row in page["data"]]
        cursor = page["next"]
    assert len(seen) == len(set(seen)) == 6 and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("name", ["", "a" * 101])
async def test_an_actor_that_is_no_name_changes_nothing(api: Api, name: str) -> None:
    """An empty or endless x-farebox-actor is refused before anything is changed."""
    body = {"scope": "global", "limit_usd": 1}
    status, message = await api.refused("PUT", f"{BUDGETS}/by-nobody", body, x_farebox_actor=name)
    assert status == 400 and "x-farebox-actor" in message
    assert await api.rows("name=by-nobody") == []


# -- correcting ------------------------------------------------------------------------------------


async def test_a_held_charge_is_corrected_by_an_operator(api: Api, desk: Desk, spender: Spender) -> None:
    """A call charged at its hold gets the cost the operator knows: spent moves at once, row and audit say so."""
    made = await api.made(window="total")
    id = await spender.spend(made["id"], "research", "10", source="hold", key_name=desk.farebox.key_name)
    [row] = await api.rows(f"name={made['name']}")
    assert (row["spent"], row["remaining"]) == ("10", "0")
    body = {"cost_usd": "0.01", "reason": "the provider's bill"}
    status, answer = await api("POST", f"{API}/usage/{id}/correction", body, x_farebox_actor="ann")
    assert (status, answer["before_usd"], answer["cost_usd"]) == (200, "10", "0.01")
    [row] = await api.rows(f"name={made['name']}")
    assert (row["spent"], row["remaining"]) == ("0.01", "9.99")
    [usage] = [row for row in await desk.rows() if row.id == id]
    assert (str(usage.cost_usd), usage.cost_source) == ("0.01", "operator")
    _, audit = await api("GET", f"{API}/audit?kind=usage&name={id}")
    [change] = audit["data"]
    assert (change["actor"], change["action"]) == ("admin: ann", "correct")
    assert "the provider's bill" in json.dumps(change)


async def test_tokens_are_corrected_with_the_cost(api: Api, spender: Spender) -> None:
    """A budget of tokens gets back what a corrected call did not use; tokens that are not named stay."""
    made = await api.made(window="total", limit_usd=None, limit_tokens=1000)
    id = await spender.spend(made["id"], "research", "1", 900, source="hold")
    body = {"cost_usd": "0.01", "input_tokens": 10, "reason": "r"}
    assert (await api("POST", f"{API}/usage/{id}/correction", body))[0] == 200
    [row] = await api.rows(f"name={made['name']}")
    assert (row["spent"], row["remaining"]) == (10, 990)


async def test_a_call_under_way_is_not_corrected(api: Api, spender: Spender) -> None:
    """What still runs, or never was, has no row to correct: 404, and what is held stays."""
    made = await api.made()
    id = await spender.hold(made["id"], "research", "1")
    body = {"cost_usd": "0", "reason": "r"}
    for target in (id, UUID(int=1), "not-an-id"):
        status, message = await api.refused("POST", f"{API}/usage/{target}/correction", body)
        assert status == 404 and "no" in message
    [row] = await api.rows(f"name={made['name']}")
    assert row["reserved"] == "1"


@pytest.mark.parametrize(
    "body",
    [
        '{"cost_usd":"-1","reason":"r"}',
        '{"cost_usd":"NaN","reason":"r"}',
        '{"cost_usd":1e400,"reason":"r"}',
        '{"cost_usd":null,"reason":"r"}',
        '{"cost_usd":"1"}',
        '{"cost_usd":"1","reason":" "}',
        '{"cost_usd":"1","reason":"r","tokens":1}',
        '{"cost_usd":"1","reason":"r","input_tokens":-1}',
        '{"cost_usd":"1000000001","reason":"r"}',
    ],
)
async def test_a_bad_correction_changes_nothing(api: Api, spender: Spender, body: str) -> None:
    """A cost that can't be, or no reason, is 400, and the row costs what it did."""
    made = await api.made()
    id = await spender.spend(made["id"], "research", "1")
    assert (await api.refused("POST", f"{API}/usage/{id}/correction", body))[0] == 400
    [row] = await api.rows(f"name={made['name']}")
    assert row["spent"] == "1"


# -- the books -------------------------------------------------------------------------------------


async def test_the_books_can_be_checked(api: Api, desk: Desk, spender: Spender) -> None:
    """/integrity evaluates each invariant on live data; a counter that was tampered with is named."""
    made = await api.made()
    await spender.spend(made["id"], "research", "1")
    status, answer = await api("GET", f"{API}/integrity")
    assert (status, answer["status"]) == (200, "ok"), answer
    assert answer["invariants"] and {row["status"] for row in answer["invariants"]} == {"ok"}
    async with desk.app.store.connection() as connection:
        await connection.execute(
            "UPDATE farebox.budget_window SET spent_usd = 2 WHERE budget_id = $1", UUID(made["id"])
        )
    status, answer = await api("GET", f"{API}/integrity")
    assert (status, answer["status"]) == (200, "violated")
    [violated] = [row for row in answer["invariants"] if row["status"] == "violated"]
    [violation] = violated["violations"]
    assert (violation["budget"], violation["is_usd"], violation["should_usd"]) == (made["id"], "2", "1")
    assert (violation["is_tokens"], violation["should_tokens"]) == (0, 0)
    async with desk.app.store.connection() as connection:
        await connection.execute(
            "UPDATE farebox.budget_window SET spent_usd = limit_usd + 1 WHERE budget_id = $1", UUID(made["id"])
        )
    _, answer = await api("GET", f"{API}/integrity")
    over = answer["invariants"][0]["violations"][0]
    assert over["should_tokens"] is None, "a limit that is not set"
    async with desk.app.store.connection() as connection:
        await connection.execute(
            "UPDATE farebox.budget_window SET spent_usd = 1 WHERE budget_id = $1", UUID(made["id"])
        )


# -- what a key holder may know --------------------------------------------------------------------


async def test_a_key_holder_sees_its_own(api: Api, desk: Desk, spender: Spender) -> None:
    """/me with a farebox key: the key, its budgets with all that stands in them, its limits, totals and sessions."""
    limits = {"budgets": [{"limit_usd": "5", "window": "day"}], "rpm": 60, "max_parallel": 3}
    status, key = await api("POST", f"{API}/keys", {"name": f"me-{uuid4()}", **limits})
    assert status == 201, key
    [own] = await api.rows(f"name=key:{key['name']}:day")
    await spender.spend(
        own["id"], key["id"], "1.50", 20, key_id=UUID(key["id"]), session="s-1", started_at=desk.app.clock.now()
    )
    status, me = await api.me(key["key"])
    assert status == 200, me
    assert (me["key"]["id"], me["key"]["name"]) == (key["id"], key["name"])
    [budget] = [one for one in me["budgets"] if one["name"] == own["name"]]
    assert budget["shared"] is False
    figures = [budget[name] for name in ("limit", "spent", "reserved", "remaining", "window")]
    assert figures == ["5", "1.5", "0", "3.5", "day"]
    assert me["rate_limits"] == {"rpm": 60, "tpm": None, "max_parallel": 3}
    assert (me["totals"]["calls"], me["totals"]["cost_usd"]) == (1, "1.5")
    assert [session["session"] for session in me["sessions"]] == ["s-1"]
    assert "key" not in me["key"] and "secret_hash" not in json.dumps(me)


async def test_a_shared_budget_tells_only_what_is_left(api: Api, desk: Desk, spender: Spender) -> None:
    """Of a budget of its team a key holder sees limit and remainder, and nothing of who spent what."""
    made = await api.made(name=f"shared-{uuid4()}", limit_usd="10")
    await spender.spend(made["id"], "research", "4")
    await spender.spend(made["id"], "rivals", "7.77")
    _, me = await api.me(desk.key)
    [budget] = [one for one in me["budgets"] if one["name"] == made["name"]]
    assert budget["shared"] is True
    assert (budget["limit"], budget["remaining"]) == ("10", "6")
    assert not {"spent", "spent_usd", "reserved", "subject", "only", "id"} & set(budget)
    assert "rivals" not in json.dumps(me) and "7.77" not in json.dumps(me)


async def test_budgets_of_others_are_not_told(api: Api, desk: Desk) -> None:
    """A budget that does not count the key is not in its answer: another team's, another key's."""
    other_team = await api.made(name=f"else-{uuid4()}", only=["sales"])
    status, other = await api("POST", f"{API}/keys", {"name": f"o-{uuid4()}", "budgets": [{"limit_usd": "12.34"}]})
    assert status == 201
    _, me = await api.me(desk.key)
    told = json.dumps(me)
    assert other_team["name"] not in told and other["name"] not in told and "12.34" not in told


async def test_a_budget_by_model_is_told_without_figures(api: Api, desk: Desk) -> None:
    """Counters by model or session are shared or many: their definition is told, no amounts."""
    made = await api.made(scope="model", name=f"model-{uuid4()}")
    _, me = await api.me(desk.key)
    [budget] = [one for one in me["budgets"] if one["name"] == made["name"]]
    assert budget["limit"] == "10" and not {"remaining", "spent"} & set(budget)


async def test_me_takes_a_farebox_key_only(api: Api, desk: Desk) -> None:
    """Without a key, with the admin token or a key that is none: 401. And nothing but /me takes one."""
    for key in (None, ADMIN_TOKEN, "fb-nope"):
        assert (await call(api.port, f"{API}/me", method="GET", key=key)).status == 401
    assert (await call(api.port, f"{API}/me", b"{}", method="POST", key=desk.key)).status == 405
    assert (await api.me(desk.key, "?team=other"))[0] == 400
    for target in (BUDGETS, f"{API}/audit", f"{API}/integrity"):
        assert (await call(api.port, target, method="GET", key=desk.key)).status == 401
