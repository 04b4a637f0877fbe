"""Load whose every request can be told apart, on both sides of farebox: what a provider saw against what the rows say.

Each request asks for a model of its own, `m-1`, `m-2`, ..., so the row, the request at the provider
and the answer at the client are known to be of one call. What the provider answers follows from the
model's name, so a seed names the whole run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from support.http import Answer, call
from support.process import until
from support.provider import FakeProvider, Received, Wire

CHAT = "/v1/chat/completions"
_DONE = b"data: [DONE]\n\n"
_CALL_S = 60.0


def settings(
    folder: str, base_url: str, *, database: str | None = None, shutdown_timeout_s: float = 2, **sections: Any
) -> dict[str, Any]:
    """A config with one provider `p`; on the embedded database unless `database` is a URL."""
    out: dict[str, Any] = {
        "server": {"port": 0, "shutdown_timeout_s": shutdown_timeout_s},
        "database": {"data_dir": folder, "connect_timeout_s": 5},
        "ledger": {"drain_interval_ms": 20, "segment_mb": 1, "journal_max_mb": 64},
        "log": {"format": "json"},
        "models": {"refresh_s": "off"},
        "providers": {"p": {"dialect": "openai", "base_url": base_url, "api_key": "sk-upstream-1"}},
    }
    if database is not None:
        out["database"]["url"] = database
        out["server"]["admin_token"] = "admin-token-of-the-fault-tests"
    for name, values in sections.items():
        out[name] = {**out.get(name, {}), **values}
    return out


def events(model: str, texts: int, *, usage: bool) -> list[bytes]:
    """The frames of a streamed answer."""
    frames: list[dict[str, Any]] = [
        {"model": model, "choices": [{"index": 0, "delta": {"content": f"word{n} "}}]} for n in range(texts)
    ]
    frames.append({"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        counts = {"prompt_tokens": 7, "completion_tokens": texts, "total_tokens": 7 + texts}
        frames.append({"model": model, "choices": [], "usage": counts})
    return [b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames] + [_DONE]


def document(model: str, texts: int) -> bytes:
    """The same answer in one piece."""
    message = {"role": "assistant", "content": "word " * texts}
    counts = {"prompt_tokens": 7, "completion_tokens": texts, "total_tokens": 7 + texts}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"model": model, "choices": [choice], "usage": counts}).encode()


def request(model: str, *, stream: bool) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": f"say {model}"}]}


def model_of(received: Received) -> str:
    """The model a request at the provider asked for."""
    name = json.loads(received.body)["model"]
    assert isinstance(name, str)
    return name


async def send_stream(wire: Wire, frames: list[bytes], gap_s: float = 0.0) -> None:
    """A streamed answer, whole."""
    await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
    for frame in frames:
        await wire.chunk(frame)
        if gap_s:
            await asyncio.sleep(gap_s)
    await wire.end()


async def send_document(wire: Wire, body: bytes) -> None:
    """An answer in one piece."""
    await wire.head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    await wire.send(body)


async def well_behaved(received: Received, wire: Wire) -> None:
    """A script: streams of a few chunks and documents after a while, paced differently each."""
    asked = json.loads(received.body)
    rng = random.Random(asked["model"])
    if asked["stream"]:
        frames = events(asked["model"], rng.randint(1, 12), usage=rng.random() < 0.8)
        await send_stream(wire, frames, rng.choice((0.0, 0.002, 0.01)))
    else:
        await asyncio.sleep(rng.choice((0.0, 0.01, 0.05)))
        await send_document(wire, document(asked["model"], rng.randint(1, 30)))


def is_whole(answer: Answer, *, stream: bool) -> bool:
    """Whether a client that got `answer` has everything it was to get."""
    return answer.status == 200 and answer.clean and (not stream or answer.body.endswith(_DONE))


async def ask(port: int, key: str, model: str, *, stream: bool, **more: Any) -> Answer:
    """One chat call to its end."""
    return await call(port, CHAT, json.dumps(request(model, stream=stream)).encode(), key=key, **more)


class Held:
    """A script that begins each answer at once and ends it once it is let go; documents do not begin before."""

    def __init__(self) -> None:
        self._releases: dict[str, asyncio.Event] = {}

    def of(self, model: str) -> asyncio.Event:
        """What the end of this model's answer waits for."""
        return self._releases.setdefault(model, asyncio.Event())

    async def __call__(self, received: Received, wire: Wire) -> None:
        model = model_of(received)
        frames = events(model, 4, usage=True)
        if json.loads(received.body)["stream"]:
            await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
            await wire.chunk(frames[0])
            await self.of(model).wait()
            for frame in frames[1:]:
                await wire.chunk(frame)
            await wire.end()
        else:
            await self.of(model).wait()
            await send_document(wire, document(model, 4))


