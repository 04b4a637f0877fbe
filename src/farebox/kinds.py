"""What attempts that are alike have in common: worked out once, and once written as JSON.

A row of usage is mostly what the rows before it said too: who calls, what for, at which provider, and what
the answer is called. A `Kind` is that of attempts as they go out; its `Ended` that of those that an ordinary
answer ended. Which attempts are alike follows from the request's head and a few members of its body, so kinds are
remembered with the head and end with it. What is made of them is `accounting`'s and `rows`' business. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from farebox.config import Provider
from farebox.heads import RequestHead
from farebox.paths import Target
from farebox.records import Caller, Operation, Outcome, UsageSource
from farebox.request import RequestFacts

if TYPE_CHECKING:
    from farebox.pricing import Standing

KINDS_MAX = 4
"""Kinds remembered of one head: as many models, or ways to ask them. Past it all of them are made anew."""
NAME_CHARS_MAX = 256
"""An attempt at a model with a longer name has a kind of its own: what is remembered must not be large."""
COMMON_BYTES_MAX = 2048
"""Longer JSON is not kept. The whole of a row may be twice as long (`payload.BYTES_MAX`)."""

_ORDINARY_TIERS = frozenset({None, "", "auto", "default", "standard", "standard_only", "on_demand"})
_FIRST = b'{"provider":'
"""What the JSON of `Common` begins with. It is left out, for what is kept goes into others as the value of that member:
the rest of it brings its own names."""

_encode = msgspec.json.Encoder().encode


class Kind:
    """The common part of attempts that go out. Never changes, but for what others remember with it."""

    __slots__ = (
        "asked_tier", "begun", "caller", "dialect", "ended", "estimated", "held", "model", "provider",
        "service_tier", "stream", "tags", "target",
    )  # fmt: skip

    def __init__(
        self,
        *,
        caller: Caller,
        target: Target,
        provider: str,
        dialect: str,
        model: str | None = None,
        stream: bool = False,
        service_tier: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """`model`, `stream` and `service_tier` are what the request asks for, `tags` its own and the key's."""
        self.caller = caller
        self.target = target
        self.provider = provider
        self.dialect = dialect
        self.model = model
        self.stream = stream
        self.service_tier = service_tier
        self.tags = tags if tags is not None else {}
        # An `auto` that no answer explains says nothing, and stays out of the row.
        self.asked_tier = None if service_tier in _ORDINARY_TIERS else service_tier
        """The tier that was asked for, where it is none of the ordinary ones: what holds until an answer names
        another."""
        self.estimated = target.metered and target.operation != "moderations"
        """Whether an attempt of which nothing is known but its request used tokens, for all that is known."""
        self.begun = _common(self)
        """What its begins in the journal have in common; None where that is not for keeping."""
        self.ended: Ended | None = None
        """The latest of its ordinary ends."""
        self.held: object = None
        """What budgets hold for them: `proxy.quick`'s to know."""


class Ended:
    """The common part of attempts of one kind that ended well, with answers of the same model and tier."""

    __slots__ = ("counted", "model", "row", "service_tier", "standing", "tier_told")

    def __init__(self, kind: Kind, model: str | None, tier_told: str | None) -> None:
        self.model = model
        self.tier_told = tier_told
        """What the answer says; `service_tier` is what the row says."""
        self.service_tier = tier_told or kind.asked_tier
        self.row = _common(
            kind, model=model, service_tier=self.service_tier, status=200, outcome="complete", usage_source="provider"
        )
        """What their rows have in common; None where that is not for keeping."""
        self.standing: Standing | None = None
        """The prices of late."""
        self.counted: Any = None
        """Where the metrics count it: theirs to know."""


class Common(msgspec.Struct, omit_defaults=True):
    """Members of a `UsageEvent` that follow one another there, so that their JSON can be kept."""

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
    outcome: Outcome | None = None
    usage_source: UsageSource = "none"


def kind_of(head: RequestHead, caller: Caller, provider: Provider, facts: RequestFacts | None) -> Kind:
    """The kind of an attempt at `provider`; `facts` of a body that was read."""
    model, stream, tier = (facts.model, facts.stream, facts.service_tier) if facts is not None else (None, False, None)
    key = (provider.name, model, stream, tier)
    kind: Kind | None = head.kinds.get(key)
    if kind is None or (kind.caller is not caller and kind.caller != caller):
        kind = Kind(
            caller=caller,
            target=head.target,
            provider=provider.name,
            dialect=provider.dialect,
            model=model,
            stream=stream,
            service_tier=tier,
            tags={**head.identity.tags, **caller.tags},
        )
        if len(model or "") + len(tier or "") <= NAME_CHARS_MAX:
            if len(head.kinds) >= KINDS_MAX:
                head.kinds.clear()
            head.kinds[key] = kind
    return kind


def _common(kind: Kind, **more: Any) -> msgspec.Raw | None:
    """What `Common` of a kind is in JSON, from the provider's name on; None where it is long, or needs looking at."""
    caller, target = kind.caller, kind.target
    common = Common(
        provider=kind.provider,
        dialect=kind.dialect,
        endpoint=target.endpoint,
        operation=target.operation,
        key_id=caller.key_id,
        key_name=caller.key_name,
        team=caller.team,
        project=caller.project,
        tags=kind.tags,
        requested_model=kind.model,
        stream=kind.stream,
        **{"service_tier": kind.asked_tier, **more},
    )
    try:
        data = _encode(common)
    except UnicodeEncodeError:
        return None
    return msgspec.Raw(data[len(_FIRST) : -1]) if len(data) <= COMMON_BYTES_MAX and b"\\" not in data else None
