"""One answer read while it passes: usage wherever it stands, errors, tools, endings, text for estimates."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from typing import Any

import pytest

from farebox.meter.sample import SAMPLE_BYTES_MAX, TEXT_CHARS_MAX
from farebox.records import ToolCall
from support.answers import (
    DONE,
    chunk,
    cut,
    finish,
    frame,
    meter,
    passed,
    plain,
    read,
    read_json,
    singly,
    usage,
    usage_frame,
)


def tokens(reading: Any) -> tuple[int | None, int | None]:
    return reading.usage.input_tokens, reading.usage.output_tokens


# Where usage stands in a stream


@pytest.mark.parametrize(
    "stream",
    [
        frame(chunk(usage=None)) + frame(finish(usage=None)) + usage_frame() + DONE,
        frame(chunk()) + frame(finish(usage=usage())) + DONE,
        frame(chunk(usage=usage(7, 1))) + frame(chunk(usage=usage(7, 2))) + frame(finish(usage=usage())) + DONE,
        frame(chunk(usage=usage(0, 0))) + frame(finish(usage=usage(0, 0))) + usage_frame() + DONE,
        frame(chunk()) + frame(finish()) + usage_frame() + usage_frame() + DONE,
        frame(chunk()) + usage_frame() + frame(finish(usage=usage(0, 0))) + DONE,
        frame(chunk(x_groq={"id": "req"})) + frame(finish(x_groq={"usage": usage()})) + usage_frame() + DONE,
        frame(chunk()) + frame(finish(x_groq={"usage": usage()})) + DONE,
        frame(chunk())
        + frame(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage()}]))
        + DONE,
        frame(chunk()) + frame(finish(timings={"prompt_n": 5, "cache_n": 2, "predicted_n": 3})) + DONE,
        frame(chunk()) + frame(finish(timings={"prompt_n": 1, "predicted_n": 9}, usage=usage())) + DONE,
        frame(chunk()) + frame(finish()) + b'data: {"choices": [],\ndata: "usage" : {"prompt_tokens": 7,\n'
        b'data: "completion_tokens": 3}}\n\n' + DONE,
    ],
    ids=[
        "own frame",
        "finish chunk",
        "every chunk",
        "zeros until the end",
        "repeated",
        "zeros at the end",
        "groq twice",
        "groq once",
        "moonshot",
        "llama.cpp timings",
        "timings beside usage",
        "over several lines",
    ],
)
def test_usage_in_streams(stream: bytes) -> None:
    """Wherever and however often a stream reports usage, the last word counts and nothing is added up."""
    reading = read(stream)
    assert tokens(reading) == (7, 3)
    assert reading.has_usage
    assert reading.complete
    assert reading.unparsed_events == 0


@pytest.mark.parametrize(
    ("members", "wanted"),
    [({}, False), ({"usage": None}, False), ({"usage": {}}, False), ({"usage": usage(0, 0)}, True)],
)
def test_null_missing_and_zero(members: dict[str, Any], wanted: bool) -> None:
    """Null, empty and missing usage is unreported; a body that says zero says zero."""
    reading = read_json({"choices": [{"message": {"content": "Hi"}}], **members})
    assert reading.has_usage is wanted
    assert tokens(reading) == ((0, 0) if wanted else (None, None))
    assert reading.complete


def test_zeros_beside_text_are_no_report() -> None:
    """A stream whose chunks carry text and only ever zeros as usage has reported nothing."""
    reading = read(frame(chunk("Hello", usage=usage(0, 0))) + frame(finish(usage=usage(0, 0))) + DONE)
    assert not reading.has_usage
    assert reading.output_text == "Hello"


@pytest.mark.parametrize("profile", ["openai", "vllm"])
def test_usage_of_each_choice(profile: str) -> None:
    """Counts that restart with each choice are added up, until the answer's own frame says it all."""
    parts = [
        chunk(choices=[{"index": index, "delta": {"content": "x"}}], usage=usage(7, count))
        for index, count in ((0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 3))
    ]
    stream = b"".join(frame(part) for part in parts)
    reading = read(stream, profile=profile)
    assert tokens(reading) == (7, 7)
    assert not reading.complete
    assert tokens(read(stream + frame(chunk(choices=[], usage=usage(7, 8))) + DONE, profile=profile)) == (7, 8)


