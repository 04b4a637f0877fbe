"""The config of prices: exact amounts from the file's text, and every mistake in them with its place."""

# ruff: noqa: E501  the tables hold whole messages

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from farebox.config.kinds import Bad, Money
from farebox.config.prices import ModelPrices, Rates, TierRates
from support.config import fault, faults, read
from support.pricing import configured


def prices(text: str) -> str:
    return f"providers:\n  p:\n    dialect: vllm\n    base_url: http://h\n    prices: {text}\n"


def test_the_surfaces_example_loads() -> None:
    """`{"*": {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}` says that all models are free."""
    own = configured('{"*": {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}').prices
    assert dict(own) == {"*": ModelPrices(input_usd_per_mtok=Decimal(0), output_usd_per_mtok=Decimal(0))}


def test_everything_a_price_may_say() -> None:
    """Rates, context tiers, service tiers, dates, units and a fee come out as they were written, in order."""
    own = configured(
        """{
        gpt-5*: {input_usd_per_mtok: 1.25, cache_read_usd_per_mtok: '0.125', above: {272_000: {input_usd_per_mtok: 2.5}},
                 tiers: {flex: {output_usd_per_mtok: 5, above: {1: {output_usd_per_mtok: 6}}}},
                 dated: {2027-01-01: {input_usd_per_mtok: 1}}, units_usd: {web_searches: .01}, request_usd: 1e-3},
        "*": {}}"""
    ).prices
    assert list(own) == ["gpt-5*", "*"]
    assert own["gpt-5*"] == ModelPrices(
        input_usd_per_mtok=Decimal("1.25"),
        cache_read_usd_per_mtok=Decimal("0.125"),
        above={272_000: Rates(input_usd_per_mtok=Decimal("2.5"))},
        tiers={"flex": TierRates(output_usd_per_mtok=Decimal(5), above={1: Rates(output_usd_per_mtok=Decimal(6))})},
        dated={date(2027, 1, 1): TierRates(input_usd_per_mtok=Decimal(1))},
        units_usd={"web_searches": Decimal("0.01")},
        request_usd=Decimal("0.001"),
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0.1", "0.1"),
        ("'0.1'", "0.1"),
        ("0.10", "0.10"),
        ("1_000", "1000"),
        ("1e2", "100"),
        ("1e-20", "0.00000000000000000001"),
        ("0.00000000000000000001", "0.00000000000000000001"),
        (".12345678901234567891", "0.12345678901234567891"),
        ("0.123456789012345678", "0.123456789012345678"),
        ("+3", "3"),
        ("1000000", "1000000"),
    ],
)
def test_an_amount_is_exactly_its_text(written: str, value: str) -> None:
    """No digit of an amount is lost and none is added: it never becomes a float."""
    own = configured(f"{{m: {{input_usd_per_mtok: {written}}}}}").prices["m"]
    assert own.input_usd_per_mtok is not None and format(own.input_usd_per_mtok, "f") == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{m: {input_usd_per_mtok: .nan}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: '.nan' is not an amount of US dollars from 0 to 1000000",
        ),
        (
            "{m: {input_usd_per_mtok: .inf}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: '.inf' is not an amount of US dollars from 0 to 1000000",
        ),
        (
            "{m: {input_usd_per_mtok: -1}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: '-1' is not an amount of US dollars from 0 to 1000000",
        ),
        (
            "{m: {input_usd_per_mtok: 1e999}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: '1e999' is not an amount of US dollars from 0 to 1000000",
        ),
        (
            "{m: {input_usd_per_mtok: 1e99}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: '1e99' is not an amount of US dollars from 0 to 1000000",
        ),
        (
            "{m: {input_usd_per_mtok: 1e-21}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: '1e-21' is not an amount of US dollars from 0 to 1000000: it has 21 decimal places; at most 20 are kept",
        ),
        (
            "{m: {input_usd_per_mtok: $1}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: '$1' is not an amount of US dollars from 0 to 1000000",
        ),
        (
            "{m: {input_usd_per_mtok: yes}}",
            "5:38: providers.p.prices.m.input_usd_per_mtok: 'yes' is not an amount of US dollars from 0 to 1000000",
        ),
        (
            "{m: {input_usd_per_mtok: }}",
            "5:37: providers.p.prices.m.input_usd_per_mtok: is empty; write an amount of US dollars from 0 to 1000000, or remove the line",
        ),
        (
            "{m: {input_usd_per_mtoken: 1}}",
            "5:18: providers.p.prices.m.input_usd_per_mtoken: unknown setting; did you mean input_usd_per_mtok?",
        ),
        (
            "{m: 3}",
            "5:17: providers.p.prices.m: a single value cannot stand here; write a mapping of settings (input_usd_per_mtok, output_usd_per_mtok, cache_read_usd_per_mtok, cache_write_usd_per_mtok, cache_write_1h_usd_per_mtok, audio_input_usd_per_mtok, audio_output_usd_per_mtok, image_input_usd_per_mtok, image_output_usd_per_mtok, above, tiers, dated, units_usd, request_usd)",
        ),
        (
            "[m]",
            "5:13: providers.p.prices: a list cannot stand here; write a mapping of pairs of a model name or glob and its settings",
        ),
        (
            "{m: {above: {many: {}}}}",
            "5:26: providers.p.prices.m.above.many: 'many' is not a whole number from 0 to 1000000000000",
        ),
        (
            "{m: {above: {1000: {}, 1_000: {}}}}",
            "5:36: providers.p.prices.m.above.1_000: given twice, in another spelling",
        ),
        (
            "{m: {dated: {tomorrow: {}}}}",
            "5:26: providers.p.prices.m.dated.tomorrow: 'tomorrow' is not a day written YYYY-MM-DD",
        ),
        (
            "{m: {dated: {2027-02-30: {}}}}",
            "5:26: providers.p.prices.m.dated.2027-02-30: '2027-02-30' is not a day written YYYY-MM-DD: there is no such day",
        ),
        (
            "{m: {units_usd: {web_search: 1}}}",
            "5:30: providers.p.prices.m.units_usd.web_search: 'web_search' is not one of web_searches, file_searches, x_searches, sources, images, pages, characters, seconds: did you mean web_searches?",
        ),
        (
            "{m: {tiers: {default: {input_usd_per_mtok: 1}}}}",
            "5:26: providers.p.prices.m.tiers.default: 'default' is not a service tier: an answer that says so is priced by the lines beside tiers; write its rates there",
        ),
        (
            "{m: {tiers: {Flex: {}, flex: {}}}}",
            "5:36: providers.p.prices.m.tiers.flex: given twice, in another spelling",
        ),
        ("{m: {}, m: {}}", "5:21: providers.p.prices.m: given twice; the first is on line 5. Remove one"),
    ],
)
def test_a_price_that_means_nothing_is_a_fault_with_its_place(text: str, expected: str) -> None:
    """What cannot be an amount, a day, a number of tokens or a unit is told with line, column and path."""
    assert fault(prices(text)) == expected


def test_every_mistake_is_told_at_once() -> None:
    """Several mistakes in prices are several faults of one reading."""
    found = faults(
        prices("{m: {input_usd_per_mtok: x, tiers: {flex: {output_usd_per_mtok: -3}}}, n: {request_usd: y}}")
    )
    assert [line.split(": ")[1] for line in found] == [
        "providers.p.prices.m.input_usd_per_mtok",
        "providers.p.prices.m.tiers.flex.output_usd_per_mtok",
        "providers.p.prices.n.request_usd",
    ]


def test_amounts_may_come_from_the_environment() -> None:
    """`${NAME}` gives an amount like any other value."""
    config = read(prices('{m: {input_usd_per_mtok: "${RATE}"}}'), {"RATE": "0.3"})
    assert config.providers["p"].prices["m"].input_usd_per_mtok == Decimal("0.3")


@pytest.mark.parametrize("text", ["1_", "_1", "1__0", "1e", "", " ", "1,5", "0x10", "NaN", "Infinity", "1e+100", "९"])
def test_amounts_are_plain_decimals(text: str) -> None:
    """Anything but digits with one point, `_` between digits and a short exponent is refused."""
    with pytest.raises(Bad):
        Money(10**6).parse(text)
