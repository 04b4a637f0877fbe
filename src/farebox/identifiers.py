"""Identifiers that others chose, such as users, sessions and models, made fit to be stored and compared."""

from __future__ import annotations

import hashlib
import re

IDENTIFIER_CHARS_MAX = 256
"""Longest identifier kept. A longer one is cut and ends in `~` and 16 hex digits of its SHA-256, so that
different identifiers stay different."""

UNSTORABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that nothing kept of a request may have."""


def identifier(value: str) -> str | None:
    """`value` fit to be stored and compared: no control characters or surrogates, no outer blanks, bounded.

    None when nothing is left.
    """
    # Printable ASCII, as nearly all are, has nothing to be taken out.
    kept = value if value.isascii() and value.isprintable() else UNSTORABLE.sub("", value)
    kept = kept.strip()
    if len(kept) > IDENTIFIER_CHARS_MAX:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        kept = f"{kept[: IDENTIFIER_CHARS_MAX - 17]}~{digest}"
    return kept or None
