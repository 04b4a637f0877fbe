"""A text that must not be seen: it prints as `***` wherever it is printed by accident."""

from __future__ import annotations


class Secret:
    """Wraps a credential. `str`, `repr` and formatting give `***`; `reveal` gives the text."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself: only for the place that sends or compares it."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)
