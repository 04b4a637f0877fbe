"""Every step that can be taken from a state, with a name for the trace. Faults are steps like any other."""

from collections.abc import Iterator

from protocol.rules import BEAT, LEASE, Answer, Rules
from protocol.state import Call, Process, State, put
from protocol.worlds import World

Step = tuple[str, State]


class Steps:
    def __init__(self, world: World, rules: Rules) -> None:
        self.world = world
        self.rules = rules

    def __call__(self, s: State) -> Iterator[Step]:
        for i in range(len(self.world.asks)):
            yield from self.of_call(s, i)
            yield from self.of_stragglers(s, i)
            if not s.away:
                yield from self.moved(s, f"sweep {i}", self.rules.sweep(s, i))
        if self.world.batch:
            yield from self.of_batches(s)
        for p in range(self.world.processes):
            yield from self.of_process(s, p)
        if self.world.edge and not s.era:
            yield "the window ends", self.rules.edge(s)
        for b, budget in enumerate(self.world.budgets):
            if budget.lowered is not None and s.limits[b] != budget.lowered:
                yield f"lower the limit of {b}", self.rules.lower(s, b, budget.lowered)
        if self.world.timed:
            yield from self.of_time(s)

    # -- calls --------------------------------------------------------------------------------------------------

    def of_call(self, s: State, i: int) -> Iterator[Step]:
        call = s.calls[i]
        if s.processes[self.world.asks[i].process].alive:
            step = getattr(self, f"_{call.phase}", None)
            if step is not None:
                yield from step(s, i, call)
        elif call.phase in ("cut", "done") and not s.away and not s.processes[self.world.asks[i].process].lost:
            yield from self.replay(s, i, call)

    def _new(self, s: State, i: int, call: Call) -> Iterator[Step]:
        yield f"ask {i}", self.with_call(s, i, call._replace(phase="ask"))

    def _ask(self, s: State, i: int, call: Call) -> Iterator[Step]:
        seen = self.rules.look(s, i)
        if seen is not None and call.seen is None:
            yield f"look for {i}", self.with_call(s, i, call._replace(seen=seen))
        elif not s.away:
            t, answer = self.rules.reserve(s, i, self.life(s, i))
            if self.world.lost and answer != "fenced":
                yield from self.moved(s, f"reserve {i}, reply lost", t)
            yield from self.moved(s, f"reserve {i}: {answer}", self.answered(t, i, answer))
        if self.world.late and "reserve" not in call.late:
            yield f"reserve {i} hangs, ask again", self.with_call(s, i, call._replace(late=call.late | {"reserve"}))
        if self.world.cancel:
            yield f"client of {i} leaves", self.with_call(s, i, call._replace(phase="drop"))

    def answered(self, s: State, i: int, answer: Answer) -> State:
        call = s.calls[i]
        if self.rules.may_send(answer):
            return self.with_call(s, i, call._replace(phase="held", total=self.world.asks[i].first))
        if answer == "fenced":
            return s
        # A refusal ends it unless an earlier request for the same id may still open it; what was swept is given back.
        ends = answer == "denied" and self.rules.is_certain(call.late)
        return self.with_call(s, i, call._replace(phase="no" if ends else "drop"))

    def _held(self, s: State, i: int, call: Call) -> Iterator[Step]:
        yield f"send {i}", self.with_call(s, i, call._replace(phase="sent"))
        if self.world.cancel:
            yield f"client of {i} leaves", self.with_call(s, i, call._replace(phase="drop"))

    def _drop(self, s: State, i: int, call: Call) -> Iterator[Step]:
        if s.away:
            return
        t = self.rules.release(s, i)
        if self.world.lost:
            yield from self.moved(s, f"release {i}, reply lost", t)
        yield f"release {i}", self.with_call(t, i, call._replace(phase="no"))

    def _sent(self, s: State, i: int, call: Call) -> Iterator[Step]:
        for cost in self.costs(i, call):
            yield f"{i} ends at {cost}", self.with_call(s, i, call._replace(phase="done", truth=cost))
        total = min((t for t in self.world.asks[i].totals if t > call.total), default=None)
        if total is None or s.away:
            return
        t, answer = self.rules.extend(s, i, total, self.life(s, i))
        if self.world.lost:
            yield from self.moved(s, f"extend {i} to {total}, reply lost", t)
        if answer == "open":
            yield f"extend {i} to {total}", self.with_call(t, i, call._replace(total=total))
        elif self.world.asks[i].overrun:
            yield f"extend {i} to {total}: {answer}, runs on", self.with_call(t, i, call._replace(phase="over"))
        straggler = f"extend to {total}"
        if self.world.late and straggler not in call.late:
            yield f"extend {i} to {total} hangs", self.with_call(s, i, call._replace(late=call.late | {straggler}))

    def _over(self, s: State, i: int, call: Call) -> Iterator[Step]:
        for cost in self.costs(i, call):
            yield f"{i} ends at {cost}", self.with_call(s, i, call._replace(phase="done", truth=cost, ran_on=True))

    def _done(self, s: State, i: int, call: Call) -> Iterator[Step]:
        if s.away:
            return
        t = self.ended(s, i, call)
        if self.world.lost:
            yield from self.moved(s, f"settle {i}, reply lost", t)
        yield f"settle {i}", self.with_call(t, i, call._replace(phase="ack"))

    def _ack(self, s: State, i: int, call: Call) -> Iterator[Step]:
        """The mark that says how far the journal was drained may be older than the drain: all of it comes again."""
        if not s.away:
            yield from self.moved(s, f"settle {i} again", self.ended(s, i, call))

    def ended(self, s: State, i: int, call: Call) -> State:
        """The event of the end reaches the database."""
        return self.rules.settle(s, i, call.truth or 0)

    def cut(self, s: State, i: int, call: Call) -> State:
        """The event of the beginning does, as that of a call that was cut off."""
        return self.rules.settle(s, i, max(self.rules.amounts(i)), hold=True, cut=True)

    def replay(self, s: State, i: int, call: Call) -> Iterator[Step]:
        """The journal of a killed process: an end is posted as it stands, a beginning at what was held at first."""
        if call.phase == "done":
            t = self.ended(s, i, call)
            yield f"replay the end of {i}", self.with_call(t, i, call._replace(phase="ack"))
        else:
            t = self.cut(s, i, call)
            yield f"replay the beginning of {i}", self.with_call(t, i, call._replace(phase="closed"))

    def costs(self, i: int, call: Call) -> list[int]:
        """What a call may cost: a stream stops at what it holds, one that runs on may reach its bound."""
        ask = self.world.asks[i]
        most = ask.bound if call.phase == "over" else call.total
        choices = range(ask.bound + 1) if ask.costs is None else ask.costs
        return sorted({min(cost, most) for cost in choices})

    # -- the network ----------------------------------------------------------------------------------------------

    def of_stragglers(self, s: State, i: int) -> Iterator[Step]:
        """Requests that nobody waits for any more and that the database carries out all the same, or never."""
        call = s.calls[i]
        for late in sorted(call.late):
            left = self.with_call(s, i, call._replace(late=call.late - {late}))
            yield f"late {late} of {i} is lost", left
            if not s.away:
                yield from self.arrives(left, i, late)

    def arrives(self, s: State, i: int, late: str) -> Iterator[Step]:
        life = (self.world.asks[i].process, 0)  # the life in which it was sent
        if late == "reserve":
            t, answer = self.rules.reserve(s, i, life)
        else:
            t, answer = self.rules.extend(s, i, int(late.rsplit(" ", 1)[1]), life)
        yield f"late {late} of {i}: {answer}", t

    def of_batches(self, s: State) -> Iterator[Step]:
        """Asks of one process that wait at once go in one statement: carried out in order, one reply for all."""
        for p in range(self.world.processes):
            asking = [i for i, ask in enumerate(self.world.asks) if ask.process == p and s.calls[i].phase == "ask"]
            if len(asking) < 2 or not s.processes[p].alive or s.away:
                continue
            t, answers = s, []
            for i in asking:
                t, answer = self.rules.reserve(t, i, self.life(s, i))
                answers.append(answer)
            if "fenced" in answers:
                continue
            if self.world.lost:
                yield from self.moved(s, f"reserve {asking} at once, reply lost", t)
            for i, answer in zip(asking, answers, strict=True):
                t = self.answered(t, i, answer)
            yield f"reserve {asking} at once: {answers}", t

    # -- processes --------------------------------------------------------------------------------------------------

    def of_process(self, s: State, p: int) -> Iterator[Step]:
        process = s.processes[p]
        fenced = process.life in process.fenced
        if process.alive and self.world.crash:
            for what, t in self.kill(s, p):
                yield f"kill {p}{what}", t
        if self.world.fence and not fenced:
            yield f"{p} is taken for dead", self.fence(s, p)
        if process.alive and fenced and process.life < self.world.lives and not s.away:
            yield f"{p} registers anew", self.with_process(s, p, process._replace(life=process.life + 1))

    def kill(self, s: State, p: int) -> Iterator[Step]:
        """What was sent goes on costing money at the provider, anything up to what it was allowed to reach."""
        process = s.processes[p]
        states = [("", self.with_process(s, p, process._replace(alive=False, excused=True)))]
        for i, call in enumerate(s.calls):
            if self.world.asks[i].process != p or call.phase in ("done", "ack", "no"):
                continue
            if call.phase in ("sent", "over"):
                over = call.phase == "over"
                states = [
                    (
                        f"{what}, {i} cost {cost}",
                        self.with_call(t, i, call._replace(phase="cut", truth=cost, ran_on=over)),
                    )
                    for what, t in states
                    for cost in self.costs(i, call)
                ]
            else:
                states = [(what, self.with_call(t, i, Call("lost", late=call.late))) for what, t in states]
        yield from states

    def fence(self, s: State, p: int) -> State:
        process = s.processes[p]
        return self.with_process(s, p, process._replace(fenced=process.fenced | {process.life}))

    # -- time -------------------------------------------------------------------------------------------------------

    def of_time(self, s: State) -> Iterator[Step]:
        if s.away:
            yield "the database is back", s._replace(away=False, since_up=0)
        if not any(self.must_beat(s, process) for process in s.processes):
            yield "tick", self.tick(s)
            if not s.away and s.since_up >= BEAT:
                yield "the database goes away", s._replace(away=True)
        for p, process in enumerate(s.processes):
            if not process.alive:
                continue
            if not process.excused:
                yield f"{p} is paused", self.with_process(s, p, process._replace(excused=True))
            if s.away or process.life in process.fenced:
                continue
            if process.age:
                steady = 0 if process.age >= self.rules.gap else process.steady
                yield f"{p} beats", self.with_process(s, p, process._replace(age=0, steady=steady))
            for other, silent in enumerate(s.processes):
                if other != p and silent.life not in silent.fenced and self.rules.may_fence(s, p, other):
                    yield f"{p} takes {other} for dead", self.fence(s, other)

    def must_beat(self, s: State, process: Process) -> bool:
        """A healthy process lets no BEAT pass without one, as soon as the database can be reached."""
        healthy = process.alive and not process.excused
        return healthy and not s.away and process.age >= BEAT and s.since_up >= BEAT

    def tick(self, s: State) -> State:
        aged = tuple(
            process._replace(age=min(process.age + 1, LEASE), steady=min(process.steady + 1, LEASE))
            for process in s.processes
        )
        return s._replace(processes=aged, since_up=min(s.since_up + 1, BEAT))

    # -- small things -------------------------------------------------------------------------------------------------

    def life(self, s: State, i: int) -> tuple[int, int]:
        process = self.world.asks[i].process
        return process, s.processes[process].life

    @staticmethod
    def moved(s: State, name: str, t: State) -> Iterator[Step]:
        if t != s:
            yield name, t

    @staticmethod
    def with_call(s: State, i: int, call: Call) -> State:
        return s._replace(calls=put(s.calls, i, call))

    @staticmethod
    def with_process(s: State, p: int, process: Process) -> State:
        return s._replace(processes=put(s.processes, p, process))
