"""What a planner remembers between calls."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from farebox.pricing import Pricer
from farebox.proxy.planning import Planner
from support.pricing import book, provider

_unused = cast(Callable[..., Any], None)
AT = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


def test_no_price_list_of_before_is_kept() -> None:
    """Once a call is planned by new prices nothing holds the old ones, whatever models were asked for with them."""
    planner = Planner(_unused, _unused, _unused)
    old, new = Pricer(book(), {"openai": provider()}), Pricer(book(), {"openai": provider()})
    assert planner._longest_output(old, "openai", "a", AT) == planner._longest_output(new, "openai", "b", AT)
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None
