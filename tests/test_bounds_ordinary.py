"""The quick look at a request says what the look at each of its members says, or nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.bounds import TOKENS_MAX, bound_of, read_ordinary
from farebox.bounds.growth import growth_of
from farebox.doubts import duplicate_members, plainly_once
from farebox.jsontext import top_members
from farebox.records import Operation
from farebox.request import read_facts

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=300)
TEXTS = st.sampled_from(
    ["", "hi", 'say "model": now', "a\nb", "\u00e9\ufdfa", "\u017f", "\\u006d", "x" * 300, "\ud83d\ude00", '{"n":2}']
)
NUMBERS = st.sampled_from([None, -1, 0, 1, 2, 7, 100, 5.0, 5.5, 1e3, True, "5", [], TOKENS_MAX, TOKENS_MAX + 1, 2**70])
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
PARTS: list[Any] = [
    None,
    5,
    [],
    [{"type": "text", "text": "hi"}],
    [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}],
    [{"type": "image_url", "image_url": {"url": "http://a/b"}}],
]
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXTS | st.sampled_from(PARTS)},
        optional={"tool_calls": st.sampled_from([None, CALLS]), "name": TEXTS, "images": st.just(["x"])},
    ),
    max_size=3,
)
MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "n"), NUMBERS),
    "stream": st.sampled_from([True, False, None, 1]),
    "stream_options": st.sampled_from([None, {"include_usage": True}]),
    "temperature": st.sampled_from([None, 0, 0.5, "hot"]),
    "stop": st.sampled_from([None, "x", ["a", "b"]]),
    "user": TEXTS,
    "metadata": st.sampled_from([None, {"model": "m"}, {"user_id": "u"}]),
}
ODD: dict[str, st.SearchStrategy[Any]] = {
    "system": TEXTS | st.sampled_from(PARTS),
    "max_output_tokens": NUMBERS,
    "best_of": NUMBERS,
    "tools": st.sampled_from([None, [], [{"type": "function", "function": {"name": "f"}}], [{"type": "web_search"}]]),
    "previous_response_id": st.sampled_from([None, "r"]),
    "thinking": st.just({"type": "enabled", "budget_tokens": 3000}),
    "Max_Tokens": NUMBERS,
    "new_option": NUMBERS,
    "speed": st.just("fast"),
}
MODELS = st.sampled_from(["gpt-5", "claude-x", "llama", "sonar", "openrouter/auto", "a/gemini-2", "", 7, None])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Requests of all kinds, mostly ordinary; members in any order, some of them twice, or spelt with escapes."""
    first = draw(st.fixed_dictionaries({"model": MODELS, "messages": TURNS | st.just("hi")}, optional=MEMBERS))
    members = [*first.items()]
    if draw(st.integers(0, 3)) == 0:
        members += draw(st.fixed_dictionaries({}, optional=ODD)).items()
    if draw(st.integers(0, 3)) == 0:
        members += draw(st.fixed_dictionaries({}, optional=MEMBERS)).items()
    members = draw(st.permutations(members))
    ascii = draw(st.booleans())
    texts = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=ascii)}" for name, value in members]
    if draw(st.integers(0, 5)) == 0:
        texts = [text.replace('"m', '"\\u006d', 1) for text in texts]
    return ("{" + ", ".join(texts) + "}").encode("utf-8", "surrogatepass")


@fixed
@given(
    bodies(),
    st.sampled_from(["chat", "messages", "responses", "completions"]),
    st.sampled_from([None, 5_000]),
    st.booleans(),
)
def test_the_quick_look_gives_the_same_bound(
    body: bytes, operation: Operation, max_output: int | None, beside: bool
) -> None:
    """Whatever the request: its bound by the quick look is the one by the look at each member."""
    facts = read_facts(operation, body)

    def bound(ordinary: Any) -> object:
        return bound_of(
            operation,
            body,
            facts,
            max_output=max_output,
            assumed_max_output=777,
            reasons_beside=beside,
            ordinary=ordinary,
        )

    assert bound(read_ordinary(operation, body)) == bound(None)


@fixed
@given(bodies(), st.sampled_from(["chat", "messages"]))
def test_the_quick_look_misses_no_repeated_member(body: bytes, operation: Operation) -> None:
    """A body that is ordinary and plainly has each member once has none that the exact search finds twice."""
    ordinary = read_ordinary(operation, body)
    if ordinary is not None and (ordinary.once or plainly_once(body)):
        assert duplicate_members(body) == frozenset()


@fixed
@given(bodies(), st.sampled_from(["chat", "messages"]))
def test_what_quotes_tell_the_searches_tell(body: bytes, operation: Operation) -> None:
    """A body whose quotes are all accounted for has neither what grows nor calls of tools, and no member twice."""
    ordinary = read_ordinary(operation, body)
    if ordinary is not None and ordinary.once:
        assert ordinary.size == len(body) + growth_of(body) == len(body)
        assert b"tool_calls" not in body
        assert len(top_members(body) or ()) == len(json.loads(body))


TURN = b'{"role":"user","content":"hi"}'


@pytest.mark.parametrize(
    ("body", "quotes", "once"),
    [
        (b'{"model":"m","messages":[' + TURN + b'],"max_tokens":5,"user":"me", "stop": null}', False, True),
        (b'{"model":"m","messages":[' + TURN + b", " + TURN + b'],"max_tokens" : 5,"user":"me"}', True, True),
        (b'{"model":"m","messages":[{"role":"user","content":"one\\ntwo"}]}', True, True),
        (b'{"model":"m","messages":[{"role":"user","content":"a \\"model\\": b\\n"}]}', False, True),
        (b'{"model":"m","messages":[{"role":"user","content":"a \\u0022model\\u0022: b"}]}', True, True),
        (b'{"model":"m","messages":[{"role":"user","content":"\\u0022\\u0022"}],"n":1,"n":2}', False, False),
        (b'{"model":"m","messages":[],"model":"n"}', False, False),
        (b'{"model":"m","messages":[],"\\u006dodel":"n"}', False, False),
        (b'{"model":"m","messages":[], "n": 1, "n" :2}', False, False),
        (b'{"model":"m","messages":[], "n": 1, "n" :null}', False, False),
        (b'{"model":"m","messages":[' + TURN + b'],"messages":[]}', False, False),
    ],
)
def test_what_an_sdk_sends_takes_the_quick_way(body: bytes, quotes: bool, once: bool) -> None:
    """A plain request passes at once, also where its text looks like a member; one with a member twice does not."""
    ordinary = read_ordinary("chat", body)
    assert ordinary is not None
    assert ordinary.once is quotes
    assert plainly_once(body) is once


@pytest.mark.parametrize(
    "more", [{"Model": "x"}, {"tools": []}, {"n": "1"}, {"messages": "hi"}, {"user": "x" * 70_000}, {"unknown": None}]
)
def test_what_is_not_plain_is_looked_at(more: dict[str, Any]) -> None:
    """Members in an odd spelling, of an odd type, unknown ones and long bodies take the general way."""
    assert read_ordinary("chat", json.dumps({"model": "m", "messages": [], **more}).encode()) is None
