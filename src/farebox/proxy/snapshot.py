"""What is in force at one moment: a config, and the clients made from it.

A reload puts a new snapshot in its place in one assignment. A call keeps the one it began with, from
its first byte to its last, so it is served entirely by the old config or entirely by the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from farebox.config import Config
from farebox.heads import Heads
from farebox.upstream import Upstream


class Snapshot:
    """One config with its upstreams, by provider name. Neither changes. `calls` says how many are served by it."""

    __slots__ = ("_over", "calls", "config", "heads", "retired", "upstreams")

    def __init__(self, config: Config, upstreams: Mapping[str, Upstream]) -> None:
        self.config = config
        self.upstreams = upstreams
        self.heads = Heads(config.auth.mode)
        self.calls = 0
        self.retired = False
        """No further call gets this one: whoever ends one calls `end`."""
        self._over: Callable[[], None] | None = None

    def retire(self, over: Callable[[], None]) -> None:
        """No further call gets this one: `over` is called, once, when the last that holds it has ended."""
        self.retired = True
        self._over = over
        self.end()

    def end(self) -> None:
        """A call has ended."""
        if not self.calls and self._over is not None:
            over, self._over = self._over, None
            over()
