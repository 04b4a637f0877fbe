"""A usage object too large to keep leaves the names of what went, so that a price is never worked out without it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.dialects.raw import LEFT_OUT, lacks, nothing_kept, shortened
from farebox.meter.reading import USAGE_RAW_BYTES_MAX
from farebox.payload import BYTES_MAX, encode
from farebox.records import UsageEvent
from support.answers import read_json
from support.events import event
from support.pricing import publishers, used

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=150)
VALUES = st.none() | st.integers(-(2**90), 2**90) | st.floats(allow_nan=False) | st.text(max_size=200)
RAWS = st.dictionaries(st.text(max_size=100), VALUES | st.lists(VALUES, max_size=3), max_size=60)


def iterations(number: int) -> list[dict[str, Any]]:
    """Anthropic's entries, the first of which read much and stands in no total."""
    entry = {"type": "message", "input_tokens": 162, "output_tokens": 11, "cache_read_input_tokens": 0}
    return [{**entry, "type": "compaction", "input_tokens": 99_195}, *[entry] * (number - 1)]


def claude(raw: Any) -> UsageEvent:
    return used("claude-sonnet-4-6", 162, 11, by="anthropic", operation="messages", usage_raw=raw)


@fixed
@given(RAWS)
def test_what_is_kept_is_bounded(raw: dict[str, Any]) -> None:
    """Whatever the object, what is kept of it fits, is its own, and is the same when shortened again."""
    kept = shortened(raw)
    assert len(json.dumps(kept, ensure_ascii=False).encode()) < 8_000
    assert all(kept[name] == raw[name] for name in kept if name != LEFT_OUT)
    assert shortened(kept) == kept
    for name in raw.keys() - kept.keys() - {LEFT_OUT}:
        assert lacks(kept, {name})


def test_names_of_what_is_kept_are_not_missed() -> None:
    """Only what was left out is missed; of an object of which nothing is left everything may be."""
    kept = shortened({"speed": "fast", "iterations": [{}], "cache_creation": {"x": 1}})
    assert kept == {"speed": "fast", LEFT_OUT: ["iterations", "cache_creation"]}
    assert lacks(kept, {"iterations"}) and not lacks(kept, {"speed", "tool_usage"})
    assert lacks(nothing_kept(), {"speed"}) and not lacks({"speed": "fast"}, {"iterations"})


@pytest.mark.parametrize("number", [200, 1000])
def test_an_oversized_report_has_no_price(number: int) -> None:
    """A report so large that farebox can't keep it all costs an unknown amount, not what its totals alone would."""
    members = {"input_tokens": 162, "output_tokens": 11, "speed": "standard", "iterations": iterations(number)}
    assert len(json.dumps(members)) > USAGE_RAW_BYTES_MAX
    reading = read_json({"usage": members}, "messages")
    assert reading.usage_raw is not None
    assert msgspec.json.decode(reading.usage_raw)["speed"] == "standard"
    assert publishers().cost(claude(reading.usage_raw)) is None


def test_a_row_that_lost_its_report_is_not_priced_again() -> None:
    """A report that a row has no room for was priced when it came; the row alone gives no other amount."""
    raw = {"input_tokens": 162, "output_tokens": 11, "iterations": iterations(60)}
    first = publishers().cost(claude(raw))
    assert first is not None and first.usd > Decimal("0.2")
    stored = msgspec.json.decode(encode(event(usage_raw=raw)))["usage_raw"]
    assert len(json.dumps(raw)) > BYTES_MAX and "iterations" not in stored
    for as_stored in (stored, msgspec.Raw(json.dumps(stored).encode())):
        assert publishers().cost(claude(as_stored)) is None
