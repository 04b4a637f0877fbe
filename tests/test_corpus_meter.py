"""Recorded bodies of two dozen providers: read equal to their labels, the same for every cut, passed byte for byte."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from farebox.dialects import PROFILES
from farebox.meter import Reading
from support.answers import cut, passed, plain, singly
from support.corpus import APIS, INCOMPLETE, MANIFEST, MEMO_EXCEPTIONS, Body, bodies, figures, groups, lines

pytestmark = pytest.mark.skipif(not MANIFEST.exists(), reason="the shared corpus is not here")

SINGLY_BYTES_MAX = 3_000
CUTS_BYTES_MAX = 400_000

EXCEPTIONS: dict[str, str] = {}
"""Bodies whose input or output differ from the label, by id, with the reason. None does."""

UNPARSED = {
    "b8fae75fc664": 1,
    "3f666a4afd0c": 183,
    "427567fefaa5": 198,
    "76a1037cc217": 1,
    "9465a1a50a7e": 1,
    "fb9a16b9fd5d": 1,
}
"""Events (or bodies) that nothing can read."""


def whole(body: Body, **options: Any) -> Reading:
    reader = body.meter(**options)
    assert passed(reader, [body.data]) == body.data
    return reader.finish()


@pytest.mark.parametrize("group", groups().values(), ids=groups())
def test_equal_to_the_labels(group: list[Body]) -> None:
    """Input and output are what the label says, with the provider's dialect and with the plain one."""
    for body in group:
        for dialect in (None, "openai", "demo"):
            reading = whole(body, dialect=dialect)
            assert body.equals_label(reading) or body.id in EXCEPTIONS, body.row["file"]
        if body.creates and body.effective is None:
            total = body.expected.get("total")
            assert reading.usage.input_tokens == total, body.row["file"]


@pytest.mark.parametrize("group", groups().values(), ids=groups())
def test_memo_fields(group: list[Body]) -> None:
    """Totals, caches, reasoning, audio and images are what the label says, and nothing where it says nothing."""
    for body in group:
        if body.creates:
            named = MEMO_EXCEPTIONS[body.id].fields if body.id in MEMO_EXCEPTIONS else set()
            assert body.deviates(whole(body).usage) == named, body.row["file"]


@pytest.mark.parametrize("group", groups().values(), ids=groups())
def test_endings_and_errors(group: list[Body]) -> None:
    """Answers that ended are complete, errors have their kind, and only what nothing can read is counted so."""
    for body in group:
        reading = whole(body)
        assert reading.unparsed_events == UNPARSED.get(body.id, 0), body.row["file"]
        assert reading.unexplained_tokens is None, body.row["file"]
        if body.row["status"] < 400:
            assert reading.complete is (body.id not in INCOMPLETE), body.row["file"]
            assert reading.in_band_error is bool(body.row["features"].get("error_inside_200_stream"))
        else:
            assert not reading.in_band_error
            value = _json(body.data)
            if isinstance(value, dict) and ("error" in value or value.get("object") == "error"):
                assert reading.error_type or reading.error_code, body.row["file"]


@pytest.mark.parametrize("group", groups().values(), ids=groups())
def test_cuts_change_nothing(group: list[Body]) -> None:
    """Cut anywhere, a body gives the same reading and the same bytes, withholding or not."""
    for number, body in enumerate(group):
        data = body.data
        if len(data) > CUTS_BYTES_MAX:
            continue
        cuttings = [cut(data, number, 3), cut(data, number + 1, 40)] if body.core else [cut(data, number, 12)]
        if body.core and len(data) <= SINGLY_BYTES_MAX:
            cuttings.append(singly(data))
        for withhold in (False, True):
            reader = body.meter(withhold=withhold)
            out = passed(reader, [data])
            wanted = plain(reader.finish()), reader.terminal
            assert out == (_without_usage_frames(data) if withhold and reader.finish().stream else data)
            for pieces in cuttings:
                again = body.meter(withhold=withhold)
                assert passed(again, pieces) == out, body.row["file"]
                assert (plain(again.finish()), again.terminal) == wanted, body.row["file"]


def test_compressed_bytes() -> None:
    """Bodies kept as they crossed the wire are read through their compression."""
    kept = [(body, wire) for body in bodies() if (wire := body.wire) is not None]
    assert kept
    for body, wire in kept:
        reader = body.meter(encoding="gzip")
        assert passed(reader, cut(wire, 1, 5)) == wire
        assert body.equals_label(reader.finish())
        assert reader.finish().complete


@pytest.mark.parametrize("dialect", [None, "openai"])
def test_figures(dialect: str | None, record_property: pytest.RecordProperty) -> None:
    """All of tier core, and everything else that has a label, is read equal to it."""
    table = figures(dialect)
    for line in lines(table):
        print(line)
    record_property("figures", {api: dict(table[api]) for api in APIS})
    for api, line in table.items():
        assert line["core_equal"] == line["core"] > 0, api
        assert line["equal"] == line["labelled"], api


def test_providers_have_profiles() -> None:
    """Every provider of the corpus has a profile of its name."""
    assert {body.provider for body in bodies()} <= set(PROFILES)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _without_usage_frames(stream: bytes) -> bytes:
    """A recorded stream less its usage-only frames, found by a second, simpler reading."""
    blocks = re.split(rb"(?<=\n\n)", stream)
    return b"".join(block for block in blocks if not _is_usage_only(block))


def _is_usage_only(block: bytes) -> bool:
    if block.lstrip(b"\n").startswith(b"data:") and block.strip().count(b"\n") == 0:
        value = _json(block.strip().removeprefix(b"data:"))
        return (
            isinstance(value, dict)
            and value.get("choices") == []
            and isinstance(value.get("usage"), dict)
            and not set(value) & {"error", "prompt_filter_results", "moderation"}
        )
    return False