def test_running_total_over_choices_is_not_added_up() -> None:
    """Counts that only grow speak for all choices together."""
    stream = b"".join(
        frame(chunk(choices=[{"index": index, "delta": {"content": "x"}}], usage=usage(7, count)))
        for index, count in ((0, 1), (1, 2), (0, 3), (1, 4))
    )
    assert tokens(read(stream)) == (7, 4)


def test_messages_stream() -> None:
    """A Messages stream: input and caches from the start, cumulative output, cache lifetimes kept."""
    start = {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "model": "claude",
            "content": [],
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 1,
                "service_tier": "standard",
            },
        },
    }
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
    delta = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": None, "output_tokens": 25, "server_tool_use": {"web_search_requests": 1}},
    }
    body = b"".join(
        frame(event, event=event["type"])
        for event in (start, {"type": "ping"}, text, text, delta, {"type": "message_stop"})
    )
    reader = meter("messages")
    cut_at = body.index(b"event: message_stop")
    reader.feed(body[:cut_at], 1.0)
    assert not reader.terminal
    assert reader.finish().complete
    reader.feed(body[cut_at:], 1.0)
    assert reader.terminal
    reading = reader.finish()
    assert tokens(reading) == (140, 25)
    assert (reading.usage.cache_write_1h_tokens, reading.usage.units) == (20, {"web_searches": 1})
    assert (reading.model, reading.service_tier, reading.response_id) == ("claude", "standard", "msg_1")
    assert not reading.output_provisional


def test_messages_cut_after_the_start() -> None:
    """Of a Messages stream that broke off, the input is known, the output provisional, and the text is there."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
    reading = read(frame(start, event="message_start") + frame(text, event="content_block_delta"), "messages")
    assert tokens(reading) == (10, 1)
    assert reading.output_provisional
    assert not reading.complete
    assert (reading.output_text, reading.output_chars_total) == ("Hello", 5)


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed", "cancelled"])
def test_responses_stream(kind: str) -> None:
    """A Responses stream ends with its terminal event, which carries the usage; a failure is an error inside it."""
    counts = {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 1},
    }
    response = {"id": "resp_1", "model": "m", "service_tier": "flex", "usage": counts, "error": None}
    if kind == "failed":
        response["error"] = {"code": "server_error", "message": "m"}
    created = {"type": "response.created", "response": {**response, "usage": None, "error": None}}
    delta = {"type": "response.output_text.delta", "delta": "Hi", "item_id": "i", "sequence_number": 1}
    done = {"type": f"response.{kind}", "response": response}
    reader = meter("responses")
    reader.feed(frame(created, event="response.created") + frame(delta, event=delta["type"]), 1.0)
    assert not reader.terminal
    reader.feed(frame(done, event=done["type"]), 2.0)
    assert reader.terminal
    reading = reader.finish()
    assert tokens(reading) == (7, 3)
    assert (reading.model, reading.service_tier, reading.response_id) == ("m", "flex", "resp_1")
    assert reading.first_token_at == 1.0
    assert reading.in_band_error is (kind == "failed")
    assert reading.complete is (kind != "failed")
    assert reading.error_code == ("server_error" if kind == "failed" else None)


def test_responses_error_event() -> None:
    """An `error` event ends a Responses stream and says what it was."""
    created = {"type": "response.created", "response": {"usage": None, "error": None}}
    error = {"type": "error", "code": "rate_limit_exceeded", "message": "m", "param": None}
    reader = meter("responses")
    passed(reader, [frame(created, event="response.created"), frame(error, event="error")])
    assert reader.terminal
    reading = reader.finish()
    assert (reading.in_band_error, reading.error_code, reading.complete) == (True, "rate_limit_exceeded", False)


# Bodies


def test_json_bodies() -> None:
    """Whole bodies of every family give usage, model, tier and id."""
    head = {"id": "x-1", "model": "m-1", "service_tier": "default"}
    counts = {"input_tokens": 7, "output_tokens": 3}
    chat = read_json({**head, "choices": [{"message": {"content": "Hi"}}], "usage": usage()})
    responses = read_json({**head, "status": "completed", "output": [], "usage": counts}, "responses")
    messages = read_json({**head, "content": [{"type": "text", "text": "Hi"}], "usage": counts}, "messages")
    for reading in (chat, responses, messages):
        assert tokens(reading) == (7, 3)
        assert (reading.model, reading.service_tier, reading.response_id) == ("m-1", "default", "x-1")
        assert reading.complete
        assert not reading.stream


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 12, "total_tokens": 12}},
        {"data": [], "usage": {"total_tokens": 12}},
        {"predictions": [{"embeddings": {"statistics": {"token_count": count}, "values": [0.5]}} for count in (5, 7)]},
        {"embedding": [0.1], "inputTextTokenCount": 12},
        {"embeddings": {"float": [[0.1]]}, "meta": {"billed_units": {"input_tokens": 12, "image_tokens": 0}}},
        {"embeddings": [[0.1]], "prompt_eval_count": 12},
        {"results": [{"embedding": [0.1]}], "input_token_count": 12},
        {"embedding": {"values": [0.1]}, "usageMetadata": {"promptTokenCount": 12}},
    ],
    ids=["openai", "voyage", "vertex", "bedrock titan", "cohere", "ollama", "watsonx", "gemini"],
)
def test_embeddings(body: dict[str, Any]) -> None:
    """Every provider's shape of embeddings gives its input tokens, and no output."""
    assert tokens(read_json(body, "embeddings")) == (12, 0)


