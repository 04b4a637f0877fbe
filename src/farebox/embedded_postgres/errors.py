"""The one error of this package."""

from __future__ import annotations

from farebox.errors import FareboxError


class EmbeddedPostgresError(FareboxError):
    """The embedded database cannot be served. The text says what is in the way and what the operator can do."""
