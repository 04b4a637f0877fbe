"""Events as bytes: always within the journal's room, always something that JSON and `jsonb` can hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.accounting import Attempt, provisional
from farebox.dialects.raw import LEFT_OUT
from farebox.holds import Hold
from farebox.kinds import Kind
from farebox.paths import parse
from farebox.payload import BYTES_MAX, bare, cut, encode
from farebox.records import Caller, FloatHold, ToolCall, UsageEvent
from farebox.rows import begun
from support.events import STARTED, event

HARSH = st.text(st.characters(codec=None), max_size=300) | st.sampled_from(["\0", "\ud800", "x" * 9000, "😀" * 3000])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HARSH,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HARSH, inner, max_size=4),
    max_leaves=20,
)
HARSH_EVENTS = st.builds(
    event,
    key_name=st.none() | HARSH,
    team=HARSH,
    end_user=HARSH,
    session=HARSH,
    tags=st.dictionaries(HARSH, HARSH, max_size=5),
    provider=HARSH,
    endpoint=HARSH,
    requested_model=HARSH,
    model=HARSH,
    upstream_request_id=HARSH,
    usage_raw=PLAIN,
    input_tokens=st.none() | st.integers(-(2**70), 2**70),
    provider_cost_usd=st.none() | st.decimals(allow_nan=False) | st.just(Decimal("1." + "1" * 5000)),
    tool_calls=st.lists(st.builds(ToolCall, HARSH, st.integers(0, 9), st.integers(0, 9)), max_size=40),
    error_code=HARSH,
)


def storable(payload: bytes) -> dict[str, Any]:
    """The object in `payload`, after checking that the journal and `jsonb` take it."""
    assert len(payload) <= BYTES_MAX
    members = json.loads(payload.decode())
    text = json.dumps(members, ensure_ascii=False)
    assert "\0" not in text
    assert "\\u0000" not in text
    text.encode()
    return members


@given(HARSH_EVENTS)
def test_any_event_becomes_a_storable_payload(event: UsageEvent) -> None:
    """Whatever clients and providers put into an event, it keeps its id and fits."""
    members = storable(encode(event))
    assert members["id"] == str(event.id)
    assert members["started_at"].startswith("2024-11-22T10:00:00")
    assert members["outcome"] == "complete"


@given(HARSH_EVENTS)
def test_a_refused_event_is_made_harmless(event: UsageEvent) -> None:
    """The bare form keeps id and outcome, counts that a bigint can hold, and nothing else that could be refused."""
    members = storable(bare(encode(event), STARTED))
    assert members["id"] == str(event.id)
    assert members["outcome"] == "complete"
    counted = event.input_tokens is not None and 0 <= event.input_tokens < 2**63
    assert members["input_tokens"] == (event.input_tokens if counted else None)
    assert all(value.isascii() for value in members.values() if isinstance(value, str))


def test_an_ordinary_event_is_encoded_as_it_is() -> None:
    """Nothing is dropped from an event that fits."""
    usual = event(tags={"a": "é"}, usage_raw=msgspec.Raw(b'{"x":1e400}'), cost_usd=Decimal("0.10"))
    assert encode(usual) == msgspec.json.encode(usual)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b'{"a":"\\u0000b"}', {"a": "\ufffdb"}),
        (b'{"a":"\\u00e9"}', {"a": "é"}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a":"\\ud800"}', None),
        (b'{"a":"\xff"}', None),
        (b'{"a":', None),
    ],
)
def test_a_providers_object_is_kept_where_it_can_be(raw: bytes, kept: object) -> None:
    """A usage object with escapes is mended, one that is broken is left out, and the event stands."""
    padded = raw if kept is not None or b"\\u" in raw or not raw.isascii() else raw + b"\\u"
    assert storable(encode(event(usage_raw=msgspec.Raw(padded)))).get("usage_raw") == kept


def test_the_least_needed_goes_first() -> None:
    """A large raw object is shortened before tool calls are dropped, tool calls before the name of the model."""
    calls = [ToolCall(f"tool-{n}", 1, 1) for n in range(30)]
    raw = {"x": "y" * 4000, "speed": "fast"}
    members = storable(encode(event(usage_raw=raw, tool_calls=calls, tool_calls_count=30)))
    assert members["usage_raw"] == {"speed": "fast", LEFT_OUT: ["x"]}
    assert len(members["tool_calls"]) == 30
    tags = {f"tag-{n}": "v" * 256 for n in range(16)}
    members = storable(encode(event(usage_raw={"speed": "fast"}, tags=tags, units={"web_searches": 3})))
    assert "tags" not in members
    assert (members["units"], members["usage_raw"]) == ({"web_searches": 3}, {LEFT_OUT: True})
    members = storable(encode(event(tool_calls=[ToolCall("t" * 500, 1, 1)] * 30, tool_calls_count=30, model="m" * 999)))
    assert members["tool_calls_count"] == 30
    assert "tool_calls" not in members or len(members["tool_calls"]) <= 20
    assert members["model"] == "m" * 200


def test_a_cut_call_ends_when_its_process_last_wrote() -> None:
    """A begin becomes a `farebox_cut` that ends at the last sign of life, never before it started."""
    begin = encode(event(outcome="complete", input_tokens=7, usage_source="estimate"))
    later = STARTED.timestamp() + 5
    members = storable(cut(begin, later))
    assert (members["outcome"], members["input_tokens"], members["usage_source"]) == ("farebox_cut", 7, "estimate")
    assert datetime.fromisoformat(members["finished_at"]) == datetime.fromtimestamp(later, UTC)
    members = storable(cut(begin, STARTED.timestamp() - 5))
    assert datetime.fromisoformat(members["finished_at"]) == STARTED


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"1", b"\xff\xfe"])
def test_what_is_no_event_is_said_to_be_none(junk: bytes) -> None:
    """Bytes that are no JSON object raise ValueError, whatever is to be done with them."""
    for attempt in (lambda: cut(junk, 0.0), lambda: bare(junk, STARTED)):
        with pytest.raises(ValueError):
            attempt()
    with pytest.raises(ValueError):
        bare(b'{"id": "no uuid"}', STARTED)


def test_bare_mends_times_and_defaults() -> None:
    """A bare row has times and an outcome even where the event had none that can be read."""
    id = UUID(int=1)
    payload = msgspec.json.encode({"id": id, "started_at": "soon", "outcome": "?", "status": 70000, "output_tokens": 3})
    members = storable(bare(payload, STARTED))
    assert (members["started_at"], members["finished_at"]) == ("2024-11-22T10:00:00Z",) * 2
    assert (members["outcome"], members["usage_source"]) == ("farebox_cut", "none")
    assert (members["status"], members["output_tokens"], members["attempt"]) == (None, 3, 1)


CALLERS = st.builds(
    Caller,
    kind=st.just("virtual"),
    key_id=st.none() | st.uuids(),
    key_name=st.none() | HARSH,
    team=st.none() | HARSH,
    project=st.none() | HARSH,
)
KINDS = st.builds(
    Kind,
    caller=CALLERS,
    target=st.sampled_from(["/v1/chat/completions", "/v1/moderations", "/v1/files", "/v1/embeddings", "/v1/odd"]).map(
        lambda path: parse("POST", path)
    ),
    provider=HARSH,
    dialect=HARSH,
    model=st.none() | HARSH,
    stream=st.booleans(),
    service_tier=st.sampled_from([None, "", "auto", "flex", "x" * 9000]),
    tags=st.dictionaries(HARSH, HARSH, max_size=5),
)
ATTEMPTS = st.builds(
    Attempt,
    id=st.uuids(),
    request_id=st.uuids(),
    number=st.integers(1, 5),
    kind=KINDS,
    session=st.none() | HARSH,
    end_user=st.none() | HARSH,
    request_bytes=st.integers(0, 2**40),
    started_at=st.datetimes(timezones=st.just(UTC), max_value=datetime(9000, 1, 1)),
    received=st.just(7.0),
    sent=st.just(7.0),
)


@given(ATTEMPTS)
def test_what_is_journalled_first_is_the_row_of_a_crash(attempt: Attempt) -> None:
    """The short begin of a call without budgets becomes the row that its whole provisional event would have become."""
    begin = begun(attempt)
    storable(begin)
    row, whole = (
        msgspec.json.decode(cut(form, attempt.started_at.timestamp()), type=UsageEvent)
        for form in (begin, encode(provisional(attempt)))
    )
    if len(begin) < BYTES_MAX // 2:  # near the bound the longer one has to give up more
        assert row == whole
    assert (row.id, row.outcome) == (attempt.id, "farebox_cut")


HOLDS = st.builds(
    Hold,
    budget_ids=st.lists(st.uuids().map(str), max_size=3).map(tuple),
    usd=st.sampled_from([Decimal(0), Decimal("0.000996"), Decimal(12)]),
    input_tokens=st.sampled_from([0, 1, 10**12]),
    output_tokens=st.sampled_from([0, 100]),
    strict=st.booleans(),
)
DRAWN = FloatHold(UUID(int=7), (1, 2), (Decimal("0.01"), Decimal(2)), (10, 20), (1, 0))


@given(ATTEMPTS, HOLDS, st.sampled_from([None, DRAWN]))
def test_what_is_journalled_of_a_held_call_is_its_provisional_event(
    attempt: Attempt, hold: Hold, drawn: FloatHold | None
) -> None:
    """The short begin of a call that holds money is the whole event, charge and float and all, cut off or not."""
    attempt.hold, attempt.drawn = hold, drawn
    short, long = begun(attempt), encode(provisional(attempt))
    storable(short)
    at = attempt.started_at.timestamp()
    for one, other in ((short, long), (cut(short, at), cut(long, at)), (bare(short, STARTED), bare(long, STARTED))):
        if len(short) < BYTES_MAX // 2:
            assert msgspec.json.decode(one, type=UsageEvent) == msgspec.json.decode(other, type=UsageEvent)
    row = msgspec.json.decode(cut(short, at), type=UsageEvent)
    # Of a hold on no budget the empty list is among what goes first.
    assert (row.from_float, row.budget_ids or []) == (drawn, list(hold.budget_ids))


def test_what_a_float_holds_is_never_given_up() -> None:
    """However large, cut or refused an event is: without that member its hold would stay with the float."""
    hold = FloatHold(UUID(int=7), (1, 2), (Decimal("0.01"), Decimal(2)), (10, 20), (1, 0))
    large = event(
        budget_ids=["b" * 36],
        from_float=hold,
        tags={str(number): "x" * 200 for number in range(50)},
        session="\0" * 3000,
    )
    shrunk = encode(large)
    assert len(shrunk) <= BYTES_MAX
    for data in (shrunk, cut(shrunk, 0.0), bare(shrunk, STARTED)):
        assert msgspec.convert(msgspec.json.decode(data)["from_float"], FloatHold, strict=False) == hold
    broken = shrunk.replace(b'"requests":[1,0]', b'"requests":"x"')
    assert broken != shrunk
    odd = bare(broken, STARTED)
    assert msgspec.json.decode(odd)["from_float"] is None
