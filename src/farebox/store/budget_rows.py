"""What goes into the database for budgets and what comes out of it: shapes, their bounds, and its objections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec

from farebox.errors import BadRequest, Conflict, FareboxError
from farebox.records import Budget, Want

TOKENS_MAX = 10**15
"""Tokens in one hold: no sum of holds comes near the end of the column."""
USD_MAX = Decimal(10**12)
"""Dollars in one hold or correction: more is a mistake, and a number of a million digits costs memory."""
ROWS_MAX = 1_000
"""Counters or audit rows in one answer."""


class Fenced(FareboxError):
    """This owner was silent for a lease: it was taken for dead, and its holds are charged. Register anew."""


class Ask(msgspec.Struct, frozen=True):
    """A call that wants to be sent. `facts`: the usage event (JSON) that is posted if its process dies."""

    id: UUID
    wants: tuple[Want, ...]
    facts: bytes


class Total(msgspec.Struct, frozen=True):
    """How much an open call wants held in all; a window that holds as much already stays as it is."""

    id: UUID
    usd: Decimal
    tokens: int


class WindowState(msgspec.Struct, frozen=True, kw_only=True):
    """One counter: after the ask where that was granted, as it was found where it was denied.

    `fits` is False in a granted ask where a budget that only warns is over its limit, and in a denied one
    where the limit stood in the way. `window` 0: nothing was ever counted there, so there is no row yet.
    """

    window: int
    budget: UUID
    subject: str
    limit_usd: Decimal | None
    spent_usd: Decimal
    reserved_usd: Decimal
    limit_tokens: int | None
    spent_tokens: int
    reserved_tokens: int
    limit_requests: int | None
    requests: int
    limit_open: int | None
    open: int
    floats: int = 0
    """Floats that may hold what no call needs."""
    window_start: datetime
    resets_at: datetime | None
    """None: never."""
    fits: bool


_STATE = [name for name in WindowState.__struct_fields__ if name not in ("window", "fits")]


class Grant(msgspec.Struct, frozen=True):
    """The answer to an ask or a total.

    gone: the id was released or has its usage row already, and must not be sent (any more).
    """

    id: UUID
    state: Literal["open", "denied", "gone"]
    windows: tuple[WindowState, ...]


class Standing(msgspec.Struct, frozen=True):
    """A budget and one of its counters. None: nothing was counted in this window yet."""

    budget: Budget
    counter: WindowState | None


class Standings(msgspec.Struct, frozen=True):
    """A page of them, by name and subject, and the place to ask for the next page after (None: there is none)."""

    rows: list[Standing]
    next: tuple[str, str] | None


class AuditRow(msgspec.Struct, frozen=True):
    """Who changed what, from what, to what. `name`: a budget's, or the id of a usage row."""

    id: int
    at: datetime
    actor: str
    action: str
    kind: str
    name: str
    before: Any
    after: Any


def check_asks(asks: Sequence[Ask]) -> None:
    check_distinct([ask.id for ask in asks])
    for ask in asks:
        if not ask.wants:
            raise BadRequest("an ask without a budget needs no reservation")
        check_distinct([(want.budget, want.subject) for want in ask.wants])
        for want in ask.wants:
            check_amounts(want.usd, want.tokens)
            if not 0 <= want.requests <= TOKENS_MAX:
                raise BadRequest("a number of requests to hold is negative or too large")


def check_amounts(usd: Decimal, tokens: int) -> None:
    # NaN compares with an exception.
    if not usd.is_finite() or not 0 <= usd <= USD_MAX:
        raise BadRequest("an amount of US dollars is negative, not finite, or too large")
    if not 0 <= tokens <= TOKENS_MAX:
        raise BadRequest("a number of tokens is negative or too large")


def check_distinct(values: Sequence[object]) -> None:
    if len(set(values)) != len(values):
        raise BadRequest("an id, or a budget's counter, stands twice in one call")


@contextmanager
def explained() -> Iterator[None]:
    """The database's objections, as farebox's."""
    try:
        yield
    except asyncpg.UniqueViolationError:
        raise Conflict("A budget of that name exists already.") from None
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, UnicodeError):
        raise BadRequest("The budget, or the amount, is not one that can be stored.") from None
    except asyncpg.PostgresError as error:
        if error.sqlstate == "FB001":
            raise Fenced("this process was silent for too long and was taken for dead") from None
        if error.sqlstate == "FB002":
            raise Conflict("The call is still running: correct it when it is over.") from None
        if error.sqlstate == "FB003":
            # The database's sentence is farebox's own, and names the budget.
            raise Conflict(f"Not changed here: {error.message}, and is changed there.") from None
        raise


def document_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A definition as the database reads it. Raises BadRequest for amounts that can't be."""
    for name in ("limit_usd", "limit_tokens", "limit_requests", "limit_open"):
        value = fields.get(name)
        if isinstance(value, float):
            raise BadRequest(f"{name} is a float: amounts are exact")
        if value is not None and (not Decimal(value).is_finite() or value < 0):
            raise BadRequest(f"{name} is negative or not finite")
    return dict(fields)


def json_of(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def budget_of(row: asyncpg.Record) -> Budget:
    members = {name: row[name] for name in Budget.__struct_fields__}
    members["only"], members["thresholds"] = tuple(members["only"]), tuple(members["thresholds"])
    return Budget(**members)


def window_of(row: asyncpg.Record) -> WindowState:
    return state_of(row, fits=row["fits"])


def state_of(row: asyncpg.Record, *, fits: bool) -> WindowState:
    return WindowState(window=row["counter"], **{name: row[name] for name in _STATE}, fits=fits)


def grants_of(ids: Sequence[UUID], rows: Sequence[asyncpg.Record]) -> list[Grant]:
    states: dict[UUID, Any] = {}
    windows: dict[UUID, list[WindowState]] = {id: [] for id in ids}
    for row in rows:
        states[row["id"]] = row["state"]
        if row["counter"] is not None:
            windows[row["id"]].append(window_of(row))
    return [Grant(id, states[id], tuple(windows[id])) for id in ids]
