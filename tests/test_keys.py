"""Keys: their shape, where they are found in a request, and how fast a change takes hold."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from farebox import keys
from farebox.credentials import credentials
from farebox.errors import Forbidden, InvalidKey, Refusal, Unavailable
from farebox.keys import KeyRing
from farebox.records import Caller, KeyRecord

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class Database:
    """The store's two questions, answered from a dict, and an off switch."""

    def __init__(self) -> None:
        self.records: dict[UUID, KeyRecord] = {}
        self.away = False
        self.lookups = 0

    def add(self, **facts: object) -> tuple[str, KeyRecord]:
        secret = keys.mint_secret()
        values: dict[str, object] = {"id": uuid4(), "name": "k", "created_at": NOW, "changed_at": NOW}
        record = KeyRecord(secret_hash=keys.hash_secret(secret), **{**values, **facts})  # type: ignore[arg-type]
        self.records[record.id] = record
        return secret, record

    def change(self, record: KeyRecord, **facts: object) -> KeyRecord:
        changed = self.records[record.id] = msgspec.structs.replace(record, **facts)
        return changed

    async def find(self, digest: bytes) -> KeyRecord | None:
        self.lookups += 1
        await asyncio.sleep(0)
        if self.away:
            raise ConnectionError
        return next((r for r in self.records.values() if r.secret_hash == digest and r.revoked_at is None), None)

    async def changed_since(self, _: datetime) -> tuple[list[KeyRecord], datetime]:
        if self.away:
            raise ConnectionError
        return list(self.records.values()), NOW


class Time:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def clock() -> Time:
    return Time()


def ring(database: Database, clock: Time, **settings: object) -> KeyRing:
    values: dict[str, object] = {"mode": "virtual", "size": 100, "poll_s": 0.001, "stale_s": 60.0, **settings}
    return KeyRing(find=database.find, changed_since=database.changed_since, now=lambda: NOW, monotonic=clock, **values)  # type: ignore[arg-type]


def bearer(secret: str) -> CIMultiDict[str]:
    return CIMultiDict({"Authorization": f"Bearer {secret}"})


def test_a_minted_key_is_well_formed_and_any_slip_is_noticed() -> None:
    """One changed character anywhere makes a key that is not even looked up."""
    secret = keys.mint_secret()
    assert secret.startswith("fb-")
    assert keys.well_formed(secret)
    for at in range(len(secret)):
        slip = secret[:at] + ("A" if secret[at] != "A" else "B") + secret[at + 1 :]
        assert not keys.well_formed(slip)
    assert not keys.well_formed(secret + "x")
    assert not keys.well_formed("fb-" + "é" * 38)


@pytest.mark.parametrize("header", ["x-farebox-key", "X-Api-Key", "api-key", "x-goog-api-key"])
async def test_a_key_is_found_wherever_an_sdk_puts_it(database: Database, clock: Time, header: str) -> None:
    """Each of the credential headers carries a key, in any case."""
    secret, record = database.add(name="app", team="t")
    caller = await ring(database, clock).identify(CIMultiDict({header: secret}))
    assert (caller.key_id, caller.key_name, caller.team) == (record.id, "app", "t")


async def test_the_first_valid_credential_wins(database: Database, clock: Time) -> None:
    """A provider's key beside a farebox key does no harm, and precedence is by header, not by order."""
    first, _ = database.add(name="first")
    second, _ = database.add(name="second")
    headers = CIMultiDict([("x-api-key", second), ("Authorization", "Bearer sk-other"), ("x-farebox-key", first)])
    assert (await ring(database, clock).identify(headers)).key_name == "first"
    headers = CIMultiDict([("x-api-key", second), ("Authorization", "Bearer sk-other")])
    assert (await ring(database, clock).identify(headers)).key_name == "second"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer sk-nothing"}, {"x-api-key": ""}]
)
async def test_rubbish_is_refused_without_asking_the_database(
    database: Database, clock: Time, headers: dict[str, str]
) -> None:
    """What can't be a farebox key is 401 at once."""
    with pytest.raises(InvalidKey):
        await ring(database, clock).identify(CIMultiDict(headers))
    assert database.lookups == 0


async def test_a_key_is_looked_up_once(database: Database, clock: Time) -> None:
    """Many calls at a time with a new key ask the database one time, later ones none."""
    secret, _ = database.add()
    found = ring(database, clock)
    callers = await asyncio.gather(*(found.identify(bearer(secret)) for _ in range(20)))
    assert database.lookups == 1
    assert all(isinstance(c, Caller) for c in callers)


async def test_unknown_keys_are_remembered_only_briefly(database: Database, clock: Time) -> None:
    """A well-formed unknown key is asked for once in two seconds, so a key made just after works soon."""
    secret = keys.mint_secret()
    found = ring(database, clock)
    for _ in range(5):
        with pytest.raises(InvalidKey):
            await found.identify(bearer(secret))
    assert database.lookups == 1
    _, record = database.add()
    database.change(record, secret_hash=keys.hash_secret(secret))
    clock.s += 3
    assert (await found.identify(bearer(secret))).key_id == record.id


async def test_a_revoked_key_ends_with_the_next_poll(database: Database, clock: Time) -> None:
    """A revocation anywhere ends a cached key as soon as the change is polled."""
    secret, record = database.add()
    found = ring(database, clock)
    await found.start()
    await found.identify(bearer(secret))
    database.change(record, revoked_at=NOW)
    try:
        async with asyncio.timeout(5):
            while True:
                await asyncio.sleep(0.005)
                try:
                    await found.identify(bearer(secret))
                except InvalidKey:
                    break
    finally:
        await found.close()


