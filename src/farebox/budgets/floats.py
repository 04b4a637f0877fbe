"""A float in memory: what is free of it, what its calls took, and when it may not be used any more. Pure.

A float is an amount that this process has reserved ahead on a fixed set of counters. At every moment

    free + what calls under way hold + what their rows, not posted yet, will free  =  what the database has for it

because `free` grows only by what the database said it put in and by what calls gave back that provably were
not sent, and shrinks with every call and with all that is given back, whether that arrived or not. What is lost of
an answer is so held for longer than needed, never too little. Taking floats and giving them back is `floating`'s.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from decimal import Decimal
from uuid import UUID

import msgspec

from farebox.records import FloatHold, Want
from farebox.store.budgets import Take

Key = tuple[tuple[int, str], ...]
"""Counters as a call's wants name them, in their order: budgets by their ids' numbers, which are hashed in no time."""

CALLS_MIN = 8
CALLS_MAX = 8_192
"""Calls a float is asked to hold, at least and at most; in between, what comes within two seconds. Where the database
is slow to fill it up it must not run dry meanwhile: a call that finds it so costs far more. How much
of a limit it may take is bounded there."""
BUSY = 4
"""Calls within a second that make a float worth its while: fewer cost less one by one."""
BEGINNING_S = 0.1
"""The least time that the pace of calls is taken from. A burst that is over sooner leaves up to ten times too much in
its float, until that is idle."""
REFUSED_S = 1.0
"""How long none is asked for where the database gave none."""


def key_of(counters: Iterable[tuple[UUID, str]]) -> Key:
    """The key of calls that these budgets, of these subjects, count."""
    return tuple([(budget.int, subject) for budget, subject in counters])


class Part(msgspec.Struct, frozen=True, gc=False):
    """What a call wants, in one place for each of its counters. Made by position: each call makes one."""

    counters: tuple[tuple[UUID, str], ...]
    key: Key
    usd: tuple[Decimal, ...]
    tokens: tuple[int, ...]
    requests: tuple[int, ...]

    @classmethod
    def of(cls, wants: Sequence[Want]) -> Part:
        """The same as these say one by one."""
        counters = tuple([(want.budget, want.subject) for want in wants])
        return cls(
            counters,
            key_of(counters),
            tuple([want.usd for want in wants]),
            tuple([want.tokens for want in wants]),
            tuple([want.requests for want in wants]),
        )

    @property
    def wants(self) -> tuple[Want, ...]:
        """The same, one by one."""
        each = zip(self.counters, self.usd, self.tokens, self.requests, strict=True)
        return tuple(Want(*counter, usd, tokens, requests) for counter, usd, tokens, requests in each)


class Drawn(msgspec.Struct, frozen=True, gc=False):
    """A call's leave out of a float. `left_usd`: of each counter with a limit in dollars, what is left beside it."""

    hold: FloatHold
    left_usd: tuple[Decimal | None, ...]


