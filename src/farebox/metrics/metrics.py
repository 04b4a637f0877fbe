"""Counts what happens, and shows it: `observe` takes the event that the ledger got, `pieces` gives `/metrics`.

Everything here runs in the event loop's thread. Nothing that goes wrong here reaches a caller: the
row and the answer matter more than the number.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

import structlog

from farebox.kinds import Ended, Kind
from farebox.logs import exception_facts
from farebox.metrics import families as f
from farebox.metrics import reading, text
from farebox.metrics.budgets import Ask, BudgetGauges
from farebox.metrics.families import COST, FAMILIES, OTHER, REQUESTS, TOKEN_TYPES, TOKENS, Family
from farebox.metrics.series import LABEL_CHARS_MAX, Series, Table, clean
from farebox.metrics.storage import Storage
from farebox.records import UsageEvent, UsageSource
from farebox.rows import Row

KINS_MAX = 10_000
"""Combinations of labels whose places are remembered, by the labels and by the event's own words; likewise."""
_PLACES_MAX = 10_000
"""Combinations of label values whose places are remembered; at it all are looked up anew."""
_COST, _DURATION, _FIRST_TOKEN, _OVERHEAD = COST.name, f.DURATION.name, f.FIRST_TOKEN.name, f.OVERHEAD.name
_TIMES = {family.name: family for family in (f.DURATION, f.FIRST_TOKEN, f.PER_TOKEN, f.OVERHEAD)}
_STUMBLES_SAID = 5
"""How many failures are logged; the rest would say the same at every call."""


