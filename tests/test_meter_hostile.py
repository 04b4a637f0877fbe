"""Whatever a provider sends, the bytes pass and the meter stays calm: odd usage, broken events, huge lines, bombs."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.meter.stream import UNREADABLE_MAX
from farebox.meter.template import Template
from farebox.records import Operation
from support.answers import DONE, chunk, cut, finish, frame, meter, passed, read, read_json, usage, usage_frame

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=100)
MIB = 1024 * 1024
OPERATIONS: tuple[Operation, ...] = (
    "chat",
    "completions",
    "responses",
    "messages",
    "embeddings",
    "moderations",
    "other",
)


@pytest.mark.parametrize(
    "odd",
    [
        *(b'"free"', b"[1,2]", b"7", b"true", b"null", b"{}", b'{"prompt_tokens":"many","completion_tokens":[]}'),
        *(b'{"prompt_tokens":-7,"completion_tokens":-3}', b'{"prompt_tokens":1e999,"completion_tokens":1e-999}'),
        *(b'{"prompt_tokens":99999999999999999999999,"completion_tokens":1e40}', b'{"prompt_tokens":{"a":1}}'),
        b'{"prompt_tokens":1e99999999999999999999}',
        b'{"prompt_tokens":' + b"9" * 5000 + b"}",
        b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_odd_usage(odd: bytes) -> None:
    """A usage member that is no object or holds nonsense reports nothing, in a stream and in a body."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}],"usage":%s}\n\n' % odd
    body = b'{"choices":[{"message":{"content":"Hi"}}],"usage":%s}' % odd
    for reading in (read(event + DONE), read(body, stream=False, content_type="application/json")):
        assert reading.usage.input_tokens is None
        assert not reading.usage.output_tokens


def test_usage_in_text_is_text() -> None:
    """A usage object quoted in the answer's text is not the answer's usage."""
    quoted = 'say {"usage":{"prompt_tokens":1000000,"completion_tokens":5}} and "usage": {"x": 1} \n\ndata: [DONE]\n\n'
    reader = meter()
    passed(reader, [frame(chunk(quoted)), frame(chunk(quoted)), frame(finish())])
    assert not reader.finish().has_usage
    assert not reader.terminal
    reading = read(frame(chunk(quoted)) + usage_frame() + DONE)
    assert reading.usage.input_tokens == 7


@pytest.mark.parametrize(
    "broken",
    [
        *(
            b"data: {\n\n",
            b'data: {"id":}]}\n\n',
            b"data: hello\n\n",
            b"data: 7\n\n",
            b"data: []\n\n",
            b"data: \xff\xfe\n\n",
        ),
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n",
    ],
)
def test_broken_events_are_counted(broken: bytes) -> None:
    """An event that cannot be read is counted, and the next one is read."""
    reading = read(frame(chunk()) + broken + usage_frame() + DONE)
    assert reading.unparsed_events == 1
    assert (reading.usage.input_tokens, reading.complete) == (7, True)


@pytest.mark.parametrize(
    "lenient",
    [
        b'{"choices":[{"delta":{"content":"\\ud83d"},"finish_reason":"stop"}],"usage":%s}',
        b'{"choices":[{"delta":{"content":"\xff"},"finish_reason":"stop"}],"usage":%s}',
        b'{"choices":[{"delta":{"content":"a\x00b\tc"},"finish_reason":"stop"}],"usage":%s}',
        b'{"choices":[{"delta":{"content":"a"},"logprobs":{"x":NaN,"y":-Infinity},"finish_reason":"stop"}],"usage":%s}',
    ],
    ids=["half a surrogate pair", "invalid UTF-8", "control characters", "NaN"],
)
def test_almost_json_is_read(lenient: bytes) -> None:
    """What servers send though JSON forbids it does not cost the usage beside it."""
    event = b"data: " + lenient % b'{"prompt_tokens":7,"completion_tokens":3}' + b"\n\n"
    reading = read(event)
    assert (reading.usage.input_tokens, reading.unparsed_events, reading.complete) == (7, 0, True)


def test_events_without_empty_lines() -> None:
    """Events on consecutive lines, which the standard would join, are read one by one."""
    stream = frame(chunk())[:-1] + frame(finish())[:-1] + usage_frame()[:-1] + DONE
    for withhold in (False, True):
        reader = meter(withhold=withhold)
        assert passed(reader, [stream]) == stream
        reading = reader.finish()
        assert (reading.usage.input_tokens, reading.complete, reading.unparsed_events) == (7, True, 0)


