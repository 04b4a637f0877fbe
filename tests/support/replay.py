"""Recorded bodies through a running farebox: a provider that answers what a request's `x-replay` names; the rows."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from farebox.records import UsageRow
from farebox.store import UsageFilter
from support.http import Answer
from support.live import Desk
from support.provider import FakeProvider, Received, Wire

IN_FLIGHT = 16


@dataclass(frozen=True)
class Case:
    """One exchange: what the client asks, and what the provider answers to it, in these pieces."""

    id: str
    target: str
    request: dict[str, Any] | None
    answer: bytes
    method: str = "POST"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()
    """The answer cut up; empty: in one piece, with its length."""

    @property
    def asked(self) -> bool:
        """The client itself asks for a usage frame."""
        options = (self.request or {}).get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True


@dataclass(frozen=True)
class Result:
    """What came of a case: the client's answer, the row of the last attempt, and what went up in it."""

    case: Case
    answer: Answer
    row: UsageRow
    sent: bytes

    @property
    def injected(self) -> bool:
        return not self.case.asked and b'"include_usage":true' in self.sent


async def replay(desk: Desk, provider: FakeProvider, cases: Iterable[Case]) -> list[Result]:
    """Run all cases, several at once, and return them with their rows, in order."""
    known = {case.id: case for case in cases}
    sent: dict[str, bytes] = {}

    async def answer(received: Received, wire: Wire) -> None:
        case = known[received.header("x-replay") or ""]
        sent[case.id] = received.body
        framing = ("Transfer-Encoding", "chunked") if case.pieces else ("Content-Length", str(len(case.answer)))
        await wire.head(case.status, [*case.headers.items(), framing])
        for piece in case.pieces:
            await wire.chunk(piece)
            await asyncio.sleep(0)
        await (wire.end() if case.pieces else wire.send(case.answer))

    provider.default = answer
    waiting = list(known.values())[::-1]
    answers: dict[str, Answer] = {}

    async def client() -> None:
        async with desk.client() as connection:
            while waiting:
                case = waiting.pop()
                body = None if case.request is None else json.dumps(case.request).encode()
                await connection.send(case.method, case.target, [desk.auth, ("x-replay", case.id)], body)
                answers[case.id] = await connection.answer()

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(client())
    rows = await _rows(desk)
    results = []
    for case in known.values():
        request_id = UUID(answers[case.id].header("x-farebox-request-id"))
        results.append(Result(case, answers[case.id], rows[request_id][-1], sent[case.id]))
    return results


async def _rows(desk: Desk) -> dict[UUID, list[UsageRow]]:
    """Every row of the desk's key by request, its attempts in order."""
    assert await desk.app.ledger.flush(30)
    found: dict[UUID, list[UsageRow]] = defaultdict(list)
    after = None
    while True:
        page = await desk.app.store.list_usage(UsageFilter(key_name=desk.farebox.key_name), after=after, rows_max=1000)
        for row in page.rows:
            found[row.request_id].append(row)
        after = page.next
        if after is None:
            break
    for rows in found.values():
        rows.sort(key=lambda row: row.attempt)
    return found


_FRAME = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)", re.DOTALL)
_PAYLOAD = ("error", "moderation", "prompt_filter_results")


def without_usage_frames(body: bytes) -> bytes:
    """A stream less its usage-only frames, told the simple way: for whole streams of one line ending."""
    kept, position = [], 0
    for found in _FRAME.finditer(body):
        kept.append(b"" if _is_usage_only(found[0]) else found[0])
        position = found.end()
    rest = body[position:]
    kept.append(b"" if _is_usage_only(rest) else rest)
    return b"".join(kept)


def _is_usage_only(frame: bytes) -> bool:
    lines = [line[5:] for line in re.split(rb"\r\n|\n|\r", frame) if line.startswith(b"data:")]
    try:
        value = json.loads(b"\n".join(lines))
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and value.get("choices") == []
        and isinstance(value.get("usage"), dict)
        and not any(value.get(name) for name in _PAYLOAD)
    )
