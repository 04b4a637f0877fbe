"""Metrics: what an event counts, what a name may be, and the bounds."""

from __future__ import annotations

import asyncio
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from farebox.journal import Journal
from farebox.keys import mint_secret
from farebox.ledger import Ledger
from farebox.metrics import reading
from farebox.metrics.families import ERROR_KINDS, FAMILIES, REASONS, TOKEN_TYPES
from farebox.metrics.series import LABEL_CHARS_MAX
from farebox.metrics.storage import OneProcess
from farebox.payload import encode
from farebox.records import ToolCall, UsageEvent
from support.events import event
from support.scrape import Exposition, Waiting, World, complaints, metrics, promtool, shown

KEY = UUID(int=7)

NAMES = [
    "farebox_requests_total",
    "farebox_tokens_total",
    "farebox_cost_usd_total",
    "farebox_cost_corrections_usd_total",
    "farebox_request_duration_seconds",
    "farebox_time_to_first_token_seconds",
    "farebox_time_per_output_token_seconds",
    "farebox_overhead_seconds",
    "farebox_in_flight_requests",
    "farebox_tool_calls_total",
    "farebox_refusals_total",
    "farebox_usage_source_total",
    "farebox_unattested_cost_usd_total",
    "farebox_unpriced_requests_total",
    "farebox_unparsed_events_total",
    "farebox_ledger_backlog_events",
    "farebox_ledger_oldest_event_seconds",
    "farebox_ledger_lost_events_total",
    "farebox_upstream_errors_total",
    "farebox_config_reloads_total",
    "farebox_provider_cost_drift_usd_total",
    "farebox_budget_limit_usd",
    "farebox_budget_spent_usd",
    "farebox_budget_reserved_usd",
    "farebox_budget_remaining_ratio",
    "farebox_overrun_usd_total",
    "farebox_budget_thresholds_total",
    "farebox_budget_warned_total",
    "farebox_build_info",
]


def answered(**fields: Any) -> UsageEvent:
    """A priced answer of `gpt` to the key `team-a`."""
    plain: dict[str, Any] = {
        "key_id": KEY,
        "key_name": "team-a",
        "requested_model": "gpt",
        "model": "gpt",
        "status": 200,
        "input_tokens": 100,
        "output_tokens": 50,
        "usage_source": "provider",
        "cost_usd": Decimal("0.0025"),
        "cost_source": "prices",
    }
    return event(**(plain | fields))


def refused(**fields: Any) -> UsageEvent:
    """A request that the provider turned down."""
    plain: dict[str, Any] = {
        "key_id": KEY,
        "key_name": "team-a",
        "requested_model": "gpt",
        "status": 404,
        "outcome": "upstream_error",
        "cost_usd": Decimal(0),
        "cost_source": "none",
    }
    return event(**(plain | fields))


def everything() -> list[UsageEvent]:
    """Events that together move every metric that is fed by events."""
    return [
        answered(
            stream=True,
            duration_ms=1000.0,
            ttft_ms=200.0,
            overhead_ms=0.4,
            cache_read_tokens=30,
            cache_write_tokens=10,
            reasoning_tokens=20,
            provider_cost_usd=Decimal("0.0020"),
            tool_calls=[ToolCall("get_weather", 2, 30)],
            unparsed_events=3,
        ),
        answered(usage_source="estimate", outcome="client_gone"),
        answered(cost_usd=None, cost_source=None),
        refused(status=429, error_type="rate_limit"),
    ]


# -- what an event counts ---------------------------------------------------------------------------


_counts = st.none() | st.integers(min_value=0, max_value=10**7) | st.sampled_from([-5, 2**63, 10**30])


