"""One worker, seen from the supervisor: a process, and the socket on which the two talk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path

import msgspec

import farebox
from farebox.errors import FareboxError
from farebox.source import Source
from farebox.supervisor import messages
from farebox.supervisor.messages import Count, Ready, Reload, Reloaded, Start, Unable

MODULE = "farebox.worker"


class WorkerFailed(FareboxError):
    """A worker did not do what it was asked. The text says why."""


class WorkerSilent(WorkerFailed):
    """It did not even answer: it hangs, or it is gone."""


class Child:
    """One worker process. `spawn`, `ready`, then whatever comes, then `wait` until it has ended."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._talking = asyncio.Lock()
        self._numbers = 0

    @classmethod
    async def spawn(cls, start: Start, listener: socket.socket) -> Child:
        """Start a process that takes connections from `listener`. A fresh interpreter, not a fork of this one."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                # -P: a folder named like this package, where farebox was started, is not this package.
                *(sys.executable, "-P", "-m", MODULE, str(listener.fileno()), str(theirs.fileno())),
                pass_fds=(listener.fileno(), theirs.fileno()),
                stdin=DEVNULL,
                env={**os.environ, "PYTHONPATH": _path()},
                # Out of the terminal's process group: Ctrl-C and a hangup are the supervisor's to handle.
                start_new_session=True,
            )
            try:
                ours.setblocking(False)
                reader, writer = await asyncio.open_connection(sock=ours, limit=messages.LINE_BYTES_MAX)
            except BaseException:
                process.kill()
                raise
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = cls(process, reader, writer)
        child._say(start)
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self, timeout_s: float) -> None:
        """Until it takes calls. Raises `WorkerFailed`."""
        said = await self._hear(timeout_s)
        if isinstance(said, Unable):
            raise WorkerFailed(said.reason)
        if not isinstance(said, Ready):
            raise WorkerFailed("a worker said something else than that it is ready")

    async def reload(self, source: Source, timeout_s: float) -> None:
        """Have it put `source` in force. Raises `WorkerFailed`; then what it had before is."""
        async with self._talking:
            self._numbers += 1
            self._say(Reload(self._numbers, source))
            while True:
                said = await self._hear(timeout_s)
                if isinstance(said, Reloaded) and said.number == self._numbers:
                    break
            if said.error is not None:
                raise WorkerFailed(said.error)

    def count(self, result: str) -> None:
        """Have it count a reload."""
        self._say(Count(result))

    def stop(self) -> None:
        """Ask it to stop in order."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    async def end(self, patience_s: float) -> bool:
        """Wait so long for it to end, then kill it; whether it ended by itself."""
        try:
            async with asyncio.timeout(patience_s):
                await self.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self.wait()
            return False
        return True

    async def wait(self) -> int:
        """Until it has ended: its exit code, negative for a signal. Cancelling this does nothing to it."""
        code = await self._process.wait()
        self._writer.close()
        return code

    def _signal(self, number: signal.Signals) -> None:
        # Not by the process's own method: that may reap the child, and then asyncio never learns how it ended.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _say(self, message: messages.ToWorker) -> None:
        if not self._writer.is_closing():
            self._writer.write(messages.encode(message))

    async def _hear(self, timeout_s: float) -> messages.FromWorker:
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._reader.readuntil(b"\n")
                return messages.from_worker(line)
        except TimeoutError:
            raise WorkerSilent(f"a worker did not answer within {timeout_s:g} s") from None
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, msgspec.MsgspecError):
            raise WorkerSilent("a worker ended before it answered; the log says why") from None


def _path() -> str:
    """Where a worker finds this very package, and then what was on the path already."""
    package = str(Path(farebox.__file__).parents[1])
    return os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
