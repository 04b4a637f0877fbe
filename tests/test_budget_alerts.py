"""Thresholds: each told once a window, by one of all processes; the webhook hears of each at least once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from farebox.budgets.alerts import CLAIMS_MAX, POSTS_MAX, Alerts, pause_s
from farebox.budgets.webhook import Webhook, signature
from farebox.metrics.budgets import label
from farebox.store import Store
from farebox.store.alerts import Alert, AlertStore
from farebox.store.budgets import BudgetStore
from support.app import config_of, running
from support.counters import put, spend
from support.money import FREE_INPUT, answered, budgeted, chat, settings
from support.provider import FakeProvider, Received, Wire, plain
from support.traffic import CHAT

NOW = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)
SECRET = "whsec_" + base64.b64encode(b"between you and me").decode()


async def ago(store: Store, interval: str) -> None:
    """Let time pass for what waits to be delivered."""
    async with store.connection() as connection:
        await connection.execute(f"UPDATE farebox.budget_alert SET next_try = next_try - interval '{interval}'")


async def claimed(store: Store, *, deliver: bool = False) -> list[tuple[str, str, str]]:
    alerts = await AlertStore(store).claim(every_s=0, deliver=deliver, rows_max=100)
    return [(alert.name, alert.who, str(alert.threshold)) for alert in alerts]


class Told:
    """Alerts of one process, and what they said."""

    def __init__(self, store: Store, hook: Any = None, *, tries_max: int = 3, sleep: Any = asyncio.sleep) -> None:
        self.counted: list[tuple[str, str]] = []
        self.alerts = Alerts(
            AlertStore(store),
            hook,
            tries_max=tries_max,
            reached=lambda *what: self.counted.append(what),
            now=lambda: NOW,
            look_s=0,
            sleep=sleep,
        )


# -- finding -------------------------------------------------------------------------------------


async def test_each_threshold_is_claimed_once_a_window(store: Store) -> None:
    """Spending past 50 %, then 100 %, is told once each; what did not reach a threshold, and the same again, is not."""
    budget = await put(store)
    await spend(store, budget, "49.99")
    assert await claimed(store) == []
    await spend(store, budget, "50")
    assert await claimed(store) == [("b", "all", "0.5")]
    await spend(store, budget, "100")
    assert await claimed(store) == [("b", "all", "0.8"), ("b", "all", "1.0")]
    await spend(store, budget, "120")
    assert await claimed(store) == []


async def test_a_new_window_begins_anew(store: Store) -> None:
    """The next day tells its own thresholds, and one that ended within the hour still tells its last moments."""
    budget = await put(store, thresholds=["0.5"])
    await spend(store, budget, "60")
    assert len(await claimed(store)) == 1
    await spend(store, budget, "60", start="now() + interval '1 day'")
    assert len(await claimed(store)) == 1
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE farebox.budget_window SET window_end = now() - interval '59 min', subject = 'late'"
        )
    assert await claimed(store) != []
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE farebox.budget_window SET window_end = now() - interval '61 min', subject = 'old'"
        )
    assert await claimed(store) == []


async def test_a_crossing_is_one_process_s(store: Store) -> None:
    """Of ten processes that look at the same moment one gets each crossing, and the others nothing."""
    for number in range(20):
        await spend(store, await put(store, f"b{number:02}"), "85")
    found = await asyncio.gather(*(claimed(store) for _ in range(10)))
    everything = [crossing for some in found for crossing in some] + await claimed(store)
    assert len(everything) == len(set(everything)) == 40


async def test_nobody_looks_too_soon_after_another(store: Store) -> None:
    """A look within the pause after another process' finds nothing, and costs no look at the counters."""
    alerts = AlertStore(store)
    assert await alerts.claim(every_s=60, deliver=False, rows_max=10) == []
    await spend(store, await put(store), "85")
    assert await alerts.claim(every_s=60, deliver=False, rows_max=10) == []
    assert len(await alerts.claim(every_s=0, deliver=False, rows_max=10)) == 2


