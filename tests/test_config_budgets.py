"""The config's budgets: what may be written, what is refused and where, and the settings around them."""

# ruff: noqa: E501  the tables hold whole messages

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.admin.budget_forms import read_definition
from farebox.config import BudgetRule, Config, ConfigError
from farebox.config.budgets import clash
from farebox.errors import BadRequest
from support.config import fault, faults, read

TEAM = (
    'budgets:\n  - {name: team-day, scope: team, only: ["research-*"], limit_usd: 100.10, limit_tokens: 1_000_000, '
    "window: day, timezone: Europe/Berlin, thresholds: [0.5, 1.20], on_exceed: reject, admission: expected, "
    "clamp: true, wait_s: 2.5, on_extend_denied: overrun}\n"
)
EUROPE = (Decimal("0.5"), Decimal("1.2"))


def budget(rest: str) -> str:
    return f"budgets:\n  - {{name: a, {rest}}}\n"


def test_a_budget_is_read_whole_and_exact() -> None:
    """Every field arrives as written, money without a float on its way."""
    [rule] = read(TEAM).budgets
    assert rule == BudgetRule(
        name="team-day",
        scope="team",
        only=("research-*",),
        limit_usd=Decimal("100.10"),
        limit_tokens=1_000_000,
        window="day",
        timezone="Europe/Berlin",
        thresholds=EUROPE,
        on_exceed="reject",
        admission="expected",
        clamp=True,
        wait_s=2.5,
        on_extend_denied="overrun",
    )
    assert str(rule.limit_usd) == "100.10"


def test_a_short_budget_has_the_documented_defaults() -> None:
    """What a budget leaves out is a month in UTC that rejects, expects, does not clamp, waits 5 s and cuts."""
    [rule] = read(budget("scope: global, limit_usd: 5")).budgets
    assert rule.as_fields() == {
        "name": "a",
        "scope": "global",
        "only": (),
        "limit_usd": Decimal(5),
        "limit_tokens": None,
        "window": "month",
        "timezone": "UTC",
        "thresholds": (Decimal("0.5"), Decimal("0.8"), Decimal(1)),
        "on_exceed": "reject",
        "admission": "expected",
        "clamp": False,
        "wait_s": 5.0,
        "on_extend_denied": "cut",
    }


@pytest.mark.parametrize("amount", ["0", "0.00", "1e-9", "12345678901.123456789", "1_000", '"2.5"'])
def test_exact_amounts_pass(amount: str) -> None:
    """0 is an amount, and digits are kept as far as they go."""
    [rule] = read(budget(f"scope: global, limit_usd: {amount}")).budgets
    assert rule.limit_usd == Decimal(amount.strip('"').replace("_", ""))