def test_bare_vectors() -> None:
    """A bare array of vectors is a whole answer that reports nothing."""
    reading = read(b"[[0.1, 0.2]]\n", "embeddings", stream=False, content_type="application/json")
    assert reading.complete
    assert not reading.has_usage


def test_large_body_is_read_from_its_ends() -> None:
    """Of a body larger than the bound, the model is found near the start and the usage near the end, or the start."""
    vector = b'{"object":"embedding","embedding":[' + b",".join([b"-0.0123"] * 300_000) + b"]}"
    head, tail = b'"model":"m-1",', b',"usage":{"prompt_tokens":7,"total_tokens":7}'
    for body in (
        b'{%s"data":[%s]%s}' % (head, vector, tail),
        b'{%s%s,"data":[%s]}\n' % (head, tail[1:], vector),
    ):
        reader = meter("embeddings", stream=False, content_type="application/json")
        assert passed(reader, cut(body, 1, 40)) == body
        reading = reader.finish()
        assert tokens(reading) == (7, 0)
        assert (reading.model, reading.complete, reading.unparsed_events) == ("m-1", True, 0)


def test_cut_body_is_incomplete() -> None:
    """A body that broke off is not complete, but usage that came before the break counts."""
    body = json.dumps({"model": "m-1", "usage": usage(), "choices": [{"message": {"content": "Hi"}}]}).encode()
    reader = meter(stream=False, content_type="application/json")
    passed(reader, [body[:-5]])
    reading = reader.finish()
    assert not reading.complete
    assert not reader.terminal
    assert reading.unparsed_events == 1
    assert tokens(reading) == (7, 3)


def test_json_body_is_terminal_at_its_end() -> None:
    """A JSON body ends the answer when its end was seen, not before."""
    reader = meter(stream=False, content_type="application/json")
    reader.feed(b'{"choices": []}', 1.0)
    assert not reader.terminal
    assert reader.eof() == b""
    assert reader.terminal
    assert reader.eof() == b""


