"""Counts times rates, exactly.

All sums and products are made in a context that raises rather than rounds; per million and per
thousand are shifts of the decimal point. The one exception is audio by the second, priced per hour:
a third of a cent has no end, so it is rounded at the fortieth digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow

from farebox.pricing.buckets import HOURS, PER, UNITS, Counts, split
from farebox.pricing.tables import EXACT, Table

_ROUNDED = Context(prec=40, traps=[InvalidOperation, DivisionByZero, Overflow])

ZERO = Decimal(0)
_PER_HOUR = Decimal(3_600)
_ONE, _TEN = Decimal(1), Decimal(10)


def tokens_usd(table: Table, counts: Counts, image_in: int = 0, image_out: int = 0) -> Decimal | None:
    """The price of all tokens; None where some were used that have no rate. `image_*`: image tokens among them."""
    if counts.audio_input_tokens or counts.audio_output_tokens or image_in or image_out or not table.usual:
        total = _of_buckets(table, split(counts, image_in, image_out))
    else:
        total = _of_text(table, counts)
    return None if total is None else EXACT.multiply(table.unit, total)


def text_usd(table: Table, counts: Counts) -> Decimal | None:
    """`tokens_usd`, `tidy`, of a call for text whose price is that of its tokens; None where it may be another."""
    if counts.audio_input_tokens or counts.audio_output_tokens or not table.textual:
        return None
    if table.silent and counts.output_tokens:
        return None
    total = _of_text(table, counts)
    amount = EXACT.normalize(EXACT.multiply(table.unit, total))
    return amount if total < table.ten else tidy(amount)


def units_usd(table: Table, units: Mapping[str, int | float]) -> Decimal | None:
    """The price of the request itself and of what is not counted in tokens; None where a unit has no rate."""
    request = table.rates.get("requests")
    total = ZERO if request is None else EXACT.scaleb(request, -PER["requests"])
    for name, count in units.items():
        usd = _unit_usd(table, name, count)
        if usd is None:
            return None
        total = EXACT.add(total, usd)
    return total


def tidy(amount: Decimal) -> Decimal:
    """The same amount without zeros at its end and without an exponent above 0."""
    plain = EXACT.normalize(amount)
    return EXACT.quantize(plain, _ONE) if plain >= _TEN and plain == plain.to_integral_value() else plain


def _of_buckets(table: Table, buckets: Mapping[str, int]) -> int | None:
    total = 0
    for name, count in buckets.items():
        if count:
            rate = table.whole.get(name)
            if rate is None:
                return None
            total += rate * count
    return total


def _of_text(table: Table, counts: Counts) -> int:
    """The same as `_of_buckets` of `split`, for the usual call: neither audio nor images, all rates known."""
    whole, output = counts.input_tokens or 0, counts.output_tokens or 0
    total = (output if output > 0 else 0) * table.output_n
    text = whole if whole > 0 else 0
    read, write = counts.cache_read_tokens or 0, counts.cache_write_tokens or 0
    if read > 0:
        read = min(read, text)
        text -= read
        total += read * table.cache_read_n
    if write > 0:
        write = min(write, text)
        text -= write
        hour = counts.cache_write_1h_tokens
        if hour is None:
            total += write * table.cache_write_unknown_n
        else:
            hour = max(0, min(hour, write))
            total += hour * table.cache_write_1h_n + (write - hour) * table.cache_write_n
    return total + text * table.input_n


def _unit_usd(table: Table, name: str, count: float) -> Decimal | None:
    number = Decimal(count) if isinstance(count, int) else Decimal(repr(count))
    if not number.is_finite() or number < 0:
        return None
    if not number:
        return ZERO
    if name == "seconds":
        rate = next((table.rates[bucket] for bucket in HOURS if bucket in table.rates), None)
        return None if rate is None else _ROUNDED.divide(_ROUNDED.multiply(rate, number), _PER_HOUR)
    bucket = UNITS.get(name)
    rate = None if bucket is None else table.rates.get(bucket)
    if bucket is not None and rate is not None:
        per = PER.get(bucket, 6)
        return EXACT.scaleb(EXACT.multiply(rate, number), -per)
    return ZERO if _is_free(table, name) else None


def _is_free(table: Table, name: str) -> bool:
    """Units that a price without a rate for them covers.

    Citation tokens are billed only where the list says so. Whoever charges for each request (Perplexity)
    charges for its searches in that.
    """
    return name == "citation_tokens" or (name == "web_searches" and "requests" in table.rates)