async def test_rotation_ends_the_old_secret_and_starts_the_new(database: Database, clock: Time) -> None:
    """After a rotation the old secret is refused and the new one is the same key."""
    old, record = database.add()
    found = ring(database, clock)
    await found.identify(bearer(old))
    new = keys.mint_secret()
    found.apply([database.change(record, secret_hash=keys.hash_secret(new))])
    with pytest.raises(InvalidKey):
        await found.identify(bearer(old))
    assert (await found.identify(bearer(new))).key_id == record.id


async def test_a_changed_key_changes_its_caller(database: Database, clock: Time) -> None:
    """A narrowed model list takes hold without a new look-up."""
    secret, record = database.add()
    found = ring(database, clock)
    await found.identify(bearer(secret))
    found.apply([database.change(record, models=["gpt-*"])])
    assert (await found.identify(bearer(secret))).models == ("gpt-*",)
    assert database.lookups == 1


async def test_an_expired_key_is_refused_by_name(database: Database, clock: Time) -> None:
    """Expiry needs no poll, and the message says which key it was."""
    secret, _ = database.add(name="old", expires_at=NOW - timedelta(seconds=1))
    with pytest.raises(InvalidKey, match="'old' has expired"):
        await ring(database, clock).identify(bearer(secret))


async def test_known_keys_go_on_while_the_database_is_away(database: Database, clock: Time) -> None:
    """With Postgres gone a known key works for `stale_s`, an unknown one gets 503 and a time to retry."""
    secret, _ = database.add()
    found = ring(database, clock)
    await found.identify(bearer(secret))
    database.away = True
    clock.s += 59
    await found.identify(bearer(secret))
    with pytest.raises(Unavailable) as unknown:
        await found.identify(bearer(keys.mint_secret()))
    assert unknown.value.headers["retry-after"]
    clock.s += 2
    with pytest.raises(Unavailable):
        await found.identify(bearer(secret))


async def test_the_cache_forgets_the_longest_unused(database: Database, clock: Time) -> None:
    """Past its size the ring drops the key unused for longest, which is then looked up again."""
    found = ring(database, clock, size=2)
    secrets = [database.add(name=str(i))[0] for i in range(3)]
    for secret in secrets:
        await found.identify(bearer(secret))
    await found.identify(bearer(secrets[2]))
    assert database.lookups == 3
    await found.identify(bearer(secrets[0]))
    assert database.lookups == 4


_happenings = st.lists(
    st.sampled_from(["revoke", "restore", "rotate", "narrow", "expire", "renew", "away", "back", "wait", "call"]),
    max_size=12,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(_happenings, st.sampled_from(["virtual", "open", "passthrough"]))
def test_what_memory_alone_says_is_what_a_look_up_would_say(happenings: list[str], mode: str) -> None:
    """Whatever becomes of a key, the answer without waiting is no answer, or the one that waiting gives."""

    async def run() -> None:
        database, clock = Database(), Time()
        secret, record = database.add(name="k")
        found = ring(database, clock, mode=mode)
        carried = [credentials(headers) for headers in (bearer(secret), bearer("sk-other"), CIMultiDict[str]())]
        changes: dict[str, dict[str, object]] = {
            "revoke": {"revoked_at": NOW},
            "restore": {"revoked_at": None},
            "rotate": {"secret_hash": keys.hash_secret(keys.mint_secret())},
            "narrow": {"models": ["gpt-*"]},
            "expire": {"expires_at": NOW},
            "renew": {"expires_at": None},
        }
        for happening in ["call", *happenings, "call"]:
            if happening in changes:
                found.apply([database.change(record, **changes[happening])])
            elif happening in ("away", "back"):
                database.away = happening == "away"
            elif happening == "wait":
                clock.s += 61
            for one in carried:
                try:
                    at_once: object = found.recall(one)
                except Refusal as refusal:
                    at_once = type(refusal)
                if happening == "call" or at_once is not None:
                    try:
                        waited: object = await found.authenticate(one)
                    except Refusal as refusal:
                        waited = type(refusal)
                    assert at_once in (None, waited)

    asyncio.run(run())


async def test_a_known_key_is_known_at_once_until_it_is_revoked(database: Database, clock: Time) -> None:
    """The ordinary call of a key that memory knows waits for nothing, and a revocation ends that at once."""
    secret, record = database.add()
    found = ring(database, clock)
    known = credentials(bearer(secret))
    assert found.recall(known) is None
    caller = await found.authenticate(known)
    assert found.recall(known) is caller
    found.apply([database.change(record, revoked_at=NOW)])
    assert found.recall(known) is None


async def test_open_mode_needs_no_key_and_still_knows_one(database: Database, clock: Time) -> None:
    """In open mode anybody is a caller; a valid key is attributed all the same."""
    secret, record = database.add()
    found = ring(database, clock, mode="open")
    assert (await found.identify(CIMultiDict())).kind == "open"
    assert (await found.identify(bearer(secret))).key_id == record.id


async def test_passthrough_knows_callers_by_their_credential(database: Database, clock: Time) -> None:
    """A provider credential is known by a hash, never by itself; a farebox key in its place is refused."""
    found = ring(database, clock, mode="passthrough")
    one = await found.identify(bearer("sk-secret-credential"))
    again = await found.identify(CIMultiDict({"x-api-key": "sk-secret-credential"}))
    assert one.kind == "passthrough"
    assert one.key_name is not None
    assert one.key_name == again.key_name
    assert "secret" not in one.key_name
    with pytest.raises(InvalidKey):
        await found.identify(CIMultiDict())
    with pytest.raises(Forbidden, match="x-farebox-key"):
        await found.identify(bearer(keys.mint_secret()))
    secret, record = database.add()
    both = CIMultiDict([("x-farebox-key", secret), ("Authorization", "Bearer sk-mine")])
    assert (await found.identify(both)).key_id == record.id
