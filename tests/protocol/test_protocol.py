"""The protocol holds in every state of every small world, and none of its rules can be left out."""

from functools import partial
from itertools import combinations_with_replacement

import pytest

from protocol import invariants, locks, mutants
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


def walk(world: World, rules: type[Rules] = Rules, only: str | None = None) -> Found:
    broken = partial(invariants.broken, world, only=only)
    return search(world.start(), Steps(world, rules(world)), lambda state, last: broken(state, last=last))


def test_no_reachable_state_breaks_an_invariant() -> None:
    """Whatever happens in whatever order in these worlds, every invariant holds, and every kind of step is taken."""
    found = {name: walk(world) for name, world in FAST.items()}
    assert {name: str(f) for name, f in found.items() if f.broken} == {}
    assert set().union(*(f.kinds for f in found.values())) >= KINDS
    assert sum(f.states for f in found.values()) > 50_000


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_no_reachable_state_of_a_larger_world_breaks_an_invariant(name: str) -> None:
    """The same in worlds of a million states."""
    found = walk(LONG[name])
    assert found.broken is None, str(found)
    assert found.states > 100_000


@pytest.mark.parametrize("mutant", mutants.ALL, ids=lambda m: f"{m.rules.__name__}-{m.breaks}")
def test_every_mutant_is_caught(mutant: mutants.Mutant) -> None:
    """A protocol that lacks one rule breaks the invariant this rule is for; the trace shows how."""
    found = walk(FAST[mutant.world], mutant.rules, mutant.breaks)
    print(f"{mutant.rules.__name__}: {found}")
    assert found.broken == mutant.breaks, f"{mutant.rules.__name__} survives {found.states} states"
    assert found.trace


def deadlocks(order: locks.LockOrder, at_once: int) -> list[Found]:
    runs = [locks.Run(order, jobs) for jobs in combinations_with_replacement(locks.JOBS, at_once)]
    found = [search(run.start(), run.steps, run.broken) for run in runs]
    return [f for f in found if f.broken]


def test_no_three_functions_deadlock() -> None:
    """Any three functions at once, on the same rows, get through in every order of their locks."""
    assert [str(f) for f in deadlocks(locks.LockOrder(), 3)] == []


@pytest.mark.parametrize("order", locks.MUTANTS, ids=lambda order: order.__name__)
def test_every_other_lock_order_deadlocks(order: type[locks.LockOrder]) -> None:
    """A function that takes its locks in another order meets one of the others crosswise."""
    found = deadlocks(order(), 2)
    assert found, f"{order.__name__} survives"
    print(f"{order.__name__}: {found[0]}")
    assert found[0].trace