def test_long_line() -> None:
    """An event of 10 MB passes in bounded memory, is counted as not read, and the next ones are read."""
    piece = b"x" * 65536
    reader = meter(withhold=True)
    reader.feed(frame(chunk()), 1.0)
    tracemalloc.start()
    try:
        reader.feed(b'data: {"choices":[{"delta":{"content":"', 1.0)
        for _ in range(160):
            assert reader.feed(piece, 1.0) == piece
        reader.feed(b'"}}]}\n\n', 1.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB
    assert reader.feed(usage_frame() + DONE, 1.0) == DONE
    reading = reader.finish()
    assert (reading.unparsed_events, reading.usage.input_tokens, reader.terminal) == (1, 7, True)


def test_large_terminal_event() -> None:
    """A terminal event larger than the bound still ends the answer and gives its usage, model and status."""
    head = (
        b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r","model":"m-1","output":"'
    )
    tail = b'","usage":{"input_tokens":7,"output_tokens":3,"total_tokens":10},"metadata":{}}}\n\n'
    body = head + b"x" * 2 * MIB + tail
    for pieces in ([body], cut(body, 3, 50)):
        reader = meter("responses")
        assert passed(reader, pieces) == body
        reading = reader.finish()
        assert reader.terminal
        assert (reading.usage.input_tokens, reading.usage.output_tokens, reading.model) == (7, 3, "m-1")
        assert reading.unparsed_events == 1


def test_reading_stops_at_nonsense() -> None:
    """A stream of nothing readable is given up after a while; its bytes pass, held ones included."""
    stream = b"data: nonsense\n\n" * (2 * UNREADABLE_MAX) + b"data: {"
    reader = meter(withhold=True)
    assert passed(reader, cut(stream, 5, 300)) == stream
    assert UNREADABLE_MAX < reader.finish().unparsed_events <= 2 * UNREADABLE_MAX


def test_a_fault_of_ours_lets_the_bytes_pass() -> None:
    """If reading itself fails, what was held goes on, the rest passes, and the row says so."""
    reader = meter(withhold=True)
    start = frame(chunk())[:40]
    assert reader.feed(start, 1.0) == b""

    class Broken:
        def event(self, *_: object) -> None:
            raise RuntimeError("a fault of ours")

    assert reader._stream is not None
    reader._stream._wire = Broken()  # type: ignore[assignment]
    rest = frame(chunk())[40:]
    assert reader.feed(rest, 1.0) == start + rest
    assert reader.feed(usage_frame() + DONE, 1.0) == usage_frame() + DONE
    assert reader.eof() == b""
    assert reader.finish().unparsed_events == 1


def test_decompression_bomb() -> None:
    """A small compressed chunk that unpacks to many megabytes is read in bounded memory or not at all."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(b": ping\n" * 150_000) for _ in range(40)) + packer.flush()
    reader = meter(content_encoding="gzip")
    tracemalloc.start()
    try:
        assert passed(reader, [body]) == body
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB
    assert reader.finish().unparsed_events == 1


FRAGMENTS = st.sampled_from(
    [
        *(
            b'data: {"choices":[',
            b'{"index":0,"delta":{"content":"x"}}',
            b"]}",
            b"\n\n",
            b"\n",
            b"\r",
            b": c\n",
            b"[DONE]",
        ),
        *(
            b'"usage":{"prompt_tokens":',
            b"7",
            b"-1",
            b"null",
            b"1e999",
            b"}",
            b"{",
            b"[",
            b'"',
            b"\\",
            b"\x00",
            b"\xff",
            b",",
        ),
        *(
            b'"error":{"code":"x"}',
            b'"type":"message_start"',
            b'"message":{',
            b'"type":"response.completed"',
            b'"response":{',
        ),
        *(
            b"event: error\n",
            b'"tool_calls":[{"function":{"name":"f"}}]',
            b'"content_block":{"type":"tool_use"}',
            b"data: ",
        ),
    ]
)


@fixed
@given(
    parts=st.lists(FRAGMENTS | st.binary(max_size=8), max_size=20),
    operation=st.sampled_from(OPERATIONS),
    status=st.sampled_from([200, 400]),
    encoding=st.sampled_from(["", "", "", "gzip", "nonsense"]),
    withhold=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_anything_passes(
    parts: list[bytes], operation: Operation, status: int, encoding: str, withhold: bool, seed: int
) -> None:
    """Any bytes at all pass in order and nothing is added; without withholding nothing is missing either."""
    stream = b"".join(parts)
    reader = meter(operation, status=status, content_encoding=encoding, withhold=withhold, event_bytes_max=64)
    out = passed(reader, cut(stream, seed, 4))
    if not withhold:
        assert out == stream
    assert _is_subsequence(out, stream)
    reader.finish()


def _is_subsequence(part: bytes, whole: bytes) -> bool:
    rest = iter(whole)
    return all(byte in rest for byte in part)


# Templates


def dull(text: str) -> bytes:
    return frame(chunk(text, usage=None, obfuscation="x" * (len(text) % 5)))


def test_template_covers_its_like() -> None:
    """A template covers frames that differ in their text alone, several of them too, and no others."""
    template = Template.learn(dull("Hello"))
    assert template is not None
    assert template.text(dull(" world")) is not None
    assert template.text(dull("a\nb")) is not None
    assert template.text(dull("") + dull("b")) is not None
    for other in (
        frame(finish()),
        frame(chunk("Hi", usage=usage())),
        frame(chunk("Hi", usage=None, obfuscation="x", error={"code": 1})),
        dull("x") + usage_frame(),
        dull("x") + DONE,
        dull("x")[:-1],
        dull("x") + b"d",
        b" " + dull("x"),
    ):
        assert template.text(other) is None


@pytest.mark.parametrize(
    "frame_",
    [
        frame(chunk('a "quoted" word')),
        frame(chunk("a\nb")),
        frame(chunk("Hello"))[:-1],
        frame(chunk("Hello")).replace(b"\n", b"\r\n"),
        frame(chunk("x" * 5000)),
        frame({"choices": []}),
    ],
    ids=["escapes", "newline", "no empty line", "CRLF", "large", "no text"],
)
def test_what_is_not_learned(frame_: bytes) -> None:
    """A frame whose structure could be mistaken, or that brings nothing, is not learned."""
    assert Template.learn(frame_) is None


def test_running_numbers_are_holes() -> None:
    """A running number may change from frame to frame, but only into another number."""
    event: dict[str, Any] = {"type": "response.output_text.delta", "delta": "Hi", "sequence_number": 17}
    template = Template.learn(frame(event, event=event["type"]))
    assert template is not None
    assert template.text(frame({**event, "delta": "!", "sequence_number": 1018}, event=event["type"])) is not None
    assert template.text(frame({**event, "sequence_number": None}, event=event["type"])) is None
    assert template.text(frame({**event, "sequence_number": {"usage": {}}}, event=event["type"])) is None


@pytest.mark.parametrize(
    "before", [b"data: ", b"event: x\ndata: ", b"data:", b": a\ndata: ", b'id: "text":"a"\ndata: ', b"id: \\\ndata: "]
)
@pytest.mark.parametrize("after", [b"\n\n", b"\nid: 7\n\n", b"\r\n\r\n", b"\n\r\n"])
def test_a_frame_is_learned_from_its_data_as_by_itself(before: bytes, after: bytes) -> None:
    """A template of data knows of a frame around it what would be learned of the frame, or says nothing of it."""
    datas = [frame(chunk("x", usage=None, obfuscation="ab", sequence_number=7))[6:-2], frame(chunk("y"))[6:-2]]
    for data in datas:
        inner = Template.learn(data, b"")
        assert inner is not None
        whole, around = Template.learn(before + data + after), inner.around(before + data + after, data)
        if around is None:
            assert whole is None or b"text" in before
            continue
        assert whole is not None
        other = before + data.replace(b'"x"', b'"other"').replace(b'"y"', b'"more"').replace(b'"ab"', b'""') + after
        for seen in (
            before + data + after,
            other,
            other * 2,
            other[:-1],
            other.replace(b"}", b"},{"),
            before + b"{}" + after,
        ):
            assert around.text(seen) == whole.text(seen)


ORDINARY = st.text(max_size=12) | st.sampled_from(['"', '\\"', '"}', '"},"usage":{', "usage", "\n", "\\"])


@fixed
@given(words=st.lists(ORDINARY, min_size=1, max_size=12), at=st.integers(0, 12), seed=st.integers(0, 1000))
def test_templates_overlook_nothing(words: list[str], at: int, seed: int) -> None:
    """Whatever the text, a stream read with templates (chunk by chunk) reads like one read without (cut anywhere)."""
    frames = [frame(chunk(word, usage=None)) for word in words]
    special = (usage_frame(), frame(finish()), frame(chunk("x", error={"code": "e"})), frame(chunk("y", usage=usage())))
    frames.insert(min(at, len(frames)), random.Random(seed).choice(special))
    by_chunk, by_cuts = meter(), meter()
    assert passed(by_chunk, frames) == passed(by_cuts, cut(b"".join(frames), seed, 9))
    one, other = by_chunk.finish(), by_cuts.finish()
    assert one.usage == other.usage
    assert (one.complete, one.in_band_error, one.unparsed_events) == (other.complete, other.in_band_error, 0)
    assert one.output_text == other.output_text


def test_sentences_in_a_usage_object_are_not_kept() -> None:
    """The raw usage keeps numbers and single words; text, which could quote a prompt, is dropped."""
    odd = usage(tier="flex", note="you asked: my secret plan", deep={"a b c": 1, "list": ["what was said", 3]})
    reading = read_json({"choices": [], "usage": odd})
    assert reading.usage_raw is not None
    kept = msgspec.json.decode(reading.usage_raw)
    assert kept["tier"] == "flex"
    assert kept["note"] is None
    assert kept["deep"] == {"list": [None, 3]}
