"""The protocol of floats with one rule taken away or got wrong: as in `mutants.py`."""

from collections.abc import Sequence

from protocol.floats import FloatRules
from protocol.mutants import Mutant
from protocol.state import Float, Pocket, State


class TakesUnguarded(FloatRules):
    """Takes a float whether there is room for it or not."""

    def may_take(self, s: State, windows: Sequence[int], amounts: Sequence[int]) -> bool:
        return not self.is_barred(s, windows)


class TakesBesideABid(FloatRules):
    """Takes a float anew where others were just recalled for a call that needs the room."""

    def is_barred(self, s: State, windows: Sequence[int]) -> bool:
        return False


class FillsWhatIsGone(FloatRules):
    """Makes a float anew where one is to be filled up that has ended."""

    def may_make(self, new: bool) -> bool:
        return True


class ForgetsTheUnsure(FloatRules):
    """Takes a float for not made because nobody said that it was."""

    def looks_for_the_unsure(self) -> bool:
        return False


class GivesWhatRuns(FloatRules):
    """Gives back with what is free what calls hold that have only just ended."""

    def is_unused(self, phase: str) -> bool:
        return phase == "done"


class GivesTwice(FloatRules):
    """Gives back as often as it is told."""

    def is_closed(self, row: Float) -> bool:
        return False


class EndsBeforeTheBooks(FloatRules):
    """Ends a float when its last call is over, before the books have heard of it."""

    def may_end(self, *, undrained: bool, running: bool) -> bool:
        return not running


class SweepsFloats(FloatRules):
    """Gives back the float of an owner that is taken for dead, like one whose journal has told all."""

    def may_adopt(self, unposted: bool) -> bool:
        return True


class AdoptsTheLiving(FloatRules):
    """Ends the floats of the gone and leaves their lives alone, so that a late request of theirs makes one."""

    def buried_alive(self, s: State, process: int) -> State:
        return s


class KeepsWhatNobodyEnds(FloatRules):
    """Holds the float of a lost machine for ever."""

    def orphaned(self, s: State, f: int) -> State:
        return s


class SettlesBesideTheFloat(FloatRules):
    """Makes the reservation of a call beside its float, which goes on holding for it."""

    def detach(self, s: State, i: int, f: int, windows: Sequence[int]) -> State:
        t = super().detach(s, i, f, windows)
        row, less = s.floats[f], t.floats[f]
        if t == s or not isinstance(row, Float) or not isinstance(less, Float):
            return t
        back = tuple(old - new for old, new in zip(row.held, less.held, strict=True))
        return self.with_float(self.hold(t, row.windows, back, 0), f, row)


class DetachesTheSettled(FloatRules):
    """Makes a reservation for a call whose row is there already."""

    def is_posted(self, s: State, i: int) -> bool:
        return False


class ExtendsAlone(FloatRules):
    """Lets a stream grow out of the float, which no journal knows of."""

    def extends_alone(self) -> bool:
        return True


class LetsInForever(FloatRules):
    """Lets calls in out of a float whose window is over."""

    def may_admit(self, s: State, i: int, pocket: Pocket) -> bool:
        return True


class RefusesAtOnce(FloatRules):
    """Refuses what doesn't fit beside floats, and asks nobody for them."""

    def may_refuse(self, s: State, i: int) -> bool:
        return True


ALL = (
    Mutant(TakesUnguarded, "float", "in_use_within_limit"),
    Mutant(RefusesAtOnce, "float", "no_refusal_beside_idle_floats"),
    Mutant(SettlesBesideTheFloat, "float", "in_use_within_limit"),
    Mutant(TakesBesideABid, "recall", "no_refusal_beside_idle_floats"),
    Mutant(GivesWhatRuns, "dying", "floats_cover"),
    Mutant(EndsBeforeTheBooks, "dying", "sent_is_reserved"),
    Mutant(SweepsFloats, "dying", "sent_is_reserved"),
    Mutant(FillsWhatIsGone, "filled", "ended_float_is_gone"),
    Mutant(ForgetsTheUnsure, "float", "all_freed"),
    Mutant(GivesTwice, "filled", "floats_cover"),
    Mutant(AdoptsTheLiving, "filled", "ended_float_is_gone"),
    Mutant(ExtendsAlone, "float stream", "never_below_truth"),
    Mutant(DetachesTheSettled, "float stream", "ended_holds_nothing"),
    Mutant(LetsInForever, "float edge", "let_in_where_it_counts"),
    Mutant(KeepsWhatNobodyEnds, "burnt", "all_freed"),
)
