"""The providers' lists of models, as they are kept in Postgres between two fetches.

Who fetches and when is `farebox.models`; this is only what it writes down, and the claim by which one of
several processes gets to ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from farebox.records import Model, ModelList
from farebox.store.store import Store


class Claim(NamedTuple):
    """The right to ask a provider now. `error`: what its last attempt failed with, None when it did not."""

    error: str | None


class ModelLists:
    """Calls on `farebox.model_list`. A provider is meant by its name and its base URL together."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, providers: Iterable[tuple[str, str]]) -> list[ModelList]:
        """The rows of these providers, as far as there are any."""
        wanted = list(providers)
        rows = await self._store.fetch("model_lists", [name for name, _ in wanted], [url for _, url in wanted])
        return [
            ModelList(
                provider=row["provider"],
                base_url=row["base_url"],
                attempted_at=row["attempted_at"],
                fetched_at=row["fetched_at"],
                error=row["error"],
                models=None if row["models"] is None else msgspec.json.decode(row["models"], type=list[Model]),
            )
            for row in rows
        ]

    async def version(self) -> tuple[int, int]:
        """Something that differs after every change of any list; cheap."""
        [row] = await self._store.fetch("model_lists_version")
        return row["lists"], row["versions"]

    async def claim(
        self, provider: str, base_url: str, now: datetime, *, fetched_before: datetime, failed_before: datetime
    ) -> Claim | None:
        """A claim if the caller is the one to ask this provider now; None if it is not due, or another one's.

        It is due when its last answer came up to `fetched_before`, or its last attempt, up to
        `failed_before`, brought none. A claim counts as an attempt, so the next one has to wait.
        """
        rows = await self._store.fetch("claim_model_list", provider, base_url, now, fetched_before, failed_before)
        return Claim(rows[0]["error"]) if rows else None

    async def keep(self, provider: str, base_url: str, now: datetime, models: Sequence[Model]) -> None:
        """A list that was fetched; it takes the place of the one before."""
        await self._store.fetch("keep_model_list", provider, base_url, now, msgspec.json.encode(models).decode())

    async def forget(self, before: datetime, *, but: Iterable[tuple[str, str]]) -> None:
        """Drop the lists of providers that were last asked `before` then, except these."""
        kept = list(but)
        await self._store.fetch("forget_model_lists", before, [name for name, _ in kept], [url for _, url in kept])

    async def fail(self, provider: str, base_url: str, now: datetime, error: str) -> None:
        """An attempt that brought nothing, for a reason of one word or two; the list before stays."""
        await self._store.fetch("fail_model_list", provider, base_url, now, error)
