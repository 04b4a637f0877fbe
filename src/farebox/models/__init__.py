"""The models behind all providers: asked for on a schedule, kept in Postgres, merged as the routes send calls.

The way of a list: `refresh` finds which providers are due and gets the claim to ask, `fetch` asks one
within bounds (`asking` knows where each dialect keeps its list and reads it), the store keeps the
answer. `catalogue` holds all of it in memory for one process; `shelf` decides what a caller gets to
see, and `shapes` how that looks. `known` stands in for a provider that was never heard. Answering
requests is `proxy`'s and `admin`'s.
"""

from farebox.models.catalogue import Catalogue, read_shelf
from farebox.models.fetch import FetchError, fetch
from farebox.models.known import known_models
from farebox.models.refresh import Outcome, Refresher, askable
from farebox.models.shelf import Known, Offer, Shelf, Stock, listed, offered

__all__ = [
    "Catalogue",
    "FetchError",
    "Known",
    "Offer",
    "Outcome",
    "Refresher",
    "Shelf",
    "Stock",
    "askable",
    "fetch",
    "known_models",
    "listed",
    "offered",
    "read_shelf",
]
