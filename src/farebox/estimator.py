"""farebox's own token counts, off the event loop where they take long.

What is counted and how is `tokens`' business; here it is decided where: a short text at once, a
long one in a worker thread, so that a megabyte of prompt does not hold up everybody's streams.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from farebox import accounting, bounds
from farebox.accounting import Attempt, Estimate
from farebox.bounds import Bound
from farebox.meter import Reading
from farebox.records import Operation
from farebox.tokens import RankFileError, Tokens

_WAITING_MAX = 256
"""Counts that wait for the worker thread; past that an attempt is estimated by size."""


class Estimator:
    """Counts what a provider did not report. One worker thread: counting never takes more than one core."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="count")
        self._waiting = 0

    async def __call__(self, attempt: Attempt, body: bytes, reading: Reading | None, quick: bool) -> Estimate:
        """Count the request `body` (decoded) and the text `reading` saw. `quick`: by size, without waiting."""
        if quick or self._waiting >= _WAITING_MAX:
            return accounting.by_size(attempt, reading)
        size = len(body) + (len(reading.output_text) if reading is not None else 0)
        if not self._tokens.off_loop(size, attempt.model):
            return self._count(attempt, body, reading)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._count, attempt, body, reading)
        finally:
            self._waiting -= 1

    async def refine(self, operation: Operation, body: bytes, bound: Bound, model: str | None) -> Bound | None:
        """`bound` with the tokens of `body` (decoded) counted; None where too many counts wait already."""
        work = partial(bounds.refine, operation, body, bound, model, self._tokens)
        if not self._tokens.off_loop(len(body), model):
            return work()
        if self._waiting >= _WAITING_MAX:
            return None
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1

    def warm(self) -> None:
        """Load the commoner tokenizer in the background, so that the first count does not wait for it."""

        def load() -> None:
            try:
                self._tokens.load("o200k_base")
            except RankFileError as exc:
                structlog.get_logger().error("tokens are estimated by size only", reason=str(exc))

        self._pool.submit(load)

    def close(self) -> None:
        """Give up what still waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, attempt: Attempt, body: bytes, reading: Reading | None) -> Estimate:
        asked = self._tokens.estimate_input(attempt.target.operation, attempt.model, body).tokens
        if reading is None:
            return Estimate(input_tokens=asked, output_tokens=0)
        told = self._tokens.estimate_output(attempt.model, reading.output_text, reading.output_chars_total)
        return Estimate(input_tokens=asked, output_tokens=told.tokens)
