"""Event streams cut into frames: by the standard, the same for every cut, each byte in one frame, in bounded memory."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.sse import HEAD_BYTES, TAIL_BYTES, Frame, Splitter
from support.answers import cut, singly

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=200)
CASES = Path(__file__).parents[1] / "../shared/corpus/sse-format/cases.jsonl"
MIB = 1024 * 1024

pieces_of_streams = st.lists(
    st.sampled_from(
        [
            *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"),
            *(b"data: x", b"data:y", b"data", b"data:  z", b"event: e", b"event:", b"id: 1"),
            *(b": comment", b":", b" data: w", b"\xef\xbb\xbf", b"\0", b"\xff", b"data:" + b"q" * 60),
        ]
    ),
    max_size=14,
).map(b"".join)


def split(pieces: list[bytes], event_bytes_max: int = MIB) -> tuple[list[Frame], Frame | None]:
    splitter = Splitter(event_bytes_max)
    frames = [frame for piece in pieces for frame in splitter.feed(piece)]
    return frames, splitter.flush()


def events(pieces: list[bytes], event_bytes_max: int = MIB) -> list[tuple[bytes, bytes | None, bool, bytes]]:
    """The events of a stream, what is left at its end as the last."""
    frames, rest = split(pieces, event_bytes_max)
    found = [*frames, rest] if rest is not None else frames
    return [(one.event, one.data, one.whole, one.tail) for one in found if one.data is not None]


def by_the_standard(stream: bytes) -> list[tuple[bytes, bytes]]:
    """The events of a whole stream, read as the standard describes it, one line after the other."""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found, event, data = [], b"", None
    for line in stream.split(b"\n")[:-1]:
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if not line:
            if data is not None:
                found.append((event, data))
            event, data = b"", None
        elif field == b"data":
            data = value if data is None else data + b"\n" + value
        elif field == b"event":
            event = value
    return found


def format_cases() -> list[tuple[str, bytes, list[dict[str, str | None]]]]:
    if not CASES.exists():
        return []
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    return [(row["name"], base64.b64decode(row["wire_b64"]), row["events"]) for row in rows]


@pytest.mark.skipif(not CASES.exists(), reason="the shared corpus is not here")
@pytest.mark.parametrize(("name", "wire", "wanted"), format_cases(), ids=[case[0] for case in format_cases()])
def test_format_cases(name: str, wire: bytes, wanted: list[dict[str, str | None]]) -> None:
    """The format cases of the web platform tests and of openai-python are read as their authors say."""
    for pieces in ([wire], singly(wire), *(cut(wire, seed, 4) for seed in range(40))):
        frames, _ = split(pieces)
        found = [(one.event.decode() or None, one.data.decode()) for one in frames if one.data is not None]
        assert found == [(event["event"], event["data"]) for event in wanted], name


@fixed
@given(stream=pieces_of_streams)
def test_agrees_with_the_standard(stream: bytes) -> None:
    """Fed whole, a stream has the events that reading it line by line gives."""
    frames, _ = split([stream])
    assert [(one.event, one.data) for one in frames if one.data is not None] == by_the_standard(stream)


@fixed
@given(stream=pieces_of_streams, seed=st.integers(0, 1000), event_bytes_max=st.sampled_from([20, MIB]))
def test_cuts_change_nothing(stream: bytes, seed: int, event_bytes_max: int) -> None:
    """Wherever the bytes are cut, the events are the same, larger than the bound or not."""
    whole = events([stream], event_bytes_max)
    assert events(singly(stream), event_bytes_max) == whole
    assert events(cut(stream, seed, 5), event_bytes_max) == whole


@fixed
@given(stream=pieces_of_streams, seed=st.integers(0, 1000), event_bytes_max=st.sampled_from([20, MIB]))
def test_every_byte_has_a_frame(stream: bytes, seed: int, event_bytes_max: int) -> None:
    """The sizes of the frames and of what is left over add up to the bytes fed."""
    for pieces in ([stream], singly(stream), cut(stream, seed, 5)):
        frames, rest = split(pieces, event_bytes_max)
        assert sum(one.size for one in frames) + (rest.size if rest is not None else 0) == len(stream)


def test_event_and_its_bytes() -> None:
    """A frame's size covers its lines and the empty line, and comments and blank lines stand apart, together."""
    frames, rest = split([b"\n\n: ping\nevent: a\ndata: 1\n\ndata: 2\r\n\r\n"])
    assert [(one.size, one.event, one.data) for one in frames] == [
        (9, b"", None),
        (18, b"a", b"1"),
        (11, b"", b"2"),
    ]
    assert rest is None