@dataclass
class Traffic:
    """Clients that call one after another, each request for a model of its own. `rng` decides stream or not."""

    provider: FakeProvider
    rng: random.Random
    prefix: str = "m"
    whole: set[str] = field(default_factory=set)
    """Models whose answer a client has in full."""
    broken: set[str] = field(default_factory=set)
    """Models whose answer broke off, or never came."""
    refused: Counter[int] = field(default_factory=Counter)
    """Answers of another status than 200."""
    retry_after_missing: int = 0

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._stopping = False
        self._clients: list[asyncio.Task[None]] = []

    @property
    def seen(self) -> Counter[str]:
        """Models the provider was asked for, and how often."""
        return Counter(model_of(received) for received in self.provider.requests)

    def next_model(self) -> str:
        return f"{self.prefix}-{next(self._numbers)}"

    async def one(self, port: int, key: str) -> bool:
        """One call; whether there was anybody to answer it."""
        model, stream = self.next_model(), self.rng.random() < 0.6
        try:
            async with asyncio.timeout(_CALL_S):
                answer = await call(port, CHAT, json.dumps(request(model, stream=stream)).encode(), key=key)
        except ConnectionRefusedError:
            return False
        except (ConnectionError, asyncio.IncompleteReadError):
            self.broken.add(model)
            return True
        if answer.status != 200:
            self.refused[answer.status] += 1
            self.retry_after_missing += answer.status == 503 and answer.header("retry-after") is None
        elif is_whole(answer, stream=stream):
            self.whole.add(model)
        else:
            self.broken.add(model)
        return True

    async def more(self, number: int, *, timeout_s: float = 60) -> None:
        """Until so many more answers have reached a client in full."""
        goal = len(self.whole) + number
        await until(lambda: len(self.whole) >= goal, f"{number} more calls are answered", timeout_s=timeout_s)

    async def asked(self, number: int) -> None:
        """Until so many more requests have reached the provider."""
        goal = len(self.provider.requests) + number
        await until(lambda: len(self.provider.requests) >= goal, f"the provider is asked {number} times more")

    def begin(self, port: int, key: str, clients: int) -> None:
        """Let `clients` call, each one call after the other, until `end` or until nobody listens any more."""

        async def client() -> None:
            while not self._stopping and await self.one(port, key):
                pass

        self._stopping = False
        self._clients = [asyncio.create_task(client(), name="client") for _ in range(clients)]

    async def end(self) -> None:
        """Let the calls under way finish."""
        self._stopping = True
        await asyncio.gather(*self._clients)
        self._clients = []


async def outcomes(dsn: str) -> dict[str, str]:
    """requested_model -> outcome of every row; asserts that no attempt has two."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT requested_model, outcome FROM farebox.usage")
    finally:
        await connection.close()
    found = {row["requested_model"]: row["outcome"] for row in rows}
    assert len(found) == len(rows), "an attempt has two rows"
    return found


async def until_stored(dsn: str, models: set[str], *, timeout_s: float = 60) -> dict[str, str]:
    """Poll until each of `models` has a row; all rows then."""
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found = await outcomes(dsn)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pass  # it may just be starting
                if models <= found.keys():
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        missing = sorted(models - found.keys())
        raise AssertionError(f"{len(missing)} attempts have no row after {timeout_s:g} s: {missing[:10]}") from None
