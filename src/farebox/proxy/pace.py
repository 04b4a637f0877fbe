"""Keeps the hold of a stream ahead of it: asks for more before it is used up, and lets it wait where it is.

How much a stream has used is told by the bytes of text that came, at 3 to the token: English has
more than 4, so the hold runs ahead; what is denser, and what is thought without being sent, is the
overshoot an expected budget can have. Asking and what an answer means for a budget is `guard`'s;
ending the stream is the relay's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

BYTES_PER_TOKEN = 3
"""Fewer than a token of text has in most languages, so that the hold is ahead of the truth."""
_SLICE_MIN = 256
_SLICE_MAX = 8_192
"""Tokens of output asked for at once: half of what is held, between these. A long answer asks seldom."""
_LAST_SLICE = 64
"""What is asked for where a slice is denied, beyond what is used: the last money is spent before a stream is cut."""

Verdict = Literal["held", "runs_on", "cut"]
"""What came of asking for more: it is held; it is not, but the stream goes on; the stream ends here.

`runs_on`: a budget lets it overrun, or the database can't be asked."""
Ask = Callable[[int], Awaitable[Verdict]]
"""Asks for a hold on so many tokens of output in all."""


class Pace:
    """The hold of one stream. `held`: tokens of output held at first; `most`: none can be needed beyond."""

    def __init__(self, held: int, most: int | None, ask: Ask) -> None:
        self._held = held
        self._most = most
        self._ask = ask
        self._asking: asyncio.Task[Verdict] | None = None
        self._denied = False
        """A slice was denied: what is held now is used to its end before more is asked for."""
        self._last_word = False
        """The question under way was asked with nothing left: its answer decides."""
        self._due_bytes: float = 0
        self._set_due()

    def due(self, output_bytes: int) -> bool:
        """Whether so much output needs a look at the hold. Cheap: it is asked for every chunk."""
        return output_bytes >= self._due_bytes

    async def keep_up(self, output_bytes: int) -> bool:
        """Ask for more where it is time; False when the stream has to end. Waits while all that is held is used.

        What is held is used to its end: a denial before that is no last word, others may end meanwhile.
        """
        used = output_bytes // BYTES_PER_TOKEN
        while True:
            spent = used >= self._held
            if self._asking is None:
                if self._enough or not (spent or (4 * used >= 3 * self._held and not self._denied)):
                    self._set_due()
                    return True
                self._asking = asyncio.create_task(self._more(used), name="extend a hold")
                self._last_word = spent
            if not self._asking.done():
                if not spent:
                    return True  # it is looked at again with the next chunk
                await asyncio.wait([self._asking])
            asking, self._asking = self._asking, None
            if asking.result() == "cut" and self._last_word:
                return False

    async def stop(self) -> None:
        """Until nothing is being asked for: nothing may be held for an attempt once it is settled."""
        if self._asking is not None:
            asking, self._asking = self._asking, None
            await asyncio.wait([asking])

    @property
    def _enough(self) -> bool:
        return self._most is not None and self._held >= self._most

    async def _more(self, used: int) -> Verdict:
        slice = min(max(self._held // 2, _SLICE_MIN), _SLICE_MAX)
        total = self._capped(max(self._held, used) + slice)
        verdict = await self._ask(total)
        self._denied = verdict == "cut"
        if verdict == "cut" and (least := self._capped(used + _LAST_SLICE)) < total and least > self._held:
            total = least
            verdict = await self._ask(total)
        if verdict != "cut":
            self._held = total
        return verdict

    def _capped(self, tokens: int) -> int:
        return tokens if self._most is None else min(tokens, self._most)

    def _set_due(self) -> None:
        due = BYTES_PER_TOKEN * self._held if self._denied else BYTES_PER_TOKEN * self._held * 3 // 4
        self._due_bytes = float("inf") if self._enough else due