async def test_what_counts_as_reached(store: Store) -> None:
    """A limit of tokens has thresholds too, a limit of 0 is reached by the first cent, a deleted budget by nothing."""
    tokens = await put(store, "tokens", limit_usd=None, limit_tokens=1000, thresholds=["0.8"])
    nothing = await put(store, "nothing", limit_usd=Decimal(0), thresholds=["1"])
    gone = await put(store, "gone", thresholds=["0.1"])
    for budget in (tokens, nothing, gone):
        await spend(store, budget, "0", tokens=0)
    assert await claimed(store) == []
    await BudgetStore(store).delete_budget("gone", "test")
    for budget in (tokens, nothing, gone):
        await spend(store, budget, "0.01", tokens=800)
    assert await claimed(store) == [("nothing", "all", "1"), ("tokens", "all", "0.8")]


async def test_a_key_is_told_by_its_name(store: Store) -> None:
    """People and dashboards know a key's counter by the key's name, a session's by the key's and its own."""
    key = await store.create_key(name="ann", secret_hash=b"x" * 32)
    by_key, by_session = await put(store, "k", scope="key"), await put(store, "s", scope="session")
    await spend(store, by_key, "50", subject=str(key.id))
    await spend(store, by_session, "50", subject=f"{key.id}/talk")
    await spend(store, by_session, "50", subject=str(uuid4()))
    told = await claimed(store)
    assert ("k", "ann", "0.5") in told and ("s", "ann/talk", "0.5") in told and len(told) == 3
    assert [label("b", "global", "all"), label("key:ann:day", "key", "x"), label("k", "key", "ann")] == [
        *("b", "key:ann:day", "k:ann")
    ]


# -- telling ---------------------------------------------------------------------------------------


async def test_a_crossing_is_a_line_in_the_log_and_a_count(store: Store) -> None:
    """What was reached stands in the log with the figures, and is counted by budget and threshold, once."""
    await spend(store, await put(store), "80")
    one, other = Told(store), Told(store)
    with capture_logs() as logs:
        await one.alerts.look()
        await other.alerts.look()
    lines = [(line["budget"], line["threshold"], line["spent_usd"], line["limit_usd"]) for line in logs]
    assert lines == [("b", "0.5", "80", "100"), ("b", "0.8", "80", "100")]
    assert (one.counted, other.counted) == ([("b", "0.5"), ("b", "0.8")], [])


async def test_many_at_once_are_all_told(store: Store) -> None:
    """More crossings than are claimed at a time are told by the same look."""
    budget = await put(store, scope="team", thresholds=["0.5"])
    for number in range(CLAIMS_MAX + 5):
        await spend(store, budget, "70", subject=f"team-{number}")
    told = Told(store)
    with capture_logs():
        await told.alerts.look()
    assert len(told.counted) == len(set(told.counted)) == CLAIMS_MAX + 5


# -- the webhook -------------------------------------------------------------------------------------


async def test_a_post_is_signed_so_that_its_receiver_can_tell(store: Store) -> None:
    """A receiver that knows the secret gets the same signature over id, time and raw body; amounts are exact."""
    await spend(store, await put(store), "80.10")
    async with FakeProvider(default=plain(b"{}", status=204)) as receiver:
        hook = Webhook(receiver.origin + "/hook?token=t0ps3cret", SECRET, 5)
        told = Told(store, hook)
        with capture_logs() as logs:
            await told.alerts.look()
            await told.alerts.deliver()
        await told.alerts.close()
        first, second = sorted(receiver.requests, key=lambda request: request.body)
    for request in (first, second):
        id, at = request.header("webhook-id"), request.header("webhook-timestamp")
        digest = hmac.digest(b"between you and me", f"{id}.{at}.".encode() + request.body, hashlib.sha256)
        assert request.header("webhook-signature") == "v1," + base64.b64encode(digest).decode()
        assert at == str(int(NOW.timestamp()))
        assert request.method == "POST" and request.target == "/hook?token=t0ps3cret"
    assert first.header("webhook-id") != second.header("webhook-id")
    said = json.loads(first.body)
    assert said["type"] == "budget.threshold"
    assert (said["data"]["threshold"], said["data"]["spent_usd"], said["data"]["limit_usd"]) == ("0.5", "80.10", "100")
    assert "t0ps3cret" not in repr(logs) and SECRET not in repr(logs)


