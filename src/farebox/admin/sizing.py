"""`POST /farebox/api/tokens`: how large a request is, whether its model takes it, what it would cost.

Counted in a thread, one request at a time: a megabyte of prompt neither holds up anybody's stream nor
takes more than one core. What is sent here is counted and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from farebox.admin.queries import check_known
from farebox.config import Config
from farebox.errors import BadRequest
from farebox.pricing import Pricer
from farebox.server import Reply, Request, read_body
from farebox.sizing import Sizer, Sizing
from farebox.tokens import Tokens

BODY_BYTES_MAX = 4 << 20
_STALL_S = 30.0

Action = Callable[[Request, str, dict[str, str]], Any]


class _Text(msgspec.Struct):
    text: str | msgspec.UnsetType = msgspec.UNSET
    model: str | None = None
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


class SizingApi:
    """Answers with a `Sizing`. The body is a request's own JSON, or `{"text": ..., "model": ...}`."""

    def __init__(
        self, config: Config, tokens: Tokens, pricer: Callable[[], Pricer], now: Callable[[], datetime]
    ) -> None:
        self.config = config
        self._tokens = tokens
        self._pricer = pricer
        self._now = now
        self._turn = asyncio.Semaphore(1)
        self.actions: Mapping[tuple[str, str], Action] = {("POST", "/tokens"): self._size}

    async def _size(self, request: Request, _: str, query: dict[str, str]) -> tuple[int, Any] | Reply:
        check_known(query, frozenset(("provider",)))
        count = self._counting(await read_body(request, BODY_BYTES_MAX, _STALL_S), query.get("provider"))
        async with self._turn:
            return 200, (await asyncio.to_thread(count)).as_json()

    def _counting(self, body: bytes, provider: str | None) -> Callable[[], Sizing]:
        sizer = Sizer(self._tokens, self.config, self._pricer(), self._now(), provider=provider)
        text = _text(body)
        return partial(sizer.body, body) if text is None else partial(sizer.text, *text)


def _text(body: bytes) -> tuple[str, str | None] | None:
    """The text to count and its model; None: the body is a request's own. Raises BadRequest."""
    try:
        read = msgspec.json.decode(body, type=_Text)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadRequest("The body is not a JSON object.") from None
    if isinstance(read.text, msgspec.UnsetType) or read.messages or read.input or read.prompt:
        return None
    return read.text, read.model
