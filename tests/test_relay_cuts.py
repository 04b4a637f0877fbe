"""However an answer of a provider is cut into pieces, the client gets the same bytes and the row says the same.

What comes whole, in one piece with its head, takes a shorter way through farebox than what comes bit by bit.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from support.answers import DONE, chunk, cut, finish, frame, usage, usage_frame
from support.live import Serving, relaying, serving
from support.postgres import PostgresServer
from support.provider import Received, Script, Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, MESSAGES, EMBEDDINGS, FILES = "/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/files/f"
PLAIN = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**PLAIN, "stream": True}
ITSELF = {"id", "request_id", "key_id", "key_name"} | {
    *("started_at", "finished_at", "duration_ms", "ttft_ms", "upstream_ms", "overhead_ms")
}
"""Facts of a row that differ from call to call."""

CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
MESSAGE = {"role": "assistant", "content": "Hi"}


def document(**members: Any) -> bytes:
    choice = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "model": "m-1", "choices": [choice], **members}).encode()


CLAUDE = {
    "id": "msg", "type": "message", "role": "assistant", "model": "claude-1", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "Hi"}], "usage": {"input_tokens": 9, "output_tokens": 2},
}  # fmt: skip
ERROR = b'{"error":{"message":"no","type":"rate_limit_error","code":"slow_down"}}'
FRAMES = frame(chunk("Hi")) + frame(chunk(" there")) + frame(finish()) + usage_frame() + DONE
TOOLS = [{"index": 0, "message": {**MESSAGE, "tool_calls": [CALL]}, "finish_reason": "tool_calls"}]


def answer(
    body: bytes, fields: str = "Content-Type: application/json", *, status: str = "200 OK", framing: str = "length"
) -> bytes:
    head = f"HTTP/1.1 {status}\r\n{fields}\r\n"
    if framing == "length":
        head += f"Content-Length: {len(body)}\r\n"
    elif framing == "chunks":
        head += "Transfer-Encoding: chunked\r\n"
        parts = [body[at : at + 100] for at in range(0, len(body), 100)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return head.encode("latin-1") + b"\r\n" + body


EVENTS = "Content-Type: text/event-stream; charset=utf-8"
CASES: dict[str, tuple[str, Any, bytes]] = {
    "a document": (CHAT, PLAIN, answer(document(usage=usage()))),
    "in chunks": (CHAT, PLAIN, answer(document(usage=usage()), framing="chunks")),
    "up to the end": (CHAT, PLAIN, answer(document(usage=usage()), framing="end")),
    "with odd fields": (
        CHAT, PLAIN,
        answer(document(usage=usage()), "content-TYPE:application/json \r\nX-Odd:  caf\xe9\t\r\nx-odd: 2\r\n"
               "X-Request-Id: r1\r\nRequest-Id: r2\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive"),
    ),
    "on a connection that ends": (CHAT, PLAIN, answer(document(usage=usage()), "Connection: close\r\nX-A: 1")),
    "a hop-by-hop field": (
        CHAT, PLAIN, answer(document(usage=usage()), "Connection: x-hop, keep-alive\r\nX-Hop: 1\r\nX-A: 1"),
    ),
    "with tool calls": (CHAT, PLAIN, answer(document(choices=TOOLS, usage=usage()))),
    "with details": (
        CHAT, PLAIN,
        answer(document(service_tier="flex", usage=usage(
            9, 5, prompt_tokens_details={"cached_tokens": 4}, completion_tokens_details={"reasoning_tokens": 2},
        ))),
    ),
    "without usage": (CHAT, PLAIN, answer(document())),
    "an odd usage": (CHAT, PLAIN, answer(document(usage={"prompt_tokens": "7", "completion_tokens": None}))),
    "no JSON": (CHAT, PLAIN, answer(b'{"usage":{"prompt_tokens":')),
    "no UTF-8": (CHAT, PLAIN, answer(document(usage=usage()).replace(b"m-1", b"m\xff"))),
    "nothing": (CHAT, PLAIN, answer(b"")),
    "no content": (CHAT, PLAIN, answer(b"", "X-A: 1", status="204 No Content", framing="none")),
    "large": (CHAT, PLAIN, answer(document(usage=usage(), filler="x" * 200_000))),
    "packed": (CHAT, PLAIN, answer(gzip.compress(document(usage=usage()), mtime=0), "Content-Encoding: gzip")),
    "an error": (CHAT, PLAIN, answer(ERROR, "Retry-After: 1", status="429 Slow down")),
    "an error of its server": (CHAT, PLAIN, answer(b"<html>", "Content-Type: text/html", status="500 Oops")),
    "shorter than it says": (CHAT, PLAIN, answer(document(usage=usage()))[:-5]),
    "with an interim answer": (CHAT, PLAIN, b"HTTP/1.1 103 H\r\nLink: x\r\n\r\n" + answer(document(usage=usage()))),
    "a message": (MESSAGES, {**PLAIN, "model": "claude-1", "max_tokens": 5}, answer(json.dumps(CLAUDE).encode())),
    "embeddings": (
        EMBEDDINGS, {"model": "e", "input": "hi"},
        answer(b'{"object":"list","data":[{"embedding":[0.1]}],"model":"e-1","usage":{"prompt_tokens":2,"total_tokens":2}}'),
    ),
    "a file": (FILES, None, answer(b"\x00\xff" * 500, "Content-Type: application/octet-stream")),
    "a stream": (CHAT, {**STREAM, "stream_options": {"include_usage": True}}, answer(FRAMES, EVENTS, framing="chunks")),
    "a stream with its length": (CHAT, {**STREAM, "stream_options": {"include_usage": True}}, answer(FRAMES, EVENTS)),
    "a stream with a frame withheld": (CHAT, STREAM, answer(FRAMES, EVENTS, framing="chunks")),
    "a stream with a frame withheld and its length": (CHAT, STREAM, answer(FRAMES, EVENTS)),
    "a stream that is a document": (CHAT, STREAM, answer(document(usage=usage()))),
    "a document that is a stream": (CHAT, PLAIN, answer(FRAMES, EVENTS, framing="chunks")),
    "a stream without its end": (CHAT, STREAM, answer(FRAMES[:-20], EVENTS, framing="end")),
}  # fmt: skip

ENDING = ("up to the end", "a stream without its end", "shorter than it says")
"""After these the provider closes the connection."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as serving_:
        yield serving_