@pytest.mark.parametrize("amount", [".nan", "NaN", ".inf", "-.inf", "Infinity", "-1", "-0.01", "1e400", "1e13", "0x10"])
def test_an_amount_that_is_none_is_refused_with_its_place(amount: str) -> None:
    """NaN, infinities, negatives and what no budget can be are faults at their line and column."""
    found = fault(budget(f"scope: global, limit_usd: {amount}"))
    assert found == (f"2:41: budgets[0].limit_usd: {amount!r} is not an amount of US dollars from 0 to 1000000000000")


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("scope: galaxy, limit_usd: 1", "2:22: budgets[0].scope: 'galaxy' is not one of global, team, project, user, key, session, model"),
        ("limit_usd: 1", "2:5: budgets[0].scope: is missing; it has no default"),
        ("scope: global", "2:5: budgets[0].limit_usd: is missing; a budget needs it, limit_tokens, or both"),
        ("scope: global, only: x, limit_usd: 1", "2:36: budgets[0].only: has no effect with scope global, which is one counter for everybody; remove it"),
        ("scope: key, only: [], limit_usd: 1", "2:33: budgets[0].only: the list is empty; write a name or glob"),
        ("scope: key, limit_tokens: 1.5", "2:41: budgets[0].limit_tokens: '1.5' is not a whole number from 0 to 1000000000000000"),
        ("scope: key, limit_tokens: -1", "2:41: budgets[0].limit_tokens: '-1' is not a whole number from 0 to 1000000000000000"),
        ("scope: key, limit_usd: 1, window: minute", "2:49: budgets[0].window: 'minute' is not one of hour, day, week, month, total"),
        ("scope: key, limit_usd: 1, window: monthly", "2:49: budgets[0].window: 'monthly' is not one of hour, day, week, month, total: did you mean month?"),
        ("scope: key, limit_usd: 1, thresholds: [0]", "2:54: budgets[0].thresholds[0]: '0' is not a part of the limit, above 0 and at most 10 (0.8 is 80 %)"),
        ("scope: key, limit_usd: 1, thresholds: [80]", "2:54: budgets[0].thresholds[0]: '80' is not a part of the limit, above 0 and at most 10 (0.8 is 80 %)"),
        ("scope: key, limit_usd: 1, thresholds: [0.5, 0.50]", "2:59: budgets[0].thresholds[1]: '0.5' stands in the list twice"),
        ("scope: key, limit_usd: 1, wait_s: 1e9", "2:49: budgets[0].wait_s: '1e9' is not a number from 0 to 300"),
        ("scope: key, limit_usd: 1, on_exceed: warn, admission: strict", "2:69: budgets[0].admission: is strict, which never passes the limit, but on_exceed: warn lets calls pass it"),
        ("scope: key, limit_usd: 1, admission: strict, on_extend_denied: overrun", "2:78: budgets[0].on_extend_denied: is overrun, but admission strict holds the most a stream can cost from its start"),
        ("scope: key, limit_usd: 1, on_exceed: warn, clamp: true", "2:65: budgets[0].clamp: has no effect with on_exceed: warn, which lets every call pass; remove one of them"),
        ("scope: key, limit_eur: 1, limit_usd: 1", "2:27: budgets[0].limit_eur: unknown setting; did you mean limit_usd?"),
    ],
)  # fmt: skip
def test_a_faulty_budget_says_where_and_what(rest: str, expected: str) -> None:
    """Each mistake in a budget is one line with its place and what would be right."""
    assert fault(budget(rest)) == expected


@pytest.mark.parametrize(
    "zone", ["Mars/Base", "europe/berlin", "localtime", "right/UTC", "../UTC", "/etc/localtime", "CEST2"]
)
def test_a_time_zone_is_a_real_one(zone: str) -> None:
    """A zone that the database of them does not have, or that differs from machine to machine, is a fault."""
    assert "2:54: budgets[0].timezone: " in fault(budget(f"scope: global, limit_usd: 1, timezone: {zone}"))


def test_names_are_unique() -> None:
    """Two budgets of one name are a fault at the second, which names the first."""
    text = "budgets:\n  - {name: a, scope: key, limit_usd: 1}\n  - {name: a, scope: team, limit_usd: 1}\n"
    assert fault(text) == "3:12: budgets[1].name: 'a' is the name of budgets[0] already"


def test_one_mistake_is_told_once() -> None:
    """A value that cannot be read is not reported again as one that is missing."""
    assert len(faults(budget("scope: global, limit_usd: NaN"))) == 1
    assert len(faults(budget("scope: global, limit_usd: 1, only: [''], window: x"))) == 2


def test_no_thresholds_are_thresholds_too() -> None:
    """An empty list of thresholds is taken: such a budget warns of nothing."""
    [rule] = read(budget("scope: global, limit_usd: 1, thresholds: []")).budgets
    assert rule.thresholds == ()


_VALUES = st.dictionaries(
    st.sampled_from(["scope", "limit_usd", "limit_tokens", "only", "on_exceed", "admission", "clamp", "wait_s"]),
    st.sampled_from(["global", "key", "0", "-1", "1e400", ".nan", "warn", "strict", "true", "[a]", "''", "{}", "null"]),
)


@settings(max_examples=100, derandomize=True, database=None, deadline=None)
@given(_VALUES)
def test_whatever_is_written_is_a_sound_budget_or_a_fault(values: dict[str, str]) -> None:
    """No text makes a budget without a limit, with a negative one, or that contradicts itself."""
    text = budget("".join(f"{name}: {value}, " for name, value in values.items()))
    try:
        [rule] = read(text).budgets
    except ConfigError:
        return
    assert clash(rule.as_fields()) is None
    assert any(limit is not None and limit >= 0 for limit in (rule.limit_usd, rule.limit_tokens))


