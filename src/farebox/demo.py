"""The built-in `demo` provider: an honest echo, for trying farebox before any provider is set up.

It speaks enough of three APIs for an SDK to hold a conversation (`/chat/completions`, `/responses`,
`/messages`; also `/models`), streams at a human pace, says in every answer what it is, and counts
its tokens with the tokenizer that estimates use. It is a server of its own on a loopback port, so that calls to it
take the whole way through farebox.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec
from aiohttp import web

from farebox.config import ModelPrices, Provider

NAME = "demo"
MODEL = "farebox-demo"
_PACE_S = 0.04
"""Seconds between two streamed words: about 25 words a second."""
_WORD = re.compile(r"\s*\S+\s*")
_ECHO_CHARS_MAX = 600
_BODY_BYTES_MAX = 4 << 20
_SPEAKS = "It speaks /chat/completions, /responses and /messages."
_NEEDS_MESSAGES = "The demo provider needs a JSON object with a list of messages."

Json = dict[str, Any]


def demo_provider(base_url: str) -> Provider:
    """The echo as the config of a provider: what it does costs nothing."""
    free = ModelPrices(input_usd_per_mtok=Decimal(0), output_usd_per_mtok=Decimal(0))
    return Provider(name=NAME, dialect="demo", base_url=base_url, prices=MappingProxyType({"*": free}))


class DemoProvider:
    """The echo as a server. `start` returns its base URL."""

    def __init__(self, count: Callable[[str], int], *, pace_s: float = _PACE_S) -> None:
        self._count = count
        self._pace_s = pace_s
        self._made = 0
        self._runner: web.AppRunner | None = None
        self.base_url = ""
        """Where it answers, once it has started."""

    async def start(self) -> str:
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_route("*", "/{path:.*}", self._elsewhere)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self.base_url

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "farebox"}]})

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        return _error(request, 404, f"The demo provider, an echo, has no {request.path}. {_SPEAKS}")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        if body is None or not isinstance(body.get("messages"), list):
            return _error(request, 400, _NEEDS_MESSAGES)
        answer, used = self._answer(body["messages"])
        head = self._identity("chatcmpl-demo") | {"created": int(time.time())}
        usage = {"prompt_tokens": used, "completion_tokens": self._count(answer)}
        usage["total_tokens"] = sum(usage.values())
        if body.get("stream") is not True:
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return web.json_response(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
        options = body.get("stream_options")
        asked = isinstance(options, dict) and options.get("include_usage") is True
        null = {"usage": None} if asked else {}

        def chunk(delta: Json, finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return _data(head | {"object": "chat.completion.chunk", "choices": [choice]} | null)

        async def write(send: Callable[[bytes], Awaitable[None]]) -> None:
            await send(chunk({"role": "assistant", "content": ""}))
            for word in _words(answer):
                await asyncio.sleep(self._pace_s)
                await send(chunk({"content": word}))
            await send(chunk({}, "stop"))
            if asked:
                await send(_data(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage}))
            await send(b"data: [DONE]\n\n")

        return await _stream(request, write)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        heard = body.get("input") if body is not None else None
        if body is None or not isinstance(heard, (str, list)):
            return _error(request, 400, "The demo provider needs a JSON object with an input: a string or a list.")
        answer, used = self._answer([{"content": heard}] if isinstance(heard, str) else heard)
        usage = {"input_tokens": used, "output_tokens": self._count(answer)}
        usage["total_tokens"] = sum(usage.values())
        place: Json = {"item_id": f"msg_demo_{self._made}", "output_index": 0, "content_index": 0}
        part: Json = {"type": "output_text", "text": answer, "annotations": []}
        item: Json = {"id": place["item_id"], "type": "message", "role": "assistant"}
        whole = item | {"status": "completed", "content": [part]}
        begun: Json = self._identity("resp_demo") | {"object": "response", "created_at": int(time.time())}
        response = begun | {"status": "completed", "output": [whole], "usage": usage}
        if body.get("stream") is not True:
            return web.json_response(response)
        begun |= {"status": "in_progress", "output": [], "usage": None}

        async def write(send: Callable[[bytes], Awaitable[None]]) -> None:
            number = itertools.count()

            async def event(kind: str, **members: object) -> None:
                await send(_event(f"response.{kind}", sequence_number=next(number), **members))

            await event("created", response=begun)
            await event("output_item.added", output_index=0, item=item | {"status": "in_progress", "content": []})
            await event("content_part.added", part=part | {"text": ""}, **place)
            for word in _words(answer):
                await asyncio.sleep(self._pace_s)
                await event("output_text.delta", delta=word, **place)
            await event("output_text.done", text=answer, **place)
            await event("content_part.done", part=part, **place)
            await event("output_item.done", output_index=0, item=whole)
            await event("completed", response=response)

        return await _stream(request, write)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        if body is None or not isinstance(body.get("messages"), list):
            return _error(request, 400, _NEEDS_MESSAGES)
        answer, used = self._answer(body["messages"])
        usage = {"input_tokens": used, "output_tokens": self._count(answer)}
        message: Json = self._identity("msg_demo") | {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": answer}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
        if body.get("stream") is not True:
            return web.json_response(message)

        async def write(send: Callable[[bytes], Awaitable[None]]) -> None:
            begun = message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
            await send(_event("message_start", message=begun))
            await send(_event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
            for word in _words(answer):
                await asyncio.sleep(self._pace_s)
                await send(_event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}))
            await send(_event("content_block_stop", index=0))
            stop = {"stop_reason": "end_turn", "stop_sequence": None}
            await send(_event("message_delta", delta=stop, usage={"output_tokens": usage["output_tokens"]}))
            await send(_event("message_stop"))

        return await _stream(request, write)

    def _identity(self, prefix: str) -> Json:
        self._made += 1
        return {"id": f"{prefix}-{self._made}", "model": MODEL}

    def _answer(self, messages: list[Any]) -> tuple[str, int]:
        """What is said, and how many tokens were read."""
        texts = [_text(m.get("content")) for m in messages if isinstance(m, dict)]
        heard = texts[-1] if texts else ""
        echo = heard if len(heard) <= _ECHO_CHARS_MAX else heard[:_ECHO_CHARS_MAX] + " ..."
        answer = (
            f"[farebox demo: no model, an echo] You said: {echo}\n"
            "Once it is said, this call is a row: see `farebox usage`. To talk to a model, add a provider."
        )
        return answer, sum(self._count(text) for text in texts)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    return ""


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


async def _read(request: web.Request) -> Json | None:
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return body if isinstance(body, dict) else None


async def _stream(
    request: web.Request, write: Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]]
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    await write(response.write)
    await response.write_eof()
    return response


def _data(payload: Json) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _event(kind: str, **members: object) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, **members})


def _error(request: web.Request, status: int, message: str) -> web.Response:
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    if "/messages" in request.path:
        return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)
    error = {"message": message, "type": kind, "param": None, "code": None}
    return web.json_response({"error": error}, status=status)
