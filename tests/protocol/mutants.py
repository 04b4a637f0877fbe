"""The protocol with one rule taken away or got wrong, each by a way in which budgets really have been built.

Each says the smallest world in which it shows and the invariant that it breaks there.
"""

from collections.abc import Sequence
from typing import NamedTuple

from protocol.rules import LEASE, Answer, Rules
from protocol.state import Hold, Post, State, Window, put


class CheckThenAdd(Rules):
    """Looks whether there is room, and adds in a step of its own."""

    def look(self, s: State, i: int) -> tuple[int, ...] | None:
        return tuple(s.windows[at].spent + s.windows[at].reserved for at in self.windows_of(s, i))


class RefundOnExpiry(Rules):
    """Gives the hold of a silent owner back."""

    def sweep(self, s: State, i: int) -> State:
        hold = s.holds[i]
        return self.free(s, i, hold) if isinstance(hold, Hold) and self.is_fenced(s, hold.life) else s


class ResetZeroesReserved(Rules):
    """Starts a window by zeroing the row of the last one."""

    def edge(self, s: State) -> State:
        return s._replace(windows=(Window(),) * len(s.windows))


class SettlesTwice(Rules):
    """Charges an event as often as it comes."""

    def settle(self, s: State, i: int, cost: int, *, hold: bool = False, cut: bool = False) -> State:
        t = super().settle(s, i, cost, hold=hold, cut=cut)
        was = s.posts[i]
        if t != s or not was:
            return t
        return self.post(s, i, was.windows, cost, (0,) * len(was.windows), was)


class ExtendsUnguarded(Rules):
    """Grants whatever a running stream asks for."""

    def may_extend(self, s: State, windows: Sequence[int], more: Sequence[int]) -> bool:
        return True


class ChargesTheWindowOfNow(Rules):
    """Charges the window in which a call ends, not the one that reserved for it."""

    def post(self, s: State, i: int, windows: Sequence[int], delta: int, held: Sequence[int], post: Post) -> State:
        return super().post(s, i, self.windows_of(s, i), delta, held, post)


class NoTombstone(Rules):
    """Thinks nothing of releasing an id it doesn't know, and opens it when its reserve arrives."""

    def tombstone(self, s: State, i: int) -> State:
        return s


class ForgetsTheReleased(Rules):
    """Leaves a tombstone for unknown ids only: an earlier request for a released one opens it again."""

    def returned(self, s: State, i: int) -> State:
        return s


class TrustsARefusal(Rules):
    """Takes a refusal for the end though an earlier request for the same id is still under way."""

    def is_certain(self, late: frozenset[str]) -> bool:
        return True


class SweepsAfterAnOutage(Rules):
    """Takes every owner for dead that was silent for a lease, be it that nobody could be heard."""

    def may_fence(self, s: State, by: int, process: int) -> bool:
        return s.processes[process].age >= LEASE


class SteadyByHabit(Rules):
    """Trusts its own steadiness as of its last beat, and doesn't see the gap it is in itself."""

    def may_fence(self, s: State, by: int, process: int) -> bool:
        return s.processes[process].age >= LEASE and s.processes[by].steady >= LEASE


class WideGap(Rules):
    """Calls its beats steady as long as no gap between them is a whole lease."""

    gap = LEASE


class IgnoresLateTruth(Rules):
    """Leaves a charge at the hold as it is when the real figure arrives."""

    def corrects(self, was: Post, *, hold: bool, cut: bool) -> bool:
        return False


class SendsWhenFenced(Rules):
    """Sends though it was told that its owner is taken for dead."""

    def may_send(self, answer: Answer) -> bool:
        return answer in ("open", "fenced")


class ChargesTheFirstHold(Rules):
    """Charges a cut call what was held when it began, not what it had grown to."""

    def hold_cost(self, cost: int, before: int, held: Hold) -> int:
        return cost


class ForgetsWhatWasCharged(Rules):
    """Charges a cut call that was swept before, and grew anew, only what it grew by."""

    def hold_cost(self, cost: int, before: int, held: Hold) -> int:
        return max(cost, *held.held)


class ReopensTheEnded(Rules):
    """Lets a late extension open a call again whose truth is posted."""

    def may_reopen(self, post: Post) -> bool:
        return True


