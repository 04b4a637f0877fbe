"""What can become of a request that gets no answer, or not a whole one; and of a provider that can't be asked."""

from __future__ import annotations

import asyncio

from farebox.errors import FareboxError


class UpstreamError(FareboxError):
    """The provider gave no answer, or broke it off. `kind` is a bounded word for rows and metrics."""

    def __init__(self, kind: str, *, sent: bool, timeout: bool = False) -> None:
        super().__init__(f"provider: {kind}")
        self.kind = kind
        self.sent = sent
        """False: provably nothing of the request reached the provider."""
        self.timeout = timeout


class Unusable(FareboxError):
    """A provider that can't be called as it is set up here; the text says what to change. `kind` is a bounded word."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class NeverSent(asyncio.CancelledError):
    """The call was cancelled while it waited for a connection: nothing of it went up."""
