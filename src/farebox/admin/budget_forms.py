"""What the control plane reads about budgets: JSON in, definitions and amounts out, every fault named by its member.

`farebox.config.budgets` reads the members' texts as it reads the config's, so a budget means the same
wherever it is written.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, NamedTuple

import msgspec

from farebox.admin.forms import Line, read
from farebox.admin.members import Members, text, texts
from farebox.config.budgets import BadBudget, BudgetRule, rule_of
from farebox.config.kinds import Bad, Money
from farebox.errors import BadRequest
from farebox.server import Request

DEFINITIONS_MAX = 200
"""Definitions in one request."""
COST_USD_MAX = 10**9
"""What an operator may set one call to."""
_ACTOR_CHARS_MAX = 100
_ACTOR_HEADER = "x-farebox-actor"


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**15)]


class Correction(NamedTuple):
    """What a call really cost, and used where that is known, as an operator says."""

    cost_usd: Decimal
    reason: str
    input_tokens: int | None
    output_tokens: int | None


class _Correction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    cost_usd: msgspec.Raw
    reason: Line
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None


def read_definitions(body: bytes) -> tuple[bool, list[BudgetRule]]:
    """Whether it is a list, and the definitions, each with a name of its own. Raises BadRequest."""
    several = body.lstrip()[:1] == b"["
    listed = read(body, list[dict[str, msgspec.Raw]]) if several else [read(body, dict[str, msgspec.Raw])]
    if not 1 <= len(listed) <= DEFINITIONS_MAX:
        raise BadRequest(f"A list of budgets has 1 to {DEFINITIONS_MAX} entries.")
    rules = [_rule(members) for members in listed]
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise BadRequest(f"The budget {name!r} is given twice.", param="name")
    return several, rules


def read_definition(body: bytes, name: str) -> BudgetRule:
    """The definition of the budget that the path names; in the body its name can be left out. Raises BadRequest."""
    members = read(body, dict[str, msgspec.Raw])
    said = text("name", members["name"]) if "name" in members else None
    if said not in (None, name):
        raise BadRequest("The name in the body is not that in the path. A budget keeps its name.", param="name")
    return _rule({**members, "name": msgspec.Raw(msgspec.json.encode(name))})


def read_correction(body: bytes) -> Correction:
    """The new cost of a call and the operator's reason. Raises BadRequest."""
    form = read(body, _Correction)
    kind = Money(COST_USD_MAX)
    amount = text("cost_usd", form.cost_usd)
    if not form.reason.strip():
        raise BadRequest("reason is empty; it stands in the audit.", param="reason")
    if not isinstance(amount, str):
        raise BadRequest(f"cost_usd must be {kind.wants}.", param="cost_usd")
    try:
        return Correction(kind.parse(amount), form.reason, form.input_tokens, form.output_tokens)
    except Bad as bad:
        why = f": {bad}" if str(bad) else ""
        raise BadRequest(f"cost_usd is not {kind.wants}{why}.", param="cost_usd") from None


def read_actor(request: Request) -> str:
    """Who makes a change, for the audit: `admin`, or `admin: NAME` when the request names a person. Raises BadRequest.

    The name is a claim of whoever holds the admin token.
    """
    name = request.headers.get(_ACTOR_HEADER)
    if name is None:
        return "admin"
    if not name.isprintable() or not 1 <= len(name) <= _ACTOR_CHARS_MAX:
        raise BadRequest(f"{_ACTOR_HEADER} is a name of 1 to {_ACTOR_CHARS_MAX} characters.", param=_ACTOR_HEADER)
    return f"admin: {name}"


def _rule(members: Members) -> BudgetRule:
    try:
        return rule_of(texts(members))
    except BadBudget as bad:
        raise BadRequest(str(bad), param=bad.member.strip("'")[:100]) from None
