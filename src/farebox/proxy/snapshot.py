"""What is in force at one moment: a config, and the clients made from it.

A reload puts a new snapshot in its place in one assignment. A call keeps the one it began with, from
its first byte to its last, so it is served entirely by the old config or entirely by the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from farebox.config import Config
from farebox.heads import Heads
from farebox.upstream import Upstream


class Snapshot:
    """One config with its upstreams, by provider name. Neither changes. `with snapshot:` holds it for a call."""

    __slots__ = ("_calls", "_over", "config", "heads", "upstreams")

    def __init__(self, config: Config, upstreams: Mapping[str, Upstream]) -> None:
        self.config = config
        self.upstreams = upstreams
        self.heads = Heads(config.auth.mode)
        self._calls = 0
        self._over: Callable[[], None] | None = None

    def __enter__(self) -> Snapshot:
        self._calls += 1
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._calls -= 1
        if self._over is not None:
            self._say_over()

    def retire(self, over: Callable[[], None]) -> None:
        """No further call gets this one: `over` is called, once, when the last that holds it has ended."""
        self._over = over
        self._say_over()

    def _say_over(self) -> None:
        if not self._calls and self._over is not None:
            over, self._over = self._over, None
            over()