async def test_a_secret_of_one_s_own_signs_as_it_is() -> None:
    """A secret that is no base64 after whsec_ signs by its bytes."""
    id = UUID(int=1)
    for secret in ("plain secret", "whsec_not base64!"):
        digest = hmac.digest(secret.encode(), f"{id}.7.x".encode(), hashlib.sha256)
        assert signature(secret, id, 7, b"x") == "v1," + base64.b64encode(digest).decode()


async def test_a_post_is_tried_again_with_growing_pauses_and_then_given_up(store: Store) -> None:
    """Each failure puts the next try off by more; after tries_max there is none, and the log says so once."""
    await spend(store, await put(store, thresholds=["0.5"]), "80")
    async with FakeProvider(default=plain(b"no", status=503)) as receiver:
        told = Told(store, Webhook(receiver.origin, SECRET, 5), tries_max=3)
        with capture_logs() as logs:
            await told.alerts.look()
            for wait in ("0 s", "4 s", "1 s", "14 s", "1 s", "10 days"):
                await ago(store, wait)
                await told.alerts.deliver()
        await told.alerts.close()
    assert len(receiver.requests) == 3
    assert len({request.header("webhook-id") for request in receiver.requests}) == 1
    assert [line["log_level"] for line in logs if "alert" in line] == ["info", "info", "error"]
    assert [pause_s(tries) for tries in (1, 2, 3, 10, 10**9)] == [5, 15, 45, 3600, 3600]


async def test_what_a_killed_process_had_taken_comes_back(store: Store) -> None:
    """An alert that was taken and not heard of again is anybody's after the lease, and not before."""
    await spend(store, await put(store, thresholds=["0.5"]), "80")
    assert len(await claimed(store, deliver=True)) == 1
    alerts = AlertStore(store)
    assert len(await alerts.take(rows_max=9, lease_s=60)) == 1
    await ago(store, "59 s")
    assert await alerts.take(rows_max=9, lease_s=60) == []
    await ago(store, "2 s")
    [again] = await alerts.take(rows_max=9, lease_s=60)
    assert again.tries == 2
    await alerts.delivered(again.id)
    await ago(store, "1 year")
    await alerts.failed(again.id, 0)
    assert await alerts.take(rows_max=9, lease_s=60) == []


async def test_replicas_share_the_deliveries(store: Store) -> None:
    """Ten processes that deliver at once post each alert once, and none waits for another."""
    budget = await put(store, scope="team", thresholds=["0.5"])
    for number in range(3 * POSTS_MAX):
        await spend(store, budget, "70", subject=f"team-{number}")
    assert len(await claimed(store, deliver=True)) == 3 * POSTS_MAX
    async with FakeProvider(default=plain(b"")) as receiver:
        everyone = [Told(store, Webhook(receiver.origin, SECRET, 5)) for _ in range(10)]
        while any(await asyncio.gather(*(told.alerts.deliver() for told in everyone))):
            pass
        await asyncio.gather(*(told.alerts.close() for told in everyone))
    ids = [request.header("webhook-id") for request in receiver.requests]
    assert len(ids) == len(set(ids)) == 3 * POSTS_MAX


async def silent(_: Received, wire: Wire) -> None:
    await wire.hung_up()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (plain(b"", status=302, headers=[("Location", "/elsewhere")]), "status 302"),
        (plain(b"", status=404), "status 404"),
        (silent, "no answer in time"),
    ],
    ids=["redirect", "status", "silence"],
)
async def test_what_is_no_delivery(script: Any, why: str) -> None:
    """A redirect is not followed, a status of 300 and above is a failure, and a silent receiver is left in time."""
    async with FakeProvider(default=script) as receiver:
        hook = Webhook(receiver.origin, SECRET, 0.2)
        assert await hook.post(ALERT, NOW) == why
        await hook.close()
    assert len(receiver.requests) == 1


async def test_a_failure_does_not_tell_where_the_webhook_is() -> None:
    """The address may hold a credential: a refused connection is told by its kind only."""
    hook = Webhook("http://127.0.0.1:1/t0ps3cret", SECRET, 5)
    why = await hook.post(ALERT, NOW)
    await hook.close()
    assert why is not None and "t0ps3cret" not in why and "127" not in why