def test_lf_after_cr_belongs_to_the_frame_before() -> None:
    """A CRLF cut in two ends its frame at the CR, and the LF is marked as part of it."""
    splitter = Splitter(MIB)
    assert [one.data for one in splitter.feed(b"data: 1\r\n\r")] == [b"1"]
    assert not splitter.aligned
    frames = splitter.feed(b"\ndata: 2\r\n\r\n")
    assert [(one.size, one.data, one.joined) for one in frames] == [(1, None, True), (11, b"2", False)]
    assert splitter.aligned


def test_comments_are_never_held() -> None:
    """A comment gives its bytes away as they come, however long it is."""
    splitter = Splitter(100)
    assert sum(one.size for one in splitter.feed(b": " + b"x" * 500)) == 502
    assert sum(one.size for one in splitter.feed(b"y" * 500)) == 500
    assert [one.data for one in splitter.feed(b"\ndata: 1\n\n")] == [None, b"1"]


def test_rest_is_read_at_the_end() -> None:
    """An event that lacks its empty line, even its last newline, is given out at the end, once."""
    splitter = Splitter(MIB)
    assert splitter.feed(b"event: e\ndata: 1") == []
    rest = splitter.flush()
    assert rest is not None
    assert (rest.size, rest.event, rest.data) == (16, b"e", b"1")
    assert splitter.flush() is None


def test_large_event_is_skipped() -> None:
    """Of an event larger than the bound the head and the tail stay, and the next one is read."""
    body = b"event: e\ndata: " + bytes(range(65, 91)) * 8000 + b"END"
    for pieces in ([body + b"\n\ndata: 2\n\n"], cut(body + b"\n\ndata: 2\n\n", 1, 50)):
        frames = [one for one in split(pieces, 100_000)[0] if one.data is not None]
        assert [one.whole for one in frames] == [False, True]
        assert frames[0].size == len(body) + 2
        assert frames[0].event == b"e"
        assert frames[0].data == body[15:HEAD_BYTES]
        assert frames[0].tail == body[-TAIL_BYTES:]
        assert frames[1].data == b"2"


def test_memory_is_bounded() -> None:
    """A line of 10 MB passes while a fraction of it is held."""
    piece = b"x" * 65536
    splitter = Splitter(256 * 1024)
    tracemalloc.start()
    try:
        splitter.feed(b"data: ")
        for _ in range(160):
            splitter.feed(piece)
        frames = splitter.feed(b"\n\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.size for one in frames] == [6 + 160 * 65536 + 2]
    assert peak < MIB


def test_blank_lines_cost_one_frame() -> None:
    """A megabyte of blank lines is one piece, not a million."""
    assert [one.size for one in split([b"\n" * MIB])[0]] == [MIB]


def test_the_ordinary_event_is_what_it_is_in_any_company() -> None:
    """One that comes alone, whole and plain has a way of its own; it and what only looks like it read as ever."""
    for block in (
        b"data: {}",
        b"data: ",
        b"data: a\rb",
        b"data: a\ndata: b",
        b"data:a",
        b"data: " + b"x" * 70,
        b"id: 1",
    ):
        stream = b"data: first\n\n" + block + b"\n\n" + b"data: last\n\n"
        together = Splitter(64).feed(stream)
        splitter = Splitter(64)
        apart = splitter.feed(b"data: first\n\n") + splitter.feed(block + b"\n\n") + splitter.feed(b"data: last\n\n")
        assert apart == together
        assert splitter.aligned