@pytest.mark.parametrize(
    ("body", "content_type", "stream"),
    [
        (frame(chunk()) + usage_frame() + DONE, "application/json", True),
        (b"\n\n" + frame(chunk()) + usage_frame() + DONE, "", True),
        (b": ping\n\n" + usage_frame(), "text/plain", True),
        (b"\xef\xbb\xbf" + usage_frame() + DONE, "text/event-stream", True),
        (b"\n" * 30 + b' {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}', "text/event-stream", False),
        (b'\xef\xbb\xbf{"usage": {"prompt_tokens": 7, "completion_tokens": 3}}', "application/json", False),
    ],
    ids=[
        "stream as json",
        "stream without type",
        "stream as text",
        "stream with mark",
        "json as stream",
        "json with mark",
    ],
)
def test_kind_of_body(body: bytes, content_type: str, stream: bool) -> None:
    """Whether an answer is a stream is told by its first bytes rather than by its header, however they are cut."""
    for pieces in ([body], singly(body)):
        reader = meter(content_type=content_type, stream=not stream)
        assert passed(reader, pieces) == body
        reading = reader.finish()
        assert reading.stream is stream
        assert tokens(reading) == (7, 3)


@pytest.mark.parametrize("body", [b"", b"\n\n", b": ping\n\n"])
def test_a_stream_without_events_did_not_end(body: bytes) -> None:
    """An answer announced as an event stream in which nothing came is a stream that broke off."""
    reading = read(body)
    assert reading.stream
    assert not reading.complete


def test_compressed_answers() -> None:
    """A compressed answer passes as it came and is read from a decoded copy; nothing of it is withheld."""
    body = gzip.compress(frame(chunk()) + usage_frame() + DONE)
    for pieces in ([body], singly(body)):
        reader = meter(content_encoding="gzip", withhold=True)
        assert passed(reader, pieces) == body
        assert tokens(reader.finish()) == (7, 3)
        assert reader.terminal


def test_broken_compression() -> None:
    """An answer that does not decode passes untouched and is marked."""
    reader = meter(content_encoding="gzip")
    body = b"\x1f\x8b" + b"x" * 100
    assert passed(reader, [body]) == body
    assert reader.finish().unparsed_events == 1


# Errors


@pytest.mark.parametrize(
    "event",
    [
        frame({"error": {"message": "m", "type": "server_error", "code": "boom"}}),
        frame({"error": {"message": "m", "type": "server_error", "code": "boom"}}, event="error"),
        frame({"object": "error", "message": "m", "type": "server_error", "code": "boom"}),
        frame(chunk(error={"type": "server_error", "code": "boom", "message": "m"})),
        frame(chunk(choices=[{"index": 0, "delta": {}, "error": {"type": "server_error", "code": "boom"}}])),
    ],
    ids=["member", "named event", "root", "beside choices", "in a choice"],
)
def test_errors_inside_streams(event: bytes) -> None:
    """An error in a stream that began with 200 is told, and such an answer is not complete even with a [DONE]."""
    reading = read(frame(chunk()) + event + DONE)
    assert (reading.in_band_error, reading.error_type, reading.error_code) == (True, "server_error", "boom")
    assert not reading.complete


def test_groq_error() -> None:
    """Groq reports errors inside `x_groq`, as text: that there was one is known, its text is not kept."""
    reading = read(frame(chunk()) + frame(chunk(x_groq={"error": "it broke with the prompt"})) + DONE)
    assert (reading.in_band_error, reading.error_type, reading.error_code) == (True, None, None)


