"""The settings of a budget, and what one must be in itself wherever it is written: file, API or command line.

A budget of the file is a `BudgetRule`. Its counters, windows and what is done when one is used up are
in `farebox.budgets`; here is only what may be said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

from farebox.config.faults import shown
from farebox.config.kinds import Bad, Choice, Flag, Line, Money, Number, OneOrMore, Scalar, Whole, setting

SCOPES = ("global", "team", "project", "user", "key", "session", "model")
WINDOWS = ("hour", "day", "week", "month", "total")
LIMIT_USD_MAX = 10**12
LIMIT_TOKENS_MAX = 10**15
WAIT_S_MAX = 300
THRESHOLDS_MAX = 16
"""Thresholds of one budget: each is looked at whenever its window moves."""
ONLY_MAX = 200
NAME_CHARS_MAX = 200
KEY_PREFIX = "key:"
"""How the names of budgets begin that are part of a key; no other's does."""

_AMOUNT = Money(LIMIT_USD_MAX)
_ZONE = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_+-]+)*")


@dataclass(frozen=True)
class Zone(Line):
    """A time zone by its name in the public database of them. Gives the name."""

    what: str = "a time zone such as UTC or Europe/Berlin"
    chars_max: int = 64

    def parse(self, text: str) -> str:
        super().parse(text)
        # Files beside the zones: what they hold differs from machine to machine, and PostgreSQL knows none of them.
        if text in ("localtime", "posixrules", "Factory") or text.startswith(("posix/", "right/")):
            raise Bad("it means something else on every machine")
        if not _ZONE.fullmatch(text):
            raise Bad
        try:
            ZoneInfo(text)
        except (OSError, ValueError, LookupError):
            raise Bad("there is none of this name; capital letters count") from None
        return text


@dataclass(frozen=True)
class Share(Money):
    """A part of a limit, above 0, exact: 0.8 is 80 %. Gives a Decimal.

    Past the limit there are parts too (overruns, warnings); `most` is low enough that 80, meant as 80 %, is a fault.
    """

    most: int = 10

    @property
    def wants(self) -> str:
        return f"a part of the limit, above 0 and at most {self.most} (0.8 is 80 %)"

    def parse(self, text: str) -> Decimal:
        share = super().parse(text)
        if not share:
            raise Bad
        return Decimal(format(share.normalize(), "f"))


