"""The steps that floats add: they are taken and given back, let calls in, are recalled, and inherited from the gone."""

from collections.abc import Iterator, Sequence

from protocol.floats import FloatRules
from protocol.rules import Answer
from protocol.state import Call, Float, Pocket, State, put
from protocol.steps import Step, Steps
from protocol.worlds import World

RUNNING = ("held", "sent", "over")
UNSETTLED = (*RUNNING, "done", "drop")


class FloatSteps(Steps):
    rules: FloatRules

    def __init__(self, world: World, rules: FloatRules) -> None:
        super().__init__(world, rules)

    def __call__(self, s: State) -> Iterator[Step]:
        yield from super().__call__(s)
        for f in range(len(self.world.purses)):
            yield from self.of_float(s, f)
        for p in range(self.world.processes):
            yield from self.of_the_gone(s, p)
        if any(row.barred for row in s.windows) and not any(call.phase == "bid" for call in s.calls):
            rows = tuple(row._replace(barred=False) for row in s.windows)
            yield "the recall is over", s._replace(windows=rows)

    # -- floats -------------------------------------------------------------------------------------------------------

    def of_float(self, s: State, f: int) -> Iterator[Step]:
        pocket, process = s.pockets[f], s.processes[self.world.purses[f].process]
        yield from self.of_late(s, f, pocket)
        if not process.alive:
            return
        if pocket.phase in ("none", "live") and self.is_next(s, f):
            yield from self.take(s, f, pocket)
        if pocket.phase == "live":
            yield f"retire float {f}", self.with_pocket(s, f, self.given_up(s, f))
        if s.away:
            return
        if pocket.phase == "unsure" and self.rules.looks_for_the_unsure():
            yield from self.moved(s, f"end float {f}, which was made after all", self.rules.end(s, f))
        if pocket.phase == "giving":
            t = self.rules.give(s, f, pocket.owed, closing=True)
            if self.world.lost:
                yield from self.moved(s, f"give float {f}, reply lost", t)
            yield f"give float {f}", self.with_pocket(t, f, pocket._replace(phase="given"))
            late = ("give", pocket.owed)
            if self.world.late and late not in pocket.late:
                yield f"give float {f} hangs", self.with_pocket(s, f, pocket._replace(late=pocket.late | {late}))
        if pocket.phase == "given" and self.may_end(s, f):
            t = self.rules.end(s, f)
            if self.world.lost:
                yield from self.moved(s, f"end float {f}, reply lost", t)
            yield f"end float {f}", self.with_pocket(t, f, pocket._replace(phase="ended"))

    def is_next(self, s: State, f: int) -> bool:
        """One float at a time for a process and its budgets; a later one is another row."""
        purse = self.world.purses[f]
        return s.pockets[f].takes < purse.takes and not any(
            s.pockets[other].phase in ("none", "live")
            for other, before in enumerate(self.world.purses[:f])
            if (before.process, before.budgets) == (purse.process, purse.budgets)
        )

    def take(self, s: State, f: int, pocket: Pocket) -> Iterator[Step]:
        purse, new = self.world.purses[f], pocket.phase == "none"
        name = f"take float {f}" if new else f"top up float {f}"
        windows = tuple(s.era * len(self.world.budgets) + budget for budget in purse.budgets)
        free = pocket.free or (0,) * len(windows)
        known = pocket._replace(windows=pocket.windows or windows, free=free, takes=pocket.takes + 1)
        unknown = known._replace(phase="unsure" if new else "live")
        if not s.away:
            life = (purse.process, s.processes[purse.process].life)
            t = self.rules.take(s, f, life, new=new)
            more = known._replace(phase="live", free=tuple(amount + purse.amount for amount in free))
            if t != s:
                yield name, self.with_pocket(t, f, more)
                if self.world.lost:
                    yield f"{name}, reply lost", self.with_pocket(t, f, unknown)
        if self.world.late:
            late = unknown._replace(late=pocket.late | {("new" if new else "more", ())})
            yield f"{name} hangs", self.with_pocket(s, f, late)

    def of_late(self, s: State, f: int, pocket: Pocket) -> Iterator[Step]:
        for late in sorted(pocket.late):
            what, unused = late
            left = self.with_pocket(s, f, pocket._replace(late=pocket.late - {late}))
            yield f"late {what} of float {f} is lost", left
            if s.away:
                continue
            if what == "give":
                yield f"late give of float {f}", self.rules.give(left, f, unused, closing=True)
            else:
                t = self.rules.take(left, f, (self.world.purses[f].process, 0), new=what == "new")
                yield from self.moved(left, f"late {what} of float {f}", t)

    def given_up(self, s: State, f: int) -> Pocket:
        """Nothing comes out of it any more, and what is free goes back."""
        pocket, unused = s.pockets[f], s.pockets[f].free
        for i, call in enumerate(s.calls):
            if call.float == f and self.rules.is_unused(call.phase):
                unused = tuple(a + b for a, b in zip(unused, self.rules.amounts(i), strict=True))
        return pocket._replace(phase="giving", free=(0,) * len(pocket.windows), owed=unused)

    def needed(self, s: State, f: int) -> tuple[int, ...]:
        """What calls hold of a float, as far as its process knows."""
        needed = (0,) * len(self.world.purses[f].budgets)
        for i, call in enumerate(s.calls):
            if call.float == f and call.phase in UNSETTLED:
                needed = tuple(a + b for a, b in zip(needed, self.rules.amounts(i), strict=True))
        return needed

    def may_end(self, s: State, f: int) -> bool:
        phases = [call.phase for call in s.calls if call.float == f]
        undrained = any(phase in UNSETTLED for phase in phases)
        return self.rules.may_end(undrained=undrained, running=any(phase in RUNNING for phase in phases))

    # -- calls --------------------------------------------------------------------------------------------------------

    def _ask(self, s: State, i: int, call: Call) -> Iterator[Step]:
        yield from super()._ask(s, i, call)
        ask, amounts = self.world.asks[i], self.rules.amounts(i)
        for f, purse in enumerate(self.world.purses):
            pocket = s.pockets[f]
            if (purse.process, purse.budgets) != (ask.process, ask.budgets) or pocket.phase != "live":
                continue
            if "reserve" in call.late or s.holds[i] or s.posts[i] or not self.rules.may_admit(s, i, pocket):
                continue  # who has asked the database waits for its answer
            if all(free >= amount for free, amount in zip(pocket.free, amounts, strict=True)):
                stale = "" if pocket.windows == self.rules.windows_of(s, i) else "stale"
                held = call._replace(phase="held", total=ask.first, float=f, fault=stale)
                yield f"admit {i} from float {f}", self.with_call(self.freed(s, f, i, -1), i, held)

    def answered(self, s: State, i: int, answer: Answer) -> State:
        if answer != "denied":
            return super().answered(s, i, answer)
        call = s.calls[i]
        if not self.rules.may_refuse(s, i):
            return self.with_call(s, i, call._replace(phase="bid"))
        return self.refused(s, i)

    def refused(self, s: State, i: int) -> State:
        fault = "beside" if self.would_fit(s, i) else ""
        return super().answered(self.with_call(s, i, s.calls[i]._replace(fault=fault)), i, "denied")

    def would_fit(self, s: State, i: int) -> bool:
        """Whether there were room for a call if floats, of those who live, gave back what they can spare."""
        rows = s.windows
        for f, row in enumerate(s.floats):
            if isinstance(row, Float) and not row.closed and s.processes[self.world.purses[f].process].alive:
                for at, held, needed in zip(row.windows, row.held, self.needed(s, f), strict=True):
                    rows = put(rows, at, rows[at]._replace(reserved=rows[at].reserved - held + needed))
        t = s._replace(windows=rows)
        return self.rules.fits(t, self.rules.windows_of(t, i), self.rules.amounts(i), opening=True)

    def _bid(self, s: State, i: int, call: Call) -> Iterator[Step]:
        """Denied beside floats: recall them, ask again, and be refused when none is left, or nobody can give one."""
        if self.world.cancel:
            yield f"client of {i} leaves", self.with_call(s, i, call._replace(phase="drop"))
        if s.away:
            return
        windows = self.rules.windows_of(s, i)
        t, answer = self.rules.reserve(s, i, self.life(s, i))
        yield from self.moved(s, f"ask for {i} again: {answer}", self.answered(t, i, answer))
        recalled = self.with_call(self.rules.recall(s, windows), i, call._replace(recalled=True))
        for f, pocket in enumerate(s.pockets):
            own = self.world.purses[f].process == self.world.asks[i].process
            if own and pocket.phase == "live" and set(windows).intersection(pocket.windows):
                recalled = self.with_pocket(recalled, f, self.given_up(recalled, f))
        yield from self.moved(s, f"recall floats for {i}", recalled)
        if call.recalled and answer == "denied" and self.is_time_up(s, windows):
            yield f"no more patience for {i}", self.refused(t, i)

    def is_time_up(self, s: State, windows: Sequence[int]) -> bool:
        """All who can have heard of the recall have answered it: there was time enough."""
        return all(s.windows[at].barred for at in windows) and not any(
            isinstance(row, Float)
            and row.told
            and not row.closed
            and s.processes[self.world.purses[f].process].alive
            and set(windows).intersection(row.windows)
            for f, row in enumerate(s.floats)
        )

    def _held(self, s: State, i: int, call: Call) -> Iterator[Step]:
        f = call.float
        if f is None:
            yield from super()._held(s, i, call)
            return
        yield f"send {i}", self.with_call(s, i, call._replace(phase="sent"))
        if self.world.cancel:
            if s.pockets[f].phase == "live":
                yield f"{i} goes back to float {f}", self.with_call(self.freed(s, f, i, 1), i, Call("no"))
            else:
                yield f"client of {i} leaves", self.with_call(s, i, call._replace(phase="drop"))

    def _drop(self, s: State, i: int, call: Call) -> Iterator[Step]:
        if call.float is None:
            yield from super()._drop(s, i, call)
        elif not s.away:
            t = self.with_call(s, i, Call("no"))
            if self.world.lost:
                yield f"give back {i} of float {call.float} is lost", t
            yield (
                f"give back {i} of float {call.float}",
                self.rules.give(t, call.float, self.rules.amounts(i), closing=False),
            )

    def _sent(self, s: State, i: int, call: Call) -> Iterator[Step]:
        """A stream that needs more gets a reservation of its own first: the journal's beginning knows of no more."""
        if call.float is None:
            yield from super()._sent(s, i, call)
            return
        for name, t in super()._sent(s, i, call):
            if not name.startswith("extend"):
                yield name, t
        grows = any(total > call.total for total in self.world.asks[i].totals)
        if grows and self.rules.extends_alone():
            total = min(total for total in self.world.asks[i].totals if total > call.total)
            yield f"extend {i} alone", self.with_call(s, i, call._replace(total=total))
        elif grows and not s.away:
            t = self.detached(s, i, call)
            if self.world.lost:
                yield from self.moved(s, f"detach {i}, reply lost", t)
            yield f"detach {i}", self.with_call(t, i, call._replace(float=None))
            late = f"detach from {call.float}"
            if self.world.late and late not in call.late:
                yield f"detach {i} hangs", self.with_call(s, i, call._replace(late=call.late | {late}))

    def arrives(self, s: State, i: int, late: str) -> Iterator[Step]:
        what, _, f = late.partition(" from ")
        if what != "detach":
            yield from super().arrives(s, i, late)
        else:
            yield from self.moved(s, f"late detach of {i}", self.rules.detach(s, i, int(f), s.pockets[int(f)].windows))

    def ended(self, s: State, i: int, call: Call) -> State:
        return super().ended(self.detached(s, i, call), i, call)

    def cut(self, s: State, i: int, call: Call) -> State:
        return super().cut(self.detached(s, i, call), i, call)

    def detached(self, s: State, i: int, call: Call) -> State:
        f = call.float
        return s if f is None else self.rules.detach(s, i, f, s.pockets[f].windows)

    # -- the gone -----------------------------------------------------------------------------------------------------

    def of_the_gone(self, s: State, p: int) -> Iterator[Step]:
        process = s.processes[p]
        if process.alive:
            return
        if self.world.burns:
            for f, purse in enumerate(self.world.purses):
                if purse.process == p:
                    yield from self.moved(s, f"float {f} is nobody's for a day", self.rules.orphaned(s, f))
        if process.lost:
            return
        if self.world.burns:
            yield f"the journal of {p} is lost", self.with_process(s, p, process._replace(lost=True))
        unposted = any(
            call.phase in ("cut", "done") and self.world.asks[i].process == p for i, call in enumerate(s.calls)
        )
        left = [f for f, purse in enumerate(self.world.purses) if purse.process == p and s.pockets[f].phase != "ended"]
        if self.rules.may_adopt(unposted) and not s.away and (left or process.life not in process.fenced):
            t = self.rules.adopt(s, p)
            for f in left:
                t = self.with_pocket(t, f, t.pockets[f]._replace(phase="ended"))
            yield from self.moved(s, f"adopt {p}", t)

    # -- small things -------------------------------------------------------------------------------------------------

    def freed(self, s: State, f: int, i: int, sign: int) -> State:
        pocket, amounts = s.pockets[f], self.rules.amounts(i)
        free = tuple(old + sign * amount for old, amount in zip(pocket.free, amounts, strict=True))
        return self.with_pocket(s, f, pocket._replace(free=free))

    @staticmethod
    def with_pocket(s: State, f: int, pocket: Pocket) -> State:
        return s._replace(pockets=put(s.pockets, f, pocket))
