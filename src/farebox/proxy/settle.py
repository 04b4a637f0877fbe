"""The end of an attempt: exactly one event, whatever ended it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from farebox import accounting, holds
from farebox.accounting import Attempt, Ending, Estimate
from farebox.logs import exception_facts
from farebox.meter import Reading
from farebox.proxy.call import Call, Clock
from farebox.records import UsageEvent
from farebox.rows import Ordinary

Estimator = Callable[[Attempt, bytes, "Reading | None", bool], Awaitable[Estimate]]
"""(attempt, decoded request body, reading, quick) -> farebox's own count. Quick means by size, without waiting."""
Pricer = Callable[[UsageEvent], None]
"""Sets an event's `cost_usd`, `cost_source` and `price_id`, or leaves them where no price is known."""

Counted = tuple[int, int]
"""Input and output tokens, reported or counted: what the answer used, not what was held for it."""


class Ordinaries(Protocol):
    """Writes down, in a short form, the events of attempts that an ordinary answer ended (`rows`)."""

    def ordinary(self, attempt: Attempt, reading: Reading, finished: float) -> Ordinary | None: ...
    def post(self, ordinary: Ordinary) -> None: ...


class Settler:
    """Turns an attempt that is over into its event and hands it to the ledger."""

    def __init__(
        self,
        *,
        record: Callable[[UsageEvent], None],
        estimate: Estimator,
        price: Pricer,
        clock: Clock,
        ordinary: Ordinaries | None = None,
    ) -> None:
        self._record = record
        self._ordinary = ordinary
        self._estimate = estimate
        self._price = price
        self._clock = clock

    def at_once(self, call: Call, reading: Reading | None, ending: Ending, *, finished: float | None = None) -> bool:
        """Settle the attempt `call` has under way if that takes no waiting; whether it is settled, or there is none.

        `finished`: when it ended, in monotonic seconds; now, if None.
        """
        attempt = call.attempt
        if attempt is None:
            return True
        if attempt.hold is not None and _asks_for_more(call, attempt):
            return False
        if finished is None:
            finished = self._clock.monotonic()
        if reading is not None and reading.plain and self._ordinary is not None and ending == "whole" and not call.gone:
            try:
                row = self._ordinary.ordinary(attempt, reading, finished)
            except Exception as exc:
                structlog.get_logger().error("a row had no short form", id=str(attempt.id), **exception_facts(exc))
                row = None
            if row is not None:
                call.attempt = call.meter = None
                self._ordinary.post(row)
                return True
        if accounting.needs_estimate(attempt, reading):
            return False
        self._write(call, attempt, reading, ending, None, finished=finished)
        return True

    async def settle(
        self,
        call: Call,
        reading: Reading | None,
        ending: Ending,
        *,
        error: str | None = None,
        unsent: bool = False,
        quick: bool = False,
    ) -> Counted | None:
        """Settle the attempt `call` has under way and return its tokens as counted; None when it has none.

        A cancellation while tokens are counted does not lose the event: it is settled by size.
        """
        attempt = call.attempt
        if attempt is None:
            return None
        finished = self._clock.monotonic()
        estimate: Estimate | None = None
        cancelled = False
        if _asks_for_more(call, attempt):
            assert call.ticket is not None and call.ticket.pace is not None
            try:
                await call.ticket.pace.stop()
            except asyncio.CancelledError:
                cancelled = quick = True
        if not unsent and accounting.needs_estimate(attempt, reading):
            try:
                estimate = await self._estimate(attempt, call.decoded, reading, quick)
            except asyncio.CancelledError:
                cancelled = True
                estimate = accounting.by_size(attempt, reading)
            except Exception as exc:
                # A count that fails must not cost the client its answer.
                structlog.get_logger().error("tokens are estimated by size: counting failed", **exception_facts(exc))
                estimate = accounting.by_size(attempt, reading)
        if call.attempt is not attempt:
            return None
        counted = self._write(call, attempt, reading, ending, estimate, finished=finished, error=error, unsent=unsent)
        if cancelled:
            raise asyncio.CancelledError
        return counted

    def _write(
        self,
        call: Call,
        attempt: Attempt,
        reading: Reading | None,
        ending: Ending,
        estimate: Estimate | None,
        *,
        finished: float,
        error: str | None = None,
        unsent: bool = False,
    ) -> Counted:
        """Make the attempt's event and hand it over; from here on it is settled."""
        call.attempt = call.meter = None
        outcome = accounting.outcome_of(attempt, reading, ending, gone=call.gone)
        event = accounting.account(attempt, reading, outcome, estimate, finished=finished, error=error, unsent=unsent)
        counted = event.input_tokens or 0, event.output_tokens or 0
        hold = attempt.hold
        kept = hold is not None and holds.keep_output(event, hold, input_told=accounting.input_told(reading))
        self._put_price(event)
        if hold is not None:
            goes_on = call.facts is not None and call.facts.background
            holds.charge(event, hold, goes_on=goes_on, kept=kept and not goes_on)
        # Also without a begin (`metering.on_ledger_failure: pass`): the journal may have room again by now.
        self._record(event)
        return counted

    def _put_price(self, event: UsageEvent) -> None:
        try:
            self._price(event)
        except Exception as exc:
            # What is unknown can be priced later; a row that was not written can't.
            structlog.get_logger().error("a call could not be priced", id=str(event.id), **exception_facts(exc))
            event.cost_usd = event.cost_source = event.price_id = None


def _asks_for_more(call: Call, attempt: Attempt) -> bool:
    """Whether more may just now be asked to be held for the attempt."""
    return attempt.hold is not None and call.ticket is not None and call.ticket.pace is not None
