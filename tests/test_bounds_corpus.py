"""Bounds against recorded reality: no provider ever counted more than the bound of the request said."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from farebox.bounds import Bound, bound_of, clamp, longest_output, refine
from farebox.request import read_facts
from farebox.tokens import Tokens
from support.corpus import FOLDER, MANIFEST, Body, bodies

pytestmark = pytest.mark.skipif(not MANIFEST.exists(), reason="the shared corpus is not here")

TOKENS = Tokens()
ASSUMED = 32_768


def requests() -> dict[str, Any]:
    """The recorded requests by id."""
    found = (json.loads(line) for line in (FOLDER / "requests.jsonl").read_text().splitlines())
    return {one["id"]: one["request"] for one in found if isinstance(one["request"], dict)}


def calls() -> list[tuple[Body, bytes]]:
    """Each labelled body that has its request, and the request as sent: compact, the shortest it can have been."""
    asked = requests()
    return [
        (body, json.dumps(asked[body.id], ensure_ascii=False, separators=(",", ":")).encode())
        for body in bodies()
        if body.creates and body.effective is not None and body.id in asked
    ]


def bounded(body: Body, request: bytes) -> Bound:
    facts = read_facts(body.api, request)
    longest = longest_output(facts.model, listed=None, window=None)
    return bound_of(body.api, request, facts, max_output=longest, assumed_max_output=ASSUMED)


def test_no_provider_counted_more() -> None:
    """Some 390 calls with a bound: input and output as counted are within it, before and after counting ourselves."""
    reasons: Counter[str | None] = Counter()
    for body, request in calls():
        bound = bounded(body, request)
        reasons[bound.reason] += 1
        if bound.reason is not None:
            continue
        model = read_facts(body.api, request).model
        closer = refine(body.api, request, bound, model, TOKENS)
        label = body.effective or {}
        assert (label["input"] or 0) <= closer.input_tokens <= bound.input_tokens, body.row["file"]
        if body.api != "embeddings":
            assert (label["output"] or 0) <= bound.output_tokens, body.row["file"]
    assert reasons[None] > 350
    assert len(reasons) > 5, "the corpus has pictures, hosted tools and stored context"


def test_what_cost_more_than_its_bytes_has_no_bound() -> None:
    """Each recorded call that was counted at more than its bytes and what templates add was named as one without."""
    for body, request in calls():
        label = body.effective or {}
        if (label["input"] or 0) > 3 * len(request) + 2048:
            assert bounded(body, request).reason is not None, body.row["file"]


def test_what_is_expected_comes_close() -> None:
    """Counted by OpenAI's tokenizer and half as much again, at most one call in fifty has more input than expected."""
    short = counted = 0
    for body, request in calls():
        bound = bounded(body, request)
        closer = refine(body.api, request, bound, read_facts(body.api, request).model, TOKENS)
        if bound.reason is None:
            counted += 1
            short += ((body.effective or {})["input"] or 0) > closer.input_expected
    assert short * 50 <= counted


def test_clamping_recorded_requests() -> None:
    """Real requests clamped to 100 tokens are bounded by them, and nothing but limits is different."""
    clamped = 0
    for body, request in calls():
        less = clamp(request, body.api, read_facts(body.api, request), 100)
        if less is None:
            continue
        clamped += 1
        assert bounded(body, less).output_tokens <= 100 < bounded(body, request).output_tokens
        before, after = json.loads(request), json.loads(less)
        changed = {name for name in after if before.get(name) != after[name]}
        assert changed <= {"max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"}
    assert clamped > 250
