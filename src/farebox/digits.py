"""An exact amount as people and headers read it."""

from __future__ import annotations

from decimal import Decimal


def digits(amount: Decimal | int) -> str:
    """`amount` in full: no exponent, and no zeros at its end that say nothing."""
    text = str(amount)
    if "E" in text:
        text = f"{amount:f}"  # takes three times as long
    return text.rstrip("0").rstrip(".") if "." in text else text
