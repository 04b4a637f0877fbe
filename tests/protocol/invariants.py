"""What is true in every state. Each function answers whether it holds; `broken` names the first that doesn't."""

from collections.abc import Callable

from protocol.state import Charged, Float, Hold, Post, State
from protocol.worlds import World

Invariant = Callable[[World, State], bool]


def in_use_within_limit(world: World, s: State) -> bool:
    """spent + reserved never passes the limit, but for recorded overrun and what was in use at a lowered limit."""
    return all(
        row.spent + row.reserved <= max(s.limits[at % len(world.budgets)], row.floor) + row.overrun
        for at, row in enumerate(s.windows)
    )


def slots_within_limit(world: World, s: State) -> bool:
    """No more calls are open than there are parallel slots."""
    slots = [world.budgets[at % len(world.budgets)].open_limit for at in range(len(s.windows))]
    return all(limit is None or row.open <= limit for row, limit in zip(s.windows, slots, strict=True))


def reserved_is_sum_of_open(world: World, s: State) -> bool:
    """reserved and open are exactly the open reservations and the floats, and floats those of them not closed."""
    reserved, opened, floats = [0] * len(s.windows), [0] * len(s.windows), [0] * len(s.windows)
    for hold in (*s.holds, *s.floats):
        if isinstance(hold, Hold | Float):
            for at, held in zip(hold.windows, hold.held, strict=True):
                reserved[at] += held
                opened[at] += 1
                floats[at] += isinstance(hold, Float) and not hold.closed
    return all(
        (row.reserved, row.open, row.floats) == (reserved[at], opened[at], floats[at])
        for at, row in enumerate(s.windows)
    )


def spent_is_sum_of_rows(world: World, s: State) -> bool:
    """spent is exactly the postings in force, those of floats that nobody ended included."""
    spent = [0] * len(s.windows)
    for post in (*s.posts, *s.floats):
        if isinstance(post, Post | Charged):
            for at in post.windows:
                spent[at] += post.cost
    return all(row.spent == spent[at] for at, row in enumerate(s.windows))


def truth_within_strict_limit(world: World, s: State) -> bool:
    """What the provider bills never passes the limit of a strict budget."""
    billed = [0] * len(s.windows)
    for i, call in enumerate(s.calls):
        hold, post = s.holds[i], s.posts[i]
        windows = hold.windows if isinstance(hold, Hold) else post.windows if post else ()
        if not windows and call.float is not None:
            windows = s.pockets[call.float].windows
        for at in windows:
            billed[at] += call.truth or 0
    return all(
        not world.budgets[at % len(world.budgets)].strict
        or billed[at] <= max(s.limits[at % len(world.budgets)], row.floor)
        for at, row in enumerate(s.windows)
    )


def sent_is_reserved(world: World, s: State) -> bool:
    """Nothing is with the provider, or was, without an open reservation, a float or a row."""
    return all(
        isinstance(s.holds[i], Hold) or s.posts[i] is not None or is_afloat(s, i)
        for i, call in enumerate(s.calls)
        if call.phase in ("sent", "over", "done", "ack", "cut", "closed")
    )


def acknowledged_is_exact(world: World, s: State) -> bool:
    """A settlement that was acknowledged stands in the books to the cent."""
    return all(
        (post := s.posts[i]) is not None and post.cost == call.truth
        for i, call in enumerate(s.calls)
        if call.phase == "ack"
    )


def never_below_truth(world: World, s: State) -> bool:
    """What is charged and held covers what the call cost, unless it was let run on."""
    for i, call in enumerate(s.calls):
        hold, post = s.holds[i], s.posts[i]
        if call.truth is None or call.ran_on or not (hold or post):
            continue
        held = min(hold.held) if isinstance(hold, Hold) else 0
        if (post.cost if post else 0) + held < call.truth:
            return False
    return True


def ended_holds_nothing(world: World, s: State) -> bool:
    """A call that is over holds nothing, and one that was never sent costs nothing."""
    for i, call in enumerate(s.calls):
        if call.phase in ("ack", "no") and isinstance(s.holds[i], Hold):
            return False
        post = s.posts[i]
        if call.phase == "no" and post and post.cost:
            return False
    return True


def is_afloat(s: State, i: int) -> bool:
    f = s.calls[i].float
    return f is not None and isinstance(s.floats[f], Float | Charged)


def floats_cover(world: World, s: State) -> bool:
    """A float holds what was let in out of it and is in no book yet, and what its process still lets in."""
    for f, (row, pocket) in enumerate(zip(s.floats, s.pockets, strict=True)):
        if isinstance(row, Charged):
            continue
        used = list(pocket.free) if s.processes[world.purses[f].process].alive else [0] * len(pocket.free)
        for i, call in enumerate(s.calls):
            if call.float != f or s.holds[i] or s.posts[i] or call.phase not in ("held", "sent", "over", "done", "cut"):
                continue
            for n, budget in enumerate(world.asks[i].budgets):
                used[n] += world.asks[i].bound if world.budgets[budget].strict else world.asks[i].first
        held = row.held if isinstance(row, Float) else (0,) * len(used)
        if any(amount > had for amount, had in zip(used, held, strict=True)):
            return False
    return True


def ended_float_is_gone(world: World, s: State) -> bool:
    """A float whose process knows that it ended holds nothing, and never will; nor does one of the gone and settled."""
    return not any(
        isinstance(row, Float) and pocket.phase == "ended" for row, pocket in zip(s.floats, s.pockets, strict=True)
    )


def let_in_where_it_counts(world: World, s: State) -> bool:
    """A call is let in out of a float on the windows of that moment only."""
    return not any(call.fault == "stale" for call in s.calls)


def no_refusal_beside_idle_floats(world: World, s: State) -> bool:
    """No call is refused for what living processes hold for calls to come."""
    return not any(call.fault == "beside" for call in s.calls)


def fenced_with_cause(world: World, s: State) -> bool:
    """Nobody who beats whenever the database lets him is taken for dead."""
    return world.fence or all(process.excused or not process.fenced for process in s.processes)


ALL: tuple[Invariant, ...] = (
    in_use_within_limit,
    slots_within_limit,
    reserved_is_sum_of_open,
    spent_is_sum_of_rows,
    truth_within_strict_limit,
    sent_is_reserved,
    acknowledged_is_exact,
    never_below_truth,
    ended_holds_nothing,
    floats_cover,
    ended_float_is_gone,
    let_in_where_it_counts,
    no_refusal_beside_idle_floats,
    fenced_with_cause,
)


def all_freed(world: World, s: State) -> bool:
    """Nothing is held, and nobody waits: true of every state out of which no step leads."""
    return not any(row.reserved or row.open for row in s.windows) and not any(call.phase == "bid" for call in s.calls)


def broken(world: World, s: State, *, last: bool, only: str | None = None) -> str | None:
    """The first invariant that doesn't hold, or `only` where it doesn't; `last`: no step leads out of the state."""
    checked = (*ALL, all_freed) if last else ALL
    names = (check.__name__ for check in checked if only in (None, check.__name__) and not check(world, s))
    return next(names, None)
