"""Floats: what the functions of the database do with an amount that a process holds for calls to come.

A float is reserved like a call, on a fixed set of windows; calls take their holds out of it in memory. Whatever the
database learns of such a call first makes the call's own reservation out of the float (`detach`), and then everything
is as ever. Like the other rules, these are cut so small that each can be got wrong alone.
"""

from collections.abc import Iterable, Sequence

from protocol.rules import Rules
from protocol.state import Charged, Float, Hold, Pocket, State, Void, Window, put


class FloatRules(Rules):
    # -- a float's life ---------------------------------------------------------------------------------------------

    def take(self, s: State, f: int, life: tuple[int, int], *, new: bool) -> State:
        """Makes float `f`, or adds to it as much again; leaves everything as it is where it may not."""
        purse, row = self.world.purses[f], s.floats[f]
        if self.is_fenced(s, life) or isinstance(row, Void):
            return s
        windows = tuple(s.era * len(self.world.budgets) + budget for budget in purse.budgets)
        amounts = (purse.amount,) * len(windows)
        if not self.may_take(s, windows, amounts):
            return s
        if row is None:
            if not self.may_make(new):
                return s
            s = self.hold(s, windows, amounts, 1)
            return self.with_float(self.counted(s, windows, 1), f, Float(life, windows, amounts))
        if not isinstance(row, Float) or new or row.closed or row.windows != windows:
            return s
        held = tuple(old + more for old, more in zip(row.held, amounts, strict=True))
        return self.with_float(self.hold(s, windows, amounts, 0), f, row._replace(held=held))

    def may_take(self, s: State, windows: Sequence[int], amounts: Sequence[int]) -> bool:
        """There is room, and nobody who was denied waits for floats there to go."""
        return self.fits(s, windows, amounts, opening=True) and not self.is_barred(s, windows)

    def is_barred(self, s: State, windows: Sequence[int]) -> bool:
        return any(s.windows[at].barred for at in windows)

    def may_make(self, new: bool) -> bool:
        """To add to what is not there any more makes nothing."""
        return new

    def give(self, s: State, f: int, unused: Sequence[int], *, closing: bool) -> State:
        """Gives back so much of float `f`. Closing it is told again until it is answered, and may arrive late."""
        row = s.floats[f]
        if not isinstance(row, Float) or (closing and self.is_closed(row)):
            return s
        held = tuple(max(0, old - less) for old, less in zip(row.held, unused, strict=True))
        s = self.hold(s, row.windows, tuple(new - old for new, old in zip(held, row.held, strict=True)), 0)
        if closing and not row.closed:
            s = self.counted(s, row.windows, -1)
        return self.with_float(s, f, row._replace(held=held, closed=row.closed or closing))

    def is_closed(self, row: Float) -> bool:
        return row.closed

    def end(self, s: State, f: int) -> State:
        """Gives back whatever is left; nothing of it runs, or is still to be told, any more."""
        row = s.floats[f]
        if not isinstance(row, Float):
            return s
        s = self.hold(s, row.windows, tuple(-held for held in row.held), -1)
        return self.with_float(s if row.closed else self.counted(s, row.windows, -1), f, None)

    def adopt(self, s: State, process: int) -> State:
        """Ends the floats of a process that is gone, when all that its journal had to tell is told."""
        s = self.buried_alive(s, process)
        for f, purse in enumerate(self.world.purses):
            if purse.process != process:
                continue
            row = s.floats[f]
            if isinstance(row, Charged):
                s = self.with_float(self.charged(s, row, -row.cost, (0,) * len(row.windows)), f, row._replace(cost=0))
            s = self.end(s, f)
        return s

    def orphaned(self, s: State, f: int) -> State:
        """Charges what is left of a float whose owner is dead for a day, so that it isn't held for ever."""
        row = s.floats[f]
        if not isinstance(row, Float):
            return s
        s, cost = self.end(s, f), max(row.held)
        return self.with_float(self.charged(s, row, cost, row.held), f, Charged(row.windows, cost))

    def charged(self, s: State, row: Float | Charged, delta: int, held: Sequence[int]) -> State:
        rows = s.windows
        for at, amount in zip(row.windows, held, strict=True):
            was = rows[at]
            more = was._replace(spent=was.spent + delta, overrun=was.overrun + max(0, delta - amount))
            rows = put(rows, at, more)
        return s._replace(windows=rows)

    def buried_alive(self, s: State, process: int) -> State:
        """Its lives are over first: a request of theirs that is still under way makes nothing any more."""
        gone = s.processes[process]
        fenced = gone.fenced | set(range(gone.life + 1))
        return s._replace(processes=put(s.processes, process, gone._replace(fenced=fenced)))

    def may_adopt(self, unposted: bool) -> bool:
        """Not before the last of its events is in the books."""
        return not unposted

    # -- its calls --------------------------------------------------------------------------------------------------

    def detach(self, s: State, i: int, f: int, windows: Sequence[int]) -> State:
        """Makes the reservation of call `i` out of float `f`, unless that call is known already."""
        if s.holds[i] is not None or self.is_posted(s, i):
            return s
        row, amounts = s.floats[f], self.amounts(i)
        life = (self.world.purses[f].process, 0)
        had = (0,) * len(amounts)
        if isinstance(row, Float):
            life, had = row.life, tuple(min(old, amount) for old, amount in zip(row.held, amounts, strict=True))
            held = tuple(old - less for old, less in zip(row.held, had, strict=True))
            s = self.with_float(s, f, row._replace(held=held))
        rows = s.windows
        for at, amount, covered in zip(windows, amounts, had, strict=True):
            # It has happened: what the float lacks is held all the same, and said to be too much.
            short, was = amount - covered, rows[at]
            more = was._replace(reserved=was.reserved + short, open=was.open + 1, overrun=was.overrun + short)
            rows = put(rows, at, more)
        return s._replace(windows=rows, holds=put(s.holds, i, Hold(life, tuple(windows), amounts)))

    def is_posted(self, s: State, i: int) -> bool:
        return s.posts[i] is not None

    # -- making room ------------------------------------------------------------------------------------------------

    def refusing(self, s: State, i: int) -> list[int]:
        """The windows of now that have no room for call `i`."""
        pairs = zip(self.windows_of(s, i), self.amounts(i), strict=True)
        return [at for at, amount in pairs if not self.fits(s, (at,), (amount,), opening=True)]

    def floats_on(self, s: State, windows: Iterable[int]) -> int:
        return sum(s.windows[at].floats for at in windows)

    def may_refuse(self, s: State, i: int) -> bool:
        """Where a float stands on what refuses, it is recalled first."""
        return not self.floats_on(s, self.refusing(s, i))

    def recall(self, s: State, windows: Iterable[int]) -> State:
        """Bars windows: the owners of floats there hear of it and give back what they can spare; no more is taken."""
        chosen = set(windows)
        rows = tuple(row._replace(barred=True) if at in chosen else row for at, row in enumerate(s.windows))
        floats = tuple(
            row._replace(told=True)
            if isinstance(row, Float) and not row.closed and chosen.intersection(row.windows)
            else row
            for row in s.floats
        )
        return s._replace(windows=rows, floats=floats)

    def lower(self, s: State, budget: int, limit: int) -> State:
        s = super().lower(s, budget, limit)
        return self.recall(s, range(budget, len(s.windows), len(self.world.budgets)))

    # -- what a process makes of it -----------------------------------------------------------------------------------

    def may_admit(self, s: State, i: int, pocket: Pocket) -> bool:
        """Out of a float of its own, which is on the windows of now."""
        return pocket.windows == self.windows_of(s, i)

    def is_unused(self, phase: str) -> bool:
        """Whether what a call holds may be given back with what is free: not before its end is known to be posted."""
        return False

    def extends_alone(self) -> bool:
        """Whether a stream's hold grows out of the float, without the database."""
        return False

    def may_end(self, *, undrained: bool, running: bool) -> bool:
        return not undrained

    def looks_for_the_unsure(self) -> bool:
        """Whether a process ends what was made for it by a request that it had no answer to."""
        return True

    # -- small things -------------------------------------------------------------------------------------------------

    @staticmethod
    def with_float(s: State, f: int, row: Float | Charged | Void | None) -> State:
        return s._replace(floats=put(s.floats, f, row))

    @staticmethod
    def counted(s: State, windows: Sequence[int], more: int) -> State:
        rows: tuple[Window, ...] = s.windows
        for at in windows:
            rows = put(rows, at, rows[at]._replace(floats=rows[at].floats + more))
        return s._replace(windows=rows)
