"""The route of a call, chosen once for calls that are alike."""

from __future__ import annotations

from farebox import routing
from farebox.proxy.call import Call
from farebox.routing import Route

_ROUTE = "route"


def route_of(call: Call) -> Route:
    """Which providers get `call`, as `routing.choose` says. Raises what it raises.

    A head and a model lead the same caller the same way as long as the config stays, which a head does not
    outlive; so they do all callers who may use everything. The latest route of each head is kept.
    """
    model = call.facts.model if call.facts is not None else None
    homes = call.claim.homes if call.claim is not None else ()
    tags = call.identity.tags
    if homes:
        return routing.choose(call.snapshot.config, call.caller, call.target, model, tags, homes)
    memo, caller = call.head.memo, call.caller
    # A caller that was changed is another object.
    who = caller if caller.models or caller.providers or caller.tags else None
    known: tuple[object, str | None, Route] | None = memo.get(_ROUTE)
    if known is not None and known[0] is who and known[1] == model:
        return known[2]
    route = routing.choose(call.snapshot.config, caller, call.target, model, tags)
    memo[_ROUTE] = (who, model, route)
    return route
