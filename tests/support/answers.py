"""Provider answers for the meter's tests: a meter with defaults, bytes cut in all the ways a network cuts them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec

from farebox.dialects import PROFILES, Profile
from farebox.meter import Meter, Reading
from farebox.records import Family, Operation

EVENT_BYTES_MAX = 1024 * 1024
STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def meter(
    operation: Operation = "chat",
    *,
    profile: Profile | str = "openai",
    stream: bool = True,
    withhold: bool = False,
    status: int = 200,
    content_type: str = STREAM,
    content_encoding: str = "",
    event_bytes_max: int = EVENT_BYTES_MAX,
) -> Meter:
    family: Family = "anthropic" if operation == "messages" else "openai"
    return Meter(
        operation=operation,
        family=family,
        profile=PROFILES[profile] if isinstance(profile, str) else profile,
        stream=stream,
        withhold_usage=withhold,
        status=status,
        content_type=content_type,
        content_encoding=content_encoding,
        event_bytes_max=event_bytes_max,
    )


def passed(meter: Meter, pieces: Iterable[bytes]) -> bytes:
    """What the client gets when the provider sends `pieces` and then ends its body; time stands at 1."""
    return b"".join(meter.feed(piece, 1.0) for piece in pieces) + meter.eof()


def read(body: bytes, operation: Operation = "chat", **options: Any) -> Reading:
    """The reading of a body that arrived in one piece and was passed on untouched."""
    reader = meter(operation, **options)
    assert passed(reader, [body]) == body
    return reader.finish()


def read_json(body: Any, operation: Operation = "chat", **options: Any) -> Reading:
    """The reading of a JSON body given as a value."""
    return read(json.dumps(body).encode(), operation, stream=False, content_type="application/json", **options)


def frame(value: Any, *, event: str | None = None) -> bytes:
    """One event as OpenAI or, with a name, Anthropic sends it."""
    name = f"event: {event}\n" if event is not None else ""
    return f"{name}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def chunk(content: str | None = "Hi", **more: Any) -> dict[str, Any]:
    """A chat chunk with one choice; `more` replaces or adds members."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m-1", "choices": [choice], **more}


def finish(reason: str = "stop", **more: Any) -> dict[str, Any]:
    """A chat chunk that ends its choice."""
    return chunk(None, choices=[{"index": 0, "delta": {}, "finish_reason": reason}], **more)


def usage(prompt: int = 7, completion: int = 3, **more: Any) -> dict[str, Any]:
    """A chat usage object whose total adds up."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


def usage_frame(**members: Any) -> bytes:
    """The frame that include_usage causes."""
    return frame(chunk(None, **{"choices": [], "usage": usage(), **members}))


def singly(data: bytes) -> list[bytes]:
    """Every byte on its own."""
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, seed: int, cuts: int) -> list[bytes]:
    """`data` cut at so many random places; the same places for the same seed."""
    chance = random.Random(seed)
    places = sorted(chance.randrange(len(data) + 1) for _ in range(cuts))
    return [piece for start, end in pairwise([0, *places, len(data)]) if (piece := data[start:end])]


def plain(reading: Reading) -> dict[str, Any]:
    """A reading as plain data, to be compared."""
    fields = {name: getattr(reading, name) for name in reading.__struct_fields__}
    return {**fields, "usage_raw": None if reading.usage_raw is None else msgspec.json.encode(reading.usage_raw)}
