"""Worked examples: what a call costs by the providers' published prices, computed by hand.

Each comment has the rates, in US dollars per million tokens unless said otherwise, and the sum; the
code under test has no part in it. M is a million, k a thousand.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from farebox.records import UsageEvent
from support.pricing import publishers, used


def when(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def raw(**members: Any) -> msgspec.Raw:
    """A provider's usage object as the meter keeps it."""
    return msgspec.Raw(msgspec.json.encode(members))


def message(input_tokens: int, output_tokens: int, **more: Any) -> dict[str, Any]:
    """One entry of Anthropic's `iterations`."""
    return {"input_tokens": input_tokens, "output_tokens": output_tokens, **more}


FRIDAY_PEAK = when("2026-11-20T02:00")
SATURDAY = when("2026-11-21T02:00")

EXAMPLES: dict[str, tuple[UsageEvent, str]] = {
    # -- buckets -----------------------------------------------------------------------------------
    # gpt-5: input 1.25, output 10. 1,000 x 1.25 + 500 x 10 = 6,250 / M
    "input and output": (used("gpt-5", 1_000, 500), "0.00625"),
    # cached input 0.125. 2,000 x 1.25 + 8,000 x 0.125 + 500 x 10 = 2,500 + 1,000 + 5,000
    "cache read": (used("gpt-5", 10_000, 500, cache_read_tokens=8_000), "0.0085"),
    # reasoning is output: 1,000 x 1.25 + 900 x 10 = 10,250
    "reasoning is in the output": (used("gpt-5", 1_000, 900, reasoning_tokens=700), "0.01025"),
    # one token each: 1.25 + 10 = 11.25 / M, not rounded
    "not rounded": (used("gpt-5", 1, 1), "0.00001125"),
    # gpt-5.6-luna: input 0.2, read 0.02, write 0.25, output 1.2.
    # 5,000 x 0.2 + 2,000 x 0.02 + 3,000 x 0.25 + 100 x 1.2 = 1,000 + 40 + 750 + 120
    "cache write": (
        used("gpt-5.6-luna", 10_000, 100, cache_read_tokens=2_000, cache_write_tokens=3_000, cache_write_1h_tokens=0),
        "0.00191",
    ),
    # claude-sonnet-4-5: input 3, read 0.3, write 3.75 (5 minutes) or 6 (an hour), output 15.
    # 100 x 3 + 2,000 x 0.3 + 500 x 3.75 + 300 x 6 + 50 x 15 = 300 + 600 + 1,875 + 1,800 + 750
    "cache writes of both lifetimes": (
        used(
            "claude-sonnet-4-5-20250929",
            2_900,
            50,
            by="anthropic",
            cache_read_tokens=2_000,
            cache_write_tokens=800,
            cache_write_1h_tokens=300,
        ),
        "0.005325",
    ),
    # the lifetime was not reported, so the dearer one: 100 x 3 + 800 x 6 + 50 x 15 = 300 + 4,800 + 750
    "cache write of unknown lifetime": (
        used("claude-sonnet-4-5", 900, 50, by="anthropic", cache_write_tokens=800),
        "0.00585",
    ),
    # gpt-6.1-terra: input 1, write 1.25 for half an hour, 2.5 for twelve. 100 x 1.25 + 200 x 2.5 = 125 + 500
    "cache writes for half a day": (
        used("gpt-6.1-terra", 300, 0, cache_write_tokens=300, cache_write_1h_tokens=200),
        "0.000625",
    ),
    # of unknown lifetime there: the ordinary half an hour, 300 x 1.25
    "cache writes for half an hour": (used("gpt-6.1-terra", 300, 0, cache_write_tokens=300), "0.000375"),
    # gpt-audio: text 2.5 and 10, audio 32 and 64.
    # 50 x 2.5 + 250 x 32 + 30 x 10 + 150 x 64 = 125 + 8,000 + 300 + 9,600
    "audio": (used("gpt-audio", 300, 180, audio_input_tokens=250, audio_output_tokens=150), "0.018025"),
    # gemini-2.5-flash: text 0.3, cached 0.03, audio 1, cached audio 0.1, output 2.5. 300 of 1,000 are cached and 900
    # are audio, so at least 200 are cached audio: 100 x 0.03 + 200 x 0.1 + 700 x 1 + 50 x 2.5 = 3 + 20 + 700 + 125
    "cached audio": (
        used("gemini-2.5-flash", 1_000, 50, by="google", cache_read_tokens=300, audio_input_tokens=900),
        "0.000848",
    ),
    # gpt-image-1: text 5, image input 10, output 40. 200 x 5 + 800 x 10 + 100 x 40 = 1,000 + 8,000 + 4,000
    "image input": (
        used(
            "gpt-image-1",
            1_000,
            100,
            image_tokens=800,
            usage_raw=raw(input_tokens_details={"image_tokens": 800, "text_tokens": 200}),
        ),
        "0.013",
    ),
    # text-embedding-3-small: 0.02. 12,345 x 0.02 = 246.9
    "embeddings": (used("text-embedding-3-small", 12_345, 0, operation="embeddings"), "0.0002469"),
    # more cached than there is input is input, all of it cached: 1,000 x 0.125 + 0
    "a part larger than its whole": (used("gpt-5", 1_000, 0, cache_read_tokens=5_000), "0.000125"),
    # -- names -------------------------------------------------------------------------------------
    # gpt-4o: 2.5 and 10. 1,234 x 2.5 + 567 x 10 = 3,085 + 5,670
    "snapshot": (used("gpt-4o-2024-08-06", 1_234, 567), "0.008755"),
    # that snapshot still costs 5 and 15: 5,000 + 15,000
    "snapshot with a price of its own": (used("gpt-4o-2024-05-13", 1_000, 1_000), "0.02"),
    # a snapshot younger than the book costs what its model costs: 4 x 1.25 + 1 x 10 = 15
    "snapshot younger than the book": (used("gpt-5-2027-01-01", 4, 1), "0.000015"),
    # claude-opus-4-1: 15 and 75, as Google sells it too. 100 x 15 + 10 x 75 = 1,500 + 750
    "snapshot after an at sign": (used("claude-opus-4-1@20250805", 100, 10, by="vertex"), "0.00225"),
    # the answer's model counts, not the deployment's name: gpt-5, 1,000 x 1.25 + 500 x 10
    "deployment": (used("gpt-5-2025-08-07", 1_000, 500, by="azure", requested_model="my-deployment"), "0.00625"),
    # the answer names none: what was asked for
    "no model in the answer": (used(None, 1_000, 500, requested_model="gpt-5"), "0.00625"),
    # claude-sonnet-4-5 in the US region of Bedrock costs 10 % more, 3.3 and 16.5: 330 + 165
    "regional inference profile": (
        used("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 100, 10, by="bedrock"),
        "0.000495",
    ),
    # and 3 and 15 anywhere: 300 + 150
    "global inference profile": (
        used("global.anthropic.claude-sonnet-4-5-20250929-v1:0", 100, 10, by="bedrock"),
        "0.00045",
    ),
    # OpenRouter's gpt-5.2: 1.75, cached 0.175, 14. 500 x 1.75 + 500 x 0.175 + 100 x 14 = 875 + 87.5 + 1,400
    "router with a dated name": (
        used("openai/gpt-5.2-20251211", 1_000, 100, by="openrouter", cache_read_tokens=500),
        "0.0023625",
    ),
    # a free variant costs nothing, which is known
    "free variant": (used("openai/gpt-oss-20b:free", 1_000, 100, by="openrouter"), "0"),
    # Groq through the Hugging Face router: 0.15 and 0.75. 100 x 0.15 + 10 x 0.75 = 15 + 7.5
    "backend named in what was asked": (
        used("openai/gpt-oss-120b", 100, 10, by="huggingface", requested_model="openai/gpt-oss-120b:groq"),
        "0.0000225",
    ),
    # 1.74, cached 0.145, 3.48. 900 x 1.74 + 100 x 0.145 + 100 x 3.48 = 1,566 + 14.5 + 348
    "account path": (
        used("accounts/fireworks/models/deepseek-v4-pro", 1_000, 100, by="fireworks", cache_read_tokens=100),
        "0.0019285",
    ),
    # 0.88 and 0.88
    "vendor in front": (used("meta-llama/Llama-3.3-70B-Instruct-Turbo", 1_000, 1_000, by="together"), "0.00176"),
    # 0.35 and 0.75 at Cerebras: 350 + 75
    "open model at its host": (used("gpt-oss-120b", 1_000, 100, by="cerebras"), "0.000425"),
    # kimi-k2.6: 0.95, cached 0.16, 4. 600 x 0.95 + 400 x 0.16 + 100 x 4 = 570 + 64 + 400
    "moonshot": (used("kimi-k2.6", 1_000, 100, by="moonshot", cache_read_tokens=400), "0.001034"),
    # command-a: 2.5 and 10: 2,500 + 1,000
    "cohere": (used("command-a-03-2025", 1_000, 100, by="cohere"), "0.0035"),
    # voyage-4: 0.06: 1,000 x 0.06 = 60
    "voyage": (used("voyage-4", 1_000, 0, by="voyage", operation="embeddings"), "0.00006"),
    # -- context tiers: a cliff for the whole request -------------------------------------------------
    # gpt-5.6-luna up to 272,000 tokens: 272,000 x 0.2 + 1,000 x 1.2 = 54,400 + 1,200
    "below the cliff": (used("gpt-5.6-luna", 272_000, 1_000), "0.0556"),
    # above: input 0.4, output 1.8. 272,001 x 0.4 + 1,000 x 1.8 = 108,800.4 + 1,800
    "one token above the cliff": (used("gpt-5.6-luna", 272_001, 1_000), "0.1106004"),
    # cached input counts: 1,000 x 0.4 + 299,000 x 0.04 + 100 x 1.8 = 400 + 11,960 + 180
    "a cliff of cached input": (used("gpt-5.6-luna", 300_000, 100, cache_read_tokens=299_000), "0.01254"),
    # claude-sonnet-4-5 above 200,000: 6 and 22.5. 200,001 x 6 + 100 x 22.5 = 1,200,006 + 2,250
    "claude above 200k": (used("claude-sonnet-4-5", 200_001, 100, by="anthropic"), "1.202256"),
    # claude-haiku-5-5 above 100,000: five times 0.1 and 0.5. 100,001 x 0.5 + 10 x 2.5 = 50,000.5 + 25
    "claude above 100k": (used("claude-haiku-5-5", 100_001, 10, by="anthropic"), "0.0500255"),
    # gemini-2.5-pro up to 200,000: 1.25 and 10. 250,000 + 1,000
    "gemini at 200k": (used("gemini-2.5-pro", 200_000, 100, by="google"), "0.251"),
    # above: 2.5 and 15. 200,001 x 2.5 + 100 x 15 = 500,002.5 + 1,500
    "gemini above 200k": (used("gemini-2.5-pro", 200_001, 100, by="google"), "0.5015025"),
    # grok-4.3's border belongs to the dearer side: below, 1.25 and 2.5. 199,999 x 1.25 + 100 x 2.5 = 249,998.75 + 250
    "grok below 200k": (used("grok-4.3", 199_999, 100, by="xai"), "0.25024875"),
    # at 200,000: 2.5 and 5. 500,000 + 500
    "grok at 200k": (used("grok-4.3", 200_000, 100, by="xai"), "0.5005"),
    # -- service tiers, batch, speed, region -------------------------------------------------------------
    # gpt-5 flex: 0.625, cached 0.0625, 5. 800 x 0.625 + 200 x 0.0625 + 100 x 5 = 500 + 12.5 + 500
    "flex": (used("gpt-5", 1_000, 100, cache_read_tokens=200, service_tier="flex"), "0.0010125"),
    # gpt-5 priority: 2.5, cached 0.25, 20. 2,000 + 50 + 2,000
    "priority": (used("gpt-5", 1_000, 100, cache_read_tokens=200, service_tier="priority"), "0.00405"),
    # which is also called fast
    "fast": (used("gpt-5", 1_000, 100, cache_read_tokens=200, service_tier="fast"), "0.00405"),
    # default and auto are the ordinary tier: 800 x 1.25 + 200 x 0.125 + 100 x 10 = 1,000 + 25 + 1,000
    "default": (used("gpt-5", 1_000, 100, cache_read_tokens=200, service_tier="default"), "0.002025"),
    "auto": (used("gpt-5", 1_000, 100, cache_read_tokens=200, service_tier="auto"), "0.002025"),
    # flex has cliffs of its own: 272,001 x 0.2 + 1,000 x 0.9 = 54,400.2 + 900
    "flex above the cliff": (used("gpt-5.6-luna", 272_001, 1_000, service_tier="flex"), "0.0553002"),
    # gpt-4o in a batch: 1.25 and 5, cached input at its ordinary 1.25. 600 x 1.25 + 400 x 1.25 + 100 x 5 = 1,750
    "batch without a cached rate": (
        used("gpt-4o", 1_000, 100, cache_read_tokens=400, service_tier="batch"),
        "0.00175",
    ),
    # claude-haiku-4-5 in a batch: 0.5 and 2.5: 500 + 250
    "claude in a batch": (used("claude-haiku-4-5", 1_000, 100, by="anthropic", service_tier="batch"), "0.00075"),
    # standard is claude's word for the ordinary tier: 1 and 5: 1,000 + 500
    "claude standard": (used("claude-haiku-4-5", 1_000, 100, by="anthropic", service_tier="standard"), "0.0015"),
    # claude-opus-5 in fast mode: 10 and 50. 10,000 + 5,000
    "claude fast": (used("claude-opus-5", 1_000, 100, by="anthropic", usage_raw=raw(speed="fast")), "0.015"),
    # claude-opus-5 in the US only: 1.1 times 5 and 25. 1,000 x 5.5 + 100 x 27.5 = 5,500 + 2,750
    "claude in the US": (
        used("claude-opus-5", 1_000, 100, by="anthropic", usage_raw=raw(inference_geo="us")),
        "0.00825",
    ),
    # Groq: 0.15, cached 0.075, 0.6. 500 x 0.15 + 500 x 0.075 + 100 x 0.6 = 75 + 37.5 + 60
    "groq": (used("openai/gpt-oss-120b", 1_000, 100, by="groq", cache_read_tokens=500), "0.0001725"),
    # flex costs the same there
    "groq flex": (
        used("openai/gpt-oss-120b", 1_000, 100, by="groq", cache_read_tokens=500, service_tier="flex"),
        "0.0001725",
    ),
    # a batch has 0.075 for input, cached or not, and 0.3: 37.5 + 37.5 + 30
    "groq batch": (
        used("openai/gpt-oss-120b", 1_000, 100, by="groq", cache_read_tokens=500, service_tier="batch"),
        "0.000105",
    ),
    # Gemini's flex: 0.25 and 3: 250 + 300
    "gemini flex": (used("gemini-3.8-flash-lite-tts", 1_000, 100, by="google", service_tier="flex"), "0.00055"),
    # grok-4.3 in a batch, a fifth off, above its cliff: 200,000 x 2 + 100 x 4 = 400,400
    "grok batch above the cliff": (used("grok-4.3", 200_000, 100, by="xai", service_tier="batch"), "0.4004"),
    # -- dates and hours ----------------------------------------------------------------------------------
    # o3 until 2025-06-09: 10 and 40. 1,000 + 4,000
    "the day before a cut": (used("o3", 100, 100, at=when("2025-06-09T23:59:59")), "0.005"),
    # from 2025-06-10: 2 and 8. 200 + 800
    "the day of a cut": (used("o3", 100, 100, at=when("2025-06-10T00:00")), "0.001"),
    # gpt-5.6-luna until 2026-07-29: 1 and 6. 1,000 + 600. Half past midnight in Berlin is still the day before
    "a day begins in UTC": (
        used("gpt-5.6-luna", 1_000, 100, at=datetime(2026, 7, 30, 0, 30, tzinfo=timezone(timedelta(hours=2)))),
        "0.0016",
    ),
    # gemini-3.6-flash until 2026: 0.75 and 3.75; from 2027: 1.5 and 7.5
    "this year": (used("gemini-3.6-flash", 1_000, 100, by="google", at=when("2026-12-31T23:59:59")), "0.001125"),
    "next year": (used("gemini-3.6-flash", 1_000, 100, by="google", at=when("2027-01-01T00:00")), "0.00225"),
    # deepseek-v4-flash off-peak: 0.15, cached 0.003, 0.6. 600 x 0.15 + 400 x 0.003 + 100 x 0.6 = 90 + 1.2 + 60
    "off-peak": (used("deepseek-v4-flash", 1_000, 100, by="deepseek", cache_read_tokens=400), "0.0001512"),
    # peak, twice that
    "peak": (
        used("deepseek-v4-flash", 1_000, 100, by="deepseek", cache_read_tokens=400, at=FRIDAY_PEAK),
        "0.0003024",
    ),
    # weekends are off-peak all day
    "peak hour on a Saturday": (
        used("deepseek-v4-flash", 1_000, 100, by="deepseek", cache_read_tokens=400, at=SATURDAY),
        "0.0001512",
    ),
    # 09:59:59 is peak (600 x 0.3 + 400 x 0.006 + 120), 10:00 is not
    "the last second of a peak": (
        used("deepseek-v4-flash", 600, 100, by="deepseek", at=when("2026-11-20T09:59:59")),
        "0.0003",
    ),
    "the first second after a peak": (
        used("deepseek-v4-flash", 600, 100, by="deepseek", at=when("2026-11-20T10:00:00")),
        "0.00015",
    ),
    # before 2026-08-17 there were no peaks: 0.14, cached 0.0028, 0.28. 84 + 1.12 + 28
    "an hour that was no peak yet": (
        used("deepseek-v4-flash", 1_000, 100, by="deepseek", cache_read_tokens=400, at=when("2026-07-31T02:00")),
        "0.00011312",
    ),
    # deepseek-chat: 0.27 and 1.1 from 00:30 to 16:30, half of it (0.135, 0.55) in the night before and after
    "day rate": (used("deepseek-chat", 1_000, 100, by="deepseek", at=when("2025-06-02T00:30")), "0.00038"),
    "night rate": (used("deepseek-chat", 1_000, 100, by="deepseek", at=when("2025-06-02T00:29:59")), "0.00019"),
    # -- what is not counted in tokens ----------------------------------------------------------------------
    # web searches 10 per k: 1,250 + 1,000 = 0.00225; 3 x 0.01 = 0.03
    "web searches": (used("gpt-5", 1_000, 100, units={"web_searches": 3}), "0.03225"),
    # file searches 2.5 per k: 2 x 0.0025 = 0.005
    "file searches": (used("gpt-5", 1_000, 100, units={"file_searches": 2}), "0.00725"),
    # claude-sonnet-5: 2 and 10, web searches 10 per k. 2,000 + 1,000 = 0.003; 2 x 0.01 = 0.02
    "claude's web searches": (used("claude-sonnet-5", 1_000, 100, by="anthropic", units={"web_searches": 2}), "0.023"),
    # sonar: 1 and 1, and 12 per k requests. 10 + 200 = 0.00021; 0.012
    "a fee for the request": (used("sonar", 10, 200, by="perplexity", units={"web_searches": 1}), "0.01221"),
    # By how much was searched: 5, 8 and 12 per k requests; sonar-pro 6, 10 and 14, 3 and 15 per million.
    "a low fee for the request": (
        used("sonar", 10, 200, by="perplexity", usage_raw=raw(search_context_size="low")),
        "0.00521",
    ),
    "a fee between": (used("sonar", 10, 200, by="perplexity", usage_raw=raw(search_context_size="medium")), "0.00821"),
    "the high fee": (used("sonar", 10, 200, by="perplexity", usage_raw=raw(search_context_size="high")), "0.01221"),
    "another model's low fee": (
        used("sonar-pro", 10, 200, by="perplexity", usage_raw=raw(search_context_size="low")),
        "0.00903",
    ),
    # A size that has no fee is of no account where there is no fee for requests.
    "no fee by size": (used("gpt-5", 1000, 0, usage_raw=raw(search_context_size="low")), "0.00125"),
    # sonar-deep-research: 2, output 8, reasoning 3, citations 2, searches 5 per k.
    # 30 x 2 + 2,000 x 8 + 1,000 x 3 + 500 x 2 = 60 + 16,000 + 3,000 + 1,000 = 0.02006; 4 x 0.005 = 0.02
    "reasoning and citations with rates of their own": (
        used(
            "sonar-deep-research",
            30,
            3_000,
            by="perplexity",
            reasoning_tokens=1_000,
            units={"citation_tokens": 500, "web_searches": 4},
        ),
        "0.04006",
    ),
    # voxtral-small: 0.1 and 0.4, audio 0.24 an hour. 10 + 40 = 0.00005; 90 s x 0.24 / 3,600 = 0.006
    "audio by the second": (used("voxtral-small-latest", 100, 100, by="mistral", units={"seconds": 90}), "0.00605"),
    # -- several models in one answer ------------------------------------------------------------------------
    # claude-sonnet-4-6: 3 and 15. A compaction and the message: 99,195 x 3 + 81 x 15 + 162 x 3 + 11 x 15
    # = 297,585 + 1,215 + 486 + 165. The counts at the top have the message alone
    "a compaction": (
        used(
            "claude-sonnet-4-6",
            162,
            11,
            by="anthropic",
            operation="messages",
            usage_raw=raw(
                input_tokens=162,
                output_tokens=11,
                iterations=[message(99_195, 81, type="compaction"), message(162, 11, type="message")],
            ),
        ),
        "0.299451",
    ),
    # an adviser on claude-opus-5 (5 and 25) beside claude-sonnet-5 (2 and 10):
    # 500 x 5 + 100 x 25 + 1,000 x 2 + 100 x 10 = 2,500 + 2,500 + 2,000 + 1,000
    "an adviser": (
        used(
            "claude-sonnet-5",
            1_000,
            100,
            by="anthropic",
            operation="messages",
            usage_raw=raw(
                iterations=[
                    message(500, 100, type="advisor_message", model="claude-opus-5"),
                    message(1_000, 100, type="message"),
                ],
            ),
        ),
        "0.008",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_call_costs_what_the_published_prices_come_to(name: str) -> None:
    """The cost of a call is the hand-computed sum, exactly, and says which price it is by."""
    event, expected = EXAMPLES[name]
    publishers().price(event)
    assert event.cost_usd == Decimal(expected)
    assert event.cost_source == "prices"
    assert publishers().book.get(event.price_id or "") is not None
