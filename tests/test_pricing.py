"""Prices: what stays unknown, whose list holds, which entry it is, and that entries keep what they say."""

from __future__ import annotations

from copy import copy
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from farebox.dialects import PROFILES
from farebox.pricing import Match, Period, Price, PriceBook, Pricer, Rates, beginning, book_of, config_entries, shipped
from farebox.pricing import book as books
from farebox.pricing import pricer as pricers
from farebox.pricing.publishers import DIALECTS
from farebox.records import UsageEvent
from support.pricing import HOSTS, NOON, book, configured, provider, publishers, used


def raw(**members: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(members))


def cost(event: UsageEvent, pricer: Pricer | None = None) -> Decimal | None:
    (pricer or publishers()).price(event)
    return event.cost_usd


def price(model: str = "m", *, book: str = "b", match: Match | None = None, **fields: Any) -> Price:
    usd = {"input": Decimal(1), "output": Decimal(2)}
    return Price(
        **{"book": book, "model": model, "match": match or Match(equals=(model,)), "periods": (Period(Rates(usd)),)}
        | fields
    )


# -- unknown is not 0 ---------------------------------------------------------------------------------

UNKNOWN = {
    "a model no list has": used("gpt-99", 10, 10),
    "no model at all": used(None, 10, 10),
    "a name as long as a book": used("m" * 10_000, 10, 10),
    "input not known": used("gpt-5", None, 10),
    "output not known": used("gpt-5", 10, None),
    "a tier nobody has": used("gpt-5", 10, 10, service_tier="hyper"),
    "a tier the model has no price for": used("gpt-5-nano", 10, 10, service_tier="priority"),
    "a tier before its prices were known": used(
        "gpt-5", 10, 10, service_tier="flex", at=datetime(2026, 10, 11, tzinfo=UTC)
    ),
    "scale, which is bought ahead": used("gpt-5", 10, 10, service_tier="scale"),
    "anthropic's priority": used("claude-opus-5", 10, 10, by="anthropic", service_tier="priority"),
    "a tier at a cloud that borrows the price": used("gpt-5", 10, 10, by="azure", service_tier="flex"),
    "fast without a price": used("claude-sonnet-5", 10, 10, by="anthropic", usage_raw=raw(speed="fast")),
    "a region without a price": used("claude-opus-5", 10, 10, by="anthropic", usage_raw=raw(inference_geo="eu")),
    "a region on a model that has none": used(
        "claude-3-haiku", 10, 1, by="anthropic", usage_raw=raw(inference_geo="us")
    ),
    "two premiums at once": used(
        "claude-opus-5", 10, 10, by="anthropic", usage_raw=raw(speed="fast", inference_geo="us")
    ),
    "a premium in a batch": used(
        "claude-opus-5", 10, 10, by="anthropic", service_tier="batch", usage_raw=raw(inference_geo="us")
    ),
    "output of an embedding model": used("text-embedding-3-small", 10, 1),
    "a unit without a rate": used("grok-4.3", 10, 10, by="xai", units={"web_searches": 1}),
    "a unit nobody knows": used("gpt-5", 10, 10, units={"moon_landings": 1}),
    "a unit that is no number": used("gpt-5", 10, 10, units={"web_searches": float("nan")}),
    "audio by the second without a rate": used("gpt-5", 10, 10, units={"seconds": 1}),
    "a model that is listed without a price": used("qwen-3-coder-480b", 10, 10, by="cerebras"),
    "an open model that its maker does not serve": used("gpt-oss-120b", 10, 10),
    "a request of a size without a fee": used(
        "sonar", 10, 10, by="perplexity", usage_raw=raw(search_context_size="vast")
    ),
    "a compound system": used(
        "openai/gpt-oss-120b", 10, 10, by="groq", usage_raw=raw(usage_breakdown={"models": [{"model": "m"}]})
    ),
    "an image drawn by a tool": used("gpt-5", 10, 10, usage_raw=raw(tool_usage={"image_gen": {"output_tokens": 9}})),
    "an adviser without a price": used(
        "claude-opus-5",
        10,
        10,
        by="anthropic",
        operation="messages",
        usage_raw=raw(iterations=[{"input_tokens": 1, "output_tokens": 1, "model": "claude-99"}]),
    ),
    "an iteration that does not say what it used": used(
        "claude-opus-5", 10, 10, by="anthropic", operation="messages", usage_raw=raw(iterations=[{"input_tokens": 1}])
    ),
    "a deployment named like a model": used("phi-99", 10, 10, by="azure", requested_model="gpt-5"),
    "anybody behind a router": used("openai/gpt-oss-120b", 10, 10, by="huggingface"),
    "a provider nobody knows": used("gpt-5", 10, 10, by="elsewhere"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_has_no_cost(name: str) -> None:
    """Where anything that a price needs is not known there is no cost, and no price is named."""
    event = copy(UNKNOWN[name])
    event.cost_usd, event.cost_source, event.price_id = Decimal(9), "prices", "an earlier one"
    publishers().price(event)
    assert (event.cost_usd, event.cost_source, event.price_id) == (None, None, None)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_reported_amount_stands_in_for_an_unknown_one(name: str) -> None:
    """What the provider reports is the cost where no price can say, and the row tells so."""
    event = copy(UNKNOWN[name])
    event.provider_cost_usd = Decimal("0.0123")
    publishers().price(event)
    assert (event.cost_usd, event.cost_source, event.price_id) == (Decimal("0.0123"), "provider", None)


def test_a_reported_amount_stands_beside_a_known_one() -> None:
    """A price that is known is the cost, whatever the provider reports; that stays beside it."""
    event = used("gpt-5", 1_000, 0, provider_cost_usd=Decimal(7))
    assert cost(event) == Decimal("0.00125")
    assert (event.cost_source, event.provider_cost_usd) == ("prices", Decimal(7))


@pytest.mark.parametrize("was", [Decimal(0), None])
def test_what_has_nothing_billable_keeps_what_it_has(was: Decimal | None) -> None:
    """An event without anything billable is not touched, be its cost 0 or unknown."""
    event = used("gpt-5", 1_000, 10, usage_source="none", cost_usd=was, cost_source=None)
    assert cost(event) is was
    assert event.price_id is None


def test_nothing_else_of_an_event_changes() -> None:
    """Pricing sets cost, its source and the price's id, and leaves everything else alone."""
    event = used("gpt-5", 1_000, 10, cache_read_tokens=3, units={"web_searches": 1}, usage_raw=raw(speed="standard"))
    before = copy(event)
    cost(event)
    changed = {name for name in event.__struct_fields__ if getattr(before, name) != getattr(event, name)}
    assert changed == {"cost_usd", "cost_source", "price_id"}


@pytest.mark.parametrize(
    "more",
    [
        {"usage_raw": raw(speed="standard", inference_geo="global", iterations=None, tool_usage={"image_gen": {}})},
        {"usage_raw": raw(inference_geo="not_available", iterations=[], usage_breakdown=None)},
        {"usage_raw": {"speed": None, "tool_usage": {"image_gen": {"output_tokens": 0}}}},
        {"usage_raw": msgspec.Raw(b'{"speed": ')},
        {"usage_raw": msgspec.Raw(b'["speed"]')},
        {"usage_raw": 7},
        {"service_tier": "STANDARD"},
        {"units": {"web_searches": 0, "moon_landings": 0}},
    ],
)
def test_ordinary_service_costs_the_ordinary_price(more: dict[str, Any]) -> None:
    """Members that say nothing special, and raw usage that cannot be read, change no price."""
    assert cost(used("claude-opus-5", 1_000, 100, by="anthropic", **more)) == Decimal("0.0075")


def test_image_tokens_that_are_not_told_apart_cost_the_dearer_way() -> None:
    """Of 100 image tokens, in or out, the split that costs more is charged."""
    # gpt-image-1: text 5, image input 10, output 40: 100 x 10 + 100 x 40, rather than 100 x 5 + 100 x 40.
    assert cost(used("gpt-image-1", 100, 100, image_tokens=100)) == Decimal("0.005")
    # chatgpt-image-latest: text 5, output 10, image output 32: 100 x 5 + 100 x 32 rather than 100 x 8 + 100 x 10.
    assert cost(used("chatgpt-image-latest", 100, 100, image_tokens=100)) == Decimal("0.0037")


def test_the_answer_decides_before_the_request() -> None:
    """A model the answer names is priced; what was asked for only where that has no price."""
    assert cost(used("gpt-5", 1_000, 0, requested_model="gpt-4o")) == Decimal("0.00125")
    assert cost(used("something-else", 1_000, 0, requested_model="gpt-4o")) == Decimal("0.0025")


# -- whose list ---------------------------------------------------------------------------------------


def test_every_dialect_has_a_book_or_none() -> None:
    """Every profile says by whose list it charges, and each of these lists is shipped."""
    assert set(DIALECTS) == set(PROFILES)
    assert set(DIALECTS.values()) <= book().books | {"none", "huggingface"}


@pytest.mark.parametrize(
    ("dialect", "base_url", "expected"),
    [
        *((dialect, url, DIALECTS[dialect]) for dialect, url in HOSTS.items()),
        ("openai", "https://api.groq.com/openai/v1", "groq"),
        ("openai", "https://API.X.AI/v1", "x-ai"),
        ("openai", "https://models.example.com/v1", "openai"),
        ("openai", "https://eu.api.openai.com/v1", "none"),
        ("openai", "https://api.sambanova.ai/v1", "none"),
        ("together", "https://us-api.together.ai/v1", "none"),
        ("anthropic", "https://resource.services.ai.azure.com/anthropic", "azure"),
        ("openai", "https://router.huggingface.co/groq/openai/v1", "huggingface_groq"),
        ("openai", "https://router.huggingface.co/v1", "huggingface"),
        ("openai", "https://api.openai.com.example.org/v1", "openai"),
        ("vllm", "https://notapi.openai.com/v1", "none"),
        ("vllm", "http://localhost:8000/v1", "none"),
        ("ollama", "http://localhost:11434/v1", "none"),
        ("nobody", "http://localhost:1/v1", "none"),
    ],
)
def test_the_host_says_whose_list_holds_and_else_the_dialect(dialect: str, base_url: str, expected: str) -> None:
    """A publisher's own host decides, whatever the dialect; another host leaves it to the dialect."""
    assert book_of(price_book=None, base_url=base_url, dialect=dialect) == expected


def test_a_setting_says_whose_list_holds() -> None:
    """`price_book` outranks host and dialect; `none`, and a name nobody has, leave costs unknown."""
    for name, expected in (("Groq", Decimal("0.000015")), ("none", None), ("nobody", None)):
        pricer = Pricer(book(), {"openai": provider("openai", price_book=name)})
        assert cost(used("openai/gpt-oss-120b", 100, 0), pricer) == expected


def test_servers_of_ones_own_cost_nothing_that_is_known() -> None:
    """A model's name at a local server finds no publisher's price."""
    pricer = Pricer(book(), {"vllm": provider("vllm")})
    assert cost(used("gpt-4o", 100, 10, by="vllm"), pricer) is None


# -- prices of a provider's own -------------------------------------------------------------------------


def test_everything_may_be_free() -> None:
    """`{"*": {input: 0, output: 0}}` makes every model cost 0, caches, audio and reasoning included."""
    local = configured('{"*": {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}')
    event = used(
        "any/model",
        10,
        10,
        by="local",
        cache_read_tokens=3,
        cache_write_tokens=2,
        audio_input_tokens=1,
        reasoning_tokens=5,
    )
    pricer = Pricer(book(), {"local": local})
    assert cost(event, pricer) == 0
    assert event.price_id is not None and event.price_id.startswith("config:local/*/")
    assert [price.id for price in config_entries(local)] == [event.price_id]


OWN = """{
    gpt-4o: {input_usd_per_mtok: 2, output_usd_per_mtok: 8, cache_read_usd_per_mtok: 0.5,
             cache_write_usd_per_mtok: 2.5, cache_write_1h_usd_per_mtok: 4, audio_input_usd_per_mtok: 20,
             audio_output_usd_per_mtok: 40, image_input_usd_per_mtok: 3, image_output_usd_per_mtok: 9,
             request_usd: 0.001, units_usd: {web_searches: 0.02, seconds: 0.0001, characters: 0.000015},
             above: {1000: {input_usd_per_mtok: 4}, 2000: {output_usd_per_mtok: 16}},
             tiers: {Flex: {input_usd_per_mtok: 1, output_usd_per_mtok: 4}, batch: {input_usd_per_mtok: 0.5}},
             dated: {2026-12-01: {input_usd_per_mtok: 3, output_usd_per_mtok: 9}}},
    "gpt-*": {input_usd_per_mtok: 7, output_usd_per_mtok: 7},
    "half-*": {input_usd_per_mtok: 1}}"""


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        # 0.001 for the request each time; 100 x 2 + 10 x 8 = 280
        (used("gpt-4o", 100, 10), "0.00128"),
        (used("GPT-4o-2024-08-06", 100, 10), "0.00128"),
        # 40 x 2 + 20 x 0.5 + 30 x 2.5 + 10 x 4 + 10 x 8 = 80 + 10 + 75 + 40 + 80
        (used("gpt-4o", 100, 10, cache_read_tokens=20, cache_write_tokens=40, cache_write_1h_tokens=10), "0.001285"),
        # 90 x 2 + 10 x 20 + 6 x 8 + 4 x 40 = 180 + 200 + 48 + 160
        (used("gpt-4o", 100, 10, audio_input_tokens=10, audio_output_tokens=4), "0.001588"),
        # 2 x 0.02 + 10 x 0.0001 + 100 x 0.000015 = 0.04 + 0.001 + 0.0015
        (used("gpt-4o", 100, 10, units={"web_searches": 2, "seconds": 10, "characters": 100}), "0.04378"),
        # above 1,000: 1,001 x 4 + 10 x 8 = 4,084; above 2,000: 2,001 x 4 + 10 x 16 = 8,164
        (used("gpt-4o", 1_001, 10), "0.005084"),
        (used("gpt-4o", 2_001, 10), "0.009164"),
        # flex: 100 x 1 + 10 x 4 = 140; batch: 100 x 0.5 + 10 x 8 = 130
        (used("gpt-4o", 100, 10, service_tier="flex"), "0.00114"),
        (used("gpt-4o", 100, 10, service_tier="batch"), "0.00113"),
        (used("gpt-4o", 100, 10, service_tier="priority"), None),
        # from 2026-12-01: 100 x 3 + 10 x 9 = 390, and no cliff
        (used("gpt-4o", 100, 10, at=datetime(2026, 12, 1, tzinfo=UTC)), "0.00139"),
        (used("gpt-4o", 1_001, 0, at=datetime(2026, 12, 1, tzinfo=UTC)), "0.004003"),
        # the first that fits: 110 x 7
        (used("gpt-4o-mini", 100, 10), "0.00077"),
        # a rate that is not given is not known
        (used("half-a-price", 100, 10), None),
        (used("half-a-price", 100, 0), "0.0001"),
        # other models are priced by the list: deepseek-v4-flash, 0.15 and 0.6
        (used("deepseek-v4-flash", 100, 10), "0.000021"),
    ],
)
def test_own_prices_go_before_any_list(event: UsageEvent, expected: str | None) -> None:
    """What a provider's `prices` say holds, the first glob that fits; models they leave out are its list's."""
    pricer = Pricer(book(), {"openai": configured(OWN, price_book="deepseek")})
    assert cost(event, pricer) == (expected if expected is None else Decimal(expected))


