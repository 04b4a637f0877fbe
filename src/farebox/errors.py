"""What farebox itself refuses or fails at: one family, each class with its status, code and a sentence to act on.

`body` renders a refusal in the shape the SDKs of that path expect (OpenAI's error object, or
Anthropic's). The provider's own errors are never rewritten and never come through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from math import ceil
from typing import ClassVar, Literal

import msgspec

from farebox.digits import digits
from farebox.records import Family

SHORTFALLS_NAMED_MAX = 3
"""Budgets named in one refusal; a call seldom meets more, and a message has to end."""
_NAME_CHARS_MAX = 100


class FareboxError(Exception):
    """Base of everything farebox raises on purpose. Its text is written for the person who can mend it."""


class Refusal(FareboxError):
    """An answer farebox gives instead of the provider.

    `status` is the HTTP status; `type` and `code` are OpenAI's error members; `anthropic_type` is
    the member Anthropic's SDK reads. `headers` are added to the answer. The message may be shown
    to the client, so it never holds a secret or a prompt.
    """

    status: int = 500
    type: str = "api_error"
    code: ClassVar[str | None] = None
    anthropic_type: str = "api_error"

    def __init__(self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}

    def body(self, family: Family, request_id: str | None = None) -> bytes:
        """The JSON body in the dialect of `family`, UTF-8."""
        if family == "anthropic":
            return msgspec.json.encode(
                {
                    "type": "error",
                    "error": {"type": self.anthropic_type, "message": self.message},
                    "request_id": request_id,
                }
            )
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )


class BadRequest(Refusal):
    """The request cannot be read as one that farebox may forward."""

    status, type, code, anthropic_type = 400, "invalid_request_error", "bad_request", "invalid_request_error"


class InvalidKey(Refusal):
    """No key, or none that farebox knows."""

    status, type, code, anthropic_type = 401, "invalid_request_error", "invalid_api_key", "authentication_error"


class Forbidden(Refusal):
    """The key is known but may not do this."""

    status, type, code, anthropic_type = 403, "invalid_request_error", "forbidden", "permission_error"


class PathClosed(Refusal):
    """A call there may cost money that farebox can't count yet, so a key with a budget may not make it."""

    status, type, code, anthropic_type = 403, "invalid_request_error", "path_closed", "permission_error"

    def __init__(self, method: str, path: str) -> None:
        """`path` as the client spelt it, without its query: that may hold what nobody should read."""
        super().__init__(
            f"{_short(method)} {_short(path)} is closed to keys with a budget: farebox can't count yet what it costs. "
            "A key that no budget counts may use it."
        )


class Unpriced(Refusal):
    """A budget applies and farebox knows no price for the model."""

    status, type, code, anthropic_type = 400, "invalid_request_error", "model_unpriced", "invalid_request_error"

    def __init__(self, model: str, provider: str) -> None:
        what = f"the model '{_short(model)}'" if model else "a call that names no model"
        super().__init__(
            f"farebox knows no price for {what} at the provider '{provider}', so no budget "
            f"can count what the call costs. Who runs this farebox can set one (providers.{provider}.prices), refresh "
            "the price list (farebox prices sync), or let such calls pass (metering.unpriced: pass).",
            param="model",
        )


class NoBound(Refusal):
    """A strict budget applies and nothing bounds what the call may cost."""

    status, type, code, anthropic_type = 400, "invalid_request_error", "no_cost_bound", "invalid_request_error"

    def __init__(self, reason: str, budget: str) -> None:
        """`reason`: what about the request has no bound, as a noun: "an image", "a hosted tool"."""
        super().__init__(
            f"The budget '{_short(budget)}' is strict: it admits only calls whose cost has a bound before they are "
            f"made, and {reason} has none. Leave it out, or use a key whose budget has 'admission: expected'."
        )


class ModelNotAllowed(Refusal):
    """The key, or no route, allows this model."""

    status, type, code, anthropic_type = 404, "invalid_request_error", "model_not_found", "not_found_error"


class NotFound(Refusal):
    """Nothing is served at this path."""

    status, type, code, anthropic_type = 404, "invalid_request_error", "not_found", "not_found_error"


class MethodNotAllowed(Refusal):
    """The path exists, the method does not."""

    status, type, code, anthropic_type = 405, "invalid_request_error", "method_not_allowed", "invalid_request_error"


class Conflict(Refusal):
    """The thing to make exists already."""

    status, type, code, anthropic_type = 409, "invalid_request_error", "conflict", "invalid_request_error"


class BodyTooLarge(Refusal):
    """The request body passes the configured bound, as sent or once decoded."""

    status, type, code, anthropic_type = 413, "invalid_request_error", "request_too_large", "request_too_large"


class BadEncoding(Refusal):
    """The request's content-encoding is unknown, or its body does not decode."""

    status, type, code, anthropic_type = 415, "invalid_request_error", "unsupported_encoding", "invalid_request_error"


class HeadersTooLarge(Refusal):
    """The request's head passes the configured bound."""

    status, type, code, anthropic_type = 431, "invalid_request_error", "headers_too_large", "invalid_request_error"


