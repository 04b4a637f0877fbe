"""A worker process that only counts: started by `multiprocessing`, told over a pipe what to do."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID

from support.events import event
from support.scrape import worker


def _work(pipe: Connection, folder: Path, slot: int, bounds: dict[str, int]) -> None:
    """Observe what comes over the pipe, a (number, fields) pair each; say after each how many there were."""
    of = worker(folder, slot, **bounds)
    done = 0
    pipe.send(done)
    with suppress(EOFError):
        while True:
            number, fields = pipe.recv()
            for at in range(number):
                of.observe(event(key_id=UUID(int=1), status=200, **_numbered(fields, at)))
            done += number
            pipe.send(done)


def _numbered(fields: dict[str, Any], at: int) -> dict[str, Any]:
    return {name: value.format(at) if isinstance(value, str) else value for name, value in fields.items()}


class CountingWorker:
    """One such process. `{}` in a field's text becomes the number of the event."""

    def __init__(self, folder: Path, slot: int, **bounds: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, folder, slot, bounds), daemon=True)
        self.process.start()
        theirs.close()

    def ready(self) -> None:
        """Until it has its place."""
        assert self.done() == 0

    def tell(self, number: int, **fields: Any) -> None:
        """Have it observe so many events."""
        self.pipe.send((number, fields))

    def done(self) -> int:
        """How many it had observed when it was done with the next order."""
        assert self.pipe.poll(60), "the worker does not answer"
        done: int = self.pipe.recv()
        return done

    def kill(self) -> None:
        self.process.kill()
        self.process.join(60)
        self.pipe.close()

    def close(self) -> None:
        self.pipe.close()
        self.process.join(60)
        if self.process.exitcode is None:
            self.kill()
