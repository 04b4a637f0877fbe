"""A reserve whose first try got no answer: what its repetition says is not always the last word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from farebox.budgets.link import Link
from farebox.budgets.reserving import Reserving
from farebox.store import StoreUnavailable
from farebox.store.budgets import Ask, Grant


class Scripted:
    """A database that answers each reserve as told: a state, or nothing."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.number = 1

    async def reserve(self, owner: int, asks: Sequence[Ask]) -> list[Grant]:
        answer = self._answers.pop(0)
        if answer is None:
            raise StoreUnavailable("the connection broke")
        return [Grant(ask.id, answer, ()) for ask in asks]

    async def extend(self, owner: int, totals: Sequence[Any]) -> list[Grant]:
        raise NotImplementedError

    async def renew(self, fenced: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("answers", "state", "closed"),
    [
        (("denied",), "denied", False),
        (("open",), "open", False),
        ((None, "open"), "open", False),
        ((None, "denied"), "gone", True),
        ((None, None, "denied"), "gone", True),
    ],
)
async def test_a_denial_after_a_lost_answer_closes_the_id(answers: tuple[Any, ...], state: str, closed: bool) -> None:
    """A backend may go on after its connection broke, and grant what its repetition was denied. So after a lost answer
    a denial is not believed: the id is released, so that nothing stays held for nobody, and the caller is told so."""
    database, abandoned = Scripted(*answers), list[UUID]()
    reserving = Reserving(
        database,  # type: ignore[arg-type]
        owner=database,  # type: ignore[arg-type]
        link=Link(),
        timeout_s=10,
        abandoned=abandoned.append,
    )
    ask = Ask(uuid4(), (), b"{}")
    grant = await reserving.reserve(ask)
    assert grant.state == state
    assert abandoned == ([ask.id] if closed else [])
