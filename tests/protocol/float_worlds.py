"""Worlds in which processes hold floats: as small as the others."""

from protocol.worlds import Ask, Budget, Purse, World

# A call out of a float, and one of another process that has room beside it or not; every reply may be lost.
FLOAT = World(
    budgets=(Budget(3),),
    asks=(Ask(0, (0,), 1, costs=(1,)), Ask(1, (0,), 2, costs=(2,))),
    purses=(Purse(0, (0,), 2),),
    lost=True,
    cancel=True,
    crash=False,
    fence=False,
    lives=0,
)
# The same with two calls out of it while processes are killed.
DYING = World(
    budgets=(Budget(3),),
    asks=(Ask(0, (0,), 1, costs=(0,)), Ask(0, (0,), 1, costs=(1,)), Ask(1, (0,), 2, costs=(2,))),
    purses=(Purse(0, (0,), 2),),
    fence=False,
    lives=0,
)
# A float that is filled up, and every message about it and its call lost, late or repeated, in two lives.
FILLED = World(
    budgets=(Budget(3),),
    asks=(Ask(0, (0,), 1, costs=(1,)),),
    processes=1,
    purses=(Purse(0, (0,), 1, takes=2),),
    lost=True,
    late=True,
    cancel=True,
)
# A stream that comes out of a float and grows: what it holds may have to be found in a journal, or in the database.
FLOAT_STREAM = World(
    budgets=(Budget(3, strict=False), Budget(4, strict=False)),
    asks=(Ask(0, (0, 1), 3, expected=1, totals=(2,), costs=(1, 2)),),
    processes=1,
    purses=(Purse(0, (0, 1), 3),),
    lost=True,
    late=True,
    lives=0,
)
# A call that needs nearly all there is, beside a process that takes one float after the other.
RECALL = World(
    budgets=(Budget(4),),
    asks=(Ask(0, (0,), 1, costs=(0,)), Ask(1, (0,), 4, costs=(4,))),
    purses=(Purse(0, (0,), 1), Purse(0, (0,), 1)),
    lost=True,
    crash=False,
    fence=False,
    lives=0,
)
# A float while its window ends and while a limit is lowered below what it holds.
FLOAT_EDGE = World(
    budgets=(Budget(2), Budget(3, lowered=1)),
    asks=(Ask(0, (0, 1), 1, costs=(1,)), Ask(1, (1,), 2, costs=(2,))),
    purses=(Purse(0, (0, 1), 2),),
    edge=True,
    crash=False,
    fence=False,
    lives=0,
)
# A process that is killed, or only taken for dead; its journal comes back, or comes too late, or never.
BURNT = World(
    budgets=(Budget(3),),
    asks=(Ask(0, (0,), 1, costs=(1,)),),
    purses=(Purse(0, (0,), 2),),
    burns=True,
    lives=0,
)

FAST = {
    "float": FLOAT,
    "filled": FILLED,
    "float stream": FLOAT_STREAM,
    "recall": RECALL,
    "float edge": FLOAT_EDGE,
    "burnt": BURNT,
}

# The same with more of everything: up to minutes each.
LONG = {
    "dying": DYING,
    "burnt beside another": World(
        budgets=(Budget(3),),
        asks=(Ask(0, (0,), 1, costs=(1,)), Ask(1, (0,), 2, costs=(2,))),
        purses=(Purse(0, (0,), 2),),
        burns=True,
        lives=0,
    ),
    "floats of two": World(
        budgets=(Budget(4),),
        asks=(Ask(0, (0,), 1, costs=(1,)), Ask(1, (0,), 1, costs=(0,)), Ask(1, (0,), 3, costs=(3,))),
        purses=(Purse(0, (0,), 2), Purse(1, (0,), 1)),
        lost=True,
        fence=False,
        lives=0,
    ),
    "dying and fenced": World(
        budgets=(Budget(3),),
        asks=(Ask(0, (0,), 1, costs=(0, 1)), Ask(0, (0,), 1, costs=(1,)), Ask(1, (0,), 2, costs=(2,))),
        purses=(Purse(0, (0,), 2),),
        lives=0,
    ),
    "filled in a bad network": World(
        budgets=(Budget(3),),
        asks=(Ask(0, (0,), 1, costs=(1,)), Ask(0, (0,), 1, costs=(0,))),
        processes=1,
        purses=(Purse(0, (0,), 1, takes=2),),
        lost=True,
        late=True,
        fence=False,
        lives=0,
    ),
}