class Backlog(Protocol):
    """What waits in the ledger."""

    @property
    def events(self) -> int: ...
    @property
    def oldest_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What is not counted by event but looked at: every second, and at each scrape."""

    in_flight: Callable[[], int]
    backlog: Callable[[], Backlog]
    lost: Callable[[], int]
    """Events lost since this process began."""
    corrections: Callable[[], Awaitable[tuple[Decimal, Decimal]]] | None = None
    """Cost corrected (up, down) in the whole ledger, in USD; with several workers only one asks."""
    overrun: Callable[[], Awaitable[Decimal]] | None = None
    """Cost above what budgets held, in the whole ledger, in USD; likewise."""
    budgets: Ask | None = None
    """How budgets stand; every worker asks, when it is scraped."""


class _Kin(dict[str, int]):
    """Where events with the same labels are counted: places by family (tokens: by type), found when first needed."""

    def __init__(
        self, place: Callable[[Family, tuple[str, ...]], int], labels: tuple[str, ...], source: UsageSource
    ) -> None:
        super().__init__()
        self._place = place
        self.labels = labels
        self.provider, self.model, _, self.key, _, _ = labels
        self.bills = source != "none"
        """Whether a cost of nothing is one."""
        # What every event counts.
        self.requests = place(REQUESTS, labels)
        self.source = place(f.USAGE_SOURCE, (source,))

    def __missing__(self, what: str) -> int:
        if what in TOKEN_TYPES:
            place = self._place(TOKENS, (self.provider, self.model, self.key, what))
        elif what == COST.name:
            place = self._place(COST, (self.provider, self.model, self.key))
        else:
            place = self._place(_TIMES[what], (self.provider, self.model))
        self[what] = place
        return place


class Metrics:
    """All metrics of one process, and of those that share its `storage`. `start`, ..., `close`."""

    def __init__(
        self,
        *,
        storage: Storage,
        label_values_max: int,
        is_secret: Callable[[str], bool],
        sources: Sources,
        version: str,
        look_s: float = 1.0,
        corrections_poll_s: float = 60.0,
        kins_max: int = KINS_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._own = storage.own
        self._table = Table(
            [family for family in FAMILIES if not family.looked_up],
            series_max=len(storage.own),
            label_values_max=label_values_max,
            log=storage,
            is_secret=is_secret,
        )
        self._sources = sources
        self._budgets: BudgetGauges | None = None
        if sources.budgets is not None:
            self._budgets = BudgetGauges(
                sources.budgets, rows_max=label_values_max, is_secret=is_secret, monotonic=monotonic
            )
        self._look_s = look_s
        self._corrections_poll_s = corrections_poll_s
        self._log = structlog.get_logger()
        self._places: dict[tuple[str, ...], int] = {}
        self._kins_max = kins_max
        self._kins: dict[tuple[tuple[str, ...], UsageSource], _Kin] = {}
        self._answered: dict[tuple[object, ...], _Kin] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stumbles = 0
        self._lost = 0
        for family in FAMILIES:
            if not family.open and family not in (f.CORRECTIONS, f.OVERRUN):
                # From the start, at 0: what is seen first at 1 has not increased for Prometheus. (The corrections and
                # overruns are the ledger's totals: a 0 before the first look would make all of them an increase.)
                for values in family.fallbacks():
                    if OTHER not in values:
                        place = self._place(family, *values)
                        if family.kind == "gauge":
                            self._own[place] = 0.0  # of the worker that was here before
        self._own[self._place(f.BUILD, clean(version))] = 1.0

    # -- what is counted -------------------------------------------------------------------------

    def observe(self, event: UsageEvent) -> None:
        """Count one attempt that is over. Never raises."""
        try:
            self._observe(event)
        except Exception as error:
            self._stumbled("an attempt is missing in the metrics", error)

    def refused(self, reason: str) -> None:
        """Count one answer of farebox's own with this code (`errors.Refusal.code`). Never raises."""
        self._count(f.REFUSALS, reason)

    def reloaded(self, result: str) -> None:
        """Count one reload of the config, `ok` or `failed`. Never raises."""
        self._count(f.RELOADS_DONE, result)

    def reached(self, budget: str, threshold: str) -> None:
        """Count a threshold that a budget reached. Never raises."""
        self._count(f.THRESHOLDS, clean(budget), clean(threshold))

    def warned(self, budget: str) -> None:
        """Count a call that a used-up budget let pass. Never raises."""
        self._count(f.WARNED, clean(budget))

    def count(self, row: Row, kind: Kind, ended: Ended) -> None:
        """`observe` with the short form of an event. Never raises."""
        try:
            kin: _Kin | None = ended.counted
            if kin is None:
                kin = ended.counted = self._kin_of_ended(kind, ended)
            self._count_usual(row, kin)
            if row.cost_usd is None:
                self._own[self._place(f.UNPRICED, kin.model)] += 1
            if row.ttft_ms is not None and kind.stream:
                self._count_pace(reading.pace(row.output_tokens, row.duration_ms, row.ttft_ms), kin)
        except Exception as error:
            self._stumbled("an attempt is missing in the metrics", error)

    def _observe(self, event: UsageEvent) -> None:
        own, kin = self._own, self._kin(event)
        self._count_usual(event, kin)
        if event.usage_source in f.GUESSED and event.cost_usd is not None:
            own[self._place(f.UNATTESTED, event.usage_source)] += max(0.0, float(event.cost_usd))
        if event.cost_usd is None and event.usage_source != "none":
            own[self._place(f.UNPRICED, kin.model)] += 1
        if event.provider_cost_usd is not None and (difference := reading.drift(event)):
            direction = "over" if difference > 0 else "under"
            own[self._place(f.DRIFT, kin.provider, direction)] += abs(float(difference))
        if event.stream:
            self._count_pace(reading.seconds_per_token(event), kin)
        if event.unparsed_events:
            own[self._place(f.UNPARSED, kin.provider)] += event.unparsed_events
        if event.outcome != "complete" and (error := reading.error_kind(event)) is not None:
            own[self._place(f.UPSTREAM_ERRORS, kin.provider, error)] += 1

    def _count_usual(self, event: UsageEvent | Row, kin: _Kin) -> None:
        """What events of any kind have, or may have."""
        own = self._own
        own[kin.requests] += 1
        own[kin.source] += 1
        fresh, read, write, output, reasoning = reading.token_counts(event)
        if fresh:
            own[kin["input"]] += fresh
        if output:
            own[kin["output"]] += output
        if read or write or reasoning:
            for kind, count in (("cache_read", read), ("cache_write", write), ("reasoning", reasoning)):
                if count:
                    own[kin[kind]] += count
        usd, whole_ms, first_ms, ours_ms = event.cost_usd, event.duration_ms, event.ttft_ms, event.overhead_ms
        if usd is not None and (usd or kin.bills):
            own[kin[_COST]] += float(usd) if usd > 0 else 0.0
        if whole_ms is not None:
            self._time(kin[_DURATION], f.DURATION.buckets, whole_ms / 1000)
        if ours_ms is not None:
            self._time(kin[_OVERHEAD], f.OVERHEAD.buckets, ours_ms / 1000)
        if first_ms is not None:
            self._time(kin[_FIRST_TOKEN], f.FIRST_TOKEN.buckets, first_ms / 1000)
        for call in event.tool_calls:
            own[self._place(f.TOOL_CALLS, self._table.name("tool", call.name))] += call.count

    def _count_pace(self, seconds: float | None, kin: _Kin) -> None:
        if seconds is not None:
            self._time(kin[f.PER_TOKEN.name], f.PER_TOKEN.buckets, seconds)

    def _time(self, start: int, buckets: tuple[float, ...], seconds: float) -> None:
        """Into the histogram that begins at `start`."""
        own = self._own
        if seconds > 0:
            own[start + bisect_left(buckets, seconds)] += 1
            own[start + len(buckets) + 1] += seconds
        else:
            own[start] += 1

    def _kin(self, event: UsageEvent) -> _Kin:
        """Where `event` is counted; for what a provider took found by the event's own words, without looking at them.

        A name that nobody vouches for may get a place of its own later, so that one is looked up each time.
        """
        if not reading.answered(event):
            return self._kin_of(self._labels(event, answered=False), event.usage_source)
        model = event.model or event.requested_model
        words = (event.provider, model, event.endpoint, event.key_name, event.status, event.outcome, event.usage_source)
        kin = self._answered.get(words)
        if kin is None:
            kin = self._kin_of(self._labels(event, answered=True), event.usage_source)
            if model is None or len(model) <= LABEL_CHARS_MAX:
                if len(self._answered) >= self._kins_max:
                    self._answered.clear()
                self._answered[words] = kin
        return kin

    def _kin_of_ended(self, kind: Kind, ended: Ended) -> _Kin:
        """As `_kin` of an event that says `ended`."""
        name = self._table.name
        labels = (
            name("provider", kind.provider),
            name("model", ended.model or kind.model),
            name("endpoint", kind.target.endpoint),
            name("key", kind.caller.key_name),
            name("status", "200"),
            "complete",
        )
        return self._kin_of(labels, "provider")

    def _labels(self, event: UsageEvent, *, answered: bool) -> tuple[str, ...]:
        name = self._table.name
        return (
            name("provider", event.provider),
            name("model", event.model or event.requested_model, answered),
            name("endpoint", event.endpoint, answered or event.operation != "other"),
            name("key", event.key_name, answered or event.key_id is not None),
            name("status", None if event.status is None else str(event.status)),
            event.outcome,
        )

    def _kin_of(self, labels: tuple[str, ...], source: UsageSource) -> _Kin:
        kin = self._kins.get((labels, source))
        if kin is None:
            if len(self._kins) >= self._kins_max:
                self._kins.clear()
            kin = self._kins[labels, source] = _Kin(self._table.place, labels, source)
        return kin

    def _count(self, family: Family, *values: str) -> None:
        try:
            self._own[self._place(family, *values)] += 1
        except Exception as error:
            self._stumbled("something is missing in the metrics", error)

    def _place(self, family: Family, *values: str) -> int:
        asked = (family.name, *values)
        place = self._places.get(asked)
        if place is None:
            place = self._table.place(family, values)
            if len(self._places) >= _PLACES_MAX:
                self._places.clear()
            self._places[asked] = place
        return place

    def _stumbled(self, what: str, error: Exception) -> None:
        self._stumbles += 1
        if self._stumbles <= _STUMBLES_SAID:
            self._log.error(what, **exception_facts(error))

    # -- what is looked at -----------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to look at the sources."""
        self._tasks.append(asyncio.create_task(self._keep_looking(), name="metrics look"))
        if self._sources.corrections is not None or self._sources.overrun is not None:
            self._tasks.append(asyncio.create_task(self._keep_asking(), name="metrics corrections"))

    async def close(self) -> None:
        """Let go of the storage; nothing may be counted any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._storage.close()

    def look(self) -> None:
        """Take the sources' figures of now. Never raises."""
        try:
            backlog, lost = self._sources.backlog(), self._sources.lost()
            self._own[self._place(f.IN_FLIGHT)] = self._sources.in_flight()
            self._own[self._place(f.BACKLOG)] = backlog.events
            self._own[self._place(f.OLDEST)] = backlog.oldest_s
            self._own[self._place(f.LOST)] += lost - self._lost
            self._lost = lost
        except Exception as error:
            self._stumbled("something is missing in the metrics", error)

    async def _keep_looking(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self._look_s)

    async def look_up(self) -> None:
        """Take what only the database knows, for `pieces`; within `budgets.TIMEOUT_S`. Never raises."""
        if self._budgets is not None:
            await self._budgets.look()

    async def _keep_asking(self) -> None:
        while True:
            try:
                if self._sources.corrections is not None:
                    up, down = await self._sources.corrections()
                    self._own[self._place(f.CORRECTIONS, "up")] = float(up)
                    self._own[self._place(f.CORRECTIONS, "down")] = float(down)
                if self._sources.overrun is not None:
                    self._own[self._place(f.OVERRUN)] = float(await self._sources.overrun())
            except Exception as error:
                # The database is away, mostly: the last figures stand.
                self._log.debug("the cost corrections could not be read", **exception_facts(error))
            await asyncio.sleep(self._corrections_poll_s)

    # -- what is shown ---------------------------------------------------------------------------

    def pieces(self) -> Iterator[bytes]:
        """The exposition of all workers together as it is now, written while it is iterated."""
        self.look()
        self._table.catch_up()
        workers = self._storage.all()
        largest = {family.name for family in FAMILIES if family.largest}
        made = {name: list(series) for name, series in self._table.made.items()}
        looked_up: list[float] = []
        made |= {family.name: [] for family in FAMILIES if family.looked_up}
        for family, value, amount in self._budgets.samples() if self._budgets is not None else ():
            # Told at negative places: they have none in the storage.
            looked_up.append(amount)
            made[family.name].append(Series(family.name, -len(looked_up), 1, (value,)))

        def values_of(series: Series) -> list[float]:
            if series.start < 0:
                return [looked_up[-series.start - 1]]
            start, end = series.start, series.start + series.width
            merge = max if series.family in largest else text.total
            if series.width == 1:
                return [merge([values[start] for values in workers])]
            return [merge(column) for column in zip(*[values[start:end] for values in workers], strict=True)]

        yield from text.write(FAMILIES, made, values_of)

    def exposition(self) -> bytes:
        """`pieces` in one."""
        return b"".join(self.pieces())
