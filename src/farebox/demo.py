"""The built-in `demo` provider: an honest echo, for trying farebox before any provider is set up.

It speaks enough of two APIs for an SDK to hold a conversation (`/chat/completions`, `/messages`,
`/models`), streams at a human pace, says in every answer what it is, and counts its tokens with
the tokenizer that estimates use. It is a server of its own on a loopback port, so that calls to it
take the whole way through farebox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
from aiohttp import web

MODEL = "farebox-demo"
_PACE_S = 0.04
"""Seconds between two streamed words: about 25 words a second."""
_ECHO_CHARS_MAX = 600
_BODY_BYTES_MAX = 4 << 20

Json = dict[str, Any]


class DemoProvider:
    """The echo as a server. `start` returns its base URL."""

    def __init__(self, count: Callable[[str], int], *, pace_s: float = _PACE_S) -> None:
        self._count = count
        self._pace_s = pace_s
        self._made = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_route("*", "/{path:.*}", self._elsewhere)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{port}/v1"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "farebox"}]})

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        return _error(404, f"The demo provider has no {request.path}: it speaks /chat/completions and /messages.")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        if body is None:
            return _error(400, "The demo provider needs a JSON object with a list of messages.")
        answer, used = self._answer(body)
        head = self._identity("chatcmpl-demo", body) | {"created": 0}
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

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        if body is None:
            return _error(400, "The demo provider needs a JSON object with a list of messages.")
        answer, used = self._answer(body)
        usage = {"input_tokens": used, "output_tokens": self._count(answer)}
        message: Json = self._identity("msg_demo", body) | {
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

    def _identity(self, prefix: str, body: Json) -> Json:
        self._made += 1
        return {"id": f"{prefix}-{self._made}", "model": MODEL}

    def _answer(self, body: Json) -> tuple[str, int]:
        """What is said, and how many tokens were read."""
        texts = [_text(m.get("content")) for m in body["messages"] if isinstance(m, dict)]
        heard = texts[-1] if texts else ""
        echo = heard if len(heard) <= _ECHO_CHARS_MAX else heard[:_ECHO_CHARS_MAX] + " ..."
        answer = (
            f"[farebox demo: no model, an echo] You said: {echo}\n"
            "This call is already a row: run `farebox usage`. Add a provider to config.yaml to talk to a model."
        )
        return answer, sum(self._count(text) for text in texts)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    return ""


def _words(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find(" ", start)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


async def _read(request: web.Request) -> Json | None:
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return body if isinstance(body, dict) and isinstance(body.get("messages"), list) else None


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


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=status)
