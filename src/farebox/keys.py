"""Who is calling: credential in the request -> Caller, without waiting for the database.

Known keys are held in memory; a poll every `key_poll_s` brings every change made anywhere, which is
how a revocation takes hold within seconds on every replica. While the database is away known keys go
on for `stale_s`; unknown ones can't be looked up and get 503. What a key is, and where a request
carries one, is `credentials`'.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

import structlog

from farebox.credentials import PREFIX, Credentials, credentials, hash_secret, holds_key, mint_secret, well_formed
from farebox.errors import Forbidden, InvalidKey, Unavailable
from farebox.logs import exception_facts
from farebox.records import Caller, KeyRecord

__all__ = ["PREFIX", "KeyRing", "caller_of", "hash_secret", "holds_key", "mint_secret", "well_formed"]

_UNKNOWN_S = 2.0
"""How long a well-formed key that does not exist is remembered as such."""
_LOOKUPS_MAX = 64
"""Look-ups of unknown keys under way at once; more get 503 with `retry-after`."""
_OPEN = Caller(kind="open")


def caller_of(record: KeyRecord) -> Caller:
    """The caller a key stands for."""
    return Caller(
        kind="virtual",
        key_id=record.id,
        key_name=record.name,
        team=record.team,
        project=record.project,
        user=record.user,
        models=tuple(record.models),
        providers=tuple(record.providers),
        tags=record.tags,
        allow_shared_objects=record.allow_shared_objects,
        expires_at=record.expires_at,
    )


def _by_credential(found: Credentials) -> Caller:
    """The caller in passthrough mode: named by the credential that goes on to the provider."""
    if found.own_header:
        raise InvalidKey("The x-farebox-key of this request is not a farebox key, or it was revoked.")
    if not found.given:
        raise InvalidKey("No credential was given: farebox passes the client's own on to the provider.")
    if any(secret.startswith(PREFIX) for secret in found.given):
        raise Forbidden("A farebox key goes into x-farebox-key here: Authorization is passed on to the provider.")
    return Caller(kind="passthrough", key_name="credential-" + hash_secret(found.given[0]).hex()[:12])


class KeyRing:
    """The keys in use, by the hash of their secret: at most `size`, the longest unused forgotten first.

    `find(hash)` looks one key up in the database; `changed_since(t)` lists changes and the
    database's clock. Both raise when the database is away.
    """

    def __init__(
        self,
        *,
        mode: Literal["virtual", "passthrough", "open"],
        size: int,
        poll_s: float,
        stale_s: float,
        find: Callable[[bytes], Awaitable[KeyRecord | None]],
        changed_since: Callable[[datetime], Awaitable[tuple[list[KeyRecord], datetime]]],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._mode = mode
        self._size = size
        self._poll_s = poll_s
        self._stale_s = stale_s
        self._find = find
        self._changed_since = changed_since
        self._now = now
        self._monotonic = monotonic
        self._known: OrderedDict[bytes, Caller | None] = OrderedDict()
        self._by_id: dict[str, bytes] = {}
        self._unknown_until: dict[bytes, float] = {}
        self._lookups: dict[bytes, asyncio.Future[Caller | None]] = {}
        self._since = datetime.fromtimestamp(0, UTC)
        self._synced = monotonic()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow changes. Raises when the database can't be asked: nothing could be let in."""
        _, self._since = await self._changed_since(self._now())
        self._synced = self._monotonic()
        self._task = asyncio.create_task(self._follow(), name="key poll")

    def change(self, *, size: int, poll_s: float, stale_s: float) -> None:
        """Follow a new config; the poll under way is the last at the old pace."""
        self._size, self._poll_s, self._stale_s = size, poll_s, stale_s

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def recall(self, found: Credentials) -> Caller | None:
        """`authenticate` without waiting: the caller where memory is enough to say who it is, else None."""
        if not found.digests:
            return self._without_key(found) if self._mode != "virtual" else None
        digest = found.digests[0]
        caller = self._known.get(digest)
        if (
            caller is None
            or self._monotonic() - self._synced > self._stale_s
            or (caller.expires_at is not None and caller.expires_at <= self._now())
        ):
            return None
        self._known.move_to_end(digest)
        return caller

    async def identify(self, headers: Mapping[str, str]) -> Caller:
        """`authenticate` by the header fields of a request; their names in any case."""
        return await self.authenticate(credentials(headers))

    async def authenticate(self, found: Credentials) -> Caller:
        """The caller of a request. Raises `InvalidKey`, `Forbidden` (expired) or `Unavailable`."""
        unreachable = False
        for digest in found.digests:
            try:
                caller = await self._look_up(digest)
            except Unavailable:
                unreachable = True
                continue
            if caller is not None:
                if caller.expires_at is not None and caller.expires_at <= self._now():
                    raise InvalidKey(f"The farebox key '{caller.key_name}' has expired. Ask for a new one.")
                return caller
        if unreachable:
            raise Unavailable("farebox can't check this key now: its database is away.", headers={"retry-after": "2"})
        return self._without_key(found)

    def _without_key(self, found: Credentials) -> Caller:
        """The caller of a request that has no valid farebox key."""
        if self._mode == "open":
            return _OPEN
        if self._mode == "passthrough":
            return _by_credential(found)
        if not found.given:
            raise InvalidKey(
                "No farebox key was given. Set the SDK's api_key to a key made with `farebox keys create`."
            )
        raise InvalidKey("This is not a farebox key, or it was revoked. Keys are made with `farebox keys create`.")

    async def _look_up(self, digest: bytes) -> Caller | None:
        known = self._known
        if digest in known:
            if self._monotonic() - self._synced > self._stale_s:
                raise Unavailable("stale")
            known.move_to_end(digest)
            return known[digest]
        until = self._unknown_until.get(digest)
        if until is not None and until > self._monotonic():
            return None
        under_way = self._lookups.get(digest)
        if under_way is None:
            if len(self._lookups) >= _LOOKUPS_MAX:
                raise Unavailable("busy")
            under_way = asyncio.ensure_future(self._fetch(digest))
            self._lookups[digest] = under_way
            under_way.add_done_callback(lambda _: self._lookups.pop(digest, None))
        try:
            return await asyncio.shield(under_way)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            raise Unavailable("database") from exc

    async def _fetch(self, digest: bytes) -> Caller | None:
        record = await self._find(digest)
        if record is None or record.revoked_at is not None:
            if len(self._unknown_until) >= self._size:
                self._unknown_until.clear()
            self._unknown_until[digest] = self._monotonic() + _UNKNOWN_S
            return None
        self._remember(digest, record)
        return self._known[digest]

    def _remember(self, digest: bytes, record: KeyRecord) -> None:
        self._unknown_until.pop(digest, None)
        old = self._by_id.get(str(record.id))
        if old is not None and old != digest:
            self._known.pop(old, None)
        self._known[digest] = caller_of(record)
        self._known.move_to_end(digest)
        self._by_id[str(record.id)] = digest
        while len(self._known) > self._size:
            _, dropped = self._known.popitem(last=False)
            if dropped is not None:
                self._by_id.pop(str(dropped.key_id), None)

    def apply(self, records: list[KeyRecord]) -> None:
        """Take in changed keys: revoked, rotated or altered ones take hold at once."""
        for record in records:
            digest = self._by_id.get(str(record.id))
            current = bytes(record.secret_hash)
            if record.revoked_at is not None or (digest is not None and digest != current):
                if digest is not None:
                    self._known.pop(digest, None)
                    self._by_id.pop(str(record.id), None)
            elif digest is not None:
                self._known[digest] = caller_of(record)
            self._unknown_until.pop(current, None)

    async def _follow(self) -> None:
        log = structlog.get_logger()
        away = False
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                async with asyncio.timeout(max(self._poll_s, 1.0)):
                    records, self._since = await self._changed_since(self._since)
            except Exception as exc:
                if not away:
                    log.warning("keys can't be refreshed; known keys go on", **exception_facts(exc))
                away = True
                continue
            if away:
                log.info("keys are refreshed again")
            away = False
            self._synced = self._monotonic()
            self.apply(records)