class HoldsPartly(Rules):
    """Holds in the budgets that have room though another refuses."""

    def denied(self, s: State, i: int) -> State:
        for at, amount in zip(self.windows_of(s, i), self.amounts(i), strict=True):
            if self.fits(s, (at,), (amount,), opening=True):
                s = self.hold(s, (at,), (amount,), 1)
        return s


class HoldsTwice(Rules):
    """Holds again when the same id is asked for again."""

    def repeated(self, s: State, i: int) -> State:
        hold = s.holds[i]
        assert isinstance(hold, Hold)
        return self.hold(s, hold.windows, hold.held, 0) if self.fits(s, hold.windows, hold.held, opening=False) else s


class KeepsTheSlot(Rules):
    """Frees the money of a call and not its parallel slot."""

    def free(self, s: State, i: int, held: Hold) -> State:
        s = self.hold(s, held.windows, tuple(-amount for amount in held.held), 0)
        return s._replace(holds=put(s.holds, i, None))


class KeepsTheHoldOfTheDead(Rules):
    """Never sweeps."""

    def sweep(self, s: State, i: int) -> State:
        return s


class ChargesTheUnsent(Rules):
    """Leaves the charge of a swept call that was never sent."""

    def release(self, s: State, i: int) -> State:
        return s if s.posts[i] else super().release(s, i)


class HidesTheOverrun(Rules):
    """Charges more than was held and keeps no record of it."""

    def post(self, s: State, i: int, windows: Sequence[int], delta: int, held: Sequence[int], post: Post) -> State:
        rows = super().post(s, i, windows, delta, held, post).windows
        kept = tuple(new._replace(overrun=old.overrun) for new, old in zip(rows, s.windows, strict=True))
        return s._replace(windows=kept, posts=put(s.posts, i, post))


class LowersWithoutAFloor(Rules):
    """Lowers a limit below what is in use and can't tell that from a fault."""

    def lower(self, s: State, budget: int, limit: int) -> State:
        return s._replace(limits=put(s.limits, budget, limit))


class Mutant(NamedTuple):
    rules: type[Rules]
    world: str
    breaks: str


ALL = (
    Mutant(CheckThenAdd, "race", "in_use_within_limit"),
    Mutant(CheckThenAdd, "race", "truth_within_strict_limit"),
    Mutant(RefundOnExpiry, "race", "sent_is_reserved"),
    Mutant(KeepsTheHoldOfTheDead, "race", "all_freed"),
    Mutant(IgnoresLateTruth, "race", "acknowledged_is_exact"),
    Mutant(SettlesTwice, "race", "spent_is_sum_of_rows"),
    Mutant(SendsWhenFenced, "race", "sent_is_reserved"),
    Mutant(HoldsTwice, "network", "reserved_is_sum_of_open"),
    Mutant(NoTombstone, "network", "ended_holds_nothing"),
    Mutant(ForgetsTheReleased, "network", "ended_holds_nothing"),
    Mutant(TrustsARefusal, "network", "ended_holds_nothing"),
    Mutant(KeepsTheSlot, "network", "reserved_is_sum_of_open"),
    Mutant(HoldsPartly, "batch", "reserved_is_sum_of_open"),
    Mutant(ChargesTheUnsent, "batch", "ended_holds_nothing"),
    Mutant(ExtendsUnguarded, "growing", "in_use_within_limit"),
    Mutant(HidesTheOverrun, "growing", "in_use_within_limit"),
    Mutant(ChargesTheFirstHold, "stream", "never_below_truth"),
    Mutant(ForgetsWhatWasCharged, "stream", "never_below_truth"),
    Mutant(ReopensTheEnded, "stream", "ended_holds_nothing"),
    Mutant(ResetZeroesReserved, "edge", "reserved_is_sum_of_open"),
    Mutant(ChargesTheWindowOfNow, "edge", "spent_is_sum_of_rows"),
    Mutant(LowersWithoutAFloor, "edge", "in_use_within_limit"),
    Mutant(SweepsAfterAnOutage, "lease", "fenced_with_cause"),
    Mutant(SteadyByHabit, "lease", "fenced_with_cause"),
    Mutant(WideGap, "lease", "fenced_with_cause"),
)