@given(
    st.fixed_dictionaries(
        dict.fromkeys(
            (
                *("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
                *("output_tokens", "reasoning_tokens", "audio_input_tokens", "audio_output_tokens", "image_tokens"),
            ),
            _counts,
        )
    )
)
def test_token_types_sum_to_the_total(fields: dict[str, int | None]) -> None:
    """The types are disjoint whatever is reported: none is negative, and they sum to input plus output."""
    counts = reading.token_counts(event(**fields))
    # A count that no column can hold is NULL in the row.
    whole = [n if n is not None and 0 <= n < 2**63 else 0 for n in (fields["input_tokens"], fields["output_tokens"])]
    assert min(counts) >= 0
    assert sum(counts[:3]) == whole[0] and sum(counts[3:]) == whole[1]


_words = st.sampled_from(["a", "b", "c", "x" * 500, "\n", ""])
_lives = st.lists(
    st.fixed_dictionaries(
        {
            "provider": st.sampled_from(["openai", "b"]),
            "requested_model": st.none() | _words,
            "model": st.none() | _words,
            "key_name": st.none() | _words,
            "key_id": st.none() | st.just(KEY),
            "status": st.sampled_from([None, 200, 201, 404, 500]),
            "outcome": st.sampled_from(["complete", "upstream_error", "upstream_cut", "client_gone"]),
            "operation": st.sampled_from(["chat", "other"]),
            "usage_source": st.sampled_from(["provider", "estimate", "none"]),
            "input_tokens": _counts,
            "output_tokens": _counts,
            "cache_read_tokens": _counts,
            "reasoning_tokens": _counts,
            "cost_usd": st.none() | st.decimals(0, 9, places=3),
            "cost_source": st.sampled_from([None, "prices"]),
            "provider_cost_usd": st.none() | st.just(Decimal("0.5")),
            "stream": st.booleans(),
            "duration_ms": st.none() | st.floats(-1.0, 1e6),
            "ttft_ms": st.none() | st.floats(0.0, 1e6),
            "overhead_ms": st.none() | st.floats(0.0, 10.0),
        }
    ),
    max_size=20,
)


@given(_lives)
def test_what_is_remembered_changes_nothing(lives: list[dict[str, Any]]) -> None:
    """Events whose places are remembered by their own words count as those that are looked up each time, in order."""
    made = [event(**fields) for fields in lives] * 2
    remembers, looks_up = metrics(label_values_max=3), metrics(label_values_max=3, kins_max=0)
    for one in made:
        remembers.observe(one)
        looks_up.observe(one)
    assert remembers.exposition() == looks_up.exposition()


def test_each_token_is_in_its_type() -> None:
    """Cached input is not input, and reasoning is not output."""
    of = metrics()
    of.observe(
        answered(input_tokens=100, cache_read_tokens=30, cache_write_tokens=10, output_tokens=50, reasoning_tokens=20)
    )
    by_type = shown(of).by("farebox_tokens_total", "type")
    assert by_type == {("input",): 60, ("cache_read",): 30, ("cache_write",): 10, ("output",): 30, ("reasoning",): 20}


def test_a_request_is_counted_under_all_its_labels() -> None:
    """Provider, model of the answer, endpoint, key's name, status and outcome; what is NULL says none."""
    of = metrics()
    of.observe(answered(requested_model="gpt", model="gpt-2026"))
    of.observe(event(outcome="upstream_error", error_type="connection", error_code="dns"))
    seen = shown(of)
    labels = {"provider": "openai", "endpoint": "/v1/chat/completions"}
    answer = {**labels, "model": "gpt-2026", "key": "team-a", "status": "200", "outcome": "complete"}
    assert seen.value("farebox_requests_total", **answer) == 1
    none = {**labels, "model": "none", "key": "none", "status": "none", "outcome": "upstream_error"}
    assert seen.value("farebox_requests_total", **none) == 1


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"status": 400, "outcome": "upstream_error"}, "4xx"),
        ({"status": 429, "outcome": "upstream_error"}, "429"),
        ({"status": 529, "outcome": "upstream_error"}, "5xx"),
        ({"outcome": "upstream_error", "error_type": "connection", "error_code": "connect"}, "connect"),
        ({"outcome": "upstream_error", "error_type": "connection", "error_code": "tls"}, "connect"),
        ({"outcome": "upstream_error", "error_type": "connection", "error_code": "response_timeout"}, "timeout"),
        (
            {"status": 200, "outcome": "upstream_cut", "error_type": "connection", "error_code": "idle_timeout"},
            "timeout",
        ),
        ({"outcome": "upstream_error", "error_type": "connection", "error_code": "disconnected"}, "broken"),
        ({"status": 200, "outcome": "upstream_cut", "error_type": "connection", "error_code": "broken_body"}, "cut"),
        ({"status": 200, "outcome": "upstream_cut"}, "cut"),
        ({"status": 200, "outcome": "upstream_error", "error_type": "overloaded_error"}, "in_band"),
        ({"status": 200, "outcome": "upstream_error", "error_type": "x", "error_code": "connect"}, "in_band"),
        (
            {"status": 200, "outcome": "upstream_cut", "error_type": "connection", "error_code": "farebox_fault"},
            "farebox",
        ),
        ({"status": 200, "outcome": "complete"}, None),
        ({"status": 200, "outcome": "client_gone"}, None),
        ({"outcome": "farebox_cut"}, None),
    ],
)
def test_an_error_has_one_of_a_few_kinds(fields: dict[str, Any], kind: str | None) -> None:
    """How a provider failed is told by the row alone, in words that are listed."""
    assert reading.error_kind(event(**fields)) == kind
    assert kind is None or kind in ERROR_KINDS


