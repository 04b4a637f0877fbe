"""The protocol itself: what each function of the database does to the rows, as one atomic step.

A mutant is a subclass that gets one of these methods wrong, which is why the rules are cut as small as they are.
"""

from collections.abc import Sequence
from typing import Literal

from protocol.state import Hold, Post, State, Void, put
from protocol.worlds import World

Answer = Literal["open", "denied", "gone", "fenced"]

LEASE = 4  # ticks an owner may be silent; a beat is due every BEAT
BEAT = 1
# A beat that comes this late starts its owner's steadiness anew. Why not a whole lease: an outage a little shorter than
# that would go unnoticed by whoever beat just before it and just after it, and another whose beat was due just then may
# have been silent for one BEAT before it and is for one more after it.
GAP = LEASE - 2 * BEAT


class Rules:
    gap = GAP

    def __init__(self, world: World) -> None:
        self.world = world

    # -- reserve ------------------------------------------------------------------------------------------------

    def reserve(self, s: State, i: int, life: tuple[int, int]) -> tuple[State, Answer]:
        """Opens call `i` on the windows of now: all of them or none. The same id again gets the same answer."""
        if self.is_fenced(s, life):
            return s, "fenced"
        hold = s.holds[i]
        if isinstance(hold, Hold):
            return self.repeated(s, i), "open"
        if isinstance(hold, Void) or s.posts[i]:
            return s, "gone"
        windows = self.windows_of(s, i)
        amounts = self.amounts(i)
        if not self.fits(s, windows, amounts, opening=True, seen=s.calls[i].seen):
            return self.denied(s, i), "denied"
        s = self.hold(s, windows, amounts, 1)
        return s._replace(holds=put(s.holds, i, Hold(life, windows, amounts))), "open"

    def look(self, s: State, i: int) -> tuple[int, ...] | None:
        """What is looked at in a step of its own before asking: nothing, the guard reads the rows it has locked."""
        return None

    def repeated(self, s: State, i: int) -> State:
        """The same id again moves nothing."""
        return s

    def denied(self, s: State, i: int) -> State:
        """A refusal leaves nothing behind."""
        return s

    def windows_of(self, s: State, i: int) -> tuple[int, ...]:
        return tuple(s.era * len(self.world.budgets) + budget for budget in self.world.asks[i].budgets)

    def amounts(self, i: int) -> tuple[int, ...]:
        ask = self.world.asks[i]
        return tuple(ask.bound if self.world.budgets[budget].strict else ask.first for budget in ask.budgets)

    def is_fenced(self, s: State, life: tuple[int, int]) -> bool:
        process, number = life
        return number in s.processes[process].fenced

    def fits(
        self,
        s: State,
        windows: Sequence[int],
        amounts: Sequence[int],
        *,
        opening: bool,
        seen: Sequence[int] | None = None,
    ) -> bool:
        for n, (at, amount) in enumerate(zip(windows, amounts, strict=True)):
            budget, window = at % len(self.world.budgets), s.windows[at]
            slots = self.world.budgets[budget].open_limit
            used = seen[n] if seen else window.spent + window.reserved
            if amount and used + amount > s.limits[budget]:
                return False
            if opening and slots is not None and window.open >= slots:
                return False
        return True

    def hold(self, s: State, windows: Sequence[int], amounts: Sequence[int], opened: int) -> State:
        rows = s.windows
        for at, amount in zip(windows, amounts, strict=True):
            row = rows[at]
            rows = put(rows, at, row._replace(reserved=row.reserved + amount, open=row.open + opened))
        return s._replace(windows=rows)

    # -- extend -------------------------------------------------------------------------------------------------

    def extend(self, s: State, i: int, total: int, life: tuple[int, int]) -> tuple[State, Answer]:
        """Raises what call `i` holds to a larger total; what a sweep charged meanwhile counts as held."""
        if self.is_fenced(s, life):
            return s, "fenced"
        hold, post = s.holds[i], s.posts[i]
        charged = post.cost if post else 0
        if isinstance(hold, Hold):
            more = tuple(max(0, total - charged - held) for held in hold.held)
            if not self.may_extend(s, hold.windows, more):
                return s, "denied"
            s = self.hold(s, hold.windows, more, 0)
            held = tuple(old + new for old, new in zip(hold.held, more, strict=True))
            return s._replace(holds=put(s.holds, i, hold._replace(life=life, held=held))), "open"
        if not post or not self.may_reopen(post):
            return s, "gone"
        more = tuple(max(0, total - charged) for _ in post.windows)
        if not any(more):
            return s, "open"
        if not self.may_extend(s, post.windows, more):
            return s, "denied"
        s = self.hold(s, post.windows, more, 1)
        return s._replace(holds=put(s.holds, i, Hold(life, post.windows, more))), "open"

    def may_extend(self, s: State, windows: Sequence[int], more: Sequence[int]) -> bool:
        return self.fits(s, windows, more, opening=False)

    def may_reopen(self, post: Post) -> bool:
        """Only what a sweep charged: a call whose truth is posted has ended, whatever arrives late."""
        return post.hold and post.cut

    # -- settle, sweep, release -----------------------------------------------------------------------------------

    def settle(self, s: State, i: int, cost: int, *, hold: bool = False, cut: bool = False) -> State:
        """Posts an event and frees its hold, once. A late truth corrects a charge at the hold."""
        was, held = s.posts[i], s.holds[i]
        if not isinstance(held, Hold):
            if not was or not self.corrects(was, hold=hold, cut=cut):
                return s
            return self.post(
                s, i, was.windows, cost - was.cost, (0,) * len(was.windows), Post(was.windows, cost, hold, cut)
            )
        before = was.cost if was else 0
        if hold:
            cost = self.hold_cost(cost, before, held)
        s = self.post(s, i, held.windows, cost - before, held.held, Post(held.windows, cost, hold, cut))
        return self.free(s, i, held)

    def corrects(self, was: Post, *, hold: bool, cut: bool) -> bool:
        return was.cut and (not cut or (was.hold and not hold))

    def hold_cost(self, cost: int, before: int, held: Hold) -> int:
        """A charge at the hold covers the largest hold there is by now, and what was charged already."""
        return max(cost, before + max(held.held))

    def post(self, s: State, i: int, windows: Sequence[int], delta: int, held: Sequence[int], post: Post) -> State:
        rows = s.windows
        for at, amount in zip(windows, held, strict=True):
            row = rows[at]
            over = max(0, delta - amount)
            rows = put(rows, at, row._replace(spent=row.spent + delta, overrun=row.overrun + over))
        return s._replace(windows=rows, posts=put(s.posts, i, post))

    def free(self, s: State, i: int, held: Hold) -> State:
        s = self.hold(s, held.windows, tuple(-amount for amount in held.held), -1)
        return s._replace(holds=put(s.holds, i, None))

    def release(self, s: State, i: int) -> State:
        """Returns the hold of a call that was provably not sent, and sees to it that its id stays closed."""
        hold, post = s.holds[i], s.posts[i]
        if isinstance(hold, Hold):
            return self.returned(self.free(s, i, hold), i)
        if post:
            if not post.hold:
                return s
            zero = Post(post.windows, 0, False, post.cut)
            return self.post(s, i, post.windows, -post.cost, (0,) * len(post.windows), zero)
        return self.tombstone(s, i)

    def returned(self, s: State, i: int) -> State:
        """An open one leaves a tombstone too: an earlier request for it may still be under way."""
        return self.tombstone(s, i)

    def tombstone(self, s: State, i: int) -> State:
        return s._replace(holds=put(s.holds, i, Void()))

    def sweep(self, s: State, i: int) -> State:
        """Charges the hold of a call whose owner is fenced; it is never given back."""
        hold = s.holds[i]
        if not isinstance(hold, Hold) or not self.is_fenced(s, hold.life):
            return s
        return self.settle(s, i, 0, hold=True, cut=True)

    def may_fence(self, s: State, by: int, process: int) -> bool:
        """A lease of silence, seen by one that itself has beaten for a lease without a gap, the present included."""
        own = s.processes[by]
        return s.processes[process].age >= LEASE and own.steady >= LEASE and own.age < self.gap

    def edge(self, s: State) -> State:
        """The window ends: whoever reserves from now on gets a new row."""
        return s._replace(era=1)

    def lower(self, s: State, budget: int, limit: int) -> State:
        """A lower limit holds at once; what is in use already is remembered, so that it isn't taken for a fault."""
        rows = s.windows
        for at in range(budget, len(rows), len(self.world.budgets)):
            row = rows[at]
            used = row.spent + row.reserved
            rows = put(rows, at, row._replace(floor=max(row.floor, used) if used > limit else row.floor))
        return s._replace(windows=rows, limits=put(s.limits, budget, limit))

    # -- what a process makes of an answer --------------------------------------------------------------------------

    def may_send(self, answer: Answer) -> bool:
        return answer == "open"

    def is_certain(self, late: frozenset[str]) -> bool:
        """Nothing that could still open the id is under way: a refusal is then the end of it."""
        return "reserve" not in late
