"""The official Python SDKs, sync and async, driven alike: a test says what is called, not how it is waited for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Literal

import anthropic
import httpx2
import openai

Flavour = Literal["sync", "async"]
FLAVOURS: tuple[Flavour, ...] = ("sync", "async")


class Sdk:
    """One client. `call` and `stream` take the client's own methods; the sync client works in a thread."""

    def __init__(self, client: Any, flavour: Flavour) -> None:
        self.client = client
        self.flavour = flavour

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The answer of one method."""
        if self.flavour == "sync":
            return await asyncio.to_thread(method, *args, **kwargs)
        return await method(*args, **kwargs)

    async def stream(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """All that a method with `stream=True` yields, read to the end as a `for` loop reads."""
        if self.flavour == "sync":
            return await asyncio.to_thread(lambda: list(method(*args, **kwargs)))
        return [piece async for piece in await method(*args, **kwargs)]

    async def first(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The first thing that a method with `stream=True` yields; then the `with` block is left."""
        if self.flavour == "sync":

            def leave_early() -> Any:
                with method(*args, **kwargs) as pieces:
                    return next(iter(pieces))

            return await asyncio.to_thread(leave_early)
        async with await method(*args, **kwargs) as pieces:
            return await anext(aiter(pieces))

    async def helped(self, method: Callable[..., Any], final: str, **kwargs: Any) -> tuple[list[Any], Any]:
        """What an SDK's stream helper (`with client….stream() as s`) yields, and what its `final` method says."""
        if self.flavour == "sync":

            def read() -> tuple[list[Any], Any]:
                with method(**kwargs) as pieces:
                    return list(pieces), getattr(pieces, final)()

            return await asyncio.to_thread(read)
        async with method(**kwargs) as pieces:
            return [piece async for piece in pieces], await getattr(pieces, final)()

    async def close(self) -> None:
        closing: Awaitable[None] | None = self.client.close()
        if closing is not None:
            await closing


@cache
def trusting() -> ssl.SSLContext:
    """What a client of an SDK would make for itself. Reading the certificates takes longer than most tests."""
    return httpx2.create_ssl_context()


@asynccontextmanager
async def openai_sdk(origin: str, key: str, flavour: Flavour, **options: Any) -> AsyncIterator[Sdk]:
    """OpenAI's client, told nothing but where farebox is and a key."""
    kind = openai.OpenAI if flavour == "sync" else openai.AsyncOpenAI
    http = openai.DefaultHttpxClient if flavour == "sync" else openai.DefaultAsyncHttpxClient
    options.setdefault("http_client", http(verify=trusting()))
    sdk = Sdk(kind(base_url=origin + "/v1", api_key=key, **options), flavour)
    try:
        yield sdk
    finally:
        await sdk.close()


@asynccontextmanager
async def azure_sdk(endpoint: str, key: str, flavour: Flavour, **options: Any) -> AsyncIterator[Sdk]:
    """OpenAI's client for Azure: other paths, the key in another header."""
    kind = openai.AzureOpenAI if flavour == "sync" else openai.AsyncAzureOpenAI
    http = openai.DefaultHttpxClient if flavour == "sync" else openai.DefaultAsyncHttpxClient
    options.setdefault("http_client", http(verify=trusting()))
    sdk = Sdk(kind(azure_endpoint=endpoint, api_key=key, **options), flavour)
    try:
        yield sdk
    finally:
        await sdk.close()


@asynccontextmanager
async def anthropic_sdk(origin: str, key: str, flavour: Flavour, **options: Any) -> AsyncIterator[Sdk]:
    """Anthropic's client, told nothing but where farebox is and a key."""
    kind = anthropic.Anthropic if flavour == "sync" else anthropic.AsyncAnthropic
    http = anthropic.DefaultHttpxClient if flavour == "sync" else anthropic.DefaultAsyncHttpxClient
    options.setdefault("http_client", http(verify=trusting()))
    sdk = Sdk(kind(base_url=origin, api_key=key, **options), flavour)
    try:
        yield sdk
    finally:
        await sdk.close()