# -- entries ------------------------------------------------------------------------------------------


def test_every_shipped_entry_goes_to_json_and_back_unchanged() -> None:
    """Nothing of an entry is lost in JSON, and its id is the one its content gives."""
    entries = shipped().entries
    assert len(entries) > 2_000
    encoded = msgspec.json.encode(entries)
    assert msgspec.json.decode(encoded, type=tuple[Price, ...]) == entries
    for entry in entries:
        assert msgspec.structs.replace(entry, id="").id == entry.id
    assert len({entry.id for entry in entries}) == len(entries)
    assert max(len(entry.id) for entry in entries) <= 200


def test_an_id_tells_prices_apart_and_nothing_else() -> None:
    """Another rate or another day is another id; another place in the list or another source is not."""
    one = price()
    dearer = price(periods=(Period(Rates({"input": Decimal("1.1"), "output": Decimal(2)})),))
    later = beginning(one, date(2027, 1, 1))
    assert len({one.id, dearer.id, later.id}) == 3
    assert price(rank=7, source="elsewhere").id == one.id
    assert later.id == f"b/m/2027-01-01/{one.id.rpartition('/')[2]}"
    assert beginning(later, None) == one


def test_an_id_is_short_whatever_the_name() -> None:
    """An id fits its column however long a glob is, and still tells two of them apart."""
    one = price("m" * 256, book="config:" + "p" * 64, since=date(2026, 1, 1))
    other = price("m" * 255 + "n", book="config:" + "p" * 64, since=date(2026, 1, 1))
    assert len(one.id) <= 200 and one.id != other.id


