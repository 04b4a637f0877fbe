"""The durable queue between a request and Postgres: every attempt sent to a provider ends as exactly one row.

`begin` and `record` append to the local journal and return at once, whatever Postgres is doing; a
task drains it in batches, in order, for as long as it takes. Delivery may repeat (after a crash, or
when a reply was lost), so `write` must be idempotent by event id. What earlier lives left is
finished here: calls they had in flight become `farebox_cut`, and journals whose owner died are
adopted. How bytes lie on disk is the journal's business, what a row is the store's.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog

from farebox import payload
from farebox.journal import Journal, JournalLocked, JournalUnavailable, JournalVersionError, holds_segments
from farebox.ledger.delivery import Deliver
from farebox.logs import exception_facts
from farebox.records import UsageEvent

_FOLDER = "worker-{}"
_FOLDERS_MAX = 1024
_ADOPT_EVERY_S = 10.0
"""How often journals without an owner are looked for."""
_STUMBLE_S = 1.0
_GATHER_S = 0.005
"""How long an event with a budget waits for company."""


class Backlog(NamedTuple):
    """What has not reached Postgres yet. `oldest_s`: age of the oldest event, 0 if there is none."""

    events: int
    oldest_s: float


class Ledger:
    """Journal and drain of one process. `open`, then `begin` and `record` from the event loop's thread, then `close`.

    `interval_s` is how long an event waits for others to go with it, `gather_s` the same where a budget waits for it.
    `open_journal(folder)` opens or raises JournalLocked; `deliver` retries until a batch is stored; `cut_off`
    is told of each event that is made here: that of a call which a crash left open; `stored` whenever
    events have reached Postgres; `adopted` of the folder of a journal that had another owner, when all that
    was in it has and while its lock is held, and whether all of it could be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        open_journal: Callable[[Path], Journal],
        deliver: Deliver,
        batch_rows_max: int = 500,
        interval_s: float = 0.1,
        gather_s: float = _GATHER_S,
        adopt_every_s: float = _ADOPT_EVERY_S,
        now: Callable[[], float] = time.time,
        cut_off: Callable[[UsageEvent], None] = lambda event: None,
        stored: Callable[[], None] = lambda: None,
        adopted: Callable[[Path, bool], Awaitable[None]] | None = None,
    ) -> None:
        self._folder = folder
        self._open_journal = open_journal
        self._deliver = deliver
        self._batch_rows_max = batch_rows_max
        self._interval_s = interval_s
        self._gather_s = gather_s
        self._adopt_every_s = adopt_every_s
        self._now = now
        self._cut_off = cut_off
        self._stored = stored
        self._tell_adopted = adopted
        self._log = structlog.get_logger()
        self._journal: Journal
        self._adopted: Journal | None = None
        self._own: Path
        self._wake = asyncio.Event()
        self._awake = False
        """Whether `_wake` is known to be set: a look at it costs less than setting it with each event."""
        self._hurry = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._committed = asyncio.Event()
        self._delivered = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._unadoptable: dict[Path, type[Exception]] = {}
        self._refusing = False
        self.lost = 0
        """Events given up: neither journal nor Postgres took them. Each was logged."""

    async def open(self) -> None:
        """Take a journal folder, finish what its last owner left, and start draining.

        Raises JournalFull where the disk has no room for a first segment, JournalVersionError, OSError.
        """
        for number in range(_FOLDERS_MAX):
            self._own = self._folder / _FOLDER.format(number)
            try:
                self._journal = await asyncio.to_thread(self._open_journal, self._own)
                break
            except JournalLocked:
                continue
        else:
            raise JournalLocked(f"all {_FOLDERS_MAX} journals in {self._folder} are in use")
        self._finish_orphans(self._journal)
        self._tasks = [
            asyncio.create_task(self._drain_own(), name="ledger drain"),
            asyncio.create_task(self._adopt(), name="ledger adopt"),
        ]

    # -- what the data plane calls ---------------------------------------------------------------

    def begin(self, id: UUID, begun: bytes) -> None:
        """Write down that an attempt goes out; `begun` (made by `payload.encode`) tells the row a crash would leave.

        Raises JournalFull or JournalFailed: then the attempt must not go out. Cheap: one write, no sync.
        """
        try:
            # `id.bytes` is a property written in Python.
            self._journal.begin(id.int.to_bytes(16, "big"), begun)
        except JournalUnavailable as error:
            if not self._refusing:
                self._refusing = True
                self._log.error("the journal takes no new calls", reason=str(error), journal=str(self._own))
            raise
        if self._refusing:
            self._take_again()

    def _take_again(self) -> None:
        self._refusing = False
        self._log.info("the journal takes calls again")

    def record(self, event: UsageEvent) -> None:
        """`end` with an event."""
        self.end(event.id, payload.encode(event), waited_for=bool(event.budget_ids) and event.from_float is None)

    def end(self, id: UUID, event: bytes, *, waited_for: bool) -> None:
        """Write down how an attempt ended: the JSON of its event, and whether a budget waits for it.

        So it does for those with a reservation of their own. What was drawn from a float is far from any limit.

        Never fails for one that has begun; another may be lost: logged, counted.
        """
        try:
            backlog = self._journal.end(id.int.to_bytes(16, "big"), event)
        except JournalUnavailable as error:
            self.lost += 1
            self._log.error("an event was lost: it had no begin, and the journal is full", reason=str(error))
            return
        if not self._awake:
            self._awake = True
            self._wake.set()
        if backlog >= self._batch_rows_max:
            self._hurry.set()
        elif waited_for and self._soon is None:
            # Whoever can't do without it, `settled` sends it at once.
            self._soon = asyncio.get_running_loop().call_later(self._gather_s, self._hurry.set)

    def abandon(self, id: UUID) -> None:
        """Take a begin back: the attempt provably did not go out, and leaves no row."""
        self._journal.end(id.bytes, b"")

    @property
    def writable(self) -> bool:
        """Whether new calls are taken, as far as is known.

        After a refusal the disk is asked: where a probe keeps traffic away, no call would find out that it passed.
        """
        if self._refusing and self._journal.has_room():
            self._take_again()
        return not (self._refusing or self._journal.failed)

    @property
    def backlog(self) -> Backlog:
        """What waits for Postgres, adopted journals included."""
        journals = [j for j in (self._journal, self._adopted) if j is not None]
        oldest = [j.oldest_at for j in journals if j.oldest_at is not None]
        return Backlog(sum(j.backlog for j in journals), max(0.0, self._now() - min(oldest)) if oldest else 0.0)

    @property
    def folder(self) -> Path:
        """Where the journal of this process lies."""
        return self._own

    @property
    def whole(self) -> bool:
        """Whether all that earlier lives wrote into this journal could be read, and is or will be in Postgres."""
        return not (self._journal.damaged_bytes or self.lost)

    @property
    def in_flight(self) -> int:
        """Attempts that have begun and not ended."""
        return self._journal.in_flight

    # -- draining --------------------------------------------------------------------------------

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far is in Postgres; False if that took longer."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._journal.backlog:
                    self._hurry.set()
                    self._wake.set()
                    self._drained.clear()
                    await self._drained.wait()
        except TimeoutError:
            return False
        return True

    async def settled(self, timeout_s: float) -> bool:
        """Wait until what was recorded up to now is in Postgres, whatever comes after it; False if that took longer."""
        mark = self._delivered + self._journal.backlog
        try:
            async with asyncio.timeout(timeout_s):
                while self._delivered < mark:
                    self._hurry.set()
                    self._wake.set()
                    self._committed.clear()
                    await self._committed.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout_s: float) -> bool:
        """Drain for so long at most, then let go of the journal; what is left is drained by the next life."""
        flushed = await self.flush(timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not flushed:
            self._log.warning("events wait in the journal for the next start", events=self.backlog.events)
        await asyncio.to_thread(self._journal.close)
        return flushed

    async def _drain_own(self) -> None:
        while True:
            await self._wake.wait()
            # Gather a batch, unless there is one already.
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._awake = False
            self._wake.clear()
            self._hurry.clear()
            if self._soon is not None:
                self._soon.cancel()
                self._soon = None
            try:
                # What comes meanwhile is gathered for the next round.
                await self._drain(self._journal, self._journal.backlog)
            except Exception as error:
                # Nothing is known to raise here; whatever does must not end the drain for good.
                self._log.error("the journal could not be drained; trying again", **exception_facts(error))
                await asyncio.sleep(_STUMBLE_S)
                self._wake.set()
            self._drained.set()

    async def _drain(self, journal: Journal, events: float = math.inf) -> None:
        """Deliver so many events, or all there are."""
        while events > 0 and (batch := journal.next_batch(self._batch_rows_max)):
            events -= len(batch)
            lost = await self._deliver(batch)
            self.lost += lost  # read after the wait: others are lost meanwhile
            journal.commit()
            if journal is self._journal:
                self._delivered += len(batch)
                self._committed.set()
            self._stored()

    def _finish_orphans(self, journal: Journal) -> None:
        """Turn calls that a crash left open into `farebox_cut` events, in the journal itself."""
        orphans = journal.orphans()
        for orphan in orphans:
            try:
                cut = payload.cut(orphan.payload, orphan.seen_at)
                journal.end(orphan.id, cut)
                self._cut_off(msgspec.json.decode(cut, type=UsageEvent))
            except msgspec.ValidationError:
                pass  # the row is written, whatever is wrong with it
            except ValueError:
                self.lost += 1
                self._log.error("a call that a crash cut off can't be read", id=str(UUID(bytes=orphan.id)))
                journal.end(orphan.id, b"")
        if orphans:
            self._log.warning("calls were cut off by a crash", calls=len(orphans))
        if journal.damaged_bytes:
            self._log.warning("the journal held bytes that make no record", bytes=journal.damaged_bytes)
        if journal.backlog:
            self._wake.set()

    # -- the journals of the dead ----------------------------------------------------------------

    async def _adopt(self) -> None:
        while True:
            for folder in sorted(self._folder.glob(_FOLDER.format("*"))):
                if folder == self._own or self._unadoptable.get(folder) is JournalVersionError:
                    continue
                try:
                    if holds_segments(folder):
                        await self._adopt_one(folder)
                except Exception as error:
                    # All but a newer format may pass. Said once as long as it is the same.
                    if self._unadoptable.get(folder) is not type(error):
                        self._unadoptable[folder] = type(error)
                        self._log.error("a journal can't be adopted", journal=str(folder), **exception_facts(error))
            await asyncio.sleep(self._adopt_every_s)

    async def _adopt_one(self, folder: Path) -> None:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open_journal, folder))
        try:
            journal = await asyncio.shield(opening)
        except JournalLocked:
            return
        except asyncio.CancelledError:
            # The thread can't be cancelled: what it opens must be closed again.
            await asyncio.gather(opening, return_exceptions=True)
            if opening.exception() is None:
                opening.result().close()
            raise
        self._adopted = journal
        lost = self.lost
        try:
            self._log.info("adopting the journal of a process that is gone", journal=str(folder))
            self._finish_orphans(journal)
            await self._drain(journal)
            if self._tell_adopted is not None:
                await self._tell_adopted(folder, not (journal.damaged_bytes or self.lost > lost))
        finally:
            self._adopted = None
            await asyncio.to_thread(journal.close)
