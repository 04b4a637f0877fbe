"""Limits of a key's own: how they are written, stored with the key, shown, changed, and ended with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from farebox.config.budgets import BadBudget
from farebox.keylimits import NONE, KeyLimits, key_budgets, limits_of, parse_budgets
from farebox.keys import hash_secret, mint_secret
from farebox.store import BudgetStore, Keys, Store
from support.app import ADMIN_TOKEN
from support.http import call
from support.live import Serving, relaying, serving
from support.postgres import PostgresServer

KEYS = "/farebox/api/keys"
TWO = {"budgets": [{"limit_usd": "25", "window": "month"}, {"limit_tokens": 1000, "window": "day"}], "rpm": 60}
SHOWN = {
    "budgets": [
        {"limit_usd": None, "limit_tokens": 1000, "window": "day"},
        {"limit_usd": "25", "limit_tokens": None, "window": "month"},
    ],
    "rpm": 60,
    "tpm": None,
    "max_parallel": None,
}

# -- as they are written on the command line -------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        (["25/month"], [("month", "25", None)]),
        (["25"], [("month", "25", None)]),
        (["$2.50/day"], [("day", "2.50", None)]),
        (["0/total"], [("total", "0", None)]),
        (["100000tok/day"], [("day", None, 100_000)]),
        (["100_000tokens/hour"], [("hour", None, 100_000)]),
        (["25usd/month", "9tok/month"], [("month", "25", 9)]),
        (["1/total", "1/hour"], [("hour", "1", None), ("total", "1", None)]),
    ],
)
def test_a_budget_in_a_word(texts: list[str], limits: list[tuple[str, str | None, int | None]]) -> None:
    """AMOUNT/WINDOW is dollars or tokens, exact; both kinds for one window are one budget; shortest window first."""
    found = [(rule.window, rule.limit_usd, rule.limit_tokens) for rule in parse_budgets(texts)]
    assert found == [(window, None if usd is None else Decimal(usd), tokens) for window, usd, tokens in limits]


@pytest.mark.parametrize(
    "texts",
    [
        ["-1/day"],
        ["NaN/day"],
        ["1e400/day"],
        ["1/minute"],
        ["1/Day"],
        ["1.5tok/day"],
        ["$1tok/day"],
        ["/day"],
        ["1/day/hour"],
        [""],
        ["1/day", "2/day"],
        ["9999999999999/day"],
        ["1 /day"],
    ],
)
def test_a_word_that_is_no_budget_is_refused(texts: list[str]) -> None:
    """What is no amount, no window, or a second limit of a kind makes no budget."""
    with pytest.raises(BadBudget):
        parse_budgets(texts)


def test_a_key_has_a_bounded_number_of_budgets() -> None:
    """Each window once, whatever is written; nothing of a key's budget can count other keys."""
    with pytest.raises(BadBudget, match="at most"):
        key_budgets([{"limit_usd": "1"}] * 17)
    for member in ("name", "scope", "only"):
        with pytest.raises(BadBudget, match="counts this key"):
            key_budgets([{"limit_usd": "1", member: "global"}])


# -- in the store ----------------------------------------------------------------------------------


def fields(name: str) -> dict[str, Any]:
    return {"name": name, "secret_hash": hash_secret(mint_secret())}


async def test_a_key_and_its_limits_are_made_together(store: Store) -> None:
    """Limits come back as given; when they can't be stored, there is no key either."""
    keys = Keys(store)
    limits = KeyLimits(budgets=parse_budgets(["2.50/day", "7tok/total"]), rpm=1, tpm=2, max_parallel=3)
    record = await keys.create(fields("a"), limits, "t")
    assert await keys.limits() == {record.id: limits}
    # Left by a key that was renamed by hand: the name of a budget that is in use.
    async with store.connection() as connection:
        await connection.execute("UPDATE farebox.budget SET name = 'key:b:day' WHERE name = 'key:a:day'")
    with pytest.raises(Exception, match="exists already"):
        await keys.create(fields("b"), limits, "t")
    assert [key.name for key in await store.list_keys()] == ["a"]


