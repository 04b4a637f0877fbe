"""Keeps the stored lists young: asks the providers that are due, and writes down what came of it.

Any number of processes may do this on one database: for each provider one of them gets the claim. A
failure changes nothing but the note of it; what is shown stays the last good list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

import structlog

from farebox.config import Config, Models, Provider
from farebox.models.fetch import FetchError
from farebox.records import Model
from farebox.store import ModelLists

_AT_ONCE = 4
"""Providers asked at the same time; the others wait their turn."""
_AGAIN_S = 10.0
"""After a start or a change of the config a failure older than this is not waited out: its cause may just have been
mended. Younger ones are, so that workers that start together do not each ask."""
_FORGOTTEN = timedelta(days=90)
"""A provider that nobody asked for so long is in no config any more: its list is dropped."""

T = TypeVar("T")
Fetch = Callable[[Provider, Models], Awaitable[list[Model]]]


class Outcome(NamedTuple):
    """What asking one provider came to: a number of models, or the reason why there are none."""

    provider: str
    models: int | None
    error: str | None


class Refresher:
    """Asks providers, as `fetch` does it, and keeps the answers in `lists`. `now` is the time they are dated with."""

    def __init__(self, lists: ModelLists, fetch: Fetch, now: Callable[[], datetime]) -> None:
        self._lists = lists
        self._fetch = fetch
        self._now = now
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._log = structlog.get_logger()

    async def ask_due(self, config: Config, *, eager: bool = False) -> list[Outcome]:
        """Ask the providers whose list is too old, and that nobody else is asking. `eager`: failures are not waited
        out. Raises what the database raises, once all others are through."""
        settings = config.models
        if not settings.refresh_s or config.auth.mode == "passthrough":
            return []
        now = self._now()
        fetched_before = now - timedelta(seconds=settings.refresh_s)
        failed_before = now - timedelta(seconds=min(_AGAIN_S, settings.retry_s) if eager else settings.retry_s)

        async def ask(provider: Provider) -> Outcome | None:
            claim = await self._lists.claim(
                provider.name, provider.base_url, now, fetched_before=fetched_before, failed_before=failed_before
            )
            if claim is None:
                return None
            outcome = await self._ask(provider, settings)
            self._say(outcome, claim.error)
            return outcome

        outcomes = [outcome for outcome in await _all(ask(p) for p in askable(config)) if outcome is not None]
        if outcomes:
            own = [(provider.name, provider.base_url) for provider in config.providers.values()]
            await self._lists.forget(now - _FORGOTTEN, but=own)
        return outcomes

    async def ask_now(self, providers: Iterable[Provider], settings: Models) -> list[Outcome]:
        """Ask these providers, whenever they were asked before."""
        return await _all(self._ask(provider, settings) for provider in providers)

    async def _ask(self, provider: Provider, settings: Models) -> Outcome:
        async with self._turn:
            try:
                models = await self._fetch(provider, settings)
            except FetchError as failure:
                await self._lists.fail(provider.name, provider.base_url, self._now(), failure.kind)
                return Outcome(provider.name, None, failure.kind)
        await self._lists.keep(provider.name, provider.base_url, self._now(), models)
        return Outcome(provider.name, len(models), None)

    def _say(self, outcome: Outcome, before: str | None) -> None:
        """A failure is worth a line when it is not the one that was there before."""
        if outcome.error is not None and outcome.error != before:
            self._log.warning(
                "a provider does not list its models; what was known of them stays",
                provider=outcome.provider,
                kind=outcome.error,
            )
        elif outcome.error is None and before is not None:
            self._log.info("a provider's models are listed again", provider=outcome.provider, models=outcome.models)


def askable(config: Config) -> list[Provider]:
    """The providers that have a list to ask for: the demo's is known, and its address another one at each start."""
    return [provider for provider in config.providers.values() if provider.dialect != "demo"]


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """All of it, also where one fails; then the first failure is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
