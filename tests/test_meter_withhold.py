"""The usage-only frame is taken out, alone, wherever the stream was cut; nothing is held longer than it must."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.meter.withhold import HELD_BYTES_MAX
from support.answers import DONE, chunk, cut, finish, frame, meter, passed, plain, singly, usage, usage_frame

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=150)
COMMON = frame(chunk(usage=None)) + frame(finish(usage=None))


def withheld(stream: bytes) -> bytes:
    """What the client gets, the same for the whole stream, for every byte alone and for some cuts."""
    out = passed(meter(withhold=True), [stream])
    for pieces in (singly(stream), *(cut(stream, seed, 6) for seed in range(20))):
        assert passed(meter(withhold=True), pieces) == out
    return out


@pytest.mark.parametrize(
    "only",
    [
        usage_frame(),
        usage_frame(service_tier="default", system_fingerprint="fp", obfuscation="abc"),
        usage_frame(id="", timings={"prompt_n": 7}, x_groq={"id": "r", "usage": usage()}),
        usage_frame(prompt_filter_results=[], moderation=None, error=None),
        json.dumps(chunk(choices=[], usage=usage()), indent=1)
        .encode()
        .replace(b"\n", b"\ndata: ")
        .join([b"data: ", b"\n\n"]),
        usage_frame(model_id="m", created_at="1970-01-01", model_version=3),
        usage_frame().replace(b"data: ", b"data:"),
        b"id: 7\nevent: chunk\n" + usage_frame(),
    ],
    ids=[
        "plain",
        "with padding",
        "with timings",
        "with empty members",
        "over several lines",
        "more envelope",
        "no space",
        "with id",
    ],
)
def test_usage_frame_is_withheld(only: bytes) -> None:
    """The frame that only tells usage is taken out with its empty line, and read all the same."""
    assert withheld(COMMON + only + DONE) == COMMON + DONE
    reader = meter(withhold=True)
    passed(reader, [COMMON + only + DONE])
    assert (reader.finish().usage.input_tokens, reader.finish().usage.output_tokens) == (7, 3)


@pytest.mark.parametrize(
    "other",
    [
        frame(finish(usage=usage())),
        frame(chunk(choices=[])),
        frame(chunk(choices=[], usage=None)),
        frame(chunk(choices=[], prompt_filter_results=[{"prompt_index": 0}])),
        usage_frame(prompt_filter_results=[{"prompt_index": 0}]),
        usage_frame(moderation={"flagged": False}),
        usage_frame(error={"message": "m"}),
        usage_frame(error="it broke"),
        usage_frame(warnings=["deprecated"]),
        usage_frame(x_groq={"error": "m"}),
        usage_frame(citations=["https://example.com"]),
        frame({"usage": usage()}),
        frame(chunk(choices=None, usage=usage())),
        frame(chunk(choices=[], usage=[7, 3])),
        frame(chunk('{"choices":[],"usage":{"prompt_tokens":7}}')),
        b": usage follows\n\n",
        b"data: \n\n",
        b"data: [1]\n\n",
    ],
)
def test_everything_else_passes(other: bytes) -> None:
    """Usage beside choices was sent unasked, and frames with any payload are the client's: all of it passes."""
    stream = COMMON + other + DONE
    assert withheld(stream) == stream


def test_only_one_frame_of_many_goes() -> None:
    """Comments, blank lines and the frames around it stay, byte for byte."""
    before, after = b"\xef\xbb\xbf: hello\n\n\n" + COMMON + b": ping\n", b"\n: bye\n" + DONE + b"\n\n"
    assert withheld(before + usage_frame() + after) == before + after


@pytest.mark.parametrize("ending", [b"\r\n", b"\r", b"\n"])
def test_line_endings(ending: bytes) -> None:
    """With every kind of line ending exactly the frame goes, also where a CRLF was cut in two."""
    around = (COMMON + DONE).replace(b"\n", ending)
    stream = (COMMON + usage_frame() + DONE).replace(b"\n", ending)
    assert withheld(stream) == around


@pytest.mark.parametrize("missing", [1, 2])
def test_stream_without_its_last_empty_line(missing: int) -> None:
    """A usage frame that the end of the stream leaves without its empty line is withheld too."""
    stream = COMMON + usage_frame()[:-missing]
    assert withheld(stream) in (COMMON, COMMON + b"\n" * (2 - missing))


def test_cut_usage_frame_is_released() -> None:
    """Of a usage frame that broke off every byte reaches the client: it is not known what it was."""
    stream = COMMON + usage_frame()[:-20]
    assert withheld(stream) == stream


def test_nothing_is_held_without_need() -> None:
    """Bytes go on as soon as they cannot be the usage frame's; those that may are held until it is known."""
    reader = meter(withhold=True)
    start, rest = frame(chunk("Hello"))[:60], frame(chunk("Hello"))[60:]
    assert reader.feed(b": pi", 1.0) == b": pi"
    assert reader.feed(b"ng\n\n", 1.0) == b"ng\n\n"
    assert reader.feed(start, 1.0) == b""
    assert reader.feed(rest[:40], 1.0) == start + rest[:40]
    assert b'"choices":[{' in start + rest[:40]
    assert reader.feed(rest[40:50], 1.0) == rest[40:50]
    assert reader.feed(rest[50:], 1.0) == rest[50:]
    assert reader.feed(b"data: [", 1.0) == b"data: ["
    assert reader.feed(b"DONE]\n\n", 1.0) == b"DONE]\n\n"


def test_held_bytes_are_bounded() -> None:
    """A frame that grows beyond the bound goes on, and stays where it is even if it ends like a usage frame."""
    reader = meter(withhold=True)
    head, tail = b'data: {"id":"' + b"x" * HELD_BYTES_MAX, b'","choices":[],"usage":{"prompt_tokens":7}}\n\n'
    assert reader.feed(head, 1.0) == head
    assert reader.feed(tail, 1.0) == tail
    assert passed(meter(withhold=True), [head + tail]) == head + tail


def test_withholding_ends_with_the_stream_kind() -> None:
    """An answer that is no event stream passes whole, though a frame was to be withheld."""
    body = b'  {"choices": [], "usage": {"prompt_tokens": 7}}'
    for pieces in ([body], singly(body)):
        assert passed(meter(withhold=True), pieces) == body
    for body in (b"", b"dat", b"\n\n", b"<html>", b"data"):
        assert passed(meter(withhold=True), singly(body)) == body


PARTS = st.sampled_from(
    [
        *(frame(chunk()), frame(chunk(usage=usage(7, 1))), frame(finish()), usage_frame(), DONE),
        *(b": ping\n", b"\n", b"\r\n", usage_frame().replace(b"\n", b"\r\n"), usage_frame()[:-1]),
        *(b"data: {\n\n", b"data", frame(chunk(choices=[], usage=usage(), error={"code": 1}))),
    ]
)


@fixed
@given(parts=st.lists(PARTS, max_size=8), seed=st.integers(0, 10_000), cuts=st.integers(1, 12))
def test_cuts_change_neither_bytes_nor_reading(parts: list[bytes], seed: int, cuts: int) -> None:
    """For any mixture of frames, wherever it is cut, the client gets the same bytes and the row says the same."""
    stream = b"".join(parts)
    results: list[tuple[bytes, dict[str, Any], bool]] = []
    for pieces in ([stream], singly(stream), cut(stream, seed, cuts)):
        reader = meter(withhold=True)
        out = passed(reader, pieces)
        results.append((out, plain(reader.finish()), reader.terminal))
    assert results[0] == results[1] == results[2]
