"""Imported before all else by what starts a process: it keeps rich out of processes that print no tables.

structlog imports rich wherever it is installed, for tracebacks, which farebox never prints. That is a seventh of the
time farebox takes to start. Whoever wants rich afterwards imports it as ever.
"""

from __future__ import annotations

import sys

_STANDS_IN = "rich" not in sys.modules
if _STANDS_IN:
    sys.modules["rich"] = None  # type: ignore[assignment]  # Python's word for: there is none
try:
    import structlog  # noqa: F401
finally:
    if _STANDS_IN:
        del sys.modules["rich"]
