"""What recorded bodies say besides their main counts, read equal to a second and plainer reading; none left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal
from functools import cache
from typing import Any

import pytest

from farebox.meter import Reading
from farebox.paths import parse
from support.corpus import APIS, MANIFEST, TOTAL_ONLY, Body, bodies, groups
from support.plainly import TICKS_PER_USD, Plain

pytestmark = pytest.mark.skipif(not MANIFEST.exists(), reason="the shared corpus is not here")

UNMETERED = {
    "gemini": "Gemini's native API",
    "interactions": "Gemini's native API",
    "bedrock": "Bedrock's native API",
    "chat-native": "native APIs of Ollama, Cohere and others",
    "completions-native": "native APIs of Ollama and others",
    "rerank": "not OpenAI's",
    "ocr": "not OpenAI's",
    "audio.transcriptions": "audio",
    "audio.translations": "audio",
    "audio.speech": "audio",
    "images": "images",
    "realtime": "WebSocket",
    "assistants": "runs are asynchronous: charged when they end",
    "models": "a list, free",
    "moderations": "free; test_corpus_replay has its rows",
}
"""APIs of the corpus that are not metered (they pass, their cost unknown), or bill nothing."""

NATIVE_PATHS = {
    "/v2/embed": "Cohere's own API, with embeddings in it",
    ":predict": "Vertex' own API, with embeddings in it",
}
"""Ends of recorded paths that are not the metered API's, though the body can be read as one of its answers."""

COSTS = {"openrouter": 35, "perplexity": 19, "xai": 23}
"""Bodies by provider that report a cost above zero."""

_COST = re.compile(rb'"(?:cost|total_cost|cost_in_usd_ticks)"\s*:\s*([0-9][0-9.eE+-]*)')


def read(body: Body) -> Reading:
    reader = body.meter()
    reader.feed(body.data, 1.0)
    reader.eof()
    return reader.finish()


def created(group: list[Body]) -> list[Body]:
    return [body for body in group if body.creates and body.row["status"] < 400]


@cache
def manifest() -> list[dict[str, Any]]:
    """The manifest's rows as they are, not as `support.corpus` picks them."""
    return [json.loads(line) for line in MANIFEST.read_text().splitlines()]


# -- completeness --------------------------------------------------------------------------------


def test_every_api_of_the_corpus_is_placed() -> None:
    """Each API of the corpus is metered here or named as one that is not."""
    assert {row["api"] for row in manifest()} == {*APIS, *UNMETERED}
    assert not set(APIS) & set(UNMETERED)


def test_every_billable_body_is_compared() -> None:
    """Billable bodies of the metered APIs, of every tier, all have a label that is compared, or a reason by name."""
    billable = {row["id"]: row for row in manifest() if row["billable"] and row["api"] in APIS}
    compared = {body.id for body in bodies() if body.effective is not None}
    assert set(billable) - compared == set(TOTAL_ONLY)
    assert {row["tier"] for row in billable.values()} == {"core", "extra", "big"}
    assert all(billable[id]["expected"]["total"] for id in TOTAL_ONLY)


def test_paths_of_billable_bodies_are_metered() -> None:
    """Wherever a billable body's path was recorded, it is that of its API; and no other body's path is metered."""
    for row in manifest():
        if row["request_path"] is None or row["method"] != "POST":
            continue
        operation = parse("POST", "/p/any" + row["request_path"]).operation
        if row["api"] not in APIS:
            assert operation in ("other", "moderations"), row["file"]
        elif row["billable"] and not row["request_path"].endswith(tuple(NATIVE_PATHS)):
            assert operation == row["api"], row["file"]


# -- the same facts, read twice ------------------------------------------------------------------


@pytest.mark.parametrize("group", groups().values(), ids=groups())
def test_facts_equal_a_plain_reading(group: list[Body]) -> None:
    """Model, tier, the provider's own cost, billed units, long cache writes and tool calls are what the JSON says."""
    for body in created(group):
        reading, plain = read(body), Plain(body.data)
        assert reading.model == plain.model, body.row["file"]
        assert reading.service_tier == plain.service_tier, body.row["file"]
        assert reading.usage.provider_cost_usd == plain.provider_cost_usd, body.row["file"]
        assert reading.usage.units == plain.units, body.row["file"]
        assert reading.usage.cache_write_1h_tokens == plain.cache_write_1h_tokens, body.row["file"]
        assert {tool.name: tool.count for tool in reading.tool_calls} == plain.tools, body.row["file"]
        assert sum(tool.argument_bytes for tool in reading.tool_calls) == plain.argument_bytes, body.row["file"]


def test_there_are_facts_to_compare() -> None:
    """The corpus has each of these facts in many bodies: comparing them can fail."""
    found: Counter[str] = Counter()
    units: Counter[str] = Counter()
    for body in created(list(bodies())):
        plain = Plain(body.data)
        found.update(name for name, value in vars(plain).items() if value or value == 0)
        units.update(plain.units.keys())
    assert found["model"] > 800 and found["service_tier"] > 300 and found["tools"] > 150
    assert found["cache_write_1h_tokens"] > 40
    assert units["web_searches"] > 5 and units["seconds"] > 1 and units["file_searches"]


def test_reported_costs_are_exact() -> None:
    """Every cost that a provider reports is read to its last digit: it is the number that stands in the body."""
    found: Counter[str] = Counter()
    for body in created(list(bodies())):
        cost = read(body).usage.provider_cost_usd
        written = [Decimal(number.decode()) for number in _COST.findall(body.data)]
        written = [amount for amount in written if amount]
        if written or cost:
            is_ticks = b"cost_in_usd_ticks" in body.data
            assert written and cost == written[-1] / (TICKS_PER_USD if is_ticks else 1), body.row["file"]
            found[body.provider] += 1
    assert found == COSTS
