"""What a price book is made of: one `Price` for each model of a publisher, everything a cost can depend on in it.

A `Price` is data: it goes to JSON and back without loss (Decimals as strings), lies in Postgres as
it is, and is named by its content: the same facts have the same `id` everywhere, and one id never
means two prices. A changed price is another entry with a later `since`. Members that this version does
not know are refused: a price without its condition is a wrong price. Nothing here computes.
"""

from __future__ import annotations

import hashlib
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.structs import force_setattr

DIGEST_CHARS = 12
_NAME_CHARS = 150
"""An id is at most 200 characters, as long as a text of a row may always be; the digest tells longer names apart."""


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which model names an entry is for: those that any of these holds for. Upper and lower case are the same.

    equals, starts, ends, contains  parts of the name
    regex                           searched in the lower-case name
    every                           alternatives that hold only if all their own members do
    globs                           patterns with * ? [abc]
    """

    equals: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    every: tuple[tuple[Match, ...], ...] = ()
    globs: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates of requests whose whole input, caches included, is more than `above` tokens: all of it then costs so."""

    above: int
    usd: dict[str, Decimal]


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """US dollars by bucket (`buckets.PER` names them and says per how many), and where long requests cost otherwise.

    Steps rise. A bucket that a step does not name costs there what it costs below.
    """

    usd: dict[str, Decimal] = {}
    steps: tuple[Step, ...] = ()


class Period(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rates and when they hold, in UTC; what is not given always holds. Of several that hold the last one counts."""

    rates: Rates
    since: date | None = None
    """The first day."""
    hours: tuple[str, str] | None = None
    """Each day from the first `HH:MM` to before the second; over midnight where the second is the smaller."""
    weekdays: tuple[int, ...] = ()
    """ISO weekdays, Monday is 1; empty: all."""


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rates that replace the ordinary ones, bucket by bucket, for requests served another way.

    `when` names it: `{"service_tier": "flex"}`, `{"processing": "batch"}`, `{"speed": "fast"}`.
    Of several that hold, the first one that names a bucket decides it.
    """

    when: dict[str, str]
    rates: Rates
    since: date | None = None
    hours: tuple[str, str] | None = None


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The price of one model as one publisher charges it, from `since` on.

    `periods` tell its history as the source knows it; before the first dated one, and where none
    holds, the first one counts. An entry whose periods hold no rates is a model without a known
    price: listed, and never charged as 0.
    """

    id: str = ""
    """`BOOK/MODEL/SINCE/DIGEST`, made from the content when empty; in every row as `price_id`."""
    book: str
    """Who charges it: `openai`, `azure` ... or `config:PROVIDER`."""
    model: str
    match: Match
    periods: tuple[Period, ...]
    variants: tuple[Variant, ...] = ()
    context_window: int | None = None
    """Input tokens a request may have; None: unknown."""
    max_output: int | None = None
    since: date | None = None
    """The entry begins to hold on this day (UTC); None: it always held."""
    rank: int = 0
    """Entries of one book are tried by rank, then by `model`. No part of the id."""
    deprecated: bool = False
    source: str = ""
    """Where it was taken from. No part of the id."""

    def __post_init__(self) -> None:
        if not self.id:
            start = f"/{self.since.isoformat()}" if self.since else ""
            force_setattr(self, "id", f"{self.book}/{self.model}"[:_NAME_CHARS] + f"{start}/{digest(self)}")


_ENCODER = msgspec.json.Encoder(order="deterministic")


def digest(price: Price) -> str:
    """What tells the content of two entries apart, whatever their id, date, rank and source: 12 hex digits."""
    plain: dict[str, Any] = msgspec.to_builtins(price)
    for name in ("id", "since", "rank", "source"):
        plain.pop(name, None)
    return hashlib.sha256(_ENCODER.encode(plain)).hexdigest()[:DIGEST_CHARS]


def beginning(price: Price, since: date | None) -> Price:
    """The same price as an entry that begins to hold on another day, under the id of that."""
    return msgspec.structs.replace(price, id="", since=since)
