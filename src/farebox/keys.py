"""Who is calling: credential in the request -> Caller, without waiting for the database.

A key's secret is shown once and kept as a SHA-256 (the secret has 190 random bits, so nothing
slower is needed). Known keys are held in memory; a poll every `key_poll_s` brings every change
made anywhere, which is how a revocation takes hold within seconds on every replica. While the
database is away known keys go on for `stale_s`; unknown ones can't be looked up and get 503.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

import structlog

from farebox.errors import Forbidden, InvalidKey, Unavailable
from farebox.logs import exception_facts
from farebox.records import Caller, KeyRecord

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BODY_CHARS = 32
_CHECK_CHARS = 6
PREFIX = "fb-"

_UNKNOWN_S = 2.0
"""How long a well-formed key that does not exist is remembered as such."""
_LOOKUPS_MAX = 64
"""Look-ups of unknown keys under way at once; more get 503 with `retry-after`."""
CREDENTIAL_HEADERS = ("x-farebox-key", "authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Where a credential is looked for, in this order; the first valid one wins."""


def mint_secret() -> str:
    """A new key: `fb-`, 32 random characters, 6 of checksum (so that most rubbish needs no look-up)."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_BODY_CHARS))
    return PREFIX + body + _checksum(body)


def hash_secret(secret: str) -> bytes:
    """What the store keeps of a key: 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def well_formed(secret: str) -> bool:
    """Whether `secret` can be a farebox key."""
    if len(secret) != len(PREFIX) + _BODY_CHARS + _CHECK_CHARS or not secret.startswith(PREFIX):
        return False
    body = secret[len(PREFIX) : -_CHECK_CHARS]
    return secret.isascii() and _checksum(body) == secret[-_CHECK_CHARS:]


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    out = ""
    for _ in range(_CHECK_CHARS):
        value, digit = divmod(value, len(_ALPHABET))
        out += _ALPHABET[digit]
    return out


_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_BODY_CHARS + _CHECK_CHARS}}}")
_MARK = PREFIX.encode()


def misplaced(headers: Iterable[tuple[bytes, bytes]], target: str, *, passthrough: bool) -> str | None:
    """Where a farebox key stands that would go to the provider, or into a row, from there; None if nowhere.

    `passthrough`: the credential headers go up as well, all but x-farebox-key.
    """
    if holds_key(target):
        return "URL"
    for name, value in headers:
        if _MARK in value and holds_key(value.decode("latin-1")):
            header = name.decode("latin-1").lower()
            if header not in CREDENTIAL_HEADERS or (passthrough and header != "x-farebox-key"):
                return header
    return None


def holds_key(text: str) -> bool:
    """Whether a farebox key stands anywhere in `text`."""
    return PREFIX in text and any(well_formed(found[0]) for found in _KEY.finditer(text))


def credentials(headers: Mapping[str, str]) -> list[str]:
    """The credentials a request carries, in order of precedence. `headers` is case-insensitive."""
    found = []
    for name in CREDENTIAL_HEADERS:
        value = headers.get(name)
        if not value:
            continue
        if name == "authorization":
            scheme, _, value = value.partition(" ")
            if scheme.lower() != "bearer":
                continue
        if value := value.strip():
            found.append(value)
    return found


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

    async def identify(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request. Raises `InvalidKey`, `Forbidden` (expired) or `Unavailable`."""
        given = credentials(headers)
        unreachable = False
        for secret in given:
            if not well_formed(secret):
                continue
            try:
                caller = await self._look_up(hash_secret(secret))
            except Unavailable:
                unreachable = True
                continue
            if caller is not None:
                if caller.expires_at is not None and caller.expires_at <= self._now():
                    raise InvalidKey(f"The farebox key '{caller.key_name}' has expired. Ask for a new one.")
                return caller
        if unreachable:
            raise Unavailable("farebox can't check this key now: its database is away.", headers={"retry-after": "2"})
        if self._mode == "open":
            return Caller(kind="open")
        if self._mode == "passthrough":
            return self._by_credential(headers, given)
        if not given:
            raise InvalidKey(
                "No farebox key was given. Set the SDK's api_key to a key made with `farebox keys create`."
            )
        raise InvalidKey("This is not a farebox key, or it was revoked. Keys are made with `farebox keys create`.")

    def _by_credential(self, headers: Mapping[str, str], given: list[str]) -> Caller:
        if headers.get("x-farebox-key"):
            raise InvalidKey("The x-farebox-key of this request is not a farebox key, or it was revoked.")
        if not given:
            raise InvalidKey("No credential was given: farebox passes the client's own on to the provider.")
        if any(secret.startswith(PREFIX) for secret in given):
            raise Forbidden("A farebox key goes into x-farebox-key here: Authorization is passed on to the provider.")
        return Caller(kind="passthrough", key_name="credential-" + hash_secret(given[0]).hex()[:12])

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
