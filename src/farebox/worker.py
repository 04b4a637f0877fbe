"""One worker of several: `python -m farebox.worker LISTENER CONTROL`, started by the supervisor.

Both arguments are inherited descriptors: the port, and the socket on which supervisor and worker
talk. What to serve is the first thing said there. When it ends, the supervisor is gone: the worker
stops in order, and at the latest when the bound for that has passed, whatever state it is in.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from farebox import quickly  # noqa: F401

# isort: split

import msgspec
import structlog

from farebox import foundation, logs
from farebox.app import App
from farebox.config import Config, carry_over
from farebox.errors import FareboxError
from farebox.logs import exception_facts
from farebox.reload import Voice
from farebox.source import load_source
from farebox.supervisor import messages
from farebox.supervisor.messages import Count, Ready, Reload, Reloaded, Start, Unable

ORPHAN_MARGIN_S = 15.0
"""What an orphan's stop takes beyond `server.shutdown_timeout_s` and the drain; then it ends as it is."""


def main() -> int:
    """Serve until SIGTERM, SIGINT or the supervisor's end; the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor's: it says what to reload
    listener, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    lines = control.makefile("rb")
    start = _next(lines)
    if not isinstance(start, Start):
        return 0  # the supervisor has ended by now
    address = (start.host, start.port, start.workers)
    config = load_source(start.first, os.environ, host=address[0], port=address[1], workers=address[2])
    if start.source != start.first:
        newer = load_source(start.source, os.environ, host=address[0], port=address[1], workers=address[2])
        config, _ = carry_over(config, newer)
    voice = Voice(start.slot)
    voice.follow(config)
    logs.take_over_hooks()
    return asyncio.run(Worker(start, config, listener, control, lines, voice).run())


class Worker:
    """An `App` that takes its orders from a socket."""

    def __init__(
        self,
        start: Start,
        config: Config,
        listener: socket.socket,
        control: socket.socket,
        lines: BinaryIO,
        voice: Voice,
    ) -> None:
        self._start = start
        self._control = control
        self._lines = lines
        self._voice = voice
        self._log = structlog.get_logger()
        self._app = App(config, slot=start.slot, listener=listener, dsn=start.dsn)
        self._orders: asyncio.Queue[Reload | Count] = asyncio.Queue()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Start, serve, stop; the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        threading.Thread(target=self._listen, args=(loop,), name="supervisor", daemon=True).start()
        app = self._app
        try:
            await app.start()
        except FareboxError as exc:
            self._say(Unable(str(exc)))
            return 1
        obeying = asyncio.create_task(self._obey(), name="orders")
        try:
            settle_memory()
            self._say(Ready())
            await self._stop.wait()
            self._log.info("stopping", open_calls=app.proxy.in_flight)
        finally:
            obeying.cancel()
            await asyncio.gather(obeying, return_exceptions=True)
            await app.close()
            self._log.info("stopped")
        return 0

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own, so that the supervisor's end is noticed even if the loop hangs."""
        while (order := _next(self._lines)) is not None:
            if not isinstance(order, Start):
                _in_loop(loop, lambda order=order: self._orders.put_nowait(order))  # type: ignore[misc]
        _in_loop(loop, self._orphaned)
        time.sleep(self._app.config.server.shutdown_timeout_s + foundation.DRAIN_S + ORPHAN_MARGIN_S)
        os._exit(1)

    def _orphaned(self) -> None:
        if not self._stop.is_set():
            self._log.error("the supervisor is gone: this worker stops")
            self._stop.set()

    async def _obey(self) -> None:
        while True:
            order = await self._orders.get()
            if isinstance(order, Count):
                self._app.reloaded(order.result)
            else:
                self._say(Reloaded(order.number, await self._reload(order)))

    async def _reload(self, order: Reload) -> str | None:
        """Put a config in force; why that can't be, or None."""
        start, app = self._start, self._app
        try:
            config = load_source(order.source, os.environ, host=start.host, port=start.port, workers=start.workers)
            self._voice.know(config)
            self._voice.follow(app.config)
            await app.reload(config)
            self._voice.follow(app.config)
        except Exception as exc:
            facts = exception_facts(exc)
            self._log.error("the config can't be put in force: the old one stays", **facts)
            return str(facts.get("reason", facts["error"]))
        return None

    def _say(self, message: messages.FromWorker) -> None:
        try:
            self._control.sendall(messages.encode(message))
        except OSError:
            pass  # nobody is there any more; the thread that listens has noticed


def _next(lines: BinaryIO) -> messages.ToWorker | None:
    """What is said next; None at the end of the conversation, or of what can be understood."""
    try:
        line = lines.readline(messages.LINE_BYTES_MAX)
        return messages.to_worker(line) if line.endswith(b"\n") else None
    except (OSError, msgspec.MsgspecError):
        return None


def _in_loop(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        pass  # the loop is closed: the process is about to end


_LOOKS_AT_NEW = 100
"""How often the garbage collector looks at what is new until it looks at everything: ten times as seldom as usual."""


def settle_memory() -> None:
    """What is alive once all is up stays alive: the garbage collector need not look at it again.

    Nor does it look at all that came later every few seconds, which takes 25 ms where 1,000 streams are open: calls
    leave nothing for it, connections a few small objects of asyncio's, and most of those it finds while they are new.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _LOOKS_AT_NEW)


def log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """The event loop's handler of errors nobody else took."""
    exc = context.get("exception")
    facts = logs.exception_facts(exc) if isinstance(exc, BaseException) else {}
    # asyncio goes on to show the callback with its arguments, which may be a piece of a body.
    what = re.split(r"[(<{'\"]", str(context.get("message", "")), maxsplit=1)[0]
    structlog.get_logger().error("event loop error", what=what[:200], **facts)


if __name__ == "__main__":
    sys.exit(main())