def test_money_is_counted_where_it_is_known() -> None:
    """A known cost adds up by key; an unknown one counts as unpriced, never as 0; a guessed one also as unattested."""
    of = metrics()
    of.observe(answered(cost_usd=Decimal("0.25")))
    of.observe(answered(cost_usd=Decimal("0.5"), usage_source="partial"))
    of.observe(answered(cost_usd=None, cost_source=None))
    of.observe(refused())
    of.observe(refused(cost_usd=None, cost_source=None))  # not metered: nothing billable is known of it
    seen = shown(of)
    assert seen.value("farebox_cost_usd_total", provider="openai", model="gpt", key="team-a") == 0.75
    assert seen.value("farebox_unattested_cost_usd_total", source="partial") == 0.5
    assert seen.sum("farebox_unattested_cost_usd_total") == 0.5
    assert seen.by("farebox_unpriced_requests_total", "model") == {("gpt",): 1}
    assert seen.by("farebox_usage_source_total", "source") == {("provider",): 2, ("partial",): 1, ("none",): 2}


def test_drift_is_the_difference_to_the_providers_figure() -> None:
    """Only where farebox has a price of its own and the provider reported a cost; over and under are apart."""
    of = metrics()
    of.observe(answered(cost_usd=Decimal("0.75"), provider_cost_usd=Decimal("0.5")))
    of.observe(answered(cost_usd=Decimal("0.5"), provider_cost_usd=Decimal("1.5")))
    of.observe(answered(cost_usd=Decimal("9"), cost_source="provider", provider_cost_usd=Decimal("8")))
    of.observe(answered(provider_cost_usd=None))
    drift = shown(of).by("farebox_provider_cost_drift_usd_total", "provider", "direction")
    assert drift == {("openai", "over"): 0.25, ("openai", "under"): 1.0}


def test_histograms_place_a_value_in_its_bucket() -> None:
    """A value on a bound belongs to it, one past 10 minutes to +Inf only; sum and count agree."""
    of = metrics()
    for duration_ms in (100.0, 100.1, 600_000.0, 3_600_000.0):
        of.observe(answered(duration_ms=duration_ms))
    seen = shown(of)
    labels = {"provider": "openai", "model": "gpt"}
    name = "farebox_request_duration_seconds"
    buckets = {le: seen.value(f"{name}_bucket", **labels, le=le) for le in ("0.1", "0.25", "240", "600", "+Inf")}
    assert buckets == {"0.1": 1, "0.25": 2, "240": 2, "600": 3, "+Inf": 4}
    assert seen.value(f"{name}_count", **labels) == 4
    assert seen.value(f"{name}_sum", **labels) == pytest.approx(0.1 + 0.1001 + 600 + 3600)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, 0.1),
        ({"stream": False}, None),
        ({"outcome": "client_gone"}, None),
        ({"output_tokens": 1}, None),
        ({"output_tokens": None}, None),
        ({"ttft_ms": None}, None),
        ({"ttft_ms": 2_000.0}, 0.0),
    ],
)
def test_time_per_token_is_of_whole_streams(fields: dict[str, Any], seconds: float | None) -> None:
    """The time after the first token over the tokens after it, where there are any and all arrived."""
    plain: dict[str, Any] = {"stream": True, "duration_ms": 1_100.0, "ttft_ms": 100.0, "output_tokens": 11}
    assert reading.seconds_per_token(answered(**(plain | fields))) == seconds


