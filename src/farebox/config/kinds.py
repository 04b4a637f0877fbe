"""What a setting may hold: one small class for each kind of value, from text to value or to a reason against it.

A scalar kind gets the text as written (or as an environment variable gave it) and says in `wants`
what it accepts; the reader builds the message `VALUE is not WANTS: WHY` from it, and the example
file quotes it. The kinds of URLs, names and headers are in `web`; the compound kinds at the end
only say how the reader should walk.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, ClassVar, TypeAlias

from farebox.config.secret import Secret

TEXT_CHARS_MAX = 8_192
"""A longer text value is a fault: nothing here needs it, and header lines end there."""
MONEY_PLACES_MAX = 20
"""Decimal places of an amount; more are a fault, for nothing is ever rounded."""


class Bad(ValueError):
    """A value that its kind refuses. The text is the reason; it may be empty and never holds the value."""


@dataclass(frozen=True)
class Scalar:
    """Base of the kinds read from one text. `parse` returns the value or raises `Bad`."""

    secret: ClassVar[bool] = False
    """The value is never quoted in a message."""
    takes_words: ClassVar[bool] = False
    """An unquoted yes, no, on, off, true or false is this kind's own business; other kinds refuse it."""

    @property
    def wants(self) -> str:
        """What is accepted, as a noun with its article."""
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        raise NotImplementedError


_TRUE, _FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,2})?")
_AMOUNT = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{0,99})?|\.[0-9]{1,99})([eE][+-]?[0-9]{1,2})?")
_GROUPED = re.compile(r"(?<=[0-9])_(?=[0-9])")


@dataclass(frozen=True)
class Flag(Scalar):
    """true or false; YAML's other words for them are taken too. Gives a bool."""

    takes_words: ClassVar[bool] = True

    @property
    def wants(self) -> str:
        return "true or false"

    def parse(self, text: str) -> bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise Bad


