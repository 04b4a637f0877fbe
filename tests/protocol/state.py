"""What a state is: the database's rows, and what each process knows. All of it immutable and hashable."""

from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")


class Window(NamedTuple):
    """A counter row. `floor` is what was in use when the limit was last lowered below it."""

    spent: int = 0
    reserved: int = 0
    open: int = 0
    overrun: int = 0
    floor: int = 0
    floats: int = 0  # how many floats there are on it that may have something to spare
    barred: bool = False  # somebody was denied beside floats a moment ago: none is taken or filled up here


class Hold(NamedTuple):
    """An open reservation: the life that made it, the windows it is pinned to and what it holds in each."""

    life: tuple[int, int]
    windows: tuple[int, ...]
    held: tuple[int, ...]


class Void(NamedTuple):
    """A tombstone: this id was released and may never be opened again."""

    void: bool = True


class Float(NamedTuple):
    """What a life of a process may let calls have of these windows without asking.

    `closed`: what calls don't need was given back, and it gets no more. `told`: it stood there when a window of it was
    barred, so that its owner has had time to hear of that.
    """

    life: tuple[int, int]
    windows: tuple[int, ...]
    held: tuple[int, ...]
    closed: bool = False
    told: bool = False


class Charged(NamedTuple):
    """What became of a float that nobody ended: it is charged like a hold, 0 when it turns out what was sent."""

    windows: tuple[int, ...]
    cost: int


class Post(NamedTuple):
    """The posting in force for a call. `hold`: charged at the reservation; `cut`: its outcome is farebox_cut."""

    windows: tuple[int, ...]
    cost: int
    hold: bool
    cut: bool


Phase = Literal["new", "ask", "bid", "held", "sent", "over", "done", "ack", "drop", "no", "lost", "cut", "closed"]


class Call(NamedTuple):
    """What the process that serves a call knows, and what the provider will bill.

    new, ask (asked, no answer yet), bid (denied beside floats, which are recalled), held, sent, over (runs on after a
    denied extension), done (its end is in the journal), ack (settled, and known to be), drop (to be released), no
    (never sent, closed). After a kill: lost (never sent), cut (a journalled beginning without an end), done, and closed
    once a replay has posted it.
    """

    phase: Phase = "new"
    total: int = 0  # what the process believes to hold
    truth: int | None = None  # what the provider bills; None while it is not decided
    late: frozenset[str] = frozenset()  # requests still under way that nobody waits for
    ran_on: bool = False  # past a denied extension, by the budget's policy
    seen: tuple[int, ...] | None = None  # what a mutant looked at before it asks
    float: int | None = None  # the float its hold was taken out of, as long as nobody heard of another hold of it
    recalled: bool = False  # floats that were in its way have been recalled for it
    fault: str = ""  # what must not happen to a call at the moment it is let in or refused


PocketPhase = Literal["none", "live", "giving", "given", "ended", "unsure"]


class Pocket(NamedTuple):
    """What a process knows of one of its floats: how much of it is free, and how it stands.

    none (not taken yet), live, giving (nothing comes out of it any more, and what was free is to be given back), given,
    ended (nothing is left of it), unsure (it was asked for and there was no answer: if it is there it is ended).
    """

    phase: PocketPhase = "none"
    windows: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    owed: tuple[int, ...] = ()  # what is to be given back
    takes: int = 0
    late: frozenset[tuple[str, tuple[int, ...]]] = frozenset()  # requests under way that nobody waits for


class Process(NamedTuple):
    """A replica: killed or not, its present life (an owner row) and which lives are fenced.

    `age` and `steady` count ticks: since its last beat, and since its beats have come without a gap. `excused`: it was
    paused or killed at some time, so that fencing it has a cause. `lost`: its journal is, too.
    """

    alive: bool = True
    life: int = 0
    fenced: frozenset[int] = frozenset()
    age: int = 0
    steady: int = 0
    excused: bool = False
    lost: bool = False


class State(NamedTuple):
    windows: tuple[Window, ...]
    limits: tuple[int, ...]
    holds: tuple[Hold | Void | None, ...]
    posts: tuple[Post | None, ...]
    calls: tuple[Call, ...]
    processes: tuple[Process, ...]
    era: int = 0  # 0, then 1: the next window is a row of its own
    away: bool = False  # the database can't be reached
    since_up: int = 9  # ticks since it can be again
    floats: tuple[Float | Charged | Void | None, ...] = ()
    pockets: tuple[Pocket, ...] = ()


def put(row: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    """`row` with one place changed."""
    return (*row[:at], value, *row[at + 1 :])