def test_tools_are_counted_by_name_and_call() -> None:
    """Three calls of one tool in one answer are three."""
    of = metrics()
    of.observe(answered(tool_calls=[ToolCall("search", 3, 10), ToolCall("", 1, 0)]))
    assert shown(of).by("farebox_tool_calls_total", "tool") == {("search",): 3, ("none",): 1}


# -- the text -------------------------------------------------------------------------------------


def test_every_promised_metric_is_named_and_explained() -> None:
    """Each has HELP and TYPE from the first scrape on, in use or not."""
    text = metrics().exposition().decode()
    assert [family.name for family in FAMILIES if family.name not in NAMES] == []
    for name in NAMES:
        assert f"# HELP {name} " in text and f"# TYPE {name} " in text


@pytest.mark.skipif(promtool() is None, reason="promtool (Debian's package prometheus) is not installed")
def test_promtool_has_nothing_against_it() -> None:
    """Prometheus' own linter is content, with metrics unused and with all in use."""
    of = metrics()
    assert complaints(of.exposition()) == ""
    for one in everything():
        of.observe(one)
    assert complaints(of.exposition()) == ""


def test_what_is_farebox_own_starts_at_nought() -> None:
    """Series with farebox's own words exist before they count: an increase from nothing is none to Prometheus."""
    seen = shown(metrics())
    for reason in REASONS:
        assert seen.value("farebox_refusals_total", reason=reason) == 0
    assert seen.value("farebox_config_reloads_total", result="failed") == 0
    assert seen.value("farebox_ledger_lost_events_total") == 0
    assert seen.value("farebox_build_info", version="1.2.3") == 1


def test_odd_names_are_shown_harmlessly() -> None:
    """Quotes and backslashes are escaped; what can't be printed, or encoded, is replaced; long names are cut."""
    of = metrics()
    odd = ['a"b\\c', "line\nbreak\0", "lone \ud800 surrogate", "x" * 5_000, "größe-模型"]
    for name in odd:
        of.observe(answered(model=name))
    models = shown(of).label_values("model")
    assert models >= {'a"b\\c', "line?break?", "lone ? surrogate", "x" * LABEL_CHARS_MAX, "größe-模型"}


def test_a_key_that_stands_in_a_name_is_not_shown() -> None:
    """A farebox key is no label value, whichever label it got into."""
    secret, of = mint_secret(), metrics()
    of.observe(answered(model=f"gpt {secret}", tool_calls=[ToolCall(secret, 1, 1)], key_name=secret))
    assert secret not in of.exposition().decode()
    assert shown(of).sum("farebox_requests_total", model="other", key="other") == 1


def test_refusals_and_reloads_have_listed_words_only() -> None:
    """An unknown word is other."""
    of = metrics()
    of.refused("invalid_api_key")
    of.refused("whatever a client could make up")
    of.reloaded("ok")
    seen = shown(of)
    assert seen.by("farebox_refusals_total", "reason") == {("invalid_api_key",): 1, ("other",): 1}
    assert seen.by("farebox_config_reloads_total", "result") == {("ok",): 1}


# -- bounds ----------------------------------------------------------------------------------------


def test_a_hundred_thousand_names_stay_within_the_bounds() -> None:
    """Random models, keys, tools and providers take at most their share; every request is still counted."""
    number = 100_000
    of = metrics(series_max=5_000, label_values_max=50)
    draw = random.Random(1)
    for at in range(number):
        name = f"{draw.getrandbits(64):x}"
        of.observe(
            answered(
                model="m" + name,
                key_name="k" + name,
                provider="p" + name,
                status=draw.randrange(200, 400),
                endpoint="/v1/" + name,
                tool_calls=[ToolCall("t" + name, 1, 1)] if at % 10 == 0 else [],
                duration_ms=5.0,
            )
        )
    seen = shown(of)
    assert len(seen.samples) <= 5_000
    for label in ("provider", "model", "key", "tool", "status", "endpoint"):
        assert len(seen.label_values(label) - {"other", "none"}) <= 50
    assert seen.sum("farebox_requests_total") == number
    assert seen.sum("farebox_tokens_total") == 150 * number
    assert seen.sum("farebox_tool_calls_total") == number / 10
    assert seen.sum("farebox_request_duration_seconds_count") == number
    assert seen.sum("farebox_cost_usd_total") == pytest.approx(number / 400)
    assert {kind for (kind,) in seen.by("farebox_tokens_total", "type")} == {"input", "output"}


