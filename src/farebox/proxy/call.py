"""One client request in flight: what is known of it, and what happens to it when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from farebox.accounting import Attempt
from farebox.config import Metering
from farebox.heads import RequestHead
from farebox.identity import Identity
from farebox.meter import Meter, Reading
from farebox.paths import Target
from farebox.proxy.snapshot import Snapshot
from farebox.records import Caller
from farebox.request import RequestFacts
from farebox.server import Reply, Request

if TYPE_CHECKING:
    from farebox.bounds import Ordinary
    from farebox.budgets.applying import Applied
    from farebox.proxy.guard import Ticket
    from farebox.proxy.ownership import Claim


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from: `monotonic` seconds for durations, `now` for time stamps (UTC)."""

    monotonic: Callable[[], float]
    now: Callable[[], datetime]


class Call:
    """One client request. An attempt at a provider is settled exactly once: `attempt` is the one that is not yet.

    What most calls leave as it is stands in the class, not in each of them (0.5 µs a call).
    """

    body: bytes | AsyncIterator[bytes] | None = None
    """What goes up unless it is spliced: bytes where the path is metered, else a stream."""
    decoded: bytes = b""
    """The body without its content-encoding, to be read; empty where the path is not metered."""
    outline: bytes = b""
    """`decoded` without its long strings: where members are looked for."""
    facts: RequestFacts | None = None
    ordinary: Ordinary | None = None
    """The body once more, where budgets count the call and it is an ordinary one."""
    identity: Identity = Identity()
    attempt: Attempt | None = None
    meter: Meter | None = None
    reply: Reply | None = None
    applied: tuple[Applied, ...] = ()
    """The budgets that count this call."""
    budgeted: bool = False
    """One of them refuses what does not fit; those that only warn, and limits of a key's pace, do not count here."""
    injected: bool = False
    """farebox asks for the usage frame in what went up last: it is not the client's."""
    reserving: bool = False
    """It waits for its budgets: nothing has gone up for the attempt it is about to make."""
    ticket: Ticket | None = None
    """What the latest attempt was admitted with."""
    claim: Claim | None = None
    """What it has to do with stored objects, where those have owners (`auth.mode: virtual`)."""
    held_bytes: int = 0
    """Of `body` and `decoded`, as counted towards limits.bodies_in_flight_mb_max."""
    gone: bool = False
    """The client left before its answer was complete."""
    stopped: Literal["client", "shutdown"] | None = None
    """Why farebox cancelled this call's task; None while nobody did."""
    timer: asyncio.TimerHandle | None = None
    """Ends the wait for what its client left behind. It does not outlive the call."""

    def __init__(
        self,
        request: Request,
        snapshot: Snapshot,
        request_id: UUID,
        received: float,
        received_at: datetime,
        head: RequestHead,
        caller: Caller,
        task: asyncio.Task[None],
    ) -> None:
        """`snapshot`: the config this call is served by, whatever is reloaded meanwhile. `task`: who carries it."""
        self.request = request
        self.snapshot = snapshot
        self.request_id = request_id
        self.received = received
        self.received_at = received_at
        self.head = head
        self.target: Target = head.target
        self.caller = caller
        self.task = task

    def stop(self, why: Literal["client", "shutdown"]) -> None:
        """End the call where it stands."""
        if self.stopped is None:
            self.stopped = why
            self.task.cancel()

    def client_left(self) -> None:
        """The client's connection is gone: give the provider up, or read on for its usage."""
        if self.gone or self.stopped is not None or (self.reply is not None and self.reply.ended):
            return
        self.gone = True
        metering = self.snapshot.config.metering
        if not self.reserving and self._drains(metering):
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(metering.drain_timeout_s, self.stop, "client")
        else:
            self.stop("client")

    def _drains(self, metering: Metering) -> bool:
        if not self.target.metered or self.facts is None:
            return False
        policy = metering.on_client_disconnect
        # A call that does not stream can't be stopped at the provider: it is billed whole. And a budget that
        # were charged by guesses would lose money, or refuse calls for money that was never spent.
        return policy == "drain" or (policy == "auto" and (self.budgeted or not self.facts.stream))

    def reading(self) -> Reading | None:
        """What the meter knows of the attempt under way."""
        return self.meter.finish() if self.meter is not None else None
