"""The short form of a row says what the general way says: the same bytes, the same metrics, the same prices."""

from __future__ import annotations

import gc
import weakref
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from farebox.accounting import Attempt, Estimate, account, needs_estimate, outcome_of, provisional
from farebox.dialects import PROFILES
from farebox.heads import RequestHead, read_head
from farebox.holds import Hold, charge
from farebox.kinds import KINDS_MAX, Kind, kind_of
from farebox.meter import Reading
from farebox.meter.plain import read
from farebox.paths import parse
from farebox.payload import encode
from farebox.pricing import Pricer
from farebox.proxy.call import Call, Clock
from farebox.proxy.settle import Settler
from farebox.records import Caller, FloatHold, ToolCall, Usage, UsageEvent
from farebox.request import RequestFacts
from farebox.rows import Ordinary, begun, ordinary
from support.pricing import book, configured, provider, publishers
from support.scrape import metrics

ODD = st.sampled_from(["key", "Zoë", 'a "word"', "\0", "\ud800", "x" * 3000, ""])
CALLERS = st.builds(
    Caller,
    kind=st.just("virtual"),
    key_id=st.none() | st.uuids(),
    key_name=st.none() | st.just("key") | ODD,
    team=st.none() | st.just("team"),
    tags=st.sampled_from([{}, {"tier": "cheap"}]),
)
MODELS = {
    "openai": ["gpt-4o-mini-2024-07-18", "gpt-5", "gpt-audio", "text-embedding-3-small", "nobody-knows", None],
    "anthropic": ["claude-sonnet-4-5", "claude-opus-4-1"],
    "perplexity": ["sonar"],
    "google": ["gemini-2.5-pro"],
    "deepseek": ["deepseek-chat"],
}
COUNTS = st.integers(0, 400_000) | st.integers(0, 3)
AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A provider, a path, and the whole answer it gave there."""
    by = draw(st.sampled_from(sorted(MODELS)))
    model = draw(st.sampled_from(MODELS[by]))
    tier = draw(st.sampled_from([None, "default", "flex", "priority"]))
    if by == "anthropic":
        usage: dict[str, Any] = {"input_tokens": draw(COUNTS), "output_tokens": draw(COUNTS)}
        usage |= draw(st.sampled_from([{}, {"cache_creation_input_tokens": 7, "cache_read_input_tokens": 500}]))
        usage |= draw(st.sampled_from([{}, {"inference_geo": "us"}, {"inference_geo": "global"}]))
        usage |= {"service_tier": tier} if tier else {}
        content: list[dict[str, Any]] = [{"type": "text", "text": "x"}]
        content += draw(st.sampled_from([[], [{"type": "tool_use", "name": "look_up", "input": {"a": 1}}]]))
        said = {"id": "msg_1", "model": model, "content": content, "usage": usage}
        return by, "/v1/messages", msgspec.json.encode(said)
    told, read_, reasoned, audio = draw(st.tuples(st.just(0) | COUNTS, COUNTS, COUNTS, st.sampled_from([0, 0, 0, 9])))
    asked = draw(COUNTS) + read_
    usage = {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
    if draw(st.booleans()):
        usage["prompt_tokens_details"] = {"cached_tokens": read_, "audio_tokens": audio}
        usage["completion_tokens_details"] = {"reasoning_tokens": min(reasoned, told), "audio_tokens": 0}
    calls = [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
    message = {"role": "assistant", "content": "x", "tool_calls": draw(st.sampled_from([None, calls]))}
    said = {"id": "a", "model": model, "service_tier": tier, "choices": [{"message": message}], "usage": usage}
    return by, "/v1/chat/completions", msgspec.json.encode(said)


@st.composite
def ended(draw: st.DrawFn) -> tuple[Attempt, Reading, float]:
    """An attempt that was answered, what was read of its answer, and when that was over."""
    by, path, body = draw(answers())
    target = parse("POST", path)
    found = read(target.operation, body, PROFILES[by])
    plain = found[0] if found is not None else Reading(usage=msgspec.convert({}, type=_Usage), has_usage=False)
    if draw(st.booleans()):
        plain = msgspec.structs.replace(plain, stream=True, first_token_at=7.25)
    kind = Kind(
        caller=draw(CALLERS),
        target=target,
        provider=by,
        dialect=by,
        model=draw(st.sampled_from([plain.model, "gpt-4o-mini", None])),
        stream=draw(st.booleans()),
        service_tier=draw(st.sampled_from([None, "auto", "flex"])),
    )
    id = draw(st.uuids())
    attempt = Attempt(
        id=id,
        request_id=draw(st.sampled_from([id, UUID(int=3)])),
        number=draw(st.integers(1, 3)),
        kind=kind,
        started_at=AT + timedelta(microseconds=draw(st.integers(0, 10**13))),
        received=7.0,
        sent=draw(st.sampled_from([7.0, 7.0001])),
        request_bytes=draw(COUNTS),
        session=draw(st.none() | st.just("s") | ODD),
        end_user=draw(st.none() | ODD),
        status=draw(st.sampled_from([200, 200, 200, 201])),
        upstream_request_id=draw(st.none() | st.just("req_1") | ODD),
        last_byte=draw(st.floats(7.0001, 8.0)),
    )
    if draw(st.booleans()):
        attempt.hold = Hold((str(UUID(int=9)),), Decimal("0.01"), 100, 200, strict=draw(st.booleans()))
        attempt.drawn = draw(st.sampled_from([None, FloatHold(UUID(int=7), (1,), (Decimal("0.01"),), (10,), (1,))]))
    return attempt, plain, draw(st.floats(7.5, 9.0))


def in_general(attempt: Attempt, reading: Reading, finished: float, pricer: Pricer) -> UsageEvent:
    """The event as `Settler` makes it of any attempt."""
    assert not needs_estimate(attempt, reading)
    outcome = outcome_of(attempt, reading, "whole", gone=False)
    event = account(attempt, reading, outcome, None, finished=finished)
    pricer.price(event)
    if attempt.hold is not None:
        charge(event, attempt.hold)
    return event


@given(ended())
def test_the_short_form_is_the_same_row_and_counts_the_same(case: tuple[Attempt, Reading, float]) -> None:
    """Where there is a short form, it has the bytes of the general one, and the metrics do not tell them apart."""
    attempt, reading, finished = case
    made = ordinary(attempt, reading, finished, publishers())
    if made is None:
        return
    event = in_general(attempt, reading, finished, publishers())
    row, kind, ended, json = made
    assert json == encode(event)
    short, general = metrics(), metrics()
    for _ in range(2):
        short.count(row, kind, ended)
        general.observe(event)
    assert short.exposition() == general.exposition()


@given(ended())
def test_what_goes_out_is_journalled_as_its_event(case: tuple[Attempt, Reading, float]) -> None:
    """What is journalled before an attempt are members of the event that a crash leaves, in the same words."""
    attempt, _, _ = case
    attempt.status = attempt.upstream_request_id = attempt.last_byte = None
    short, whole = (msgspec.json.decode(data) for data in (begun(attempt), encode(provisional(attempt))))
    left_out = {} if attempt.hold is not None else {name: whole[name] for name in ("finished_at", "outcome")}
    assert {**short, **left_out} == whole


def attempt_at(model: str, dialect: str = "openai", **more: Any) -> Attempt:
    kind = Kind(
        caller=Caller(kind="virtual", key_id=UUID(int=1), key_name="key"),
        target=parse("POST", "/v1/chat/completions"),
        provider=dialect,
        dialect=dialect,
        model=model,
    )
    fields: dict[str, Any] = {"started_at": AT, "received": 7.0, "sent": 7.0, "status": 200, "last_byte": 7.5} | more
    return Attempt(id=UUID(int=1), request_id=UUID(int=1), number=1, kind=kind, request_bytes=100, **fields)


def answered(model: str | None, asked: int = 1_000, told: int = 100, **more: Any) -> Reading:
    usage = {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
    found = read("chat", msgspec.json.encode({"model": model, "usage": usage, **more}), PROFILES["openai"])
    assert found is not None
    return found[0]


def short(attempt: Attempt, reading: Reading, pricer: Pricer | None = None) -> Ordinary | None:
    return ordinary(attempt, reading, 7.6, pricer or publishers())


def test_a_usual_answer_has_the_short_form() -> None:
    """So have an answer with tool calls, embeddings, a model without a price, and a call that budgets count."""
    attempt = attempt_at("gpt-4o-mini")
    reading = answered("gpt-4o-mini-2024-07-18")
    assert (made := short(attempt, reading)) is not None
    assert made[0].cost_usd == Decimal("0.00021")
    assert short(attempt, msgspec.structs.replace(reading, tool_calls=[ToolCall("look_up", 1, 2)])) is not None
    embedded = msgspec.structs.replace(
        answered("text-embedding-3-small"), usage=Usage(input_tokens=1_000, output_tokens=0)
    )
    assert (read_only := short(attempt_at("text-embedding-3-small"), embedded)) is not None
    assert read_only[0].cost_usd == Decimal("0.00002")
    assert short(attempt_at("text-embedding-3-small"), answered("text-embedding-3-small")) is None
    unpriced = short(attempt_at("nobody-knows"), answered("nobody-knows"))
    assert unpriced is not None and unpriced[0].cost_usd is None
    attempt.hold = Hold(("b",), Decimal(1), 1, 1, strict=True)
    assert (held := short(attempt, reading)) is not None
    assert held[0].budget_ids == ("b",)


def test_whatever_takes_a_closer_look_has_none() -> None:
    """An error, an answer that was not plain, a price for more than tokens, a hold that may stand in for a price."""
    reading = answered("gpt-4o-mini")
    assert short(attempt_at("gpt-4o-mini", status=201), reading) is None
    assert short(attempt_at("gpt-4o-mini"), msgspec.structs.replace(reading, plain=False)) is None
    assert short(attempt_at("sonar", "perplexity"), answered("sonar")) is None
    held = attempt_at("nobody-knows", hold=Hold(("b",), Decimal(1), 1, 1, strict=False))
    assert short(held, answered("nobody-knows")) is None
    assert short(attempt_at("gpt-4o-mini", end_user="\ud800"), reading) is None
    assert short(attempt_at("gpt-4o-mini"), msgspec.structs.replace(reading, model="m" * 5_000)) is None


def test_prices_change_with_the_book_and_with_the_time() -> None:
    """A kind that has a price at hand takes no other call by it: not by a new list, not at another hour."""
    attempt, reading = attempt_at("m", "local"), answered("m", 1_000_000, 0)
    for rate in ("1", "2"):
        local = configured(f"{{m: {{input_usd_per_mtok: {rate}, output_usd_per_mtok: 0}}}}")
        assert (made := short(attempt, reading, Pricer(book(), {"local": local}))) is not None
        assert made[0].cost_usd == Decimal(rate)
    attempt = attempt_at("deepseek-v4-flash", "deepseek")
    for hour in range(24):
        attempt.started_at = AT + timedelta(hours=hour)
        made = short(attempt, answered("deepseek-v4-flash"))
        event = in_general(attempt, answered("deepseek-v4-flash"), 7.6, publishers())
        assert made is not None and made[0].cost_usd == event.cost_usd


def test_a_fault_in_the_short_way_costs_neither_the_answer_nor_the_row() -> None:
    """Where making the short form raises, the event is written in general."""
    recorded: list[UsageEvent] = []

    class Broken:
        def ordinary(self, *_: object) -> Ordinary | None:
            raise ZeroDivisionError

        def post(self, _: Ordinary) -> None:
            raise AssertionError

    class Over:
        attempt: Attempt | None = attempt_at("gpt-4o-mini")
        meter = None
        gone = False

    async def nobody_counts(*_: object) -> Estimate:
        raise AssertionError

    settler = Settler(
        record=recorded.append,
        estimate=nobody_counts,
        price=publishers().price,
        clock=Clock(lambda: 7.6, lambda: AT),
        ordinary=Broken(),
    )
    call = Over()
    assert settler.at_once(cast(Call, call), answered("gpt-4o-mini-2024-07-18"), "whole")
    assert call.attempt is None
    assert [event.cost_usd for event in recorded] == [Decimal("0.00021")]


def test_what_is_remembered_of_a_price_keeps_no_price_list() -> None:
    """A kind that nobody asks for any more does not hold a book of before in memory."""
    attempt, reading = attempt_at("gpt-4o-mini"), answered("gpt-4o-mini-2024-07-18")
    pricer = Pricer(book(), {"openai": provider()})
    assert short(attempt, reading, pricer) is not None
    gone = weakref.ref(pricer)
    del pricer
    gc.collect()
    assert gone() is None


def head(**fields: str) -> RequestHead:
    lines = tuple((name.encode(), value.encode()) for name, value in fields.items())
    return read_head("POST", "/v1/chat/completions", (1, 1), lines, "virtual")


def test_attempts_are_of_one_kind_only_if_all_that_it_says_is_the_same() -> None:
    """Caller, model, tier, stream and provider tell kinds apart; a head remembers few of them."""
    here, caller = head(), Caller(kind="virtual", key_id=UUID(int=1), key_name="a", tags={"tier": "cheap"})
    facts = RequestFacts(model="m")
    first = kind_of(here, caller, provider(), facts)
    assert kind_of(here, msgspec.structs.replace(caller), provider(), facts) is first
    for other in (
        kind_of(here, msgspec.structs.replace(caller, key_name="b"), provider(), facts),
        kind_of(here, caller, provider(), RequestFacts(model="n")),
        kind_of(here, caller, provider(), RequestFacts(model="m", stream=True)),
        kind_of(here, caller, provider(), RequestFacts(model="m", service_tier="flex")),
        kind_of(here, caller, provider("vllm"), facts),
        kind_of(here, caller, provider(), None),
        kind_of(head(), caller, provider(), facts),
    ):
        assert other is not first
    for number in range(20):
        kind_of(here, caller, provider(), RequestFacts(model=f"m{number}"))
        assert len(here.kinds) <= KINDS_MAX
    large = head()
    kind_of(large, caller, provider(), RequestFacts(model="m" * 5_000))
    assert not large.kinds


class _Usage(msgspec.Struct):
    """No counts at all."""

    input_tokens: None = None
    audio_input_tokens: None = None
    audio_output_tokens: None = None