def test_messages_error_event() -> None:
    """An error after `message_start` is told; what was counted until then stays."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}
    reading = read(frame(start, event="message_start") + frame(error, event="error"), "messages")
    assert (reading.in_band_error, reading.error_type) == (True, "overloaded_error")
    assert reading.usage.input_tokens == 10


def test_error_under_status_200() -> None:
    """An error body under status 200 is an error inside the answer."""
    reading = read_json({"error": {"code": 402, "message": "no credits"}})
    assert (reading.in_band_error, reading.error_code) == (True, "402")


@pytest.mark.parametrize("error", [None, {}, "", False])
def test_empty_error_is_none(error: Any) -> None:
    """An `error` member that says nothing does not make an answer an error."""
    assert not read_json({"error": error, "choices": [], "usage": usage()}).in_band_error
    assert not read(frame(chunk(error=error)) + DONE).in_band_error


def test_error_bodies_may_report_usage() -> None:
    """A body of status 400 gives its kind of error, and its usage if it has one; it is no error inside an answer."""
    body = {"error": {"type": "invalid_request_error", "code": "content_filter", "message": "m"}, "usage": usage(7, 0)}
    reading = read_json(body, status=400)
    assert (reading.error_type, reading.error_code) == ("invalid_request_error", "content_filter")
    assert not reading.in_band_error
    assert tokens(reading) == (7, 0)
    assert read(b"<html>502</html>", status=502, content_type="text/html").error_type is None


# Endings


@pytest.mark.parametrize(
    ("stream", "complete"),
    [
        (frame(chunk()) + DONE, True),
        (frame(chunk()) + frame(finish()), True),
        (frame(chunk()) + usage_frame(), True),
        (frame(chunk()) + b"data: [DONE]", True),
        (frame(chunk()) + frame(finish())[:-2], True),
        (frame(chunk()), False),
        (frame(chunk(usage=usage())), False),
        (frame(chunk()) + frame(finish())[:-10], False),
        (b": keep-alive\n\n", False),
        (b"", False),
    ],
)
def test_complete_by_its_content(stream: bytes, complete: bool) -> None:
    """A stream is complete with a [DONE], a finish reason or a usage frame of its own, and by nothing else."""
    reader = meter()
    assert passed(reader, [stream] if stream else []) == stream
    assert reader.finish().complete is complete


def test_terminal_with_the_chunk_that_completes_it() -> None:
    """The terminal event is known when the chunk that completes it was fed, before anything more comes."""
    reader = meter()
    reader.feed(frame(chunk()) + b"data: [DO", 1.0)
    assert not reader.terminal
    reader.feed(b"NE]\n", 1.0)
    assert not reader.terminal
    reader.feed(b"\n", 1.0)
    assert reader.terminal


def test_finish_may_be_asked_at_any_time() -> None:
    """A reading taken in the middle is the state at that time, and taking it changes nothing."""
    reader = meter()
    reader.feed(frame(chunk()), 1.0)
    assert not reader.finish().complete
    reader.feed(usage_frame() + DONE, 1.0)
    assert plain(reader.finish()) == plain(reader.finish())
    assert tokens(reader.finish()) == (7, 3)


def test_first_token() -> None:
    """The first token is the first generated content, not the first chunk: a role or a ping is none."""
    role = chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    reader = meter()
    for at, event in enumerate((b": ping\n\n", frame(role), frame(chunk("Hi")), frame(chunk("!"))), 1):
        reader.feed(event, float(at))
    assert reader.finish().first_token_at == 3.0


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"reasoning_content": "x"},
        {"reasoning": "x"},
        {"refusal": "x"},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"function_call": {"name": "f"}},
        {"audio": {"transcript": "x"}},
        {"audio": {"data": "AAAA"}},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}]},
    ],
)
def test_what_counts_as_first_token(delta: dict[str, Any]) -> None:
    """Text, reasoning, refusals, calls and audio are generated content."""
    reader = meter()
    reader.feed(frame(chunk(choices=[{"index": 0, "delta": delta}])), 5.0)
    assert reader.finish().first_token_at == 5.0


# What else is read


def test_model_is_the_last_one_named() -> None:
    """The answer's model is the last that is not empty; Azure opens with an empty one."""
    stream = (
        frame(chunk(None, model="", choices=[])) + frame(chunk(model="gpt-4o-2024-11-20")) + frame(finish(model=""))
    )
    assert read(stream + DONE).model == "gpt-4o-2024-11-20"


