"""Reads single values out of what a provider sent: token counts, amounts of money, short words.

A provider may put anything anywhere. Each function here takes any decoded JSON value and gives a
clean one or None; none of them raises. `None` means "not reported", which is not zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

TOKENS_MAX = 10**15
"""A larger count is nonsense and is ignored; sums of a few counts stay far inside a 64-bit integer."""
MONEY_MAX = Decimal(10**12)
MONEY_DIGITS = -20
"""Amounts keep twenty decimal places: a nano-dollar split a billion ways. Beyond that they are rounded."""
WORD_MAX = 128
TEXT_MAX = 256

_WORD = re.compile(rf"[A-Za-z0-9_.:/\-]{{1,{WORD_MAX}}}")
_NOTHING: Mapping[str, Any] = {}


def number(value: Any) -> Decimal | None:
    """A finite number from an int, a Decimal, a float or a numeric string; anything else is None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        if not 0 < len(value) <= 40:
            return None
    elif not isinstance(value, int | float | Decimal):
        return None
    try:
        parsed = Decimal(value if not isinstance(value, float) else repr(value))
    except (ArithmeticError, ValueError):
        return None
    return parsed if parsed.is_finite() else None


def count(value: Any) -> int | None:
    """A number of tokens or calls: whole, at least 0, at most `TOKENS_MAX`; otherwise None. 12.0 and "12" are 12."""
    if type(value) is int:
        return value if 0 <= value <= TOKENS_MAX else None
    parsed = number(value)
    # Compared before it is converted: int() of a Decimal like 1e999999 would fill the memory with zeros.
    if parsed is None or not 0 <= parsed <= TOKENS_MAX:
        return None
    return int(parsed.to_integral_value(ROUND_HALF_UP))


def money(value: Any) -> Decimal | None:
    """An amount of at least 0, exact to twenty decimal places; otherwise None."""
    parsed = number(value)
    if parsed is None or not 0 <= parsed <= MONEY_MAX:
        return None
    exponent = parsed.as_tuple().exponent
    if isinstance(exponent, int) and exponent < MONEY_DIGITS:
        parsed = round(parsed, -MONEY_DIGITS)
    return Decimal(format(parsed, "f"))


def largest(*values: Any) -> int | None:
    """The largest of several spellings of one count, None if none is a count.

    Providers that report a count in two places put 0 into the one they do not maintain.
    """
    found = [counted for value in values if (counted := count(value)) is not None]
    return max(found) if found else None


def first(*values: Any) -> int | None:
    """The first of several spellings of one count that is one."""
    for value in values:
        counted = count(value)
        if counted is not None:
            return counted
    return None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else _NOTHING


def text(value: Any) -> str | None:
    """A non-empty string, at most `TEXT_MAX` characters of it, without control characters or half surrogates."""
    if not isinstance(value, str) or not value:
        return None
    if len(value) <= TEXT_MAX and value.isprintable():
        return value  # nearly always; half surrogates are not printable
    clean = value[:TEXT_MAX].encode("utf-8", "replace").decode()
    return clean if clean.isprintable() else "".join(c for c in clean if c.isprintable()) or None


def word(value: Any) -> str | None:
    """A machine-readable word such as an error code; a sentence (which could quote a prompt) is None."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) <= TOKENS_MAX else None
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
