"""`Budgets` as the data plane meets them, with a count of the calls that a used-up budget let pass (`on_exceed: warn`).

A granted ask names what does not fit only where the budget merely warns, so the answer itself says it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from farebox.budgets.applying import Applied
from farebox.records import Caller
from farebox.store.budgets import Ask, Grant


class Asked(Protocol):
    """As `service.Budgets`."""

    def applying(self, caller: Caller, model: str | None, session: str | None) -> tuple[Applied, ...]: ...
    async def reserve(self, ask: Ask, *, wait_s: float, applied: Sequence[Applied]) -> Grant: ...
    async def extend(self, id: UUID, usd: Decimal, tokens: int) -> Grant | None: ...
    def release(self, id: UUID) -> None: ...


class Noting:
    """The same calls as `budgets`'; `warned(name)` is told of each budget that a granted call is over."""

    def __init__(self, budgets: Asked, warned: Callable[[str], None]) -> None:
        self._budgets = budgets
        self._warned = warned
        self.applying = budgets.applying
        self.extend = budgets.extend
        self.release = budgets.release

    async def reserve(self, ask: Ask, *, wait_s: float, applied: Sequence[Applied]) -> Grant:
        """As `Budgets.reserve`."""
        grant = await self._budgets.reserve(ask, wait_s=wait_s, applied=applied)
        if grant.state == "open" and not all(window.fits for window in grant.windows):
            names = {one.budget.id: one.budget.name for one in applied}
            for window in grant.windows:
                if not window.fits and window.budget in names:
                    self._warned(names[window.budget])
        return grant
