"""Asking a stream for its usage: one splice, nothing else touched, and None whenever in doubt."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.jsontext import SCAN_STEPS_MAX
from farebox.request import read_facts
from farebox.splice import include_usage

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=250)
CORPUS = Path(__file__).parents[1] / "../shared/corpus/requests.jsonl"


def parse(body: bytes) -> Any:
    """JSON with the last of repeated members kept, and numbers as they are spelt."""
    return json.loads(body, parse_int=str, parse_float=str)


def the_one_edit(before: bytes, after: bytes) -> bytes:
    """The bytes that `after` no longer has of `before`, given that one span was replaced."""
    shorter = min(len(before), len(after))
    start = bisect_left(range(shorter), True, key=lambda n: before[: n + 1] != after[: n + 1])
    rest = range(shorter - start)
    end = bisect_left(rest, True, key=lambda n: before[len(before) - 1 - n :] != after[len(after) - 1 - n :])
    return before[start : len(before) - end]


def check(body: bytes) -> bytes:
    """Splice, and show that the result is `body` with just the usage asked for."""
    after = include_usage(body)
    assert after is not None
    expected = parse(body)
    expected["stream_options"] = {**(expected.get("stream_options") or {}), "include_usage": True}
    assert parse(after) == expected
    # Of `false` and `true` the last letter is common, so the replaced span may look one shorter.
    assert the_one_edit(body, after) in (b"", b"null", b"false", b"fals")
    assert include_usage(after) is None
    return after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"stream":true}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        ('{"stream":true}\n \r\n\t', '{"stream":true,"stream_options":{"include_usage":true}}\n \r\n\t'),
        ('  {\n "stream": true\n}', '  {\n "stream": true\n,"stream_options":{"include_usage":true}}'),
        ('{"stream":true,"stream_options":null}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        ('{"stream":true,"stream_options":{}}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        ('{"stream_options": { },"stream":true}', '{"stream_options": {"include_usage":true },"stream":true}'),
        (
            '{"stream_options":{"include_usage":false},"stream":true}',
            '{"stream_options":{"include_usage":true},"stream":true}',
        ),
        (
            '{"stream_options":{"include_usage" : null},"stream":true}',
            '{"stream_options":{"include_usage" : true},"stream":true}',
        ),
        (
            '{"stream_options":{"include_obfuscation":false},"stream":true}',
            '{"stream_options":{"include_usage":true,"include_obfuscation":false},"stream":true}',
        ),
        (
            '{"stream":true,"stream\\u005foptions":{"include\\u005fusage":false}}',
            '{"stream":true,"stream\\u005foptions":{"include\\u005fusage":true}}',
        ),
        (
            '{"stream":true,"x":{"stream_options":{"include_usage":true}}}',
            '{"stream":true,"x":{"stream_options":{"include_usage":true}},"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream_options":{"x":{"include_usage":true}}}',
            '{"stream":true,"stream_options":{"include_usage":true,"x":{"include_usage":true}}}',
        ),
        (
            '{"a":1e400,"b":123456789012345678901234567890,"c":-0.0,"a":1E+2,"é":"\\/\\u00e9","stream":true}',
            '{"a":1e400,"b":123456789012345678901234567890,"c":-0.0,"a":1E+2,"é":"\\/\\u00e9","stream":true'
            ',"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"x":"} \\"stream_options\\":{}","y":"\\\\"}',
            '{"stream":true,"x":"} \\"stream_options\\":{}","y":"\\\\","stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_usage_is_asked_for_by_one_splice(before: str, after: str) -> None:
    """Each shape of a stream's options has its one edit; every other byte stays."""
    assert check(before.encode()) == after.encode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # stream_options: the one that parsers keep is edited
        (
            '{"stream":true,"stream_options":{"include_usage":true},"stream_options":{}}',
            '{"stream":true,"stream_options":{"include_usage":true},"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream_options":{"include_usage":true},"stream_options":null}',
            '{"stream":true,"stream_options":{"include_usage":true},"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream_options":[],"stream":true,"stream_\\u006fptions":{"include_usage":false}}',
            '{"stream_options":[],"stream":true,"stream_\\u006fptions":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream_options":{"include_usage":true,"include_usage":false}}',
            '{"stream":true,"stream_options":{"include_usage":true,"include_usage":true}}',
        ),
        # stream: the last says whether this is one
        (
            '{"stream":false,"stream":true}',
            '{"stream":false,"stream":true,"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_of_repeated_members_the_last_is_edited(before: str, after: str) -> None:
    """What a parser that keeps the last one reads in the end is a stream that asks for usage."""
    assert check(before.encode()) == after.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b'[{"stream":true}]',
        b'"stream"',
        b"{",
        b'{"stream":true',
        b'{"stream":true,}',
        b'{"stream":true}}',
        b'{"stream":true} x',
        b'{"stream":true}\x00',
        b'{"stream":true,"a":NaN}',
        b'\xef\xbb\xbf{"stream":true}',
        '{"stream":true}'.encode("utf-16"),
        b'{"stream":true,"a":"\xff"}',
        b'{"stream":true,"a":"\xed\xa0\x80"}',
        b'{"\xc3\x28":1,"stream":true}',
        b'{"model":"m"}',
        b'{"stream":false}',
        b'{"stream":null}',
        b'{"stream":1}',
        b'{"stream":"true"}',
        b'{"Stream":true}',
        b'{"x":{"stream":true}}',
        b'{"stream":true,"stream":false}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{},"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":false,"include_us\\u0061ge":true}}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":true}',
        b'{"stream":true,"stream_options":"include_usage"}',
        b'{"stream":true,"stream_options":{},"stream_options":7}',
        b'{"stream":true,"stream_options":{"include_usage":1}}',
        b'{"stream":true,"stream_options":{"include_usage":"false"}}',
        b'{"stream":true,"stream_options":{"include_usage":{}}}',
        b'{"stream":true,"stream_options":{"include_usage":false,"include_usage":0}}',
    ],
)
def test_a_body_in_doubt_is_left_alone(body: bytes) -> None:
    """No stream, usage asked for already, or something odd: the original goes up."""
    assert include_usage(body) is None