async def test_a_key_without_limits_has_no_budgets(store: Store) -> None:
    """A plain key leaves nothing among the budgets, and no audit row."""
    record = await Keys(store).create(fields("a"), NONE, "t")
    assert await BudgetStore(store).budgets_for_key(record.id) == []
    assert await BudgetStore(store).audit() == []


async def test_a_renamed_key_takes_its_limits_along(store: Store) -> None:
    """A key keeps its counters under a new name, and the old name is free for a key with the same limits."""
    keys = Keys(store)
    limits = KeyLimits(budgets=parse_budgets(["1/day"]), rpm=5)
    record = await keys.create(fields("a"), limits, "t")
    before = {budget.id for budget in await BudgetStore(store).key_budgets(record.id)}
    await keys.change(record.id, {"name": "b"}, {}, "t")
    after = await BudgetStore(store).key_budgets(record.id)
    assert {budget.id for budget in after} == before
    assert {budget.name for budget in after} == {"key:b:day", "key:b:rpm"}
    other = await keys.create(fields("a"), limits, "t")
    assert await keys.limits() == {record.id: limits, other.id: limits}


async def test_limits_of_a_revoked_key_end(store: Store) -> None:
    """With the key its budgets end, by whoever revoked it; a second time changes nothing."""
    keys = Keys(store)
    record = await keys.create(fields("a"), KeyLimits(budgets=parse_budgets(["1/day"])), "t")
    for _ in range(2):
        revoked = await keys.revoke(record.id, "ann")
        assert revoked is not None and revoked.revoked_at is not None
    assert await keys.limits() == {}
    ends = [row for row in await BudgetStore(store).audit() if row.action == "delete"]
    assert [(row.actor, row.name) for row in ends] == [("ann", "key:a:day")]
    assert await keys.revoke(UUID(int=1), "ann") is None
    assert await keys.change(record.id, {}, {"rpm": 1}, "ann") is None


def test_definitions_of_others_are_no_limits_of_a_key() -> None:
    """Only budgets that belong to a key are its limits."""
    assert limits_of([]) == {}


# -- over HTTP -------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as serving_:
        yield serving_


class Api:
    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        sent = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
        answer = await call(self._port, target, sent, method=method, key=ADMIN_TOKEN)
        return answer.status, json.loads(answer.body)

    async def made(self, **limits: Any) -> dict[str, Any]:
        status, made = await self("POST", KEYS, {"name": f"k-{uuid4()}", **limits})
        assert status == 201, made
        key: dict[str, Any] = made
        return key

    async def limits(self, key: dict[str, Any]) -> dict[str, Any]:
        """What the key shows of its limits, alone and in the list."""
        _, shown = await self("GET", f"{KEYS}/{key['id']}")
        _, listed = await self("GET", f"{KEYS}?revoked=true")
        assert [one for one in listed["data"] if one["id"] == key["id"]] == [shown]
        return {name: shown[name] for name in SHOWN}


@pytest_asyncio.fixture(loop_scope="module")
async def api(served: Serving) -> Api:
    return Api(served.farebox.app.port)


@pytest.mark.asyncio(loop_scope="module")
async def test_limits_are_shown_as_they_were_made(api: Api) -> None:
    """The answer to POST, the key and the list show the same limits; a plain key has none."""
    made = await api.made(**TWO)
    assert {name: made[name] for name in SHOWN} == await api.limits(made) == SHOWN
    plain = await api.made()
    assert await api.limits(plain) == {"budgets": [], "rpm": None, "tpm": None, "max_parallel": None}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_change_replaces_what_it_names(api: Api) -> None:
    """PATCH replaces the budgets or a rate as a whole; what it does not name stays; null and [] end a limit."""
    made = await api.made(**TWO)
    for change, shown in (
        ({"rpm": 30, "max_parallel": 2}, {**SHOWN, "rpm": 30, "max_parallel": 2}),
        ({"team": "t"}, {**SHOWN, "rpm": 30, "max_parallel": 2}),
        ({"rpm": None}, {**SHOWN, "rpm": None, "max_parallel": 2}),
        ({"budgets": []}, {"budgets": [], "rpm": None, "tpm": None, "max_parallel": 2}),
    ):
        status, answer = await api("PATCH", f"{KEYS}/{made['id']}", change)
        assert status == 200 and {name: answer[name] for name in SHOWN} == shown
        assert await api.limits(made) == shown


