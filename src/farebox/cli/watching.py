"""What `farebox top` looks at: the ledger's last rows, and the gauges of a running farebox.

The last minute is asked for each time; the last hour and today less often, and the longer they take
the less often, so that watching never is much of the database's work. A call counts for the minute
in which it ended, because only then there is a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Generic, TypeVar

import aiohttp
import msgspec

from farebox.store import StoreUnavailable, UsageFilter
from farebox.store.reports import Report, Reports, Sums, read_zone

IN_FLIGHT = "farebox_in_flight_requests"
BACKLOG = "farebox_ledger_backlog_events"
GROUPS_SHOWN = 200
"""Rows of the table, at most; the terminal usually has room for fewer."""

_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_LONGEST_CALL = timedelta(minutes=10)
"""A call that ended in the last minute is looked for among those that began in this time before it."""
_HOUR_EVERY_S = 5.0
_TODAY_EVERY_S = 15.0
_GAUGES_EVERY_S = 1.0
_SHARE = 20
"""A question that takes a second is asked every twenty seconds."""
_SCRAPE_S = 2.0
_SCRAPE_BYTES_MAX = 64 << 20

T = TypeVar("T")


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One look. None: not known. `minute`: calls that ended in it; `hour`, `today`: that began in it."""

    at: datetime
    by: str
    in_flight: int | None
    backlog: int | None
    minute: Sums | None
    hour: Sums | None
    today: Sums | None
    groups: list[GroupSeen] = []
    fault: str | None = None
    """Why there are no numbers."""


class GroupSeen(msgspec.Struct, frozen=True):
    """A row of the table."""

    label: str | None
    minute: Sums
    hour: Sums


class Watch:
    """Looks at one ledger. `gauges` gives a running farebox's gauges by name, or nothing."""

    def __init__(
        self,
        reports: Reports,
        gauges: Callable[[], Awaitable[Mapping[str, float]]],
        *,
        where: UsageFilter,
        by: str,
        zone: str,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._reports = reports
        self._where = where
        self._zone = zone
        self._now = now
        self.by = by
        self._hour = _Paced(self._ask_hour, _HOUR_EVERY_S, monotonic)
        self._today = _Paced(self._ask_today, _TODAY_EVERY_S, monotonic)
        self._gauges = _Paced(gauges, _GAUGES_EVERY_S, monotonic)

    def group_by(self, by: str) -> None:
        """Another table from now on."""
        self.by = by
        self._hour.forget()

    async def look(self) -> Seen:
        """The numbers of this moment; without a database a `fault`, and what is known all the same."""
        gauges = await self._gauges()
        at, fault = self._now(), None
        minute = hour = today = None
        try:
            minute, hour, today = await asyncio.gather(self._ask_minute(), self._hour(), self._today())
        except StoreUnavailable as exc:
            fault = str(exc)
        return Seen(
            at=at,
            by=self.by,
            in_flight=_whole(gauges.get(IN_FLIGHT)),
            backlog=_whole(gauges.get(BACKLOG)),
            minute=minute.total if minute else None,
            hour=hour.total if hour else None,
            today=today,
            groups=_merged(minute, hour) if minute and hour else [],
            fault=fault,
        )

    async def _ask_minute(self) -> Report:
        ended = self._now() - _MINUTE
        where = msgspec.structs.replace(self._where, since=ended - _LONGEST_CALL, finished_since=ended)
        return await self._reports.sums(where, by=(self.by,), groups_max=GROUPS_SHOWN)

    async def _ask_hour(self) -> Report:
        where = msgspec.structs.replace(self._where, since=self._now() - _HOUR)
        return await self._reports.sums(where, by=(self.by,), groups_max=GROUPS_SHOWN)

    async def _ask_today(self) -> Sums:
        local = self._now().astimezone(read_zone(self._zone))
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        return await self._reports.spend(msgspec.structs.replace(self._where, since=midnight))


def scraping(url: str, token: str | None) -> Callable[[], Awaitable[Mapping[str, float]]]:
    """A question for the gauges in `GET /metrics` at `url`, summed over their labels; nothing if nobody answers."""

    async def scrape() -> Mapping[str, float]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=_SCRAPE_S)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as answer:
                if answer.status != 200:
                    return {}
                text = bytearray()
                async for piece in answer.content.iter_chunked(1 << 16):
                    text += piece
                    if len(text) > _SCRAPE_BYTES_MAX:
                        return {}
                return gauges_in(text.decode("utf-8", "replace"))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return {}

    return scrape


def gauges_in(text: str) -> dict[str, float]:
    """The values of IN_FLIGHT and BACKLOG in Prometheus' text format."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition(" ")[0].partition("{")[0]
        if name in (IN_FLIGHT, BACKLOG):
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


class _Paced(Generic[T]):
    """A question that is asked anew when its answer is `every_s` old, and `_SHARE` times as old as it took to get."""

    def __init__(self, ask: Callable[[], Awaitable[T]], every_s: float, monotonic: Callable[[], float]) -> None:
        self._ask = ask
        self._every_s = every_s
        self._monotonic = monotonic
        self._known: T | None = None
        self._due = 0.0

    def forget(self) -> None:
        """Ask the next time, whatever is known."""
        self._known = None

    async def __call__(self) -> T:
        begun = self._monotonic()
        if self._known is None or begun >= self._due:
            self._known = await self._ask()
            done = self._monotonic()
            self._due = done + max(self._every_s, _SHARE * (done - begun))
        return self._known


def _merged(minute: Report, hour: Report) -> list[GroupSeen]:
    """The groups of the hour in its order, then those that are in the minute alone."""
    recent: dict[str | None, Sums] = {group.labels[0]: group.sums for group in minute.groups}
    groups = [GroupSeen(group.labels[0], recent.pop(group.labels[0], Sums()), group.sums) for group in hour.groups]
    return groups + [GroupSeen(label, sums, Sums()) for label, sums in recent.items()]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
