"""Clamping: a lower output limit, by the fewest bytes, and only where it makes sense."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.bounds import OUTPUT_TOKENS_MIN, bound_of, clamp
from farebox.records import Operation
from farebox.request import read_facts

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def clamped(operation: Operation, body: bytes, tokens: int) -> bytes | None:
    return clamp(body, operation, read_facts(operation, body), tokens)


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        ("chat", b'{"model":"m", "max_tokens": 64000 }', b'{"model":"m", "max_tokens": 500 }'),
        ("chat", b'{"max_completion_tokens":64000,"x":1.50}', b'{"max_completion_tokens":500,"x":1.50}'),
        ("chat", b'{"max_tokens":900,"max_completion_tokens":800}', b'{"max_tokens":500,"max_completion_tokens":500}'),
        ("chat", b'{"max_tokens":900,"max_completion_tokens":80}', b'{"max_tokens":500,"max_completion_tokens":80}'),
        (
            "chat",
            b'{"max_tokens":null,"max_completion_tokens":800}',
            b'{"max_tokens":null,"max_completion_tokens":500}',
        ),
        ("chat", b'{"max_tokens":null}', b'{"max_tokens":500}'),
        ("chat", b'{"model":"llama"}\n', b'{"model":"llama","max_tokens":500}\n'),
        ("chat", b'{"model":"gpt-4o"}', b'{"model":"gpt-4o","max_tokens":500}'),
        ("chat", b'{"model":"gpt-5"}', b'{"model":"gpt-5","max_completion_tokens":500}'),
        ("chat", b'{"model":"openai/o3-mini"}', b'{"model":"openai/o3-mini","max_completion_tokens":500}'),
        ("chat", b'{"n":2,"max_tokens":900}', b'{"n":2,"max_tokens":250}'),
        ("chat", b'{"max_tok\\u0065ns":900}', b'{"max_tok\\u0065ns":500}'),
        ("chat", b'{"a":{"max_tokens":9},"max_tokens":900}', b'{"a":{"max_tokens":9},"max_tokens":500}'),
        ("chat", '{"a":"é😀","max_tokens":900}'.encode(), '{"a":"é😀","max_tokens":500}'.encode()),
        (
            "completions",
            b'{"prompt":["a","b"],"best_of":5,"max_tokens":900}',
            b'{"prompt":["a","b"],"best_of":5,"max_tokens":50}',
        ),
        ("completions", b'{"prompt":"a"}', b'{"prompt":"a","max_tokens":500}'),
        ("responses", b'{"max_output_tokens":99999}', b'{"max_output_tokens":500}'),
        ("responses", b'{"input":"a"}', b'{"input":"a","max_output_tokens":500}'),
        ("messages", b'{"max_tokens":99999}', b'{"max_tokens":500}'),
        (
            "messages",
            b'{"max_tokens":99999,"thinking":{"type":"enabled","budget_tokens":499}}',
            b'{"max_tokens":500,"thinking":{"type":"enabled","budget_tokens":499}}',
        ),
        ("chat", b'{"max_tokens":99,"n_predict":900}', b'{"max_tokens":99,"n_predict":500}'),
        ("chat", b'{"n_predict":900}', b'{"n_predict":500,"max_tokens":500}'),
        ("chat", b'{"max_tokens":99999999999999999999999999}', b'{"max_tokens":500}'),
    ],
)
def test_the_number_changes_and_nothing_else(operation: Operation, before: bytes, after: bytes) -> None:
    """Every spelling above what is left is lowered, or a limit put in; every other byte stays."""
    assert clamped(operation, before, 500) == after


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("chat", b'{"max_tokens":500}'),
        ("chat", b'{"max_tokens":-1}'),
        ("chat", b'{"max_tokens":"900"}'),
        ("chat", b'{"max_tokens":900,"n_predict":-1}'),
        ("chat", b'{"max_tokens":900.5}'),
        ("chat", b'{"max_tokens":900,"max_tokens":901}'),
        ("chat", b'{"max_tokens":900,"model":"a","model":"b"}'),
        ("chat", b'{"max_tokens":900,"n":"2"}'),
        ("chat", b'{"max_tokens":900,"n":0}'),
        ("chat", b'{"max_tokens":900,"n":100}'),
        ("chat", b'{"max_tokens":900,"prediction":{"type":"content","content":"a"}}'),
        ("chat", b'{"max_tokens":900,"reasoning":{"max_tokens":500}}'),
        ("chat", b'{"max_tokens":900} x'),
        ("chat", b"[900]"),
        ("chat", b"{}"),
        ("chat", b'{"a":"\xff","max_tokens":900}'),
        ("messages", b'{"max_tokens":9999,"thinking":{"type":"enabled","budget_tokens":500}}'),
        ("messages", b'{"messages":[]}'),
        ("embeddings", b'{"input":"a"}'),
        ("moderations", b'{"input":"a"}'),
        ("other", b'{"max_tokens":900}'),
    ],
)
def test_what_is_left_alone(operation: Operation, body: bytes) -> None:
    """A low limit, an odd one, a repeated member, a senseless remainder, an operation without a limit."""
    assert clamped(operation, body, 500) is None


@pytest.mark.parametrize("operation", ["chat", "completions", "responses", "messages"])
def test_a_few_tokens_are_no_answer(operation: Operation) -> None:
    """Below the least that the Responses API takes nothing is clamped, whatever the dialect; from there on it is."""
    body = b'{"max_output_tokens":900}' if operation == "responses" else b'{"max_tokens":900}'
    assert OUTPUT_TOKENS_MIN == 16
    for tokens in (-5, 0, 15):
        assert clamped(operation, body, tokens) is None
    assert clamped(operation, body, 16) == body.replace(b"900", b"16")


VALUE = st.none() | st.integers(-3, 10**5) | st.just("7") | st.just(5.5)
REQUESTS = st.fixed_dictionaries(
    {"model": st.sampled_from(["gpt-5", "llama"]), "messages": st.just([{"role": "user", "content": "max_tokens é"}])},
    optional={
        **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"), VALUE),
        **dict.fromkeys(("n", "best_of"), st.integers(0, 5) | st.none()),
        "prompt": st.lists(st.text(max_size=3), max_size=3) | st.text(max_size=3),
        "thinking": st.builds(lambda n: {"type": "enabled", "budget_tokens": n}, st.integers(0, 2000)),
    },
)


@fixed
@given(st.sampled_from(["chat", "completions", "responses", "messages"]), REQUESTS, st.integers(-10, 10**5))
def test_a_clamped_request_stays_within(operation: Operation, request_: dict[str, Any], tokens: int) -> None:
    """What is clamped is bounded by the tokens given, lower than before, and differs in limits alone."""
    body = json.dumps(request_, ensure_ascii=False).encode()
    less = clamped(operation, body, tokens)
    if less is None:
        return
    before, after = (
        bound_of(operation, text, read_facts(operation, text), max_output=10**9, assumed_max_output=1)
        for text in (body, less)
    )
    assert 0 < after.output_tokens <= tokens
    assert after.output_tokens < before.output_tokens
    limits = {"max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"}
    old, new = request_, json.loads(less)
    assert {k: v for k, v in old.items() if k not in limits} == {k: v for k, v in new.items() if k not in limits}
    assert old.keys() <= new.keys() and len(new.keys() - old.keys()) <= 1
    assert clamped(operation, less, tokens) is None, "once is enough"