def test_a_name_that_was_only_asked_for_takes_no_place() -> None:
    """Junk that a provider turns down is other, and leaves room for the model that is answered later."""
    of = metrics(label_values_max=3)
    for number in range(1_000):
        of.observe(refused(requested_model=f"junk-{number}"))
        of.observe(refused(requested_model=f"junk-{number}", status=None))
    of.observe(refused())
    of.observe(answered())
    of.observe(refused())
    seen = shown(of)
    assert seen.label_values("model") == {"other", "gpt"}
    assert seen.by("farebox_requests_total", "model") == {("other",): 2_001, ("gpt",): 2}


def test_a_credential_that_was_turned_down_takes_no_place() -> None:
    """With passthrough anybody can come with any credential; farebox's own keys are known from the start."""
    of = metrics(label_values_max=3)
    for number in range(1_000):
        of.observe(refused(key_id=None, key_name=f"credential-{number}", status=401))
    of.observe(refused(key_name="team-b"))
    of.observe(answered(key_id=None, key_name="credential-good"))
    assert shown(of).label_values("key") == {"other", "team-b", "credential-good"}


def test_a_path_that_was_only_asked_for_takes_no_place() -> None:
    """Unknown paths are other until one is answered."""
    of = metrics(label_values_max=3)
    for number in range(10):
        of.observe(refused(operation="other", endpoint=f"/v1/files/{number}"))
    of.observe(answered(operation="other", endpoint="/v1/files"))
    assert shown(of).label_values("endpoint") == {"other", "/v1/files"}


def test_a_full_table_counts_in_other_and_keeps_what_it_has() -> None:
    """Past series_max new combinations are other, type and outcome excepted; old ones go on."""
    of = metrics(series_max=1_000, label_values_max=10_000)
    of.observe(answered(model="first", duration_ms=1.0))
    for number in range(2_000):
        of.observe(answered(model=f"m{number}", duration_ms=1.0))
    of.observe(answered(model="first", duration_ms=1.0))
    seen = shown(of)
    assert len(seen.samples) <= 1_000
    assert seen.sum("farebox_requests_total", model="first") == 2
    assert seen.sum("farebox_request_duration_seconds_count", model="first") == 2
    assert seen.sum("farebox_requests_total", model="other", provider="other", outcome="complete") > 1_000
    assert seen.sum("farebox_tokens_total", type="output") == 2_002 * 50


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=60))
def test_nothing_is_lost_at_any_bound(values_max: int, calls: list[tuple[int, int, bool]]) -> None:
    """Whatever comes in whatever order, each request and token is counted once, within the bounds."""
    of = metrics(series_max=1_000, label_values_max=values_max)
    for model, key, ok in calls:
        make = answered if ok else refused
        of.observe(make(requested_model=f"m{model}", model=f"m{model}" if ok else None, key_name=f"k{key}"))
    seen = shown(of)
    assert len(seen.samples) <= 1_000
    assert len(seen.label_values("model") - {"other", "none"}) <= values_max
    assert seen.sum("farebox_requests_total") == len(calls)
    assert seen.sum("farebox_tokens_total") == 150 * sum(ok for *_, ok in calls)


# -- what is looked at ------------------------------------------------------------------------------


def test_gauges_tell_what_is_now() -> None:
    """Each scrape asks anew, and losses that the ledger counted before the first look are not forgotten."""
    world = World()
    world.lost = 2
    of = metrics(world=world)
    world.in_flight, world.backlog = 3, Waiting(7, 12.5)
    seen = shown(of)
    assert seen.value("farebox_in_flight_requests") == 3
    assert seen.value("farebox_ledger_backlog_events") == 7
    assert seen.value("farebox_ledger_oldest_event_seconds") == 12.5
    assert seen.value("farebox_ledger_lost_events_total") == 2
    world.in_flight, world.backlog, world.lost = 0, Waiting(), 3
    seen = shown(of)
    assert seen.value("farebox_in_flight_requests") == 0
    assert seen.value("farebox_ledger_backlog_events") == 0
    assert seen.value("farebox_ledger_lost_events_total") == 3