def script(pieces: list[bytes], *, close: bool) -> Script:
    async def play(_: Received, wire: Wire) -> None:
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0.001)  # most of the time it is read before the next is there
        if close:
            wire.close()

    return play


def ways(raw: bytes) -> list[list[bytes]]:
    """Ways to cut an answer: not at all, after its head, within it, before its end, and at random."""
    at = raw.index(b"\r\n\r\n") + 4
    return [[raw], [raw[:at], raw[at:]], [raw[:20], raw[20:]], [raw[:-1], raw[-1:]], cut(raw, 1, 4), cut(raw, 2, 4)]


@pytest.mark.parametrize("case", CASES)
async def test_no_cut_changes_what_is_passed_on_or_written_down(served: Serving, case: str) -> None:
    """Status, fields, body, its end or break; and every fact of the row but its times."""
    target, body, raw = CASES[case]
    desk = await served.desk()
    seen: list[Any] = []
    cuts = ways(raw)
    for pieces in cuts:
        desk.provider.then(
            script(pieces, close=case in ("up to the end", "a stream without its end", "shorter than it says"))
        )
        async with desk.client() as client, asyncio.timeout(10):
            payload = None if body is None else json.dumps(body).encode()
            await client.send("GET" if body is None else "POST", target, [desk.auth], payload)
            try:
                got = await client.answer()
                fields = sorted(
                    field for field in got.headers if field[0].lower() not in ("date", "x-farebox-request-id")
                )
                seen.append((got.status, got.reason, fields, got.body, got.clean))
            except (asyncio.IncompleteReadError, ConnectionError):
                seen.append("broken off")
    rows = await desk.rows(len(cuts))
    facts = [{name: getattr(row, name) for name in row.__struct_fields__ if name not in ITSELF} for row in rows]
    assert len(rows) == len(cuts)
    for got, fact in zip(seen, facts, strict=True):
        assert got == seen[0] and fact == facts[0]
    await served.settled()
