"""What supervisor and worker say to each other: JSON objects, one a line, on a socket that only these two hold.

The end of the socket says something too: the supervisor is gone, and the worker stops in order.
"""

from __future__ import annotations

import msgspec

from farebox.source import Source

LINE_BYTES_MAX = 64 << 20
"""A longer line is the end of the conversation. A config with all its files is far shorter."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """First to a worker: what to serve. `source` is in force; what holds from start to start is as in `first`."""

    slot: int
    dsn: str
    first: Source
    source: Source
    host: str | None
    port: int | None
    workers: int | None


class Reload(msgspec.Struct, frozen=True, tag="reload"):
    """To a worker: put this in force and say how it went."""

    number: int
    source: Source


class Count(msgspec.Struct, frozen=True, tag="count"):
    """To one worker: a reload of all went so (`ok`, `failed`), for the metrics."""

    result: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """From a worker: it takes calls."""


class Unable(msgspec.Struct, frozen=True, tag="unable"):
    """From a worker: it can't start, and why."""

    reason: str


class Reloaded(msgspec.Struct, frozen=True, tag="reloaded"):
    """From a worker: reload `number` is in force, or why it is not."""

    number: int
    error: str | None


ToWorker = Start | Reload | Count
FromWorker = Ready | Unable | Reloaded


def encode(message: ToWorker | FromWorker) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def to_worker(line: bytes) -> ToWorker:
    """What the supervisor said. Raises `msgspec.MsgspecError`."""
    message: ToWorker = msgspec.json.decode(line, type=ToWorker)
    return message


def from_worker(line: bytes) -> FromWorker:
    """What a worker said. Raises `msgspec.MsgspecError`."""
    message: FromWorker = msgspec.json.decode(line, type=FromWorker)
    return message