def test_service_tier_inside_usage() -> None:
    """A tier inside the usage object is the answer's tier."""
    assert read(frame(chunk()) + frame(finish(usage=usage(service_tier="priority"))) + DONE).service_tier == "priority"


def test_usage_raw_is_what_came() -> None:
    """The raw object keeps every number exactly, and members that belong to the bill stand beside it."""
    counts = b'{"prompt_tokens":7,"completion_tokens":3,"cost":0.10000000000000000555,"x":[1.50]}'
    body = b'{"usage":%s,"tool_usage":{"web_search":{"num_requests":2}},"output":[]}' % counts
    reading = read(body, "responses", stream=False, content_type="application/json")
    assert reading.usage_raw is not None
    raw = json.loads(bytes(reading.usage_raw), parse_float=Decimal)
    assert raw["cost"] == Decimal("0.10000000000000000555")
    assert raw["x"] == [Decimal("1.50")]
    assert raw["tool_usage"] == {"web_search": {"num_requests": 2}}
    assert reading.usage.provider_cost_usd == Decimal("0.10000000000000000555")
    assert reading.usage.units == {"web_searches": 2}


def test_iterations_stay_in_the_raw_object() -> None:
    """Anthropic's iterations are kept as they came, for pricing by their models."""
    iterations = [{"type": "compaction", "input_tokens": 99195, "output_tokens": 81, "model": "small"}]
    reading = read_json({"usage": {"input_tokens": 162, "output_tokens": 11, "iterations": iterations}}, "messages")
    assert reading.usage_raw is not None
    assert json.loads(bytes(reading.usage_raw))["iterations"] == iterations
    assert tokens(reading) == (162, 11)


# Tool calls


def call(index: int | None, call_id: str | None, name: str | None, arguments: str | None, choice: int = 0) -> bytes:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    fragment: dict[str, Any] = {"function": function}
    if index is not None:
        fragment["index"] = index
    if call_id is not None:
        fragment["id"] = call_id
    return frame(chunk(choices=[{"index": choice, "delta": {"tool_calls": [fragment]}}]))


@pytest.mark.parametrize(
    ("fragments", "wanted"),
    [
        ([(0, "a", "f", ""), (0, None, None, '{"x":'), (0, None, None, "1}")], [("f", 1, 7)]),
        (
            [(0, "a", "f", "{}"), (1, "b", "g", "{}"), (0, None, None, " "), (1, None, None, "  ")],
            [("f", 1, 3), ("g", 1, 4)],
        ),
        ([(0, "a", "f", "{"), (0, "a", "f", "}")], [("f", 1, 2)]),
        ([(0, "a", "f", "{}"), (0, "b", "f", "{}")], [("f", 2, 4)]),
        ([(0, "a", "f", "{"), (0, "b", None, "}")], [("f", 1, 2)]),
        ([(None, "a", "f", "{}"), (None, "b", "g", "{}")], [("f", 1, 2), ("g", 1, 2)]),
        ([(0, "a", None, ""), (0, None, "f", "{}")], [("f", 1, 2)]),
        ([(0, "a", "f", "ä€")], [("f", 1, 5)]),
    ],
    ids=[
        "fragments",
        "two calls in turns",
        "name and id repeated",
        "all at index 0",
        "a new id for each fragment",
        "no index",
        "the name comes late",
        "bytes, not characters",
    ],
)
def test_streamed_calls(fragments: list[tuple[Any, ...]], wanted: list[tuple[str, int, int]]) -> None:
    """Calls are counted once each, with the bytes of their arguments, whatever habits a server has."""
    reading = read(b"".join(call(*fragment) for fragment in fragments) + DONE)
    assert reading.tool_calls == [ToolCall(*one) for one in wanted]


def test_calls_of_several_choices() -> None:
    """The same index in another choice is another call."""
    assert read(call(0, "a", "f", "{}", 0) + call(0, "b", "f", "{}", 1) + DONE).tool_calls == [ToolCall("f", 2, 4)]


