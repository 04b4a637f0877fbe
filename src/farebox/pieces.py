"""Work that may be done in pieces: a generator that stops between them and returns its result.

Whoever has an event loop to keep going lets it turn at each stop; whoever has not does all of it `at_once`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Pieces = Generator[None, None, T]
"""Stops after a millisecond or two, and returns a T."""


def at_once(work: Pieces[T]) -> T:
    """The result, without stops."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
