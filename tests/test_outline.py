"""The outline of a JSON text: its members, without its long strings."""

from __future__ import annotations

import json
import random

import pytest

from farebox.doubts import duplicate_members, other_models
from farebox.outline import LONG_BYTES, outline, outlining
from farebox.request import read_facts, read_odd_facts

_LONG = "x" * LONG_BYTES


@pytest.mark.parametrize("seed", range(60))
def test_an_outline_is_the_text_with_its_long_strings_empty(seed: int) -> None:
    """Whatever stands in strings and around them, all else is as it was, and no value changes but those left out."""
    chance = random.Random(seed)
    alphabet = ["x", " ", "{", "}", ":", ",", "\n", "é"] + (['"', "\\"] if seed % 3 == 0 else [])

    def text() -> str:
        size = chance.choice((0, 3, 40, 1000, LONG_BYTES - 2, LONG_BYTES, 3 * LONG_BYTES))
        few = "".join(chance.choices(alphabet, k=min(size, 40)))
        return few + "y" * max(0, size - 2 * len(few)) + few

    def value(depth: int) -> object:
        kind = chance.randrange(4 if depth < 3 else 2)
        if kind == 2:
            return [value(depth + 1) for _ in range(chance.randrange(4))]
        if kind == 3:
            return {f"{chance.choice('abc')}{place}": value(depth + 1) for place in range(chance.randrange(4))}
        return text() if kind else chance.randrange(1000)

    body = {f"member{place}": value(0) for place in range(8)}
    whole = json.dumps(body, ensure_ascii=seed % 2 == 0).encode()
    short = outline(whole)
    assert _partly(json.loads(short), body)
    assert seed % 3 == 0 or '"' + "y" * LONG_BYTES not in short.decode()


def _partly(short: object, whole: object) -> bool:
    """Whether `short` is `whole` but for strings that are empty and were long."""
    if isinstance(whole, dict) and isinstance(short, dict):
        return short.keys() == whole.keys() and all(_partly(short[name], whole[name]) for name in whole)
    if isinstance(whole, list) and isinstance(short, list):
        return len(short) == len(whole) and all(map(_partly, short, whole))
    return short == whole or (short == "" and isinstance(whole, str) and len(json.dumps(whole)) > LONG_BYTES)


def test_a_prompt_leaves_nothing_of_itself_in_the_outline() -> None:
    """Of a large prompt without quotes some bytes are left, wherever the members stand."""
    head, tail = b'{"model":"m","messages":[{"role":"user","content":"', b'"}],"stream":true}'
    assert outline(head + b"a \\n b " * 50_000 + tail) == head + tail


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"m"}',
        b'{"a":"' + b"x" * (LONG_BYTES - 40) + b'"}',
        b"x" * (3 * LONG_BYTES),
        b'"' + b"x" * (3 * LONG_BYTES),
        b'{"a":[' + b"1," * LONG_BYTES + b"1]}",
        b'{"a":"' + b"\\\\" * LONG_BYTES + b'"}',
        ('{"a":"' + _LONG + '"}').encode("utf-16-le"),
    ],
    ids=["small", "short", "no string", "no end", "numbers", "backslashes", "UTF-16"],
)
def test_what_has_no_long_string_is_its_own_outline(text: bytes) -> None:
    """So is what is too odd to be sure of."""
    assert outline(text) is text


def test_an_end_is_told_from_an_escaped_quote() -> None:
    r"""`\"` goes on, `\\"` ends, `\\\"` goes on."""
    for before, ends in ((b"\\", False), (b"\\\\", True), (b"\\\\\\", False), (b"\\" * 62, True), (b"\\" * 63, False)):
        text = b'{"a":"' + b"x" * 3 * LONG_BYTES + before + b'"' + (b',"b":"' if ends else b"c") + b'"}'
        assert outline(text) == (b'{"a":"","b":""}' if ends else b'{"a":""}')


def test_many_quotes_are_given_up_on() -> None:
    """Looking at quotes has a bound: then the rest stays as it is, and what was left out is left out."""
    many = json.dumps({"a": _LONG, "b": ["q"] * 100_000, "c": _LONG}).encode()
    assert len(outline(many)) == len(many) - LONG_BYTES


def test_the_facts_are_those_of_the_whole_text() -> None:
    """Whether it is long or not, a body says the same."""
    said = {"model": "m", "stream": True, "max_tokens": 7, "user": "u", "n": 2, "metadata": {"session_id": "s"}}
    small = read_facts("chat", json.dumps(said).encode())
    for place in range(len(said) + 1):
        members = list(said.items())
        members.insert(place, ("messages", [{"content": _LONG}, {"content": _LONG}]))  # type: ignore[arg-type]
        body = json.dumps(dict(members)).encode()
        assert read_facts("chat", body) == small == read_odd_facts("chat", body)


def test_a_long_string_is_not_judged_and_hides_nothing() -> None:
    """What a tolerant provider would read is read: members beside a string no parser should take, and their doubles."""
    body = b'{"model":"a","x":"\n%b","models":["b"],"model":"c"}' % _LONG.encode()
    assert read_facts("chat", body).model == "c"
    assert duplicate_members(body) == {"model"}
    assert other_models(body) == ["b"]


def test_a_model_too_long_to_be_read_is_one_that_cannot_be_read() -> None:
    """It is not taken for none."""
    assert other_models(json.dumps({"models": [_LONG, "b"]}).encode()) == [None, "b"]


def test_others_have_their_turn_while_a_large_text_is_looked_at() -> None:
    """One long string, or very many short ones: there are stops at least each 4 MB, or each 4,096 quotes."""
    one = json.dumps({"a": "x" * 20_000_000}).encode()
    assert sum(1 for _ in outlining(one)) >= 4
    many = json.dumps({"a": ["q"] * 100_000, "b": "x" * 20_000_000}).encode()
    assert sum(1 for _ in outlining(many)) >= 4
    assert outline(one) == b'{"a": ""}'