def test_a_book_finds_the_entry_in_force() -> None:
    """Of several entries of one model the youngest that has begun counts, the first one also for what was before."""
    first, second = price(since=date(2026, 1, 1)), price(since=date(2026, 6, 1), context_window=9)
    index = PriceBook((second, first))
    assert index.find("b", "m", datetime(2025, 1, 1, tzinfo=UTC)) == first
    assert index.find("b", "m", datetime(2026, 5, 31, 23, 59, tzinfo=UTC)) == first
    assert index.find("b", "m", datetime(2026, 6, 1)) == second
    assert index.get(second.id) == second and index.get("nothing") is None


def test_an_entry_may_stop_meaning_a_name() -> None:
    """A name that only an older entry of a model was for is no longer its once the younger one holds."""
    old = price(match=Match(equals=("m", "alias")))
    new = price(match=Match(equals=("m",)), since=date(2026, 6, 1))
    index = PriceBook((old, new))
    assert index.find("b", "alias", datetime(2026, 5, 1, tzinfo=UTC)) == old
    assert index.find("b", "alias", datetime(2026, 7, 1, tzinfo=UTC)) is None
    assert index.find("b", "M", datetime(2026, 7, 1, tzinfo=UTC)) == new


@pytest.mark.parametrize(
    ("match", "yes", "no"),
    [
        (
            Match(equals=("Model-A",)),
            ["model-a", "MODEL-A", "model-a-2026-01-02", "model-a@20260102"],
            ["model-ab", ""],
        ),
        (Match(starts=("gpt-",), ends=(":free",)), ["gpt-9", "x:free"], ["xgpt-9"]),
        (Match(contains=("flash",)), ["a-FLASH-b"], ["flas"]),
        (Match(regex=(r"^o\d$", "(")), ["o1"], ["o12"]),
        (Match(every=((Match(starts=("a",)), Match(ends=("z",))), ())), ["abz"], ["ab", "bz"]),
        (Match(globs=("a*[12]",)), ["A-1", "a2"], ["a3", "ba1", "\na1"]),
        (Match(globs=("gpt-4o",)), ["gpt-4o"], ["my-gpt-4o", "gpt-4o-mini", "gpt-4o\n"]),
        (Match(equals=("m-2026-01-02",)), ["m-20260102"], ["m-20260103"]),
        (Match(), [], ["anything"]),
    ],
)
def test_names_an_entry_is_for(match: Match, yes: list[str], no: list[str]) -> None:
    """Each way of matching matches, in any case, with and without a snapshot's date, and nothing else."""
    index = PriceBook((price(match=match),))
    assert [name for name in yes + no if index.find("b", name, NOON)] == yes


