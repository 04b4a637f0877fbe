"""Whose a stored object is: in memory at once, in Postgres soon after, asked there where memory has nothing.

What this process saw being made it knows before the answer's last byte is out; `kept` waits, for a
moment, until it is written down, so that other replicas find it too. While Postgres is away the records
wait here and are written when it is back; a process that ends meanwhile loses them, and the objects
are nobody's then. That an id is unknown is never remembered: the next moment it may be made elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol
from uuid import UUID

import structlog

from farebox.errors import Unavailable
from farebox.logs import exception_facts
from farebox.store.failures import is_refusal
from farebox.store.objects import ID_CHARS_MAX, StoredObject

REMEMBERED_MAX = 50_000
"""Objects remembered in memory; past that the longest unused is looked up again."""
QUEUE_MAX = 50_000
"""Records that wait for Postgres; past that the oldest are given up, and their objects are nobody's in the end."""
BATCH_MAX = 500
"""Records written with one statement."""
LOOKUPS_MAX = 64
"""Look-ups under way at once; more get 503 with `retry-after`."""
LOOKUP_S = 1.0
"""How long a look-up may take before the call gets 503."""
KEEP_S = 2.0
"""How long the end of an answer waits for its record. It goes out without when Postgres takes longer."""
_WRITE_S = 10.0
_RETRY_S = 0.5

_AWAY = "farebox can't tell now whose the stored object of this request is: its database is away."


class Shelf(Protocol):
    """Where records are kept; see `farebox.store.objects.ObjectStore`."""

    async def keep(self, objects: Sequence[StoredObject]) -> list[StoredObject]: ...

    async def find(self, ids: Collection[str], providers: Collection[str] | None) -> list[StoredObject]: ...

    async def forget(self, objects: Sequence[tuple[str, str]]) -> None: ...


class _Record:
    """One change on its way to Postgres."""

    __slots__ = ("deleted", "done", "object")

    def __init__(self, object: StoredObject, *, deleted: bool) -> None:
        self.object = object
        self.deleted = deleted
        self.done: asyncio.Future[None] | None = None

    def finish(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)


