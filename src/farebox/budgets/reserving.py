"""The calls that a request waits for: reserve and extend, many in one statement, each answered in time.

A statement that got no answer is sent again with the same ids while there is time: repeating it is
harmless, and a backend that was killed is not noticed. When time is up the database counts as away,
and what the statement may have done is given back in the background. A fenced owner becomes another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import UUID

from farebox.budgets.flights import Crowded, Flights
from farebox.budgets.link import Link
from farebox.budgets.owner import Owner
from farebox.errors import Unavailable
from farebox.store.budgets import Ask, BudgetStore, Draw, Fenced, Grant, Total
from farebox.store.failures import StoreUnavailable

_AGAIN_S = 0.02
_RETRY_AFTER = "1"

Item = TypeVar("Item", Ask, Total)


class Reserving:
    """`reserve`, `extend` and `detach` answer or raise `Unavailable` within `timeout_s`.

    `abandoned(id)`: a reservation that may have been made and that nobody knows of any more.
    """

    def __init__(
        self, store: BudgetStore, *, owner: Owner, link: Link, timeout_s: float, abandoned: Callable[[UUID], None]
    ) -> None:
        self._store = store
        self._owner = owner
        self._link = link
        self._abandoned = abandoned
        self.timeout_s = timeout_s
        self._reserves: Flights[Ask, Grant] = Flights(
            self._reserve_all, together=_concerns_all, abandoned=self._give_back
        )
        # Nobody gives back a part of a hold: a stream whose extension was lost settles with what it has.
        self._extends: Flights[Total, Grant] = Flights(self._extend_all, together=_concerns_all)

    async def reserve(self, ask: Ask) -> Grant:
        """Hold what `ask` wants, or learn why not."""
        return await self._ask(self._reserves, ask)

    async def extend(self, total: Total) -> Grant:
        """Hold more for a call that runs."""
        return await self._ask(self._extends, total)

    async def detach(self, draw: Draw) -> None:
        """Give a call that drew from a float a reservation of its own, which can be extended."""
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    owner = self._owner.number
                    try:
                        return await self._store.float_detach(owner, [draw])
                    except Fenced:
                        await self._owner.renew(owner)
        except (TimeoutError, StoreUnavailable):
            raise away() from None

    async def close(self) -> None:
        """Wait for the statements under way."""
        await self._reserves.close()
        await self._extends.close()

    async def _ask(self, flights: Flights[Item, Grant], item: Item) -> Grant:
        if self._link.away:
            raise away()
        try:
            return await flights(item, self.timeout_s)
        except TimeoutError:
            self._link.lost()
        except (StoreUnavailable, Crowded):
            pass
        raise away()

    async def _reserve_all(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        grants, lost = await self._insist(self._store.reserve, asks)
        # A backend whose connection broke may be at it still, and grant what its repetition was denied: nobody would
        # ever give that back. So the id is closed, and the caller told to try again.
        return [self._close(grant) if lost and grant.state == "denied" else grant for grant in grants]

    def _close(self, grant: Grant) -> Grant:
        self._abandoned(grant.id)
        return Grant(grant.id, "gone", ())

    async def _extend_all(self, totals: Sequence[Total]) -> Sequence[Grant]:
        grants, _ = await self._insist(self._store.extend, totals)
        return grants

    async def _insist(
        self, call: Callable[[int, Sequence[Item]], Awaitable[Sequence[Grant]]], items: Sequence[Item]
    ) -> tuple[Sequence[Grant], bool]:
        """The answers, and whether a try before got none."""
        loop = asyncio.get_running_loop()
        deadline, pause, lost = loop.time() + self.timeout_s, _AGAIN_S, False
        while True:
            owner = self._owner.number
            try:
                async with asyncio.timeout_at(deadline):
                    try:
                        return await call(owner, items), lost
                    except Fenced:
                        await self._owner.renew(owner)
                        continue
            except TimeoutError as error:
                self._link.lost()
                raise StoreUnavailable("no answer in time") from error
            except StoreUnavailable as error:
                lost = True
                if loop.time() + pause >= deadline:
                    self._link.lost(error)
                    raise
            await asyncio.sleep(pause)
            pause *= 2

    def _give_back(self, ask: Ask, grant: Grant | None) -> None:
        if grant is None or grant.state == "open":
            self._abandoned(ask.id)


def _concerns_all(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable)


def away() -> Unavailable:
    """The refusal while budgets can't be asked."""
    return Unavailable(
        "farebox can't check this key's budgets now: its database does not answer. Try again in a moment.",
        headers={"retry-after": _RETRY_AFTER},
    )