@dataclass(frozen=True)
class Whole(Scalar):
    """A whole number in a closed range; `_` may group digits. Gives an int."""

    takes_words: ClassVar[bool] = True
    least: int
    most: int

    @property
    def wants(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def parse(self, text: str) -> int:
        plain = _GROUPED.sub("", text)
        if re.fullmatch(r"[+-]?0[0-9]+", plain):
            raise Bad("YAML reads a leading zero as octal; leave it out")
        if not _WHOLE.fullmatch(plain) or not self.least <= int(plain) <= self.most:
            raise Bad
        return int(plain)


@dataclass(frozen=True)
class Number(Scalar):
    """A finite number in a closed range. Gives a float."""

    takes_words: ClassVar[bool] = True
    least: float
    most: float

    @property
    def wants(self) -> str:
        return f"a number from {plain(self.least)} to {plain(self.most)}"

    def parse(self, text: str) -> float:
        plain = _GROUPED.sub("", text)
        if not _DECIMAL.fullmatch(plain):
            raise Bad
        value = float(plain)
        if not math.isfinite(value) or not self.least <= value <= self.most:
            raise Bad
        return value


@dataclass(frozen=True)
class NumberOrOff(Number):
    """A number, or the word `off`. Gives a float, or None for off."""

    @property
    def wants(self) -> str:
        return f"{super().wants}, or off"

    def parse(self, text: str) -> float | None:  # type: ignore[override]
        return None if text.lower() == "off" else super().parse(text)


@dataclass(frozen=True)
class Money(Scalar):
    """An amount of US dollars from 0 to `most`, exact. Gives a Decimal without an exponent above 0."""

    takes_words: ClassVar[bool] = True
    most: int

    @property
    def wants(self) -> str:
        return f"an amount of US dollars from 0 to {self.most}"

    def parse(self, text: str) -> Decimal:
        plain = _GROUPED.sub("", text)
        if not _AMOUNT.fullmatch(plain):
            raise Bad
        value = Decimal(plain)
        if value.is_signed() or value > self.most:
            raise Bad
        places = -int(value.as_tuple().exponent)
        if places > MONEY_PLACES_MAX:
            raise Bad(f"it has {places} decimal places; at most {MONEY_PLACES_MAX} are kept")
        return Decimal(format(value, "f"))


@dataclass(frozen=True)
class Day(Scalar):
    """A day of the calendar. Gives a date."""

    @property
    def wants(self) -> str:
        return "a day written YYYY-MM-DD"

    def parse(self, text: str) -> date:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise Bad
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise Bad("there is no such day") from None


@dataclass(frozen=True)
class Choice(Scalar):
    """One of a few words. Gives the word."""

    options: tuple[str, ...]

    @property
    def wants(self) -> str:
        return f"one of {', '.join(self.options)}"

    def parse(self, text: str) -> str:
        if text in self.options:
            return text
        close = difflib.get_close_matches(text.lower(), self.options, n=1)
        raise Bad(f"did you mean {close[0]}?" if close else "")


@dataclass(frozen=True)
class NumberChoice(Choice):
    """One of a few whole numbers. Gives an int."""

    takes_words: ClassVar[bool] = True

    def parse(self, text: str) -> int:  # type: ignore[override]
        return int(super().parse(text))


@dataclass(frozen=True)
class Line(Scalar):
    """Any non-empty text on one line. Gives a str."""

    what: str = "a text on one line"
    chars_max: int = TEXT_CHARS_MAX

    @property
    def wants(self) -> str:
        return self.what

    def parse(self, text: str) -> Any:
        if not text.strip():
            raise Bad("it is empty")
        if len(text) > self.chars_max:
            raise Bad(f"it has {len(text)} characters; at most {self.chars_max} are allowed")
        if any(ord(char) < 32 or ord(char) == 127 for char in text):
            raise Bad("it holds a line break or another control character")
        return text


@dataclass(frozen=True)
class Token(Line):
    """A credential that fits a header: visible ASCII, no space. Gives a str."""

    secret: ClassVar[bool] = True
    what: str = "a token of visible ASCII characters"

    def parse(self, text: str) -> Any:
        super().parse(text)
        if " " in text:
            raise Bad("it holds a space")
        if not text.isascii():
            raise Bad("it holds a character outside ASCII")
        return text


@dataclass(frozen=True)
class Credential(Token):
    """A provider's credential; a variable without a value is left to the caller as `Missing`. Gives a `Secret`."""

    what: str = "an API key of visible ASCII characters"

    def parse(self, text: str) -> Secret:
        return Secret(super().parse(text))


@dataclass(frozen=True)
class Missing:
    """Stands for a `Credential` whose environment variables have no value."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class OneOrMore:
    """A scalar, or a list of them without repeats, which may be empty if `empty` says so. Gives a tuple."""

    item: Scalar
    empty: bool = False


@dataclass(frozen=True)
class Pairs:
    """A mapping of scalars to scalars. Keys equal when `fold` is set and only their case differs. Gives a mapping."""

    key: Scalar
    value: Scalar
    fold: bool = False


@dataclass(frozen=True)
class Section:
    """A mapping with the fields of `cls`. Gives an instance; left out or empty, one of defaults."""

    cls: type


@dataclass(frozen=True)
class Named:
    """A mapping of names to sections of `cls`. Gives a dict of their fields by name, to be completed by the caller."""

    key: Scalar
    cls: type


@dataclass(frozen=True)
class Map:
    """A mapping of scalars to sections of `cls`. Gives a mapping of what `key` gives to instances, in order."""

    key: Scalar
    cls: type


@dataclass(frozen=True)
class Rows:
    """A list of sections of `cls`. Gives a tuple of instances."""

    cls: type


Kind: TypeAlias = Scalar | OneOrMore | Pairs | Section | Named | Map | Rows


def plain(number: float) -> str:
    """A number as a person writes it: no exponent, no `.0`."""
    return str(int(number)) if number == int(number) else repr(number)


@dataclass(frozen=True)
class Setting:
    """What a dataclass field says about itself: the one home of its documentation.

    doc   sentences for the example file: what it does, and what happens at its bound
    show  YAML text of a value to show; None shows the default
    live  the shown value stands in the example as set, not behind `#`
    at_start  it holds from a start to the next: a reload of the file keeps the value that is in force
    """

    kind: Kind
    doc: str
    show: str | None = None
    live: bool = False
    at_start: bool = False


def setting(
    kind: Kind, doc: str, show: str | None = None, *, live: bool = False, at_start: bool = False
) -> dict[str, Setting]:
    """Field metadata for a setting."""
    return {"setting": Setting(kind, doc, show, live, at_start)}
