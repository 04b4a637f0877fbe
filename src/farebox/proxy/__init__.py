"""The data plane: one client request, from socket to row.

Read it in this order: `Proxy.handle` here lets the caller in; `intake` takes in the request; `forward`
tries providers until one answers, each attempt with leave of the `guard` of budgets; `whole` passes an
ordinary answer on, `relay` any other while a meter reads along and `pace` keeps the hold ahead; `settle`
writes the one event of each attempt. What is decided is decided in pure modules (`paths`, `routing`, `splice`, `meter`,
`bounds`, `admission`, `holds`, `accounting`); what touches the outside goes through `server`,
`upstream`, and the functions the constructor is given.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from farebox.accounting import Ending
from farebox.config import Config
from farebox.credentials import Credentials
from farebox.errors import BadRequest, Forbidden, InternalError, PathClosed, Refusal, Unavailable
from farebox.heads import RequestHead
from farebox.ids import Ids
from farebox.logs import exception_facts
from farebox.meter import Reading
from farebox.proxy.call import Call, Clock
from farebox.proxy.forward import Forwarder
from farebox.proxy.intake import SOON, Intake
from farebox.proxy.ownership import Ownership
from farebox.proxy.relay import Relay
from farebox.proxy.settle import Estimator, Ordinaries, Pricer, Settler
from farebox.proxy.snapshot import Snapshot
from farebox.proxy.whole import Whole
from farebox.records import Caller, UsageEvent
from farebox.server import ClientGone, Reply, Request, refuse
from farebox.upstream import NeverSent

if TYPE_CHECKING:
    from farebox.proxy.guard import Guard

__all__ = ["Call", "Clock", "Estimator", "Proxy", "Snapshot"]

_COUNT_S = 2.0
"""How long a stop waits for the tokens of the calls it cut to be counted; then they are estimated by size."""


class Proxy:
    """The data plane. `handle` is called once for every request outside the control plane."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        identify: Callable[[Credentials], Awaitable[Caller]],
        begin: Callable[[UUID, bytes], None],
        record: Callable[[UsageEvent], None],
        estimate: Estimator,
        price: Pricer,
        answer_models: Callable[[Call, datetime], Awaitable[Reply | None]],
        clock: Clock,
        ordinary: Ordinaries | None = None,
        recall: Callable[[Credentials], Caller | None] = lambda _: None,
        guard: Guard | None = None,
        ownership: Ownership | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._guard = guard
        self._answer_models = answer_models
        self._identify = identify
        self._recall = recall
        self._clock = clock
        self._ids = Ids(os.urandom)
        self._log = structlog.get_logger()
        self._settler = Settler(record=record, estimate=estimate, price=price, clock=clock, ordinary=ordinary)
        self._forwarder = Forwarder(
            ids=self._ids,
            begin=begin,
            settler=self._settler,
            relay=Relay(self._settler, clock),
            whole=Whole(self._settler, clock),
            clock=clock,
            guard=guard,
        )
        self._calls: set[Call] = set()
        self._intake = Intake(guard, ownership)
        self._closing = False
        self._idle: asyncio.Event | None = None
        """Set when no call is open any more; there is one once somebody waits for that."""

    @property
    def in_flight(self) -> int:
        """Calls that are not answered yet."""
        return len(self._calls)

    def swap(self, snapshot: Snapshot) -> Snapshot:
        """Serve every request from now on by `snapshot`; the one that was in force until now."""
        old, self._snapshot = self._snapshot, snapshot
        return old

    async def handle(self, request: Request) -> Reply:
        """Answer one request. Nothing is awaited before its provider but what is not here yet: a key that memory does
        not know, the rest of a body, the owner of an object."""
        snapshot, connection = self._snapshot, request.protocol
        received, now = self._clock.monotonic(), self._clock.now()
        request_id = self._ids.mint(now.timestamp())
        snapshot.calls += 1
        try:
            try:
                head = self._read_head(request, snapshot)
                caller = self._recall(head.credentials) or await self._look_up(head.credentials)
                if head.websocket or head.target.administrative:
                    self._let_in(head, caller, snapshot.config)
            except Refusal as refusal:
                return refuse(request, refusal, str(request_id))
            if connection.transport is None:
                return Reply(request)  # the client left while its key was looked up
            call = Call(request, snapshot, request_id, received, now, head, caller, connection.task)
            connection.on_lost = call.client_left
            self._calls.add(call)
            try:
                if not head.target.metered and (listed := await self._answer_models(call, now)) is not None:
                    return listed
                if (taken := self._intake.take(call)) is not None:
                    await taken
                return await self._forwarder.run(call)
            except (Exception, asyncio.CancelledError) as exc:
                return await self._ended(call, exc)
            finally:
                connection.on_lost = None
                if call.timer is not None:
                    call.timer.cancel()
                self._intake.held_bytes -= call.held_bytes
                self._calls.discard(call)
                if self._idle is not None and not self._calls:
                    self._idle.set()
        finally:
            snapshot.calls -= 1
            if snapshot.retired:
                snapshot.end()

    async def _ended(self, call: Call, exc: BaseException) -> Reply:
        """The answer of a call that ended otherwise than with its provider's."""
        if isinstance(exc, asyncio.CancelledError):
            return await self._stopped(call, unsent=isinstance(exc, NeverSent))
        if isinstance(exc, ClientGone):
            return call.reply or Reply(call.request)
        if isinstance(exc, Refusal) and not (call.reply is not None and call.reply.started):
            return refuse(call.request, exc, str(call.request_id))
        assert isinstance(exc, Exception)
        return await self._failed(call, exc)

    async def close(self, timeout_s: float) -> None:
        """Take no more calls, let those in flight finish for `timeout_s` seconds, then cut and settle the rest."""
        self._closing = True  # so no further call comes in
        idle = self._idle = asyncio.Event()
        if not self._calls:
            idle.set()
        try:
            async with asyncio.timeout(timeout_s):
                await idle.wait()
        except TimeoutError:
            self._log.warning("open calls are cut: the shutdown timeout has passed", calls=len(self._calls))
            for call in list(self._calls):
                call.stop("shutdown")
            try:
                async with asyncio.timeout(_COUNT_S):
                    await idle.wait()
            except TimeoutError:
                for call in list(self._calls):
                    call.task.cancel()  # the count is given up, the event is not
                await idle.wait()

    def _read_head(self, request: Request, snapshot: Snapshot) -> RequestHead:
        """What is to be known before the caller: that there is room, and what the head says."""
        if self._closing:
            self._check_open()
        if len(self._calls) >= snapshot.config.limits.requests_in_flight_max:
            raise Unavailable("limits.requests_in_flight_max calls are open.", headers=SOON)
        return snapshot.heads.of(request.method, request.raw_path, request.version, request.raw_headers)

    async def _look_up(self, credentials: Credentials) -> Caller:
        """A caller that memory is not enough for."""
        caller = await self._identify(credentials)
        self._check_open()  # again: who waits for a look-up is not among the calls that a stop waits for
        return caller

    def _let_in(self, head: RequestHead, caller: Caller, config: Config) -> None:
        """What depends on both who calls and what for."""
        if head.websocket:
            if self._guard is not None and self._guard.enforces(caller):
                raise PathClosed("WebSocket", head.target.path)
            raise BadRequest("farebox does not forward WebSockets.")
        if head.target.administrative and config.auth.mode != "passthrough":
            raise Forbidden("/organization is not forwarded: it administers the credential that all keys share.")

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("farebox is shutting down.", headers=SOON)

    def _reading(self, call: Call) -> Reading | None:
        try:
            return call.reading()
        except Exception as exc:
            self._log.error("an answer could not be read", request_id=str(call.request_id), **exception_facts(exc))
            return None

    async def _stopped(self, call: Call, *, unsent: bool) -> Reply:
        """The call's task was cancelled: by farebox (client gone, shutdown), or from outside."""
        if call.stopped is not None:
            call.task.uncancel()
        reply = call.reply or Reply(call.request)
        ending: Ending = "client" if call.stopped == "client" else "shutdown"
        try:
            await self._settler.settle(call, self._reading(call), ending, unsent=unsent, quick=call.stopped is None)
        finally:
            reply.cut()  # whatever else happens, it must not look whole
        if call.stopped is None:
            raise asyncio.CancelledError
        return reply

    async def _failed(self, call: Call, exc: Exception) -> Reply:
        """A fault of farebox's own: it is logged, the attempt is settled, and the client is told."""
        self._log.error("call failed", request_id=str(call.request_id), **exception_facts(exc))
        await self._settler.settle(call, self._reading(call), "broken", error="farebox_fault", quick=True)
        if call.reply is not None and call.reply.started:
            call.reply.cut()
            return call.reply
        refusal = InternalError("farebox failed while handling this request; its log says where.")
        return refuse(call.request, refusal, str(call.request_id))