def test_the_first_of_several_that_match_counts() -> None:
    """Entries are tried by rank, then by name."""
    broad, narrow = price("a", match=Match(contains=("x",))), price("b", match=Match(equals=("x1",)))
    assert PriceBook((narrow, broad)).find("b", "x1", NOON) == broad
    ranked = msgspec.structs.replace(broad, rank=1)
    assert PriceBook((narrow, ranked)).find("b", "x1", NOON) == narrow


def test_strange_names_are_forgotten_again() -> None:
    """However many names clients make up, what is kept of them is bounded, and known ones still have their price."""
    index = PriceBook((price(),))
    pricer = Pricer(index, {"openai": provider("openai", price_book="b")})
    for number in range(books.NAMES_MAX + 500):
        cost(used(f"made-up-{number}", 1, 1), pricer)
    assert len(index._known) <= books.NAMES_MAX
    assert len(pricer._known) <= pricers.NAMES_MAX
    assert cost(used("m", 1, 1), pricer) == Decimal("0.000003")


# -- quotes -------------------------------------------------------------------------------------------


def test_a_quote_is_the_ordinary_rates_of_the_day() -> None:
    """A quote has the standard tier's rates of the lowest context tier, its caches by what they would cost."""
    quote = publishers().quote("openai", "gpt-5.6-luna", datetime(2026, 7, 29))
    assert quote is not None
    assert (quote.input_usd_per_mtok, quote.output_usd_per_mtok) == (Decimal(1), Decimal(6))
    assert (quote.cache_read_usd_per_mtok, quote.cache_write_usd_per_mtok) == (Decimal("0.1"), Decimal("1.25"))
    assert quote.context_window == 1_050_000 and quote.max_output_tokens is None
    assert publishers().book.get(quote.price_id) is not None
    old = publishers().quote("openai", "gpt-4", NOON)
    assert old is not None and old.cache_read_usd_per_mtok == old.input_usd_per_mtok == Decimal(30)


@pytest.mark.parametrize(
    ("name", "model"), [("openai", "gpt-99"), ("cerebras", "qwen-3-coder-480b"), ("elsewhere", "gpt-5"), ("openai", "")]
)
def test_there_is_no_quote_without_a_price(name: str, model: str) -> None:
    """What has no price has no quote."""
    assert publishers().quote(name, model, NOON) is None
