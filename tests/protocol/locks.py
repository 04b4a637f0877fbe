"""The order in which the functions take their row locks, lock by lock, so that a deadlock is a state like any other.

The order is: budgets by id (shared by who makes a window, so that no limit changes meanwhile), windows that are new,
floats by id, reservations that are new, reservations by id, windows by id, postings by id. A transaction is the list
of its locks; it keeps each until its end, as Postgres does. What is new is its maker's until then: everybody else who
makes it, too, waits.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Lock(NamedTuple):
    row: str
    shared: bool = False


class Job(NamedTuple):
    """One run of a function: its name, and its rows in the order in which a batch or a journal brings them."""

    name: str
    reservations: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    postings: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {' '.join((*self.made, *self.reservations, *self.floats, *self.windows))}"


# Two reservations on the same two windows; and two windows that are not there yet.
JOBS = (
    Job("reserve", ("r1", "r2"), ("w2", "w1")),
    Job("reserve", ("r2", "r1"), ("w1", "w2")),
    Job("reserve", ("r1",), ("w1", "n1", "n2"), budgets=("b2", "b1"), new=("n2", "n1")),
    Job("reserve", ("r2", "r1"), ("n1", "n2", "w1"), budgets=("b1", "b2"), new=("n1", "n2")),
    Job("extend", ("r1",), ("w1", "w2")),
    Job("settle", ("r1", "r2"), ("w1", "w2"), ("p1", "p2")),
    Job("settle", ("r2", "r1"), ("w2", "w1"), ("p2", "p1")),
    Job("sweep", ("r1", "r2"), ("w2", "w1"), ("p2", "p1")),
    Job("release", ("r2", "r1"), ("w2", "w1"), ("p1",)),
    Job("correct", (), ("w2", "w1"), ("p1",)),
    Job("limit", (), ("w2", "w1"), budgets=("b2", "b1")),
)

# The same windows with two floats on them. What is settled out of floats gets its reservations first (r8, r9), where it
# can't be settled plainly, beside calls in the same batch that have theirs; a sweep or a release has no floats, and
# meets the windows.
FLOAT_JOBS = (
    Job("settle", ("r1", "r2"), ("w1", "w2"), ("p8", "p9"), made=("r8", "r9"), floats=("f1", "f2")),
    Job("settle", ("r2",), ("w2", "w1"), ("p9", "p8"), made=("r9", "r8"), floats=("f2", "f1")),
    Job("settle", ("r1", "r2"), ("w1", "w2"), ("p8", "p9"), floats=("f2", "f1")),
    Job("detach", (), ("w2", "w1"), made=("r9", "r8"), floats=("f2", "f1")),
    Job("take", (), ("w2", "w1"), floats=("f1",)),
    Job("give", (), ("w2", "w1"), floats=("f2",)),
    Job("end", (), ("w1", "w2"), floats=("f2", "f1")),
    Job("recall", (), ("w2", "w1")),
    Job("orphan", (), ("w2", "w1"), floats=("f2", "f1")),
    Job("reserve", (), ("w2", "w1"), made=("r8", "r9")),
    Job("release", ("r2", "r1"), ("w2", "w1"), ("p1",), made=("r9", "r8")),
    Job("limit", (), ("w2", "w1"), budgets=("b2", "b1")),
)


class LockOrder:
    """What each function does with its rows: sorted, and kind after kind."""

    def locks(self, job: Job) -> list[Lock]:
        return [*self.first(job), *map(Lock, self.new(job)), *map(Lock, self.rows(job))]

    def first(self, job: Job) -> list[Lock]:
        return [Lock(budget, shared=job.name == "reserve") for budget in sorted(job.budgets)]

    def new(self, job: Job) -> list[str]:
        return sorted(job.new)

    def rows(self, job: Job) -> list[str]:
        return [
            *sorted(job.floats),
            *sorted(job.made),
            *sorted(job.reservations),
            *sorted(job.windows),
            *sorted(job.postings),
        ]


class SettlesAsItComes(LockOrder):
    """The drain takes windows in the order in which its events name them."""

    def rows(self, job: Job) -> list[str]:
        if job.name != "settle":
            return super().rows(job)
        return [*sorted(job.reservations), *job.windows, *sorted(job.postings)]


class SettlesWindowsFirst(LockOrder):
    """The drain moves the counters before it looks at the reservations."""

    def rows(self, job: Job) -> list[str]:
        if job.name != "settle":
            return super().rows(job)
        return [*sorted(job.windows), *sorted(job.reservations), *sorted(job.postings)]


class SettlesEventByEvent(LockOrder):
    """The drain finishes one event with all its rows before it turns to the next."""

    def rows(self, job: Job) -> list[str]:
        if job.name != "settle":
            return super().rows(job)
        return [row for event in zip(job.reservations, job.windows, job.postings, strict=True) for row in event]


class ReservesAsAsked(LockOrder):
    """A batch of asks is opened in the order in which they came."""

    def rows(self, job: Job) -> list[str]:
        return [*job.reservations, *sorted(job.windows)] if job.name == "reserve" else super().rows(job)


class MakesWindowsAsAsked(LockOrder):
    """Windows that are not there yet are made in the order in which the asks name them."""

    def new(self, job: Job) -> list[str]:
        return list(job.new)


class LimitsUnordered(LockOrder):
    """A limit change walks over the windows as the table gives them."""

    def rows(self, job: Job) -> list[str]:
        return list(job.windows) if job.name == "limit" else super().rows(job)


class DetachesAsItComes(LockOrder):
    """Reservations out of floats are made in the order in which their events came."""

    def rows(self, job: Job) -> list[str]:
        rows = [row for row in super().rows(job) if row not in job.made]
        at = len(job.floats)
        return [*rows[:at], *job.made, *rows[at:]]


class FloatsUnordered(LockOrder):
    """A batch takes the floats of its calls in the order of the calls."""

    def rows(self, job: Job) -> list[str]:
        rows = super().rows(job)
        return [*job.floats, *rows[len(job.floats) :]] if job.name == "settle" else rows


class FloatsLast(LockOrder):
    """A settlement moves the counters before it takes the amount out of the float."""

    def rows(self, job: Job) -> list[str]:
        rows = [row for row in super().rows(job) if row not in job.floats]
        return [*rows, *sorted(job.floats)] if job.name == "settle" else super().rows(job)


class LooksAtFloatsBesideWindows(LockOrder):
    """A recall writes into the floats that stand on the windows it has locked."""

    def rows(self, job: Job) -> list[str]:
        return [*super().rows(job), "f1", "f2"] if job.name == "recall" else super().rows(job)


MUTANTS = (
    SettlesAsItComes,
    SettlesWindowsFirst,
    SettlesEventByEvent,
    ReservesAsAsked,
    MakesWindowsAsAsked,
    LimitsUnordered,
)
FLOAT_MUTANTS = (DetachesAsItComes, FloatsUnordered, FloatsLast, LooksAtFloatsBesideWindows)

State = tuple[int, ...]  # how many locks each job has; one more than it needs: it has ended


class Run:
    """A few jobs at once."""

    def __init__(self, order: LockOrder, jobs: tuple[Job, ...]) -> None:
        self.jobs = jobs
        self.locks = [order.locks(job) for job in jobs]

    def start(self) -> State:
        return (0,) * len(self.jobs)

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        for n, locks in enumerate(self.locks):
            then = (*s[:n], s[n] + 1, *s[n + 1 :])
            if s[n] == len(locks):
                yield f"{self.jobs[n]} commits", then
            elif s[n] < len(locks) and not self.waits(s, n):
                yield f"{self.jobs[n]} locks {locks[s[n]].row}", then

    def waits(self, s: State, n: int) -> bool:
        wanted = self.locks[n][s[n]]
        for other, locks in enumerate(self.locks):
            if other == n or s[other] > len(locks):
                continue
            for held in locks[: s[other]]:
                if held.row == wanted.row and not (held.shared and wanted.shared):
                    return True
        return False

    def broken(self, s: State, last: bool) -> str | None:
        unfinished = any(done <= len(locks) for done, locks in zip(s, self.locks, strict=True))
        return "no_deadlock" if last and unfinished else None
