"""The control plane's view of models: every one of every provider, and how each provider's list came about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from farebox.admin.queries import check_known
from farebox.models import Catalogue, overview, shapes
from farebox.server import Request

_PARAMETERS = frozenset(("provider", "model"))

Query = dict[str, str]


class ModelsApi:
    """Answers `GET /farebox/api/models?provider=NAME&model=GLOB` from what the catalogue holds in memory."""

    def __init__(self, catalogue: Catalogue, now: Callable[[], datetime]) -> None:
        self._catalogue = catalogue
        self._now = now
        self.actions: Mapping[tuple[str, str], Callable[[Request, str, Query], Awaitable[tuple[int, Any]]]] = {
            ("GET", "/models"): self._list
        }

    async def _list(self, _: Request, __: str, query: Query) -> tuple[int, Any]:
        check_known(query, _PARAMETERS)
        catalogue, now = self._catalogue, self._now()
        listed = await catalogue.listing(overview.ANYONE, catalogue.config, overview.target(), {})
        shelf = catalogue.shelf
        found = overview.rows(shelf, listed, now, provider=query.get("provider"), model=query.get("model"))
        return 200, {"data": list(found), "providers": shapes.providers(shelf, now)}
