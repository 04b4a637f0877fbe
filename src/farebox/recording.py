"""Where the one event of each attempt goes: first it is written down, then counted, then learned from."""

from __future__ import annotations

from collections.abc import Callable

from farebox import rows
from farebox.accounting import Attempt
from farebox.admission.learned import Learned
from farebox.ledger import Ledger
from farebox.meter import Reading
from farebox.metrics import Metrics
from farebox.pricebook import Prices
from farebox.records import FloatHold, UsageEvent
from farebox.rows import Ordinary


class Recorder:
    """Takes events, and the short form that most of them have. `recorded(hold)`: what a float held was written down."""

    def __init__(
        self,
        ledger: Ledger,
        metrics: Metrics,
        learned: Learned,
        prices: Prices,
        recorded: Callable[[FloatHold], None],
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._learned = learned
        self._prices = prices
        self._recorded = recorded

    def record(self, event: UsageEvent) -> None:
        """Take the event of an attempt that is over."""
        self._ledger.record(event)
        self._metrics.observe(event)
        if event.budget_ids:
            self._learned.observe(event)
            if event.from_float is not None:
                self._recorded(event.from_float)

    def ordinary(self, attempt: Attempt, reading: Reading, finished: float) -> Ordinary | None:
        """The event of an attempt in its short form, by the prices in force; None where it has none."""
        return rows.ordinary(attempt, reading, finished, self._prices.pricer)

    def post(self, ordinary: Ordinary) -> None:
        """`record` with the short form."""
        row, kind, ended, json = ordinary
        self._ledger.end(row.id, json, waited_for=bool(row.budget_ids) and row.from_float is None)
        self._metrics.count(row, kind, ended)
        if row.budget_ids:
            self._learned.saw(kind.caller.key_id, kind.model, row.output_tokens or 0)
            if row.from_float is not None:
                self._recorded(row.from_float)
