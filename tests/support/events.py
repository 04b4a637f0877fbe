"""Usage events for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID

from farebox.payload import encode
from farebox.records import UsageEvent

STARTED = datetime(2024, 11, 22, 10, 0, tzinfo=UTC)
_NUMBERS = count(1)


def event(**fields: Any) -> UsageEvent:
    """An event with an id of its own, complete unless `fields` say otherwise."""
    id = UUID(int=next(_NUMBERS))
    plain: dict[str, Any] = {
        "id": id,
        "request_id": id,
        "attempt": 1,
        "started_at": STARTED,
        "finished_at": STARTED,
        "provider": "openai",
        "dialect": "openai",
        "endpoint": "/v1/chat/completions",
        "operation": "chat",
        "outcome": "complete",
    }
    return UsageEvent(**(plain | fields))


def events(number: int, **fields: Any) -> list[bytes]:
    """Encoded events."""
    return [encode(event(**fields)) for _ in range(number)]
