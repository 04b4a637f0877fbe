"""Traffic with a bit of everything that metrics tell: what a provider answers follows from the model's name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from support.answers import DONE, chunk, finish, frame, usage
from support.http import RawClient, call
from support.provider import FakeProvider, Received, Script, Wire, plain, stream

CHAT = "/v1/chat/completions"
METRICS_TOKEN = "metrics-token-0123456789"
GAP_S = 0.06
"""Between two pieces of a stream; all of them last longer than the time between two scrapes."""

_LARGE = [("x-farebox-tags", ",".join(f"tag{n}={'v' * 100}" for n in range(15)))]
_FLOOD_CALLS_MAX = 1_000

_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 300},
    "completion_tokens_details": {"reasoning_tokens": 40},
}
_ERROR = json.dumps({"error": {"message": "no", "type": "server_error", "code": None}}).encode()
_TOOLS = [
    {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": "{}"}}
    for n, name in enumerate(("search", "search", "read_file"))
]


def _document(model: str, **more: Any) -> bytes:
    message = {"role": "assistant", "content": "Hi", **more.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"object": "chat.completion", "model": model, "choices": [choice], "usage": usage(1000, 200)}
    return json.dumps(body | more).encode()


def _stream(model: str, *, reports: bool = True, extra: bytes = b"", cut: str | None = None) -> Script:
    frames = [frame(chunk(f"word{n} ", model=model)) for n in range(8)]
    frames += [extra, frame(finish(model=model))]
    if reports:
        frames.append(frame(chunk(None, model=model, choices=[], usage=usage(1000, 200, **_DETAILS))))
    return stream(frames[:4] if cut else [*frames, DONE], gap_s=GAP_S, cut=cut)


def _message(model: str) -> bytes:
    counts = {
        "input_tokens": 50,
        "cache_read_input_tokens": 900,
        "cache_creation_input_tokens": 100,
        "output_tokens": 80,
    }
    content = [{"type": "text", "text": "Hi"}]
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content}
    return json.dumps(body | {"stop_reason": "end_turn", "usage": counts}).encode()


async def answers(received: Received, wire: Wire) -> None:
    """The provider: every kind of answer by the model's name; anything else is a document with a usage."""
    model = json.loads(received.body)["model"] if received.body else ""
    scripts: dict[str, Script] = {
        "gpt-stream": _stream(model),
        "gpt-silent": _stream(model, reports=False),
        "gpt-garbled": _stream(model, extra=b"data: {broken\n\n"),
        "gpt-cut": _stream(model, cut="reset"),
        "gpt-slow": _stream(model),
        "gpt-tools": plain(_document(model, message={"content": None, "tool_calls": _TOOLS})),
        "gpt-429": plain(_ERROR, status=429),
        "gpt-500": plain(_ERROR, status=500),
        "gpt-400": plain(_ERROR, status=400),
        "claude-x": plain(_message(model)),
        "vendor/model": plain(_document(model, usage=usage(1000, 200, cost=0.0042))),
    }
    await scripts.get(model, plain(_document(model)))(received, wire)


def settings(folder: str, database: str, provider: FakeProvider, nobody: int) -> dict[str, Any]:
    """A farebox over that provider in four dialects, and over one that is not there, at port `nobody`."""
    prices = {"gpt-*": {"input_usd_per_mtok": 2, "cache_read_usd_per_mtok": 0.5, "output_usd_per_mtok": 8}}
    up = {"dialect": "openai", "base_url": provider.base_url, "api_key": "sk-upstream-1", "prices": prices}
    claude = {"input_usd_per_mtok": 3, "output_usd_per_mtok": 15, "cache_read_usd_per_mtok": 0.3}
    return {
        "server": {
            "port": 0,
            "admin_token": "admin-token-of-the-test",
            "shutdown_timeout_s": 2,
            "reload_poll_s": "off",
        },
        "database": {"url": database, "data_dir": folder},
        # Long enough for a scrape to find rows that wait.
        "ledger": {"drain_interval_ms": 1500, "segment_mb": 1, "journal_max_mb": 2},
        "metering": {"on_ledger_failure": "pass"},
        "metrics": {"token": METRICS_TOKEN},
        "models": {"refresh_s": "off"},
        "log": {"format": "json"},
        "providers": {
            "up": up,
            "quiet": {**up, "stream_options": "skip"},
            "claude": {**up, "dialect": "anthropic", "base_url": provider.origin, "prices": {"claude-*": claude}},
            "router": {
                **up,
                "dialect": "openrouter",
                "prices": {"*": {"input_usd_per_mtok": 2, "output_usd_per_mtok": 8}},
            },
            "down": {**up, "base_url": f"http://127.0.0.1:{nobody}/v1"},
        },
        "routes": [
            {"match": {"model": "claude-*"}, "to": ["claude"]},
            {"match": {"model": "gpt-silent"}, "to": ["quiet"]},
            {"match": {"model": "gpt-down"}, "to": ["down"]},
            {"match": {"model": "vendor/*"}, "to": ["router"]},
            {"match": {}, "to": ["up"]},
        ],
        # By model, so that each kind of call has its own fate.
        "budgets": [
            {"name": "watched", "scope": "model", "only": ["gpt-tools"], "limit_usd": 0.001, "on_exceed": "warn"},
            {"name": "empty", "scope": "model", "only": ["gpt-refused"], "limit_usd": 0, "wait_s": 0},
            {"name": "roomy", "scope": "model", "only": ["gpt-held", "gpt-roomy"], "limit_usd": 100},
        ],
    }


_STREAMS = ("gpt-stream", "gpt-silent", "gpt-garbled", "gpt-cut")
_DOCUMENTS = (
    "gpt-plain",
    "gpt-tools",
    "gpt-429",
    "gpt-500",
    "gpt-400",
    "gpt-down",
    "gpt-refused",
    "mystery",
    "vendor/model",
    "claude-x",
)


def request(model: str, *, streamed: bool) -> bytes:
    body = {"model": model, "stream": streamed, "messages": [{"role": "user", "content": "Hello there"}]}
    return json.dumps(body | ({"max_tokens": 100} if model.startswith("claude") else {})).encode()


async def wave(port: int, keys: list[str]) -> None:
    """Every kind of call once with each key, one that is refused, and one whose client leaves."""
    calls = [
        call(port, "/v1/messages" if model == "claude-x" else CHAT, request(model, streamed=model in _STREAMS), key=key)
        for key in keys
        for model in (*_STREAMS, *_DOCUMENTS)
    ]
    calls.append(call(port, CHAT, request("gpt-plain", streamed=False), key="fb-" + "x" * 38))
    await asyncio.gather(*calls, _leave(port, keys[0]))


async def _leave(port: int, key: str) -> None:
    async with RawClient(port) as client:
        await client.send("POST", CHAT, {"Authorization": f"Bearer {key}"}, request("gpt-slow", streamed=True))
        await client.head()
        await client.chunk()
        client.abort()


async def flood(port: int, key: str, enough: Callable[[], Awaitable[bool]]) -> None:
    """Calls whose rows are large, so that a journal that is not drained is full soon; until it is `enough`."""
    over = asyncio.Event()

    async def some() -> None:
        for _ in range(_FLOOD_CALLS_MAX):
            if over.is_set():
                return
            await call(port, CHAT, request("gpt-plain", streamed=False), key=key, headers=_LARGE)

    calls = [asyncio.create_task(some()) for _ in range(8)]
    try:
        while not await enough():
            assert not all(task.done() for task in calls), "the flood ran dry"
            await asyncio.sleep(0.1)
    finally:
        over.set()
        await asyncio.gather(*calls)
