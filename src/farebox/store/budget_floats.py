"""Floats in Postgres: what a process holds ahead of its calls. The protocol is SQL, in migration 0009."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from farebox.records import FloatHold, Want
from farebox.store.budget_rows import WindowState, check_amounts, explained, state_of
from farebox.store.store import Store


class Take(msgspec.Struct, frozen=True):
    """What was put into a float: the hold of so many calls (0: none). `windows` in the order of the wants, as they are
    with that; empty where one is not there yet. `at`: the database's time."""

    calls: int
    windows: tuple[WindowState, ...] = ()
    at: datetime | None = None


class Draw(msgspec.Struct, frozen=True):
    """A call that holds out of a float and is to have a reservation of its own. `facts`: as of an `Ask`."""

    id: UUID
    drawn: FloatHold
    facts: bytes


class BudgetFloats:
    """The calls, over a store. They raise StoreUnavailable when the database is away, and Fenced."""

    _store: Store

    async def float_take(self, owner: int, id: UUID, wants: Sequence[Want], calls_max: int, *, fresh: bool) -> Take:
        """Hold ahead for `calls_max` calls that want so much, or for as many as leave others enough; none if few.

        `fresh`: as a new float; else what is taken goes into that one, if it is not closed and its windows are still
        the current ones. Not to be repeated: it would take twice.
        """
        for want in wants:
            check_amounts(want.usd, want.tokens)
        with explained():
            rows = await self._store.fetch(
                "float_take",
                owner,
                id,
                fresh,
                [want.budget for want in wants],
                [want.subject for want in wants],
                [want.usd for want in wants],
                [want.tokens for want in wants],
                [want.requests for want in wants],
                calls_max,
            )
        if not rows:
            return Take(0)
        return Take(rows[0]["calls"], tuple(state_of(row, fits=True) for row in rows), rows[0]["at"])

    async def float_give(self, unused: FloatHold, *, closing: bool) -> None:
        """Give back what is unused of a float. `closing`: all of that, and it is closed; only this may be repeated."""
        amounts = list(unused.usd), list(unused.tokens), list(unused.requests)
        await self._store.fetch("float_give", unused.id, closing, *amounts)

    async def float_end(self, ids: Sequence[UUID]) -> None:
        """Give back all that is left of floats out of which no call is to be paid any more. Harmless to repeat."""
        if ids:
            await self._store.fetch("float_end", list(ids))

    async def float_recall(self, owner: int, windows: Sequence[int]) -> list[UUID]:
        """Ask all others to give back what they hold unused on these windows; the floats of those that have not yet.

        For some seconds no float is taken there. Harmless to repeat.
        """
        return [row["id"] for row in await self._store.fetch("float_recall", owner, sorted(windows))]

    async def float_recalled(self, owner: int) -> list[UUID]:
        """The floats of `owner` that somebody asks for."""
        return [row["id"] for row in await self._store.fetch("float_recalled", owner)]

    async def float_detach(self, owner: int, draws: Sequence[Draw]) -> None:
        """Make reservations of their own for calls that hold out of floats. Harmless to repeat. Raises Fenced."""
        calls = [{"id": draw.id, "drawn": draw.drawn, "facts": msgspec.Raw(draw.facts)} for draw in draws]
        if calls:
            with explained():
                await self._store.fetch("float_detach", owner, msgspec.json.encode(calls).decode())
