"""The protocol holds in every state of every small world, and none of its rules can be left out."""

from functools import partial
from itertools import combinations_with_replacement

import pytest

from protocol import float_mutants, float_worlds, invariants, locks, mutants
from protocol.float_steps import FloatSteps
from protocol.floats import FloatRules
from protocol.rules import Rules
from protocol.search import Found, search
from protocol.steps import Steps
from protocol.worlds import FAST, LONG, World

# What can happen at all: a step that no world takes any more is a hole in the model, not a success.
KINDS = {
    *("ask ", "send ", "settle ", "settle  reply lost", "sweep ", "kill ", "kill   cost ", " is taken for dead"),
    *("reserve : open", "reserve : denied", "reserve : gone", "reserve  reply lost", "reserve  hangs ask again"),
    *("late reserve of : open", "late reserve of : gone", "late reserve of : denied", "late reserve of : fenced"),
    *("reserve   at once: 'open' 'denied'", "reserve   at once reply lost", " registers anew", " ends at "),
    *("extend  to ", "extend  to  reply lost", "extend  to : denied runs on", "late extend to  of : open"),
    *("late extend to  of : gone", "client of  leaves", "release ", "release  reply lost"),
    *("replay the beginning of ", "replay the end of ", "the window ends", "lower the limit of "),
    *("the database goes away", "the database is back", "tick", " beats", " is paused", " takes  for dead"),
}
FLOAT_KINDS = {
    *("take float ", "take float  reply lost", "take float  hangs", "top up float ", "top up float  hangs"),
    *("late new of float ", "late more of float ", "late give of float ", "retire float ", "give float "),
    *("give float  reply lost", "give float  hangs", "end float ", "end float  reply lost", "admit  from float "),
    *(
        " goes back to float ",
        "give back  of float ",
        "give back  of float  is lost",
        "end float  which was made after all",
        "detach ",
        "detach  reply lost",
        "detach  hangs",
    ),
    *("late detach of ", "recall floats for ", "ask for  again: open", "ask for  again: denied", "the recall is over"),
    *("no more patience for ", "adopt ", "the journal of  is lost", "float  is nobody's for a day"),
    *("settle ", "settle  reply lost", "kill   cost ", "replay the beginning of ", "replay the end of ", "sweep "),
    *("the window ends", "lower the limit of ", "extend  to ", " registers anew"),
}


def walk(world: World, rules: type[Rules] = Rules, only: str | None = None) -> Found:
    broken = partial(invariants.broken, world, only=only)
    steps = FloatSteps(world, rules(world)) if issubclass(rules, FloatRules) else Steps(world, rules(world))
    return search(world.start(), steps, lambda state, last: broken(state, last=last))


def test_no_reachable_state_breaks_an_invariant() -> None:
    """Whatever happens in whatever order in these worlds, every invariant holds, and every kind of step is taken."""
    found = {name: walk(world) for name, world in FAST.items()}
    assert {name: str(f) for name, f in found.items() if f.broken} == {}
    assert set().union(*(f.kinds for f in found.values())) >= KINDS
    assert sum(f.states for f in found.values()) > 50_000


def test_no_reachable_state_with_floats_breaks_an_invariant() -> None:
    """The same where processes hold floats, and every kind of step that these add is taken."""
    found = {name: walk(world, FloatRules) for name, world in float_worlds.FAST.items()}
    assert {name: str(f) for name, f in found.items() if f.broken} == {}
    assert set().union(*(f.kinds for f in found.values())) >= FLOAT_KINDS
    assert sum(f.states for f in found.values()) > 50_000


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_no_reachable_state_of_a_larger_world_breaks_an_invariant(name: str) -> None:
    """The same in worlds of a million states."""
    found = walk(LONG[name])
    assert found.broken is None, str(found)
    assert found.states > 100_000


@pytest.mark.long
@pytest.mark.parametrize("name", float_worlds.LONG)
def test_no_reachable_state_of_a_larger_world_with_floats_breaks_an_invariant(name: str) -> None:
    """The same in worlds of tens or hundreds of thousands of states."""
    found = walk(float_worlds.LONG[name], FloatRules)
    assert found.broken is None, str(found)
    assert found.states > 40_000


@pytest.mark.parametrize("mutant", (*mutants.ALL, *float_mutants.ALL), ids=lambda m: f"{m.rules.__name__}-{m.breaks}")
def test_every_mutant_is_caught(mutant: mutants.Mutant) -> None:
    """A protocol that lacks one rule breaks the invariant this rule is for; the trace shows how."""
    found = walk((FAST | float_worlds.FAST | float_worlds.LONG)[mutant.world], mutant.rules, mutant.breaks)
    print(f"{mutant.rules.__name__}: {found}")
    assert found.broken == mutant.breaks, f"{mutant.rules.__name__} survives {found.states} states"
    assert found.trace


def deadlocks(order: locks.LockOrder, at_once: int, among: tuple[locks.Job, ...] = locks.JOBS) -> list[Found]:
    runs = [locks.Run(order, jobs) for jobs in combinations_with_replacement(among, at_once)]
    found = [search(run.start(), run.steps, run.broken) for run in runs]
    return [f for f in found if f.broken]


def test_no_three_functions_deadlock() -> None:
    """Any three functions at once, on the same rows, get through in every order of their locks."""
    assert [str(f) for f in deadlocks(locks.LockOrder(), 3)] == []


def test_no_three_functions_deadlock_about_floats() -> None:
    """Nor do three of those that know floats, and of those that meet them at the windows."""
    assert [str(f) for f in deadlocks(locks.LockOrder(), 3, locks.FLOAT_JOBS)] == []


@pytest.mark.parametrize("order", locks.FLOAT_MUTANTS, ids=lambda order: order.__name__)
def test_every_other_lock_order_of_floats_deadlocks(order: type[locks.LockOrder]) -> None:
    """A function that takes floats in another order, or after the windows, meets one of the others crosswise."""
    found = deadlocks(order(), 2, locks.FLOAT_JOBS)
    assert found, f"{order.__name__} survives"
    print(f"{order.__name__}: {found[0]}")
    assert found[0].trace


@pytest.mark.parametrize("order", locks.MUTANTS, ids=lambda order: order.__name__)
def test_every_other_lock_order_deadlocks(order: type[locks.LockOrder]) -> None:
    """A function that takes its locks in another order meets one of the others crosswise."""
    found = deadlocks(order(), 2)
    assert found, f"{order.__name__} survives"
    print(f"{order.__name__}: {found[0]}")
    assert found[0].trace