class Objects:
    """The stored objects farebox knows of. Used from one event loop; `start` before use, `close` at the end."""

    def __init__(self, shelf: Shelf, *, remembered_max: int = REMEMBERED_MAX, queue_max: int = QUEUE_MAX) -> None:
        self._shelf = shelf
        self._remembered_max = remembered_max
        self._queue_max = queue_max
        self._known: OrderedDict[str, tuple[StoredObject, ...]] = OrderedDict()
        self._queue: OrderedDict[tuple[str, str], _Record] = OrderedDict()
        self._lookups = 0
        self._away = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()

    async def start(self) -> None:
        """Begin to write records down."""
        self._task = asyncio.create_task(self._write(), name="stored objects")

    async def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for `timeout_s` at most, unless Postgres is known to be away."""
        if not self._away:
            await self._finished(list(self._queue.values()), timeout_s)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._queue:
            self._log.warning("owners of stored objects could not be written down", objects=len(self._queue))

    @property
    def waiting(self) -> int:
        """Records that are not in Postgres yet."""
        return len(self._queue)

    async def find(
        self, ids: Collection[str], *, providers: Collection[str] | None, key_id: UUID
    ) -> dict[str, list[StoredObject]]:
        """What is known under each of `ids`, at `providers` or, where that is None, at any; unknown ids are left out.

        An object of `key_id` is found in memory; whatever else is asked for is looked up. Raises
        `Unavailable` when it can't be.
        """
        found: dict[str, list[StoredObject]] = {}
        missing: list[str] = []
        for id in ids:
            if not 0 < len(id) <= ID_CHARS_MAX or not id.isprintable():
                continue
            here = [one for one in self._recall(id) if providers is None or one.provider in providers]
            if any(one.key_id == key_id for one in here):
                found[id] = here
            else:
                missing.append(id)
        for one in await self._look_up(missing, providers) if missing else ():
            found.setdefault(one.id, []).append(one)
        return found

    def note(self, objects: Iterable[StoredObject]) -> None:
        """These were made. An id that is known to be another's stays theirs."""
        for one in objects:
            if not 0 < len(one.id) <= ID_CHARS_MAX or not one.id.isprintable():
                continue
            here = next((known for known in self._recall(one.id) if known.provider == one.provider), None)
            if here is None:
                self._remember(one)
                self._enqueue(_Record(one, deleted=False))

    async def kept(self, objects: Iterable[StoredObject], timeout_s: float = KEEP_S) -> None:
        """Until these are in Postgres, or the time is over, or Postgres is known to be away."""
        records = [self._queue.get((one.id, one.provider)) for one in objects]
        if not self._away and not await self._finished([one for one in records if one is not None], timeout_s):
            self._away = True  # until it has written something again, nobody else waits for it

    def forget(self, one: StoredObject) -> None:
        """The provider deleted it."""
        self._drop(one.id, one.provider)
        self._enqueue(_Record(one, deleted=True))

    # -- memory ----------------------------------------------------------------------------------

    def _recall(self, id: str) -> tuple[StoredObject, ...]:
        known = self._known.get(id, ())
        if known:
            self._known.move_to_end(id)
        return known

    def _remember(self, one: StoredObject) -> None:
        others = tuple(known for known in self._known.get(one.id, ()) if known.provider != one.provider)
        self._known[one.id] = (*others, one)
        self._known.move_to_end(one.id)
        while len(self._known) > self._remembered_max:
            self._known.popitem(last=False)

    def _drop(self, id: str, provider: str) -> None:
        left = tuple(known for known in self._known.pop(id, ()) if known.provider != provider)
        if left:
            self._known[id] = left

    async def _look_up(self, ids: list[str], providers: Collection[str] | None) -> list[StoredObject]:
        if self._lookups >= LOOKUPS_MAX:
            raise Unavailable("Too many stored objects are looked up at once.", headers={"retry-after": "1"})
        self._lookups += 1
        try:
            async with asyncio.timeout(LOOKUP_S):
                rows = await self._shelf.find(ids, providers)
        except Exception as exc:
            self._log.warning("stored objects can't be looked up", **exception_facts(exc))
            raise Unavailable(_AWAY, headers={"retry-after": "2"}) from exc
        finally:
            self._lookups -= 1
        # What waits to be written is newer than what was read.
        rows = [one for one in rows if (one.id, one.provider) not in self._queue]
        for one in rows:
            self._remember(one)
        wanted = set(ids)
        queued = (record.object for record in self._queue.values() if not record.deleted)
        return rows + [one for one in queued if one.id in wanted and (providers is None or one.provider in providers)]

    # -- the way to Postgres ---------------------------------------------------------------------

    def _enqueue(self, record: _Record) -> None:
        key = (record.object.id, record.object.provider)
        if (old := self._queue.pop(key, None)) is not None:
            old.finish()
        self._queue[key] = record
        if len(self._queue) > self._queue_max:
            _, lost = self._queue.popitem(last=False)
            lost.finish()
            self._log.warning("the owner of a stored object is given up: too many wait for the database")
        self._wake.set()

    async def _finished(self, records: list[_Record], timeout_s: float) -> bool:
        waiting = []
        for record in records:
            if record.done is None:
                record.done = asyncio.get_running_loop().create_future()
            waiting.append(record.done)
        return not waiting or not (await asyncio.wait(waiting, timeout=timeout_s))[1]

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [record for _, record in zip(range(BATCH_MAX), self._queue.values(), strict=False)]
                try:
                    await self._write_down(batch)
                except Exception as exc:
                    await self._failed(batch, exc)
                else:
                    self._away = False

    async def _write_down(self, batch: list[_Record]) -> None:
        made = [record.object for record in batch if not record.deleted]
        gone = [(record.object.id, record.object.provider) for record in batch if record.deleted]
        async with asyncio.timeout(_WRITE_S):
            others = await self._shelf.keep(made) if made else []
            if gone:
                await self._shelf.forget(gone)
        for one in others:
            self._remember(one)  # whoever was first, elsewhere
        self._done(batch)

    def _done(self, batch: list[_Record]) -> None:
        for record in batch:
            key = (record.object.id, record.object.provider)
            if self._queue.get(key) is record:
                del self._queue[key]
            record.finish()

    async def _failed(self, batch: list[_Record], exc: Exception) -> None:
        if is_refusal(exc):
            self._log.error("owners of stored objects were refused by the database", **exception_facts(exc))
            self._done(batch)
            return
        if not self._away:
            self._log.warning("owners of stored objects wait for the database", **exception_facts(exc))
        self._away = True
        for record in batch:
            record.finish()
            record.done = None
        await asyncio.sleep(_RETRY_S)