def test_legacy_function_call() -> None:
    """The legacy function call counts once for its choice."""
    parts = ({"name": "f", "arguments": ""}, {"arguments": "{"}, {"arguments": "}"})
    stream = b"".join(frame(chunk(choices=[{"index": 0, "delta": {"function_call": part}}])) for part in parts)
    assert read(stream + DONE).tool_calls == [ToolCall("f", 1, 2)]
    body = {"choices": [{"message": {"function_call": {"name": "f", "arguments": "{}"}}}]}
    assert read_json(body).tool_calls == [ToolCall("f", 1, 2)]


def test_calls_in_a_body() -> None:
    """Function and custom calls of all choices of a whole body are counted."""
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "custom", "custom": {"name": "g", "input": "text"}},
    ]
    body = {"choices": [{"message": {"tool_calls": calls}}, {"message": {"tool_calls": calls[:1]}}]}
    assert read_json(body).tool_calls == [ToolCall("f", 2, 14), ToolCall("g", 1, 4)]


def test_calls_of_messages() -> None:
    """Tool use of all three kinds counts at its block's start; the arguments grow with the deltas."""
    blocks = [
        {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        {"type": "server_tool_use", "id": "b", "name": "web_search", "input": {}},
        {"type": "mcp_tool_use", "id": "c", "name": "find", "server_name": "files", "input": {}},
        {"type": "text", "text": ""},
    ]
    stream = b"".join(
        frame({"type": "content_block_start", "index": index, "content_block": block})
        for index, block in enumerate(blocks)
    )
    for part in ('{"x":', "1}"):
        delta = {"type": "input_json_delta", "partial_json": part}
        stream += frame({"type": "content_block_delta", "index": 0, "delta": delta}, event="content_block_delta")
    wanted = [ToolCall("f", 1, 7), ToolCall("web_search", 1, 0), ToolCall("files.find", 1, 0)]
    assert read(stream, "messages").tool_calls == wanted
    blocks[0]["input"] = {"x": 1}
    assert read_json({"content": blocks}, "messages").tool_calls == wanted


ITEMS = [
    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    {"type": "mcp_call", "id": "b", "name": "find", "server_label": "files", "arguments": "{}"},
    {"type": "custom_tool_call", "id": "c", "name": "g", "input": "abc"},
    {"type": "web_search_call", "id": "d", "action": {"type": "search"}},
    {"type": "web_search_call", "id": "e", "action": {"type": "open_page"}},
    {"type": "file_search_call", "id": "h"},
    {"type": "function_call_output", "call_id": "a", "output": "x"},
    {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
]
ITEM_CALLS = [
    *(ToolCall("f", 1, 2), ToolCall("files.find", 1, 2), ToolCall("g", 1, 3)),
    *(ToolCall("web_search", 2, 0), ToolCall("file_search", 1, 0)),
]


@pytest.mark.parametrize("in_snapshot", [True, False])
@pytest.mark.parametrize("as_events", [True, False])
def test_calls_of_responses(as_events: bool, in_snapshot: bool) -> None:
    """Items count once, whether they come as events, in the snapshot, or in both; only searches are searches."""
    stream = b"".join(frame({"type": "response.output_item.done", "item": item}) for item in ITEMS if as_events)
    stream += frame({"type": "response.completed", "response": {"output": ITEMS if in_snapshot else []}})
    reading = read(stream, "responses")
    counted = as_events or in_snapshot
    assert reading.tool_calls == (ITEM_CALLS if counted else [])
    assert reading.usage.units == ({"web_searches": 1, "file_searches": 1} if counted else {})


def test_calls_of_a_response_body() -> None:
    """A whole response counts the calls in its output; the billed searches outrank counted ones."""
    body = {"output": ITEMS, "tool_usage": {"web_search": {"num_requests": 5}}}
    reading = read_json(body, "responses")
    assert reading.tool_calls == ITEM_CALLS
    assert reading.usage.units == {"web_searches": 5, "file_searches": 1}


def test_names_are_bounded() -> None:
    """Names are cut at 128 characters, and after 64 of them the rest is counted as `other`."""
    calls = [{"function": {"name": f"{number:03}" + "x" * 200, "arguments": "{}"}} for number in range(70)]
    counted = read_json({"choices": [{"message": {"tool_calls": calls}}]}).tool_calls
    assert len(counted) == 65
    assert counted[0].name == "000" + "x" * 125
    assert counted[-1] == ToolCall("other", 6, 12)


# Text for estimates


def test_text_only_when_needed() -> None:
    """Text is given out when the output count is missing or the answer incomplete, and else not."""
    told = frame(chunk("Hello")) + frame(chunk(" world")) + call(0, "a", "look", '{"x"')
    assert read(told + usage_frame() + DONE).output_text == ""
    for stream in (told + DONE, told, told + frame(chunk("", usage=usage()))):
        reading = read(stream)
        assert reading.output_text == 'Hello worldlook{"x"'
        assert reading.output_chars_total == reading.output_bytes_total == 19


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("chat", {"choices": [{"message": {"reasoning": "a", "content": "b", "refusal": "c"}}]}),
        ("completions", {"choices": [{"text": "abc"}]}),
        ("responses", {"output": [{"type": "message", "content": [{"text": "ab"}, {"refusal": "c"}]}]}),
        ("messages", {"content": [{"type": "thinking", "thinking": "ab"}, {"type": "text", "text": "c"}]}),
    ],
)
def test_text_of_bodies(operation: Any, body: dict[str, Any]) -> None:
    """A body without usage gives its generated text."""
    reading = read_json(body, operation)
    assert sorted(reading.output_text) == ["a", "b", "c"]


