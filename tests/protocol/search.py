"""Walks every state a world can reach, breadth first, until one breaks an invariant."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

S = TypeVar("S")


@dataclass
class Found:
    """What a search saw: how many states, which kinds of steps, and the shortest way to what is broken, if any is."""

    states: int
    kinds: set[str] = field(default_factory=set)
    broken: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = " · ".join(self.trace)
        return f"{self.states} states, {self.broken or 'nothing'} broken{': ' + steps if steps else ''}"


def search(
    start: S,
    steps: Callable[[S], Iterable[tuple[str, S]]],
    broken: Callable[[S, bool], str | None],
    *,
    states_max: int = 5_000_000,
) -> Found:
    """`broken(state, is_last)` names the invariant a state breaks; `is_last`: no step leads out of it.

    Raises RuntimeError at `states_max`: a world that grew that large isn't checked, it is only begun.
    """
    came: dict[S, tuple[str, S] | None] = {start: None}
    queue, kinds = deque([start]), set[str]()
    while queue:
        state = queue.popleft()
        following = list(steps(state))
        if (name := broken(state, not following)) is not None:
            return Found(len(came), kinds, name, _trace(came, state))
        for step, then in following:
            kinds.add(kind(step))
            if then not in came:
                came[then] = (step, state)
                queue.append(then)
        if len(came) > states_max:
            raise RuntimeError(f"more than {states_max} states: make the world smaller")
    return Found(len(came), kinds)


@cache
def kind(step: str) -> str:
    """A step's name without which call or process took it."""
    return "".join(letter for letter in step if not letter.isdigit() and letter not in "[],")


def _trace(came: dict[S, tuple[str, S] | None], state: S) -> tuple[str, ...]:
    steps = []
    while (before := came[state]) is not None:
        step, state = before
        steps.append(step)
    return tuple(reversed(steps))