_WRITTEN = r""""global" "key" "1" 1 -1 0 1e400 1e-30 "NaN" true null [] ["a"] [[]] {} "strict" "warn" "day"
    "Asia/Tokyo" "\u0000" "\ud800" [0.5] 99999999999999999999"""
_JSON = st.sampled_from(_WRITTEN.split())
_BODIES = st.dictionaries(st.sampled_from([one.name for one in fields(BudgetRule)]), _JSON)


@settings(max_examples=100, derandomize=True, database=None, deadline=None)
@given(_BODIES, st.sampled_from([{}, {"scope": '"key"', "limit_usd": '"1"'}]))
def test_whatever_is_put_is_a_sound_budget_or_refused(put: dict[str, str], sound: dict[str, str]) -> None:
    """No JSON makes a budget without a limit, with a negative one, or that contradicts itself."""
    members = ",".join(f'"{name}":{value}' for name, value in {**put, **sound}.items())
    try:
        rule = read_definition(f"{{{members}}}".encode(), "n")
    except BadRequest:
        return
    assert clash(rule.as_fields()) is None
    assert all(limit is None or 0 <= limit <= 10**15 for limit in (rule.limit_usd, rule.limit_tokens))
    assert rule.name == "n" and 0 <= rule.wait_s <= 300


# -- the settings around them ----------------------------------------------------------------------


def test_metering_has_the_documented_defaults() -> None:
    """Without a word in the config budgets refuse with 402 and a call without a bound holds a dollar."""
    metering = Config().metering
    assert (metering.unpriced, metering.refusal_status, metering.max_output_tokens) == (
        "refuse_if_budgeted",
        402,
        32_768,
    )
    assert dict(metering.allowances_usd) == {"*": Decimal("1.00")}
    waits = (metering.reserve_timeout_s, metering.budget_lease_s, metering.budget_waiting_max, metering.budget_poll_s)
    assert waits == (1.0, 30.0, 1_000, 2.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metering: {refusal_status: 403}", "1:28: metering.refusal_status: '403' is not one of 402, 429: did you mean 402?"),
        ("metering: {refusal_status: 429.0}", "1:28: metering.refusal_status: '429.0' is not one of 402, 429: did you mean 429?"),
        ("metering: {allowances_usd: {'*': -1}}", "1:34: metering.allowances_usd.'*': '-1' is not an amount of US dollars from 0 to 1000000"),
        ("metering: {allowances_usd: 1}", "1:28: metering.allowances_usd: a single value cannot stand here; write a mapping of pairs NAME: VALUE, each an amount of US dollars from 0 to 1000000"),
        ("metering: {unpriced: allow}", "1:22: metering.unpriced: 'allow' is not one of refuse_if_budgeted, refuse, pass"),
        ("alerts: {webhook_url: 'https://x.example/a'}", "1:9: alerts.webhook_secret: is missing; what goes to webhook_url is signed with it"),
        ("alerts: {webhook_url: 'https://x.example', webhook_secret: 'whsec_no!'}", "1:60: alerts.webhook_secret: the value is not a token of visible ASCII characters: what follows whsec_ is not base64, so a receiver would read another key"),
        ("alerts: {webhook_secret: s}", "1:26: alerts.webhook_secret: has no effect without webhook_url"),
        ("alerts: {webhook_url: 'ftp://x.example', webhook_secret: s}", "1:23: alerts.webhook_url: the value is not an http:// or https:// URL: begin it with https:// or http://"),
    ],
)  # fmt: skip
def test_a_fault_around_budgets_says_where_and_what(text: str, expected: str) -> None:
    """The settings for all budgets, and of alerts, refuse what they cannot mean."""
    assert fault(text) == expected


def test_the_webhook_is_a_secret() -> None:
    """Its URL, whose path is often the credential, and its key are masked in the log and in no representation."""
    config = read("alerts: {webhook_url: 'https://hooks.example/T0/B0/xyzzy?a=1', webhook_secret: plugh}")
    assert config.alerts.webhook_url == "https://hooks.example/T0/B0/xyzzy?a=1"
    assert {"https://hooks.example/T0/B0/xyzzy?a=1", "plugh"} <= set(config.secrets())
    assert "xyzzy" not in repr(config) and "plugh" not in repr(config)
