"""How long to wait before a worker that ended is started again. Decides on values only."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 0.1
"""After the first end. Each that follows soon doubles it."""
LONGEST_S = 30.0
"""At most; there is no last try: what keeps a worker from starting may pass."""
STEADY_S = 60.0
"""A worker that lived so long is a sound one: the next wait is the first again."""


@dataclass(frozen=True, slots=True)
class Patience:
    """`next_s` is the wait that is due after an end."""

    next_s: float = FIRST_S

    def after(self, lived_s: float) -> Patience:
        """What is due now that a worker has ended which lived for `lived_s`, and was started with this patience."""
        return Patience() if lived_s >= STEADY_S else self

    def longer(self) -> Patience:
        """What is due if the next one ends soon as well."""
        return Patience(min(2 * self.next_s, LONGEST_S))
