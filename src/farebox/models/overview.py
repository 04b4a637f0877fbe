"""All models of all providers as flat rows, for operators: the command and the control plane show the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from farebox import paths, routing
from farebox.models import shapes
from farebox.models.shelf import Offer, Shelf
from farebox.paths import Target
from farebox.records import Caller

COLUMNS = (*shapes.COLUMNS, "routed")
"""The members of a row, in order."""
ANYONE = Caller(kind="open")
"""Who may use everything."""


def target() -> Target:
    """What is asked when no request is: the list that a client would ask for."""
    return paths.parse("GET", "/v1/models")


def rows(
    shelf: Shelf,
    listed: Sequence[Offer],
    now: datetime,
    *,
    everything: bool = True,
    provider: str | None = None,
    model: str | None = None,
) -> Iterator[dict[str, Any]]:
    """A row for each model of each provider, or, without `everything`, for those that are `listed`.

    `listed`: what GET /v1/models lists, to `ANYONE` or to the key that it is about. `provider` is a
    name, `model` a glob.
    """
    sent = {(offer.provider, offer.model.id) for offer in listed if offer.routed}
    for offer in _every(shelf) if everything else listed:
        if provider is not None and offer.provider != provider:
            continue
        if model is None or routing.allows((model,), offer.model.id):
            yield shapes.row(offer, now) | {"routed": (offer.provider, offer.model.id) in sent}


def _every(shelf: Shelf) -> Iterator[Offer]:
    for stock in shelf.values():
        yield from stock.offers.values()
