"""How small each world is: which calls, budgets and faults there are. Small enough to be walked whole."""

from dataclasses import dataclass

from protocol.state import Call, Pocket, Process, State, Window


@dataclass(frozen=True)
class Budget:
    """A strict budget holds a call's bound, any other what is expected of it."""

    limit: int
    strict: bool = True
    open_limit: int | None = None
    lowered: int | None = None  # the limit an operator may set, once


@dataclass(frozen=True)
class Ask:
    """A call: who serves it, which budgets apply, its true bound, what is expected, the totals it may ask for."""

    process: int
    budgets: tuple[int, ...]
    bound: int
    expected: int | None = None
    totals: tuple[int, ...] = ()
    overrun: bool = False  # runs on when an extension is denied
    costs: tuple[int, ...] | None = None  # what it may turn out to cost; None: anything up to the bound

    @property
    def first(self) -> int:
        return self.bound if self.expected is None else self.expected


@dataclass(frozen=True)
class Purse:
    """A float that a process may take: on which budgets, how much of each at a time, and how often."""

    process: int
    budgets: tuple[int, ...]
    amount: int
    takes: int = 1


@dataclass(frozen=True)
class World:
    budgets: tuple[Budget, ...]
    asks: tuple[Ask, ...]
    processes: int = 2
    lives: int = 1  # how often a process may register anew
    edge: bool = False  # the window ends once
    lost: bool = False  # replies get lost
    late: bool = False  # requests arrive after their sender gave up
    cancel: bool = False  # clients leave before anything is sent
    crash: bool = True
    fence: bool = True  # any owner may be taken for dead at any time: a lease is only a guess
    batch: bool = False  # two calls of one process asked for in one statement, with one reply
    timed: bool = False  # ticks, beats and outages instead: `fence` then needs a lease of silence
    purses: tuple[Purse, ...] = ()
    burns: bool = False  # a killed process may have lost its journal, too

    def start(self) -> State:
        return State(
            windows=(Window(),) * (len(self.budgets) * 2),
            limits=tuple(budget.limit for budget in self.budgets),
            holds=(None,) * len(self.asks),
            posts=(None,) * len(self.asks),
            calls=(Call(),) * len(self.asks),
            processes=(Process(),) * self.processes,
            floats=(None,) * len(self.purses),
            pockets=(Pocket(),) * len(self.purses),
        )


# Three calls of two processes race for money that pays one and a half of them.
RACE = World(
    budgets=(Budget(3),),
    asks=(Ask(0, (0,), 2, costs=(0, 2)), Ask(1, (0,), 2, costs=(2,)), Ask(1, (0,), 1, costs=(1,))),
    lives=0,
)
# Every fault of the network at once, on two calls; a parallel slot beside the money.
NETWORK = World(
    budgets=(Budget(3, open_limit=1),),
    asks=(Ask(0, (0,), 2, costs=(2,)), Ask(1, (0,), 1, costs=(1,))),
    lost=True,
    late=True,
    cancel=True,
    lives=0,
)
# One process whose two calls are asked for in one statement, and which is fenced and registers anew.
BATCH = World(
    budgets=(Budget(3), Budget(2)),
    asks=(Ask(0, (0, 1), 2, costs=(0, 2)), Ask(0, (0,), 2, costs=(1,))),
    processes=1,
    lost=True,
    cancel=True,
    batch=True,
)
# A stream that holds what is expected and grows beside a call that may take the money; two admissions.
GROWING = World(
    budgets=(Budget(3, strict=False), Budget(3)),
    asks=(
        Ask(0, (0, 1), 3, expected=1, totals=(2,), costs=(2,)),
        Ask(1, (0,), 2, expected=1, totals=(2,), costs=(2,), overrun=True),
    ),
    lost=True,
    lives=0,
)
# One stream alone: every message of it lost, late or repeated, in two lives.
STREAM = World(
    budgets=(Budget(3, strict=False), Budget(4, strict=False)),
    asks=(Ask(0, (0, 1), 4, expected=1, totals=(2, 3), costs=(1, 2, 3)),),
    processes=1,
    lost=True,
    late=True,
    cancel=True,
)
# Calls in flight while their window ends and while an operator lowers a limit.
EDGE = World(
    budgets=(Budget(2), Budget(3, lowered=1)),
    asks=(Ask(0, (0, 1), 2, costs=(2,)), Ask(1, (1,), 2, costs=(1,))),
    edge=True,
    lives=0,
)
# Leases in time: beats, pauses, kills, and an outage of any length.
LEASE = World(
    budgets=(Budget(2),),
    asks=(Ask(1, (0,), 1, costs=(1,)),),
    fence=False,
    crash=False,  # to a sweeper, being paused for long is the same
    timed=True,
    lives=0,
)

FAST = {
    "race": RACE,
    "network": NETWORK,
    "batch": BATCH,
    "growing": GROWING,
    "stream": STREAM,
    "edge": EDGE,
    "lease": LEASE,
}

# The same with more of everything: minutes, not seconds.
LONG = {
    "race of four": World(
        budgets=(Budget(4),),
        asks=(Ask(0, (0,), 2), Ask(1, (0,), 2), Ask(1, (0,), 1), Ask(0, (0,), 1)),
        lives=0,
    ),
    "network with new lives": World(
        budgets=(Budget(3, open_limit=1), Budget(2)),
        asks=(Ask(0, (0, 1), 2, costs=(0, 2)), Ask(1, (0,), 1)),
        lost=True,
        late=True,
        cancel=True,
    ),
    "growing in a bad network": World(
        budgets=(Budget(4, strict=False), Budget(5)),
        asks=(
            Ask(0, (0, 1), 3, expected=1, totals=(2, 3), costs=(1, 3)),
            Ask(1, (0,), 2, expected=1, totals=(2,), costs=(2,), overrun=True),
        ),
        lost=True,
        late=True,
        lives=0,
    ),
    "edge with new lives": World(
        budgets=(Budget(2), Budget(3, lowered=1)),
        asks=(Ask(0, (0, 1), 2, costs=(0, 2)), Ask(1, (0, 1), 2, costs=(1,))),
        edge=True,
        cancel=True,
    ),
    "lease of two": World(
        budgets=(Budget(2),),
        asks=(Ask(0, (0,), 1, costs=(1,)), Ask(1, (0,), 1, costs=(1,))),
        fence=False,
        timed=True,
        lives=0,
    ),
}