class Float:
    """One float of this process. `until`: when its first window ends, in monotonic seconds."""

    __slots__ = (
        "calls",
        "closed",
        "demand",
        "filling",
        "free_requests",
        "free_tokens",
        "free_usd",
        "id",
        "left_usd",
        "lost",
        "low",
        "low_requests",
        "low_tokens",
        "low_usd",
        "owner",
        "until",
        "used_at",
        "windows",
    )

    def __init__(self, id: UUID, owner: int, lost: int) -> None:
        self.id = id
        self.owner = owner
        self.lost = lost
        """How many events were lost before it: one more could have been a call of it."""
        self.windows: tuple[int, ...] = ()
        self.free_usd: list[Decimal] = []
        self.free_tokens: list[int] = []
        self.free_requests: list[int] = []
        self.low_usd: list[Decimal] = []
        self.low_tokens: list[int] = []
        self.low_requests: list[int] = []
        self.low = False
        """Less than half is left of what it had when it was filled."""
        self.filling = False
        """The database is putting something in."""
        self.left_usd: list[Decimal | None] = []
        self.until = 0.0
        self.used_at = 0.0
        self.demand: Demand | None = None
        """Whose calls it serves, or will; None once it is closed."""
        self.calls = 0
        """Calls that hold something of it and are not recorded yet."""
        self.closed = False

    def fill(self, take: Take, part: Part, asked_at: float) -> None:
        """Put in what the database did, asked at `asked_at`: its clock was read later, so a window ends no later."""
        calls, windows = take.calls, take.windows
        ends = [window.resets_at for window in windows if window.resets_at is not None]
        assert take.at is not None
        self.until = min((asked_at + (end - take.at).total_seconds() for end in ends), default=float("inf"))
        if not self.windows:
            self.windows = tuple(window.window for window in windows)
            self.free_usd = [Decimal(0)] * len(windows)
            self.free_tokens, self.free_requests = [0] * len(windows), [0] * len(windows)
        for place, usd in enumerate(part.usd):
            self.free_usd[place] += calls * usd
            self.free_tokens[place] += calls * part.tokens[place]
            self.free_requests[place] += calls * part.requests[place]
        self.low = False
        self.low_usd = [usd / 2 for usd in self.free_usd]
        self.low_tokens = [tokens // 2 for tokens in self.free_tokens]
        self.low_requests = [requests // 2 for requests in self.free_requests]
        # Beside what is free of it, which is told as left.
        self.left_usd = [
            None if window.limit_usd is None else window.limit_usd - window.spent_usd - window.reserved_usd
            for window in windows
        ]

    def draw(self, part: Part, now: float) -> Drawn | None:
        """Take a call's hold; None where that is more than is free, or its windows are over."""
        if self.closed or now >= self.until:
            return None
        usd, tokens, requests = part.usd, part.tokens, part.requests
        free_usd, free_tokens, free_requests = self.free_usd, self.free_tokens, self.free_requests
        for place, amount in enumerate(usd):
            if amount > free_usd[place] or tokens[place] > free_tokens[place] or requests[place] > free_requests[place]:
                return None
        left: list[Decimal | None] = []
        for place, amount in enumerate(usd):
            free_usd[place] = rest = free_usd[place] - amount
            free_tokens[place] -= tokens[place]
            free_requests[place] -= requests[place]
            if (
                rest < self.low_usd[place]
                or free_tokens[place] < self.low_tokens[place]
                or free_requests[place] < self.low_requests[place]
            ):
                self.low = True
            beside = self.left_usd[place]
            left.append(None if beside is None else beside + rest)
        self.calls += 1
        self.used_at = now
        return Drawn(FloatHold(self.id, self.windows, usd, tokens, requests), tuple(left))

    def late(self, take: Take, part: Part) -> FloatHold:
        """What the database put in when this was closed already."""
        calls = take.calls
        return FloatHold(
            self.id,
            tuple(window.window for window in take.windows),
            tuple(calls * usd for usd in part.usd),
            tuple(calls * tokens for tokens in part.tokens),
            tuple(calls * requests for requests in part.requests),
        )

    def put_back(self, hold: FloatHold) -> bool:
        """A call was provably not sent; False: the float is closed, and the database is to be told."""
        self.calls -= 1
        if self.closed:
            return False
        for place in range(len(self.windows)):
            self.free_usd[place] += hold.usd[place]
            self.free_tokens[place] += hold.tokens[place]
            self.free_requests[place] += hold.requests[place]
        return True

    def close(self) -> FloatHold:
        """Use it no more; what was free, to be given back."""
        unused = FloatHold(
            self.id, self.windows, tuple(self.free_usd), tuple(self.free_tokens), tuple(self.free_requests)
        )
        self.closed = True
        if self.demand is not None:
            self.demand.float = None
            self.demand = None
        self.free_usd, self.free_tokens, self.free_requests = [], [], []
        return unused


class Demand:
    """How often calls with one set of counters come, and the float that serves them."""

    __slots__ = ("_before", "_count", "_since", "asked_for", "float", "latest", "refused_until")

    def __init__(self, part: Part, now: float) -> None:
        self.latest = part
        """What the latest call holds."""
        self._since = now
        self._count = self._before = 0
        self.float: Float | None = None
        self.asked_for = False
        """The database is being asked for a float, or for more in it."""
        self.refused_until = 0.0

    def meets(self, counters: Container[tuple[UUID, str]]) -> bool:
        """Whether its calls are counted by one of these."""
        return any(counter in counters for counter in self.latest.counters)

    def seen(self, part: Part, now: float) -> None:
        """A call came."""
        self.latest = part
        if now - self._since >= 1.0:
            self._before = self._count if now - self._since < 2.0 else 0
            self._since, self._count = now, 0
        self._count += 1

    def in_a_second(self, now: float) -> float:
        """Calls within the last second, about."""
        past = now - self._since
        if past >= 1.0:
            return self._count * max(0.0, 2.0 - past)
        return self._count + self._before * (1.0 - past)

    def wanted(self, now: float) -> int:
        """Calls that a float should hold beyond what is free in it; 0: none is worth its while now."""
        came, past = self.in_a_second(now), now - self._since
        if came < BUSY or now < self.refused_until:
            return 0
        # While they only just begin to come, those of the first second are no measure: a float for as many is dry
        # before the database has filled it up.
        rate = max(came, self._count / max(past, BEGINNING_S)) if past < 1.0 else came
        calls = max(CALLS_MIN, min(CALLS_MAX, int(2 * rate)))
        return calls if self.float is None else max(BUSY, calls // 2)
