"""Streams cut at every place where they can be: what a client then gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from farebox.dialects import PROFILES
from farebox.meter import Meter
from farebox.records import Family, Operation
from farebox.sse import Splitter
from support.answers import EVENT_BYTES_MAX, STREAM


class Cut(NamedTuple):
    """A stream cut after `frames` frames: `sent` had gone to the client, `ending` was put after it."""

    frames: int
    sent: bytes
    ending: bytes
    meter: Meter

    @property
    def body(self) -> bytes:
        return self.sent + self.ending


def cuttable(operation: Operation, **options: Any) -> Meter:
    """A meter for a stream that may have to be cut."""
    family: Family = "anthropic" if operation == "messages" else "openai"
    settings: dict[str, Any] = {
        "operation": operation,
        "family": family,
        "profile": PROFILES["openai"],
        "stream": True,
        "withhold_usage": False,
        "status": 200,
        "content_type": STREAM,
        "content_encoding": "",
        "event_bytes_max": EVENT_BYTES_MAX,
        "cuttable": True,
    }
    return Meter(**{**settings, **options})


def frames_of(stream: bytes) -> list[bytes]:
    """The frames of a stream, each with its ending; what follows the last one is left out."""
    frames: list[bytes] = []
    position = 0
    for frame in Splitter(len(stream) + 1).feed(stream):
        frames.append(stream[position : position + frame.size])
        position += frame.size
    return frames


def cuts(stream: bytes, operation: Operation, *, usage: tuple[int, int] | None = None, **options: Any) -> Iterator[Cut]:
    """The stream cut after each of its frames at which it can be; frames arrive one by one, as from a provider."""
    pieces = frames_of(stream)
    for number in range(1, len(pieces) + 1):
        reader = cuttable(operation, **options)
        sent = b"".join(reader.feed(piece, 1.0) for piece in pieces[:number])
        ending = reader.cut(usage)
        if ending is not None:
            yield Cut(number, sent, ending, reader)