@pytest.mark.parametrize("depth", [10_000, 500_000])
def test_nesting_is_no_trap(depth: int) -> None:
    """A body nested beyond what is read is left alone, without an error."""
    assert include_usage(b'{"stream":true,"a":' + b"[" * depth + b"]" * depth + b"}") is None
    assert include_usage(b'{"stream":true,"stream_options":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}") is None


def test_ordinary_nesting_is_walked() -> None:
    """Depths that real schemas reach do not keep a body from being edited."""
    check(b'{"stream":true,"a":' + b'{"b":[' * 100 + b"]}" * 100 + b',"stream_options":{}}')


def test_a_walk_that_takes_too_long_is_given_up() -> None:
    """Only a body with options is walked, and then no further than the bound."""
    crowd = b'{"stream":true,"a":[' + b"[]," * SCAN_STEPS_MAX + b"1]"
    assert include_usage(crowd + b',"stream_options":{}}') is None
    check(crowd + b"}")


def test_half_a_surrogate_pair_is_spliced_around() -> None:
    """A lone surrogate escape is kept as it is spelt."""
    body = rb'{"messages":[{"content":"cut \ud83d"}],"stream":true}'
    assert include_usage(body) == body[:-1] + b',"stream_options":{"include_usage":true}}'


def test_facts_at_hand_save_the_reading() -> None:
    """With the body's facts given, the answer is the same as without."""
    for body in (b'{"stream":true}', b'{"stream":false}', b'{"stream":true,"stream_options":{"include_usage":false}}'):
        assert include_usage(body, read_facts("chat", body)) == include_usage(body)


blank = st.sampled_from(["", " ", "\n", "\t", "\r\n  "])
name = st.sampled_from(
    ["stream", "stream_options", "str\\u0065am", "stream\\u005foptions", "model", "messages", "é", 'a\\"b', "\\u0000"]
)
option_name = st.sampled_from(["include_usage", "include_us\\u0061ge", "include_obfuscation", "x"])
scalar = st.sampled_from(
    [
        "true",
        "false",
        "null",
        "0",
        "1",
        "1e400",
        "-0",
        "12345678901234567890",
        '"true"',
        '"}"',
        '"\\""',
        '"é🦀"',
        "[]",
        "{}",
    ]
)


@st.composite
def an_object(draw: st.DrawFn, names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> str:
    """The text of a JSON object with repeated members, odd spellings and blanks anywhere."""
    members = draw(st.lists(st.tuples(names, values), max_size=5))
    inside = ",".join(f'{draw(blank)}"{key}"{draw(blank)}:{draw(blank)}{value}{draw(blank)}' for key, value in members)
    return "{" + (inside or draw(blank)) + "}"


options = an_object(option_name, scalar)
nested = st.lists(an_object(name, scalar) | scalar, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
body_text = st.tuples(
    blank,
    an_object(name, scalar | options | nested | st.just("true")),
    st.sampled_from(["", ',"stream":true', ',"stream":true,"stream_options":{"include_usage":false}']),
    blank,
)


@fixed
@given(body_text)
def test_any_object_is_edited_rightly_or_left_alone(parts: tuple[str, str, str, str]) -> None:
    """If a body is edited, only the effective usage option changed; if not, there was a reason."""
    before, text, more, after = parts
    if more:
        text = text[:-1].rstrip() + (more if text[1:-1].strip() else more[1:]) + "}"
    body = (before + text + after).encode()
    parsed = parse(body)
    if include_usage(body) is not None:
        assert parsed["stream"] is True
        check(body)
        return
    asked = parsed.get("stream_options")
    assert (
        parsed.get("stream") is not True
        or not isinstance(asked, dict | None)
        or (asked is not None and asked.get("include_usage") not in (None, False))
    )


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the recorded corpus")
@pytest.mark.parametrize("style", ["compact", "indented", "ascii"])
def test_recorded_requests_are_edited_rightly(style: str) -> None:
    """Every recorded request, made a stream, is edited by one splice whatever options it brings."""
    edited = 0
    for line in CORPUS.read_text().splitlines():
        request = json.loads(line)["request"]
        if not isinstance(request, dict):
            continue
        for options in ({}, {"stream_options": None}, {"stream_options": {"include_usage": False, "x": [1]}}):
            stream = {"stream": True, **{key: request[key] for key in request if key != "stream"}, **options}
            separators = (",", ":") if style == "compact" else None
            text = json.dumps(
                stream, indent=2 if style == "indented" else None, separators=separators, ensure_ascii=style == "ascii"
            )
            body = text.encode()
            if (stream.get("stream_options") or {}).get("include_usage") is True:
                assert include_usage(body) is None
            else:
                check(body)
                edited += 1
    assert edited > 1000