class Shortfall(msgspec.Struct, frozen=True, kw_only=True):
    """A budget without room for a call: what it is, what stands in it, what the call needs. Amounts in `unit`."""

    budget: str
    scope: str
    window: str
    unit: Literal["USD", "tokens", "requests"]
    limit: Decimal | int
    spent: Decimal | int
    held: Decimal | int
    """Of calls that are not over yet."""
    needed: Decimal | int
    resets_at: datetime | None
    """None: never."""

    def sentence(self) -> str:
        """All of it for a person. No subject is named: it may be somebody else's, or a claim of the client."""
        own = f"this {self.scope}" if self.scope in ("key", "session", "model") else f"this key's {self.scope}"
        of = "" if self.scope == "global" else f" for {own}"
        per = {"total": "in total", "hour": "an hour"}.get(self.window, f"a {self.window}")
        reset = "It does not reset" if self.resets_at is None else f"It resets at {_instant(self.resets_at)}"
        return (
            f"The budget '{_short(self.budget)}' ({digits(self.limit)} {self.unit} {per}{of}) has no room for this "
            f"call: {digits(self.spent)} spent, {digits(self.held)} held by open calls, {digits(self.needed)} "
            f"needed. {reset}."
        )

    def some_left(self) -> bool:
        """Whether a smaller call could fit."""
        return self.unit != "requests" and self.spent + self.held < self.limit


class BudgetExceeded(Refusal):
    """A budget has no room for the call. Waiting a moment does not help, so no SDK should retry it.

    402 is retried by no SDK known. 429, which some clients understand better, comes with the header
    that OpenAI's and Anthropic's SDKs obey; there is never a `retry-after`, which would invite a retry.
    """

    status, type, code, anthropic_type = 402, "insufficient_quota", "insufficient_quota", "billing_error"

    def __init__(self, shortfalls: Sequence[Shortfall], *, status: Literal[402, 429] = 402) -> None:
        """`shortfalls`: the budgets that refuse, at least one; the first few are named."""
        named = [shortfall.sentence() for shortfall in shortfalls[:SHORTFALLS_NAMED_MAX]]
        if all(shortfall.some_left() for shortfall in shortfalls):
            named.append("Asking for less output (max_tokens) needs less.")
        super().__init__(" ".join(named), headers={"x-should-retry": "false"} if status == 429 else None)
        self.status = status
        self.anthropic_type = "billing_error" if status == 402 else "rate_limit_error"


class RateLimit(msgspec.Struct, frozen=True):
    """One of a key's limits a minute: how much of it there is, how much is left, and until when."""

    limit: int
    left: int
    resets_at: datetime


class RateLimited(Refusal):
    """A key's requests a minute, tokens a minute or parallel requests are used up. Worth another try, and SDKs do.

    `retry-after` is in whole seconds, at least 1. `x-ratelimit-*-requests` and `-tokens` are told for
    those limits that the key has, in OpenAI's spelling.
    """

    status, type, code, anthropic_type = 429, "requests", "rate_limit_exceeded", "rate_limit_error"

    def __init__(
        self,
        what: Literal["requests", "tokens", "parallel"],
        *,
        now: datetime,
        requests: RateLimit | None = None,
        tokens: RateLimit | None = None,
        parallel_max: int | None = None,
        needed: int | None = None,
    ) -> None:
        """`what` is used up; the limits are those the key has, that one among them. `needed`: tokens of this call.

        A call that needs more tokens than a whole minute has would be tried again in vain: SDKs are told not to.
        """
        limit = tokens if what == "tokens" else requests if what == "requests" else None
        if limit is None:
            wait_s = 1
            message = f"This key is at its limit of parallel requests, {parallel_max}."
        else:
            wait_s = _seconds(limit.resets_at, now)
            message = f"This key's limit of {limit.limit} {what} a minute has {max(0, limit.left)} left"
            message += "." if needed is None else f", and this call needs {needed}."
        never = what == "tokens" and limit is not None and needed is not None and needed > limit.limit
        headers = {"x-should-retry": "false"} if never else {"retry-after": str(wait_s)}
        for name, told in (("requests", requests), ("tokens", tokens)):
            if told is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(told.limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, told.left))
                headers[f"x-ratelimit-reset-{name}"] = f"{_seconds(told.resets_at, now)}s"
        then = "A minute never has as many: ask for less output." if never else f"Try again in {wait_s} s."
        super().__init__(f"{message} {then}", headers=headers)
        self.type = "tokens" if what == "tokens" else "requests"


class InternalError(Refusal):
    """A fault in farebox."""

    status, type, code, anthropic_type = 500, "api_error", "internal_error", "api_error"


class UpstreamUnreachable(Refusal):
    """No provider could be reached, or it broke off before an answer."""

    status, type, code, anthropic_type = 502, "api_error", "upstream_unreachable", "api_error"


class Unavailable(Refusal):
    """farebox cannot take the call now: database or journal not writable, at a limit, or shutting down."""

    status, type, code, anthropic_type = 503, "api_error", "unavailable", "api_error"


class UpstreamTimeout(Refusal):
    """The provider did not answer in time."""

    status, type, code, anthropic_type = 504, "api_error", "upstream_timeout", "api_error"


def _short(name: str) -> str:
    """A name as far as a message should repeat it."""
    return name if len(name) <= _NAME_CHARS_MAX else name[: _NAME_CHARS_MAX - 1] + "\u2026"


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(until: datetime, now: datetime) -> int:
    return max(1, ceil((until - now).total_seconds()))