@pytest.mark.asyncio(loop_scope="module")
async def test_a_changed_limit_counts_on(api: Api, served: Serving) -> None:
    """The same window with another limit is the same counter; the audit says from what to what."""
    made = await api.made(budgets=[{"limit_usd": "10"}])
    store = BudgetStore(served.farebox.app.store)
    [before] = await store.key_budgets(UUID(made["id"]))
    await api("PATCH", f"{KEYS}/{made['id']}", {"budgets": [{"limit_usd": "12", "admission": "strict"}]})
    [after] = await store.key_budgets(UUID(made["id"]))
    assert (after.id, after.limit_usd, after.admission) == (before.id, Decimal(12), "strict")
    [row] = [row for row in await store.audit(name=before.name) if row.action == "change"]
    assert (row.actor, row.before["limit_usd"], row.after["limit_usd"]) == ("admin", "10", "12")
    shown = {"limit_usd": "12", "limit_tokens": None, "window": "month", "admission": "strict"}
    assert (await api.limits(made))["budgets"] == [shown]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_limit_is_in_force_with_the_answer(api: Api, served: Serving) -> None:
    """Right after POST, PATCH and DELETE this process counts the key by the limits it has then."""
    app = served.farebox.app
    made = await api.made(budgets=[{"limit_usd": "10"}], max_parallel=2)

    async def applied() -> set[str]:
        caller = await app.keyring.identify({"x-farebox-key": made["key"]})
        return {one.budget.name.rpartition(":")[2] for one in app.budgets.applying(caller, "m", None)}

    assert await applied() == {"month", "max_parallel"}
    await api("PATCH", f"{KEYS}/{made['id']}", {"max_parallel": None, "rpm": 9})
    assert await applied() == {"month", "rpm"}
    await api("DELETE", f"{KEYS}/{made['id']}")
    assert await api.limits(made) == {"budgets": [], "rpm": None, "tpm": None, "max_parallel": None}


@pytest.mark.parametrize(
    "members",
    [
        '"budgets":[{}]',
        '"budgets":[{"limit_usd":"-1"}]',
        '"budgets":[{"limit_usd":"NaN"}]',
        '"budgets":[{"limit_usd":1e400}]',
        '"budgets":[{"limit_usd":"1"},{"limit_usd":"2"}]',
        '"budgets":[{"limit_usd":"1","scope":"global"}]',
        '"budgets":[{"limit_usd":"1","window":"minute"}]',
        '"budgets":[{"limit_tokens":1.5}]',
        '"budgets":{"limit_usd":"1"}',
        '"rpm":0',
        '"rpm":-1',
        '"tpm":1.5',
        '"tpm":1000000001',
        '"max_parallel":"4"',
        '"max_parallel":true',
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_bad_limit_makes_no_key(api: Api, members: str) -> None:
    """A limit that can't be is 400 with its member, for a new key and for one there is, and changes nothing."""
    made = await api.made(**TWO)
    name = f"bad-{uuid4()}"
    status, answer = await api("POST", KEYS, f'{{"name":"{name}",{members}}}')
    assert status == 400 and members.split('"')[1] in answer["error"]["message"], answer
    status, _ = await api("PATCH", f"{KEYS}/{made['id']}", f"{{{members}}}")
    assert status == 400
    _, listed = await api("GET", KEYS)
    assert name not in {key["name"] for key in listed["data"]}
    assert await api.limits(made) == SHOWN
