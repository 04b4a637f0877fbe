"""The nouns that cross floors: who calls, what was asked, what it used, what is written down.

Nothing here does anything. One exchange with a provider ends as exactly one `UsageEvent`;
ledger, metrics and reports all read that event, so they cannot disagree. Its field names are
the columns of the store, so the event is encoded once and never mapped again.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import msgspec

Operation = Literal["chat", "completions", "responses", "embeddings", "moderations", "messages", "other"]
"""What a call asks for. `other` passes through unmetered."""

Family = Literal["openai", "anthropic"]
"""The API family a path belongs to: it decides the shape of errors and the meaning of usage."""

Outcome = Literal["complete", "upstream_error", "upstream_cut", "client_gone", "budget_cut", "farebox_cut", "reported"]
"""How an attempt ended.

complete        the provider finished its answer
upstream_error  status >= 400, an error inside the stream, or no response at all (status is None)
upstream_cut    a 2xx answer that ended early
client_gone     the client left before the terminal event
budget_cut      farebox ended the stream because its budget was used up
farebox_cut     shutdown or crash
reported        from outside, did not pass the proxy
"""

UsageSource = Literal["provider", "partial", "estimate", "hold", "none"]
"""How the token counts are known.

provider  as the provider reported them
partial   some fields from the provider, the rest estimated
estimate  counted by farebox
hold      charged at the reservation
none      nothing billable (a 4xx, a moderation), or not metered
"""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a call, as far as farebox trusts it. Claims of the client (session, tags) are not here."""

    kind: Literal["virtual", "passthrough", "open"]
    key_id: UUID | None = None
    key_name: str | None = None
    team: str | None = None
    project: str | None = None
    user: str | None = None
    models: tuple[str, ...] = ()
    """Globs of the models this caller may use; empty: all."""
    providers: tuple[str, ...] = ()
    """Names of the providers this caller may use; empty: all."""
    tags: dict[str, str] = {}
    allow_shared_objects: bool = False
    expires_at: datetime | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """Calls of one tool within one exchange: never the arguments, only their size in bytes."""

    name: str
    count: int
    argument_bytes: int


class Usage(msgspec.Struct, kw_only=True):
    """Token counts on one scale: input includes cache reads and writes, output includes reasoning.

    `None` means unreported, which is not zero. Sources for each dialect stand in `dialects`.
    """

    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    """The part of `cache_write_tokens` written with a lifetime of an hour or more, where the provider splits it."""
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_tokens: int | None = None
    units: dict[str, int | float] = {}
    """What is billed in other units, by name: `web_searches`, `seconds`, `images` ..."""
    provider_cost_usd: Decimal | None = None
    """The provider's own figure, where it reports one."""


class FloatHold(msgspec.Struct, frozen=True, gc=False):
    """What one call holds out of a float of its process, window by window."""

    id: UUID
    """The float's."""
    windows: tuple[int, ...]
    usd: tuple[Decimal, ...]
    tokens: tuple[int, ...]
    requests: tuple[int, ...]


class UsageEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One attempt forwarded to a provider, as it is journalled and stored. Field names are column names.

    Encoded without the fields that have their default, which the store knows: half the bytes. From `provider` to
    `usage_source` stand those that `kinds.Common` has.
    """

    id: UUID
    request_id: UUID
    attempt: int
    started_at: datetime
    finished_at: datetime
    end_user: str | None = None
    session: str | None = None
    provider: str
    dialect: str
    endpoint: str
    operation: Operation
    key_id: UUID | None = None
    key_name: str | None = None
    team: str | None = None
    project: str | None = None
    tags: dict[str, str] = {}
    requested_model: str | None = None
    model: str | None = None
    service_tier: str | None = None
    stream: bool = False
    status: int | None = None
    outcome: Outcome
    usage_source: UsageSource = "none"
    upstream_request_id: str | None = None
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_tokens: int | None = None
    units: dict[str, int | float] = {}
    usage_raw: Any = None
    """The provider's usage object as it came (`msgspec.Raw`, a `Struct` or plain data), bounded in size."""
    cost_usd: Decimal | None = None
    cost_source: str | None = None
    provider_cost_usd: Decimal | None = None
    price_id: str | None = None
    from_float: FloatHold | None = None
    """No column: what is reserved for the attempt before it is posted, where a float of its process held it."""
    budget_ids: list[str] | None = None
    duration_ms: float | None = None
    ttft_ms: float | None = None
    upstream_ms: float | None = None
    overhead_ms: float | None = None
    tool_calls_count: int = 0
    tool_calls: list[ToolCall] = []
    error_type: str | None = None
    error_code: str | None = None
    unparsed_events: int = 0
    """Stream events the parser could not read; the bytes went on all the same."""


