"""GET /v1/models and GET /v1/models/ID, answered from the catalogue: nothing goes up, and no row is made.

What the list holds is `farebox.models`' business; here a request becomes a question to it, and the
answer takes the shape that the client's SDK reads.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from farebox import paths
from farebox.identity import identify
from farebox.models import Catalogue, shapes
from farebox.proxy.call import Call
from farebox.server import Reply, respond


async def answer(catalogue: Catalogue, call: Call, now: datetime) -> Reply | None:
    """The answer, or None for a call that is not about models, or that is forwarded all the same.

    Raises `ModelNotAllowed` for a model that is not in the caller's list, `BadRequest` for a page that is none.
    """
    request, target, caller, config = call.request, call.target, call.caller, call.snapshot.config
    id = paths.asked_model(request.method, target)
    # In passthrough mode the client's own credential decides what there is: only the provider knows.
    if id is None or config.auth.mode == "passthrough":
        return None
    tags = identify(request.headers, None).tags
    anthropic = "anthropic-version" in request.headers
    body: dict[str, Any]
    if id:
        offer = catalogue.one(caller, config, target, tags, id)
        if offer is None:
            raise shapes.not_listed(id)
        body = shapes.anthropic_model(offer, now) if anthropic else shapes.openai_model(offer, now)
    else:
        offers = await catalogue.listing(caller, config, target, tags)
        query = dict(parse_qsl(target.suffix.partition("?")[2]))
        body = shapes.anthropic_list(offers, query, now) if anthropic else shapes.openai_list(offers, now)
    return respond(request, 200, msgspec.json.encode(body), headers=[(b"Cache-Control", b"no-store")])
