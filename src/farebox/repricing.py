"""Works out again what calls cost, by the price book as it is now, and posts what comes out differently.

For when a price was wrong, or came later than the calls. Each call is costed as of the time it
began, so a price that changed on a day stays changed on that day. Nothing is overwritten: a
correction is one more posting, and what it differs from can still be shown.

It may be interrupted and started again, run beside serving processes, and run twice at once: a call
whose cost comes out as its newest posting has it gets none, and a correction is only added to the
very posting it was worked out from.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import msgspec
import structlog

from farebox.logs import exception_facts
from farebox.records import UsageEvent
from farebox.store.corrections import Corrections, Cost, Place, Posting, Wanted

PAGE_ROWS = 2_000
"""Postings read and corrected at once: what is held in memory, and what an interruption may have to do again."""
_ROUNDS = 5
"""How often a page is read again because other postings came between. Then its rest is left to a later run."""


class Tally(msgspec.Struct):
    """What a run came to. Sums are of corrections, in US dollars; `newly_priced` ones cost nothing known before."""

    rows: int = 0
    corrected: int = 0
    up_usd: Decimal = Decimal(0)
    down_usd: Decimal = Decimal(0)
    newly_priced: int = 0
    kept: int = 0
    """Calls that had a price the book now lacks: they keep their cost, unless unpricing was asked for."""
    unpriced: int = 0
    """Those whose cost became unknown because that was asked for."""
    failed: int = 0
    """Calls that pricing failed on, which is a fault of farebox's; each was logged and left as it is."""
    contested: int = 0
    """Calls that other processes kept correcting at the same time; a later run will look at them again."""

    def add(self, old: Decimal | None, new: Decimal | None) -> None:
        """Count one correction."""
        self.corrected += 1
        self.newly_priced += old is None
        self.unpriced += new is None
        change = (new or Decimal(0)) - (old or Decimal(0))
        if change > 0:
            self.up_usd += change
        else:
            self.down_usd -= change


Pricer = Callable[[UsageEvent], None]
"""Sets an event's `cost_usd`, `cost_source` and `price_id` as a call of today would get them."""
Progress = Callable[[Tally, datetime], None]
"""Told between pages: the tally so far, and when the calls begin that come next."""


async def reprice(
    corrections: Corrections,
    price: Pricer,
    wanted: Wanted,
    *,
    dry_run: bool = False,
    unprice: bool = False,
    progress: Progress = lambda tally, at: None,
    page_rows: int = PAGE_ROWS,
) -> Tally:
    """Bring the cost of the `wanted` calls up to date; with `dry_run` only say what that would come to.

    `unprice`: calls that the book has no price for any more lose the cost they have. Raises StoreUnavailable;
    what was corrected until then stays so.
    """
    tally = Tally()
    span = await corrections.span(wanted)
    place = Place(span[0]) if span is not None else None
    while place is not None:
        page, next = await corrections.page(wanted, place, page_rows)
        tally.rows += len(page)
        for _ in range(_ROUNDS):
            contested = await _correct(corrections, price, page, tally, dry_run=dry_run, unprice=unprice)
            if not contested:
                break
            # Another posting came between, and may say something else of the call.
            page = await corrections.again(contested)
        else:
            tally.contested += len(page)
        place = next
        if place is not None:
            progress(tally, place.started_at)
    return tally


async def _correct(
    corrections: Corrections, price: Pricer, page: list[Posting], tally: Tally, *, dry_run: bool, unprice: bool
) -> list[UUID]:
    """Correct a page; the ids of the calls that have got another posting since it was read."""
    changes: dict[UUID, tuple[Decimal | None, Cost]] = {}
    for posting in page:
        old, was_priced = posting.event.cost_usd, posting.event.cost_source == "prices"
        try:
            cost = recost(posting, price)
        except Exception as error:
            # One row that can't be priced must not keep all that come after it from being corrected.
            structlog.get_logger().error(
                "a call could not be priced", id=str(posting.event.id), **exception_facts(error)
            )
            tally.failed += 1
            continue
        if cost is None:
            continue
        if was_priced and cost.cost_source != "prices" and not unprice:
            tally.kept += 1
            continue
        changes[cost.id] = (old, cost)
    added = set(changes)
    if changes and not dry_run:
        added = await corrections.post([cost for _, cost in changes.values()])
    for id in added:
        old, cost = changes[id]
        tally.add(old, cost.cost_usd)
    return [id for id in changes if id not in added]


def recost(posting: Posting, price: Pricer) -> Cost | None:
    """What the call of `posting` costs by `price`; None where that is what the posting says.

    The same amount by another entry of the book is no change: money is what is corrected, and the
    posting's own price still explains it.
    """
    event = posting.event
    if event.usage_source == "none":
        return None  # nothing billable, or not metered: no price has a say
    if event.usage_source == "hold" or event.cost_source == "operator":
        return None  # what was held, until the truth comes; what an operator knows better
    before, held = (event.cost_usd, event.cost_source), event.cost_source == "hold"
    event.cost_usd = event.cost_source = event.price_id = None
    price(event)
    if (event.cost_usd, event.cost_source) == before or (held and event.cost_usd is None):
        return None
    return Cost(event.id, posting.number, event.cost_usd, event.cost_source, event.price_id)