async def test_a_backlog_from_before_the_restart_is_told_at_once(tmp_path: Path) -> None:
    """Events that an earlier life left in the journal are in the gauge with the first scrape of the next."""

    async def never(_: object) -> int:
        await asyncio.Event().wait()
        return 0

    async def life() -> Ledger:
        ledger = Ledger(tmp_path, open_journal=lambda folder: Journal.open(folder), deliver=never)
        await ledger.open()
        return ledger

    ledger = await life()
    for _ in range(5):
        ledger.record(event())
    await ledger.close(0)
    ledger = await life()
    try:
        world = World()
        of = metrics(world=world)
        world.backlog = ledger.backlog  # type: ignore[assignment]
        assert shown(of).value("farebox_ledger_backlog_events") == 5
    finally:
        await ledger.close(0)


async def test_a_call_that_a_crash_cut_off_is_counted(tmp_path: Path) -> None:
    """Its row is made from the journal at the next start, and so is its count."""
    of = metrics()

    async def stored(batch: object) -> int:
        return 0

    def ledger() -> Ledger:
        return Ledger(tmp_path, open_journal=lambda folder: Journal.open(folder), deliver=stored, cut_off=of.observe)

    first = ledger()
    await first.open()
    open_call = event(outcome="farebox_cut", requested_model="gpt", usage_source="estimate", input_tokens=9)
    first.begin(open_call.id, json.dumps({"id": str(open_call.id), **_plain(open_call)}).encode())
    await first.close(1)
    second = ledger()
    await second.open()
    await second.close(1)
    seen = shown(of)
    assert seen.sum("farebox_requests_total", outcome="farebox_cut") == 1
    assert seen.sum("farebox_tokens_total", type="input") == 9


def _plain(of: UsageEvent) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(encode(of))
    return members


async def test_cost_corrections_are_the_ledgers_totals() -> None:
    """They are set, not added: asking twice counts nothing twice; with the database away the last figures stand."""
    totals = [(Decimal("1.25"), Decimal("0.5")), (Decimal("2"), Decimal("0.5"))]
    asked = asyncio.Event()
    answers = iter(totals)

    async def ask() -> tuple[Decimal, Decimal]:
        try:
            return next(answers)
        except StopIteration:
            asked.set()
            raise OSError("away") from None

    of = metrics(corrections=ask, corrections_poll_s=0.001, look_s=0.001)
    await of.start()
    try:
        async with asyncio.timeout(10):
            await asked.wait()
        seen = shown(of)
        assert seen.value("farebox_cost_corrections_usd_total", direction="up") == 2
        assert seen.value("farebox_cost_corrections_usd_total", direction="down") == 0.5
    finally:
        await of.close()


class Broken(OneProcess):
    """Takes no new series once `broken` is set: a full disk."""

    broken = False

    def append(self, line: bytes) -> None:
        if self.broken:
            raise OSError(28, "no space left on device")
        super().append(line)


def test_a_failure_is_logged_and_goes_no_further() -> None:
    """The row and the answer go on when a metric can't be kept; the log says so a few times, not at each call."""
    storage = Broken(20_000)
    of = metrics(storage)
    of.observe(answered())
    storage.broken = True
    with structlog.testing.capture_logs() as logs:
        for number in range(50):
            of.observe(answered(model=f"new-{number}"))
    assert 1 <= len(logs) <= 10
    assert "new-" not in json.dumps(logs, default=str)
    of.observe(answered())
    assert shown(of).sum("farebox_requests_total", model="gpt") == 2


def test_the_text_comes_in_small_pieces() -> None:
    """A large exposition is written bit by bit, so that calls can go on in between."""
    of = metrics()
    for number in range(400):
        of.observe(answered(model=f"m{number % 190}", key_name=f"k{number}", duration_ms=1.0, overhead_ms=1.0))
    pieces = list(of.pieces())
    assert len(Exposition(b"".join(pieces)).samples) > 5_000
    assert max(piece.count(b"\n") for piece in pieces) < 600


def test_every_token_type_has_a_word() -> None:
    """What `reading` counts and what `families` names are the same list."""
    assert len(reading.token_counts(event())) == len(TOKEN_TYPES)
