"""Which budgets a call answers to: definitions and who calls -> budgets with the subject whose counter it is.

Pure. A subject is what a scope counts apart from each other; it names a counter for good, so it is a
key's id and not its name, which may be given to another key. What the counters say is the store's.

    global   all             project  the key's project      session  the key's id / the session's
    team     the key's team  user     the key's user         model    the model asked for
    key      the key's id; without one the credential's name, or `open`

A budget of a team, project or user leaves alone who has none. A session's counter is its key's own, so
that nobody spends from another's session by its name; without a session the key is the session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from farebox.records import Budget, Caller
from farebox.routing import allows

CALLERS_MAX = 10_000
"""Callers whose budgets are remembered; past it all are forgotten and found again as they call."""
SUBJECT_CHARS_MAX = 200
"""A longer subject (a client may name its session at length) is cut, and told apart by a hash of the whole."""
ALL = "all"
"""The subject of a global budget."""
OPEN = "open"
"""The key of those who need none (`auth.mode: open`)."""
UNKNOWN_MODEL = "unknown"
"""The subject where no model could be read: as it could be any, every budget by model applies."""

_ORDER = {"key": 0, "session": 1, "user": 2, "project": 3, "team": 4, "model": 5, "global": 6}


class Applied(NamedTuple):
    """A budget that a call answers to, and whose counter of it."""

    budget: Budget
    subject: str


class _Known(NamedTuple):
    """What is known of a caller: budgets that apply to each of its calls, and those that depend on the call."""

    always: tuple[Applied, ...]
    by_call: tuple[Budget, ...]


class Definitions:
    """The budgets there are. Not changed: a change makes new ones."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self.budgets: dict[UUID, Budget] = {budget.id: budget for budget in budgets}
        ordered = sorted(self.budgets.values(), key=lambda b: (b.purpose != "rate", _ORDER[b.scope], b.name))
        self._shared = tuple(budget for budget in ordered if budget.key_id is None)
        # By numbers: an id itself takes longer to hash than all the rest.
        self._own: dict[int | None, list[Budget]] = {}
        for budget in ordered:
            if budget.key_id is not None:
                self._own.setdefault(budget.key_id.int, []).append(budget)
        self._known: dict[tuple[object, ...], _Known] = {}

    def applying(self, caller: Caller, model: str | None, session: str | None) -> tuple[Applied, ...]:
        """The budgets of one call: the caller's from the narrowest to the widest, then those by session and model."""
        if not self._shared and not self._own:
            return ()
        key = caller.key_id.int if caller.key_id is not None else None
        if not self._shared and key not in self._own:
            return ()
        identity = (key, caller.key_name, caller.team, caller.project, caller.user)
        known = self._known.get(identity)
        if known is None:
            known = self._remember(identity, caller)
        if not known.by_call:
            return known.always
        return known.always + tuple(_by_call(known.by_call, caller, model, session))

    def _remember(self, identity: tuple[object, ...], caller: Caller) -> _Known:
        own = self._own.get(caller.key_id.int, []) if caller.key_id is not None else []
        always: list[Applied] = [Applied(budget, key_of(caller)) for budget in own]
        by_call: list[Budget] = []
        for budget in self._shared:
            if budget.scope in ("session", "model"):
                by_call.append(budget)
            elif (applied := _of_caller(budget, caller)) is not None:
                always.append(applied)
        if len(self._known) >= CALLERS_MAX:
            self._known.clear()
        known = self._known[identity] = _Known(tuple(always), tuple(by_call))
        return known


def key_of(caller: Caller) -> str:
    """What stands for a caller's key in a subject."""
    return str(caller.key_id) if caller.key_id is not None else caller.key_name or OPEN


def _of_caller(budget: Budget, caller: Caller) -> Applied | None:
    if budget.scope == "global":
        return Applied(budget, ALL)
    if budget.scope == "key":
        subject = key_of(caller)
        # People know a key by its name; the counter is the id's.
        names = (subject, caller.key_name or OPEN)
        return Applied(budget, bounded(subject)) if any(_wants(budget, name) for name in names) else None
    field = {"team": caller.team, "project": caller.project, "user": caller.user}[budget.scope]
    return Applied(budget, bounded(field)) if field and _wants(budget, field) else None


def _by_call(budgets: Iterable[Budget], caller: Caller, model: str | None, session: str | None) -> Iterable[Applied]:
    for budget in budgets:
        if budget.scope == "model":
            if model is None or _wants(budget, model):
                yield Applied(budget, bounded(model or UNKNOWN_MODEL))
        elif _wants(budget, session or caller.key_name or OPEN):
            key = key_of(caller)
            yield Applied(budget, bounded(f"{key}/{session}" if session else key))


def _wants(budget: Budget, subject: str) -> bool:
    return not budget.only or allows(budget.only, subject)


def bounded(subject: str) -> str:
    """`subject`, or what stands for one that is too long."""
    if len(subject) <= SUBJECT_CHARS_MAX:
        return subject
    digest = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return subject[: SUBJECT_CHARS_MAX - len(digest) - 1] + "~" + digest