def test_long_text_is_extrapolated() -> None:
    """Of a long stream a sample is kept, and its length in all is extrapolated to within one in a hundred."""
    stream = b"".join(frame(chunk(f" word{number % 10}")) for number in range(4000))
    assert len(stream) > 4 * SAMPLE_BYTES_MAX
    reading = read(stream)
    assert 1000 < len(reading.output_text) <= TEXT_CHARS_MAX
    assert abs(reading.output_chars_total - 4000 * 6) < 240


def test_half_a_surrogate_pair_spoils_no_other_text() -> None:
    """In a stream whose text is escaped, half a surrogate pair is one odd character and all others are themselves."""
    stream = b"".join(frame(chunk(text)) for text in ("a", "中", "文\n", "\ud83d", "一", "字"))
    reading = read(stream)
    assert reading.output_text == "a中文\n?一字"
    assert (reading.output_chars_total, reading.output_bytes_total) == (7, 15)


def test_one_long_event_is_sampled() -> None:
    """A text that comes in one long event is known to its end, though the sample is bounded."""
    reading = read(frame(chunk("ab " * SAMPLE_BYTES_MAX)))
    assert len(reading.output_text) == TEXT_CHARS_MAX
    assert reading.output_chars_total == reading.output_bytes_total == 3 * SAMPLE_BYTES_MAX


def test_preamble_does_not_fill_the_sample() -> None:
    """A long event without text, such as the echo of a long prompt, takes no room in the sample."""
    created = {"type": "response.created", "response": {"instructions": "x" * 2 * SAMPLE_BYTES_MAX}}
    delta = {"type": "response.output_text.delta", "delta": "Hello"}
    reading = read(frame(created) + frame(delta), "responses")
    assert (reading.output_text, reading.output_chars_total) == ("Hello", 5)


def test_same_object_out() -> None:
    """A chunk that nothing is taken out of is handed back as the very same object, withholding or not."""
    for withhold in (False, True):
        reader = meter(withhold=withhold)
        for word in ("a", "b", "c", 'with "quotes"', "d"):
            one = frame(chunk(word))
            assert reader.feed(one, 1.0) is one
