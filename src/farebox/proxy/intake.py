"""Taking in a request: its body, what that says, and whether it may go up.

Most calls are let in without a wait: all of a small body is here, and it names nothing that has an owner. What
waits (for the rest of a body, for the owner of an object) goes the same way, with stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from farebox import codings, routing
from farebox.credentials import PREFIX, holds_key
from farebox.doubts import check_repeated, other_models
from farebox.errors import Unavailable
from farebox.heads import misplaced_key
from farebox.identity import claims
from farebox.outline import LONG_BYTES, outline, outlining
from farebox.pieces import Pieces
from farebox.proxy.call import Call
from farebox.proxy.ownership import Ownership
from farebox.request import read_facts
from farebox.server import Upload, read_body, send_continue, whole_body

if TYPE_CHECKING:
    from farebox.proxy.guard import Guard

T = TypeVar("T")

SOON = {"retry-after": "1"}
"""Told to those for whom there was no room."""
_GUARDED = frozenset(("model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n"))
"""Members that must not stand twice where a refusal depends on them: which one counts is the parser's choice."""


class Intake:
    """Takes in requests, and counts the bodies that are held meanwhile. One for a process."""

    def __init__(self, guard: Guard | None, ownership: Ownership | None) -> None:
        self._guard = guard
        self._ownership = ownership
        self.held_bytes = 0
        """Of bodies; whoever ends a call takes off what it held."""

    def take(self, call: Call) -> Awaitable[None] | None:
        """Take in the request of `call`, and refuse what may not go up. Raises `Refusal`.

        What it returns is to be awaited, and takes it in; None: that is done.
        """
        ownership = self._ownership
        asked = ownership.check_path(call) if ownership is not None else None
        here = asked is None and call.target.metered and not call.head.encoding
        if here and (body := self._body_here(call)) is not None:
            call.body = call.decoded = body
            call.outline = outline(body)
            self._read(call)
            return ownership.check_body(call, self._hold) if ownership is not None else None
        return self._wait_for(call, asked)

    async def _wait_for(self, call: Call, asked: Awaitable[None] | None) -> None:
        """`take`, where the body is not here, or somebody has to be asked first."""
        if asked is not None:
            await asked
        if call.target.metered:
            body = self._body_here(call)
            await self._unfold(call, await self._read_body(call) if body is None else body)
            self._read(call)
        else:
            self._pass_on(call)
        if self._ownership is not None and (asked := self._ownership.check_body(call, self._hold)) is not None:
            await asked

    def _pass_on(self, call: Call) -> None:
        """An unmetered request: its body is not read here but streamed on."""
        request = call.request
        call.identity = call.head.identity
        if self._guard is not None:
            self._guard.check(call)
        if request.body_exists:
            send_continue(request)
            call.body = Upload(request, call.snapshot.config.limits.client_stall_timeout_s)

    def _body_here(self, call: Call) -> bytes | None:
        """The request's body if all of it is here, which for small requests is the rule."""
        if call.head.expects_continue:
            return None
        body = whole_body(call.request, call.snapshot.config.limits.body_mb_max << 20)
        if body is not None:
            self._hold(call, len(body))
        return body

    async def _read_body(self, call: Call) -> bytes:
        """The request's body, as it comes."""
        limits = call.snapshot.config.limits
        self._check_room(call, call.request.content_length or 0)
        return await read_body(
            call.request, limits.body_mb_max << 20, limits.client_stall_timeout_s, count=partial(self._hold, call)
        )

    async def _unfold(self, call: Call, body: bytes) -> None:
        """A body that may be large, and what is to be read of it. Others have their turn meanwhile."""
        call.body = call.decoded = body
        encoding = call.head.encoding
        if encoding:
            limit = call.snapshot.config.limits.decoded_body_mb_max << 20
            call.decoded = await _in_turns(codings.decoding(body, encoding, limit))
            if call.decoded is not body:
                self._hold(call, len(call.decoded))
        long = len(call.decoded) >= LONG_BYTES
        call.outline = await _in_turns(outlining(call.decoded)) if long else call.decoded

    def _read(self, call: Call) -> None:
        """The facts of a metered request, and whom it is for."""
        head, caller = call.head, call.caller
        facts = call.facts = read_facts(head.target.operation, call.outline)
        identity = call.identity = claims(head.identity, facts)
        for claim in (facts.model, identity.session, identity.end_user):
            if claim is not None and PREFIX in claim and holds_key(claim):
                raise misplaced_key("the model, the user or the session")
        if self._guard is not None:
            self._guard.check(call)
        if caller.models:
            if not call.budgeted:  # else it was looked through for more than these
                check_repeated(call.outline, _GUARDED)
            for model in other_models(call.outline):
                routing.check_model(caller, model)

    def _hold(self, call: Call, size: int) -> None:
        """Count bytes of a body that are kept for the call. Raises `Unavailable` where there is no room for them."""
        self._check_room(call, size)
        call.held_bytes += size
        self.held_bytes += size

    def _check_room(self, call: Call, size: int) -> None:
        if self.held_bytes + size > call.snapshot.config.limits.bodies_in_flight_mb_max << 20:
            raise Unavailable("limits.bodies_in_flight_mb_max of request bodies are held.", headers=SOON)


async def _in_turns(work: Pieces[T]) -> T:
    """The result of `work`, with a turn of the event loop between its pieces."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        await asyncio.sleep(0)