async def test_a_new_hook_takes_over(store: Store) -> None:
    """After a change of the config what still waits goes to the new address, and the old one is let go."""
    await spend(store, await put(store, thresholds=["0.5"]), "80")
    old, new = Recorder(), Recorder()
    told = Told(store, old)
    with capture_logs():
        await told.alerts.look()
        told.alerts.change(new, 5)
        await told.alerts.deliver()
    assert (len(old.alerts), len(new.alerts), old.closed, new.closed) == (0, 1, True, False)
    await told.alerts.close()
    assert new.closed


async def test_without_a_webhook_nothing_waits_for_one(store: Store) -> None:
    """What was told while there was no webhook is not posted when there is one later: it is no news then."""
    await spend(store, await put(store), "80")
    told = Told(store)
    with capture_logs():
        await told.alerts.look()
    hook = Recorder()
    told.alerts.change(hook, 3)
    await told.alerts.deliver()
    assert len(told.counted) == 2 and hook.alerts == []


async def test_a_database_that_is_away_only_delays(store: Store) -> None:
    """While the database can't be asked nothing is logged and nothing ends; the next look tells what was reached."""
    await spend(store, await put(store, thresholds=["0.5"]), "80")
    slept = asyncio.Event()

    async def sleep(_: float) -> None:
        slept.set()
        await asyncio.sleep(0.01)

    told = Told(store, sleep=sleep)
    await store.close()
    with capture_logs() as logs:
        await told.alerts.start()
        await slept.wait()
        assert logs == [] and told.counted == []
        await store.open()
        async with asyncio.timeout(10):
            while not told.counted:
                await asyncio.sleep(0.01)
        await told.alerts.close()
    assert told.counted == [("b", "0.5")]


async def test_a_call_that_reaches_a_threshold_is_news(database: str, tmp_path: Path) -> None:
    """In a running farebox a call that takes its key's budget past a threshold ends as one signed POST, after a reload
    to the address of the new config."""
    async with FakeProvider(default=plain(answered(100))) as provider, FakeProvider(default=plain(b"")) as receiver:
        hook = {"webhook_url": receiver.origin + "/first", "webhook_secret": SECRET}
        config = settings(database, tmp_path, provider, prices=FREE_INPUT, alerts=hook)
        async with running(config) as farebox:
            key = await budgeted(farebox, "ann", {"limit_usd": Decimal("0.0015"), "thresholds": ["0.5"]})
            config["alerts"]["webhook_url"] = receiver.origin + "/second"
            await farebox.app.reload(config_of(config))
            assert (await key.call(CHAT, chat(100))).status == 200
            await farebox.rows(1)
            async with farebox.app.store.connection() as connection:
                await connection.execute("UPDATE farebox.alert_turn SET looked_at = 'epoch'")
            await farebox.app.alerts.look()
            await farebox.app.alerts.deliver()
            async with asyncio.timeout(10):
                while not receiver.requests:
                    await asyncio.sleep(0.01)
    [told] = receiver.requests
    said = json.loads(told.body)["data"]
    assert told.target == "/second" and told.header("webhook-signature")
    assert (said["budget"], said["subject"], said["spent_usd"]) == ("key:ann:total", "ann", "0.001")


class Recorder:
    """A webhook that takes everything."""

    timeout_s = 1.0

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.closed = False

    async def post(self, alert: Alert, now: datetime) -> str | None:
        self.alerts.append(alert)
        return None

    async def close(self) -> None:
        self.closed = True


ALERT = Alert(
    id=UUID(int=7),
    name="b",
    scope="global",
    who="all",
    window="day",
    threshold=Decimal("0.5"),
    limit_usd=Decimal(1),
    spent_usd=Decimal(1),
    reserved_usd=Decimal(0),
    limit_tokens=None,
    spent_tokens=0,
    reserved_tokens=0,
    window_start=NOW,
    resets_at=NOW + timedelta(days=1),
    raised_at=NOW,
    tries=1,
)