@dataclass(frozen=True, kw_only=True)
class BudgetRule:
    """One budget as it is written down. At least one of the limits is set; `clash` says what else must hold."""

    name: str = field(
        metadata=setting(
            Line("a name", chars_max=NAME_CHARS_MAX),
            "What it is called, in refusals, reports and metrics. Each name once.",
            "team-month",
        )
    )
    scope: Literal["global", "team", "project", "user", "key", "session", "model"] = field(
        metadata=setting(
            Choice(SCOPES),
            "Whose spending is counted together: global is everybody's, each other one has a counter for each of its "
            "values. user is the key's field, never the end user a client claims; session only tightens, and a call "
            "without a session counts for its key; model is the name the client asks for.",
            "team",
        )
    )
    only: tuple[str, ...] = field(
        default=(),
        metadata=setting(
            OneOrMore(Line("a name or glob", chars_max=256)),
            "Only for these values of the scope: a name or glob (* ? [abc], case counts), or a list. Left out: all.",
            '["research-*"]',
        ),
    )
    limit_usd: Decimal | None = field(
        default=None,
        metadata=setting(
            _AMOUNT, "US dollars a window may cost. Exact, 0 refuses every call. This, limit_tokens, or both.", "5000"
        ),
    )
    limit_tokens: int | None = field(
        default=None,
        metadata=setting(
            Whole(0, LIMIT_TOKENS_MAX), "Tokens a window may use, input and output together.", "100_000_000"
        ),
    )
    window: Literal["hour", "day", "week", "month", "total"] = field(
        default="month",
        metadata=setting(
            Choice(WINDOWS),
            "When counting begins anew. Weeks start on Monday; total never does. A call counts for the window it began "
            "in, whenever it ends.",
            "month",
        ),
    )
    timezone: str = field(
        default="UTC", metadata=setting(Zone(), "Where midnight is, for hours, days, weeks and months.", "UTC")
    )
    thresholds: tuple[Decimal, ...] = field(
        default=(Decimal("0.5"), Decimal("0.8"), Decimal("1")),
        metadata=setting(
            OneOrMore(Share(), empty=True),
            "Parts of the limit that are told of once a window when spending reaches them: in the log, the metrics and "
            "to alerts.webhook_url. [] for none.",
            "[0.5, 0.8, 1.0]",
        ),
    )
    on_exceed: Literal["reject", "warn"] = field(
        default="reject",
        metadata=setting(
            Choice(("reject", "warn")),
            "At the limit: reject refuses calls, warn lets them pass and counts them.",
            "reject",
        ),
    )
    admission: Literal["expected", "strict"] = field(
        default="expected",
        metadata=setting(
            Choice(("expected", "strict")),
            "What is held back while a call runs. expected: for a stream what this key and model usually use, "
            "raised as it goes on. strict: always the most the call can cost; calls for which nothing says that are "
            "refused, and the budget is never overspent.",
            "expected",
        ),
    )
    clamp: bool = field(
        default=False,
        metadata=setting(
            Flag(),
            "Where too little is left for a call, lower its max_tokens to what is left pays; x-farebox-clamped tells "
            "the client.",
            "false",
        ),
    )
    wait_s: float = field(
        default=5.0,
        metadata=setting(
            Number(0, WAIT_S_MAX),
            "How long a call that does not fit waits for running ones to end and give back what they hold. Then it is "
            "refused; at once, when that cannot make room. 0 never waits.",
            "5",
        ),
    )
    on_extend_denied: Literal["cut", "overrun"] = field(
        default="cut",
        metadata=setting(
            Choice(("cut", "overrun")),
            "A stream that needs more than is left: cut ends it properly, as at max_tokens; overrun lets it go on, and "
            "counts by how much the limit was passed.",
            "cut",
        ),
    )

    def as_fields(self) -> dict[str, Any]:
        """The definition by column name, as `farebox.store.budgets` takes it."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def clash(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """What contradicts itself in a definition's fields, as the field and a reason to follow its name; or None.

    Fields that are not in `values` have their default.
    """
    get: dict[str, Any] = {one.name: one.default for one in fields(BudgetRule)} | dict(values)
    if str(get["name"]).startswith(KEY_PREFIX):
        return "name", f"begins with {KEY_PREFIX}, as only those of keys do"
    if get["limit_usd"] is None and get["limit_tokens"] is None:
        return "limit_usd", "is missing; a budget needs it, limit_tokens, or both"
    for name, most in (("thresholds", THRESHOLDS_MAX), ("only", ONLY_MAX)):
        if len(get[name]) > most:
            return name, f"has {len(get[name])} values; at most {most} are kept"
    if get["scope"] == "global" and get["only"]:
        return "only", "has no effect with scope global, which is one counter for everybody; remove it"
    if get["admission"] == "strict":
        if get["on_exceed"] == "warn":
            return "admission", "is strict, which never passes the limit, but on_exceed: warn lets calls pass it"
        if get["on_extend_denied"] == "overrun":
            return (
                "on_extend_denied",
                "is overrun, but admission strict holds the most a stream can cost from its start",
            )
    if get["on_exceed"] == "warn" and get["clamp"]:
        return "clamp", "has no effect with on_exceed: warn, which lets every call pass; remove one of them"
    return None


class BadBudget(ValueError):
    """A definition that cannot be: `member` is the field at fault, `why` the rest of a sentence; the text is both."""

    def __init__(self, member: str, why: str) -> None:
        self.member = member
        self.why = why if why.endswith("?") else f"{why}."
        super().__init__(f"{member} {self.why}")


def rule_of(given: Mapping[str, str | Sequence[str] | None]) -> BudgetRule:
    """The budget that these texts describe, each read as the config reads it; None and what is left out: the default.

    Raises `BadBudget`.
    """
    known = {one.name: one.metadata["setting"].kind for one in fields(BudgetRule)}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise BadBudget(shown(name), f"is not one of a budget's fields: {', '.join(known)}")
        if text is not None:
            values[name] = _parsed(name, known[name], text)
    for name in ("name", "scope"):
        if name not in values:
            raise BadBudget(name, "is missing; it has no default")
    found = clash(values)
    if found:
        raise BadBudget(*found)
    return BudgetRule(**values)


def _parsed(name: str, kind: Scalar | OneOrMore, text: str | Sequence[str]) -> Any:
    if isinstance(kind, OneOrMore):
        values = tuple(_parsed(name, kind.item, item) for item in ([text] if isinstance(text, str) else text))
        if len(set(values)) < len(values):
            raise BadBudget(name, "has a value twice")
        return values
    if not isinstance(text, str):
        raise BadBudget(name, f"is a list; write {kind.wants}")
    try:
        return kind.parse(text)
    except Bad as bad:
        raise BadBudget(name, f"{shown(text)} is not {kind.wants}" + (f": {bad}" if str(bad) else "")) from None
