"""The settings of metering: what happens when a count or a price cannot be had the plain way, and around budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Literal

from farebox.config.kinds import Choice, Line, Money, Number, NumberChoice, Pairs, Whole, setting
from farebox.config.web import WebhookSecret, WebhookUrl

_ALLOWANCE_USD_MAX = 1_000_000


def one_dollar() -> Mapping[str, Decimal]:
    """The allowance of calls without a bound, where the config says nothing."""
    return MappingProxyType({"*": Decimal("1.00")})


@dataclass(frozen=True, kw_only=True)
class Metering:
    """What happens when a count cannot be had the plain way, and what holds for all budgets."""

    on_client_disconnect: Literal["auto", "drain", "abort"] = field(
        default="auto",
        metadata=setting(
            Choice(("auto", "drain", "abort")),
            "When a client leaves early: drain reads the answer to its end for the exact count, abort drops the "
            "provider's connection and estimates, auto drains what does not stream and what a budget counts, and "
            "aborts other streams.",
        ),
    )
    drain_timeout_s: float = field(
        default=30.0,
        metadata=setting(
            Number(0, 3_600),
            "How long a drain may take. Then the call is aborted and the rest estimated; a strict budget is charged "
            "what was held.",
        ),
    )
    on_ledger_failure: Literal["refuse", "pass"] = field(
        default="refuse",
        metadata=setting(
            Choice(("refuse", "pass")),
            "When the journal cannot be written, its disk being full: refuse new calls with 503, or pass those that "
            "no budget counts unrecorded and count the loss. Calls already running finish either way.",
        ),
    )
    price_poll_s: float = field(
        default=10.0,
        metadata=setting(
            Number(0.05, 3_600),
            "How often a newer price list is looked for: what `farebox prices sync` takes to reach a running farebox.",
        ),
    )
    unpriced: Literal["refuse_if_budgeted", "refuse", "pass"] = field(
        default="refuse_if_budgeted",
        metadata=setting(
            Choice(("refuse_if_budgeted", "refuse", "pass")),
            "A call whose model has no known price: refused where a budget in dollars counts it, refused always, or "
            "passed; the refusal says how to price it.",
        ),
    )
    refusal_status: int = field(
        default=402,
        metadata=setting(
            NumberChoice(("402", "429")),
            "Status of a refusal for a used-up budget. 402 is not tried again by any SDK; 429 comes with "
            "x-should-retry: false, for clients that know no 402.",
        ),
    )
    max_output_tokens: int = field(
        default=32_768,
        metadata=setting(
            Whole(1, 100_000_000),
            "Output assumed possible where neither the request nor the price list bounds it: what a budget holds.",
        ),
    )
    allowances_usd: Mapping[str, Decimal] = field(
        default_factory=one_dollar,
        metadata=setting(
            Pairs(Line("a model name or glob", chars_max=256), Money(_ALLOWANCE_USD_MAX)),
            "What a budget holds for a call whose cost has no provable bound (media, hosted tools, stored context), by "
            "model name or glob (* ? [abc]), first match wins. Budgets with admission strict refuse such calls, others "
            "do for a model that has no line here.",
            '{"*": 1.00}',
            live=True,
        ),
    )
    reserve_timeout_s: float = field(
        default=1.0,
        metadata=setting(
            Number(0.05, 60),
            "How long a call waits for the database to say whether its budgets pay for it. After it 503 with "
            "retry-after; calls that no budget counts do not ask.",
        ),
    )
    budget_lease_s: float = field(
        default=30.0,
        metadata=setting(
            Number(2, 3_600),
            "A farebox process silent for this long counts as crashed: the calls it had running are charged what was "
            "held for them. After an outage of the database everyone has this long to come back.",
        ),
    )
    budget_waiting_max: int = field(
        default=1_000,
        metadata=setting(
            Whole(0, 1_000_000),
            "Calls that may wait at once for budgets to have room (wait_s). One more is refused without waiting.",
        ),
    )
    budget_poll_s: float = field(
        default=2.0,
        metadata=setting(
            Number(0.05, 60), "How often changed budgets are looked up: what a change takes to reach every process."
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Alerts:
    """Where news of budgets goes, beside the log."""

    webhook_url: str | None = field(
        default=None,
        repr=False,
        metadata=setting(
            WebhookUrl(),
            "Gets a POST with a JSON object when a budget reaches one of its thresholds; once for all workers and "
            "replicas, in the background.",
            '"${FAREBOX_WEBHOOK_URL}"',
        ),
    )
    webhook_secret: str | None = field(
        default=None,
        repr=False,
        metadata=setting(
            WebhookSecret(),
            "Signs each POST, so that the receiver can tell it from a stranger's. Must be set with webhook_url.",
            '"${FAREBOX_WEBHOOK_SECRET}"',
        ),
    )
    timeout_s: float = field(
        default=10.0,
        metadata=setting(Number(0.1, 300), "Time for one POST. After it, or on a status of 300 and above: again."),
    )
    tries_max: int = field(
        default=8,
        metadata=setting(
            Whole(1, 100), "Attempts of one alert, with growing pauses between them. Then it is given up, and logged."
        ),
    )