Scope = Literal["global", "team", "project", "user", "key", "session", "model"]
"""What a budget counts by: each distinct value of it has counters of its own."""

Window = Literal["minute", "hour", "day", "week", "month", "total"]
"""How long a budget's counters count, on the calendar of its time zone; weeks start on Monday, `total` never ends."""

BudgetSource = Literal["config", "api", "key"]
"""Whose a budget is: the config file's, the API's, or part of a key."""

BudgetPurpose = Literal["budget", "rate"]
"""`rate`: a key's requests or tokens per minute, or its parallel requests: the same mechanism, not listed."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on what callers may spend in a window. At least one of the four limits is set; None: no such limit."""

    id: UUID
    name: str
    source: BudgetSource
    purpose: BudgetPurpose = "budget"
    scope: Scope
    only: tuple[str, ...] = ()
    """Globs on the value of the scope; empty: all."""
    key_id: UUID | None = None
    """The one key it is for, where it is part of a key."""
    limit_usd: Decimal | None = None
    limit_tokens: int | None = None
    limit_requests: int | None = None
    limit_open: int | None = None
    """Requests at the same time."""
    window: Window = "month"
    timezone: str = "UTC"
    thresholds: tuple[Decimal, ...] = ()
    """Parts of the limit at which to warn, 1 for all of it."""
    on_exceed: Literal["reject", "warn"] = "reject"
    admission: Literal["expected", "strict"] = "expected"
    clamp: bool = False
    wait_s: float = 5.0
    on_extend_denied: Literal["cut", "overrun"] = "cut"
    deleted: bool = False


class Want(msgspec.Struct, frozen=True):
    """What one budget is asked to hold for a call, in the counter of `subject`."""

    budget: UUID
    subject: str
    usd: Decimal
    tokens: int
    requests: int = 1


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual key as it is stored. The secret itself is nowhere, only its hash."""

    id: UUID
    name: str
    secret_hash: bytes
    """SHA-256 of the secret, 32 bytes."""
    team: str | None = None
    project: str | None = None
    user: str | None = None
    models: list[str] = []
    providers: list[str] = []
    tags: dict[str, str] = {}
    allow_shared_objects: bool = False
    expires_at: datetime | None = None
    created_at: datetime
    changed_at: datetime
    """When it was last created, altered, rotated or revoked, by the database's clock."""
    revoked_at: datetime | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model as a provider lists it. None: the provider does not say."""

    id: str
    """What a request calls it."""
    created: int | None = None
    """Unix seconds."""
    owned_by: str | None = None
    display_name: str | None = None
    context_length: int | None = None
    """Tokens of input and output together."""
    max_output_tokens: int | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of one provider's list. `models` is the last good one, None where there never was one."""

    provider: str
    base_url: str
    attempted_at: datetime
    fetched_at: datetime | None = None
    error: str | None = None
    """Why the last attempt failed, in a word of farebox's own; None when it did not."""
    models: list[Model] | None = None


class UsageRow(msgspec.Struct, kw_only=True):
    """One attempt as the view `farebox.usage` shows it: every column, in its order, corrections folded in."""

    id: UUID
    request_id: UUID
    attempt: int
    started_at: datetime
    finished_at: datetime
    key_id: UUID | None
    key_name: str | None
    team: str | None
    project: str | None
    end_user: str | None
    session: str | None
    tags: dict[str, Any]
    provider: str
    dialect: str
    endpoint: str
    operation: str
    requested_model: str | None
    model: str | None
    service_tier: str | None
    stream: bool
    status: int | None
    outcome: str
    upstream_request_id: str | None
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    audio_input_tokens: int | None
    audio_output_tokens: int | None
    image_tokens: int | None
    total_tokens: int | None
    units: dict[str, Any]
    usage_source: str
    usage_raw: Any
    cost_usd: Decimal | None
    cost_source: str | None
    provider_cost_usd: Decimal | None
    price_id: str | None
    budget_ids: list[str] | None
    duration_ms: float | None
    ttft_ms: float | None
    upstream_ms: float | None
    overhead_ms: float | None
    tool_calls_count: int
    tool_calls: list[Any]
    error_type: str | None
    error_code: str | None
