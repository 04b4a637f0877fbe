"""Streams that farebox ends: what is open is closed as the dialect closes it, wherever the stream stood and however
its bytes arrived; and the text so far is counted."""

from __future__ import annotations

import gzip
import json
import random
import re
import tracemalloc
from typing import Any

import pytest

from farebox.meter.chat_terminal import ChatTerminal
from farebox.meter.template import Template
from farebox.meter.terminals import Watch
from farebox.records import Operation
from farebox.sse import Splitter
from support.answers import DONE, chunk, cut, finish, frame, meter, singly, usage_frame
from support.cuts import cuts, cuttable, frames_of

Value = dict[str, Any]


def events(stream: bytes) -> list[Any]:
    """The data of a stream's events; `[DONE]` as the word."""
    data = [piece.data for piece in Splitter(1 << 24).feed(stream) if piece.data is not None]
    return ["[DONE]" if item == b"[DONE]" else json.loads(item) for item in data]


def ending(*frames: bytes, operation: Operation = "chat", usage: tuple[int, int] | None = None, **options: Any) -> Any:
    """The events that end a stream after `frames`; None where it can't be ended."""
    reader = cuttable(operation, **options)
    for piece in frames:
        assert reader.feed(piece, 1.0) == piece
    end = reader.cut(usage)
    return None if end is None else events(end)


# -- chat ----------------------------------------------------------------------------------------

ENVELOPE: Value = {
    "id": "chatcmpl-9",
    "object": "chat.completion.chunk",
    "created": 1753114567,
    "model": "m-2",
    "service_tier": "default",
    "system_fingerprint": "fp_1",
}


def said(text: str, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return frame({**ENVELOPE, "choices": [choice], **more})


def ended(index: int = 0, reason: str = "stop") -> bytes:
    return frame({**ENVELOPE, "choices": [{"index": index, "delta": {}, "finish_reason": reason}]})


def called(index: int, arguments: str, **more: Any) -> bytes:
    call = {"index": 0, "function": {"arguments": arguments}, **more}
    return frame({**ENVELOPE, "choices": [{"index": index, "delta": {"tool_calls": [call]}, "finish_reason": None}]})


def length(index: int) -> Value:
    return {**ENVELOPE, "choices": [{"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}]}


def test_a_chat_is_ended_for_every_choice_that_goes_on() -> None:
    """Each open choice gets `length` in the stream's own envelope, a finished one keeps its reason, then [DONE]."""
    found = ending(said("a"), said("b", 1), said("c", 2), ended(1))
    assert found == [length(0), length(2), "[DONE]"]


def test_choices_that_never_came_are_ended_too() -> None:
    """With n = 3 asked and one choice seen, all three are told that they are over."""
    assert ending(said("a", 1), choices=3) == [length(0), length(1), length(2), "[DONE]"]


def test_the_usage_frame_comes_only_if_it_was_asked_for() -> None:
    """With usage to show there is one frame without choices before [DONE], in the same envelope."""
    tokens = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert ending(said("a"), usage=(7, 2)) == [length(0), {**ENVELOPE, "choices": [], "usage": tokens}, "[DONE]"]
    assert ending(said("a"), ended(), usage_frame(), usage=(7, 2)) == ["[DONE]"]


def test_chunks_that_say_usage_null_get_last_ones_that_say_so() -> None:
    """Where include_usage was asked for every chunk has `usage: null`, the finish frame too."""
    found = ending(said("a", usage=None))
    assert found == [{**length(0), "usage": None}, "[DONE]"]


def test_a_stream_that_has_ended_gets_nothing_more() -> None:
    """After [DONE], message_stop or the terminal response event there is nothing to add."""
    assert ending(said("a"), ended(), DONE) == []
    assert ending(*frames_of(MESSAGE), operation="messages") == []
    assert ending(*frames_of(RESPONSE), operation="responses") == []


def test_legacy_completions_are_ended_in_their_own_shape() -> None:
    """A legacy choice has a text, no delta."""
    envelope = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    one = frame({**envelope, "choices": [{"text": "a", "index": 0, "logprobs": None, "finish_reason": None}]})
    last = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    assert ending(one, operation="completions") == [{**envelope, "choices": [last]}, "[DONE]"]


def test_before_the_first_chunk_nothing_can_be_ended() -> None:
    """Without an event there is no envelope to write: the caller asks again later."""
    assert cuttable("chat").cut(None) is None
    assert ending(b": keep-alive\n\n") is None
    assert ending(frame({"type": "ping"}), operation="messages") is None
    assert ending(frame({"type": "response.output_text.delta", "delta": "a"}), operation="responses") is None


def test_azures_filter_chunk_is_no_pattern() -> None:
    """A chunk without choices, whose id and model are empty, does not shape the last frames, and is no usage."""
    first = frame({"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []})
    assert ending(first, said("a")) == [length(0), "[DONE]"]
    assert [event["choices"] for event in ending(said("a"), first, usage=(1, 2))[:-1]] == [length(0)["choices"], []]


def test_a_chunk_of_any_size_is_not_kept() -> None:
    """Only a chunk of moderate size is kept as the pattern of the last frames."""
    assert ending(said("a" * 20_000)) is None
    assert ending(said("a" * 20_000), said("b", 1)) == [length(0), length(1), "[DONE]"]


# -- messages ------------------------------------------------------------------------------------


def sent(kind: str, **members: Any) -> bytes:
    return frame({"type": kind, **members}, event=kind)


START = sent(
    "message_start",
    message={
        "id": "msg_1",
        "model": "c",
        "type": "message",
        "role": "assistant",
        "content": [],
        "usage": {"output_tokens": 3},
    },
)
MESSAGE = b"".join(
    (
        START,
        sent("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        sent("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
        sent("content_block_stop", index=0),
        sent("ping"),
        sent(
            "content_block_start", index=1, content_block={"type": "tool_use", "id": "t", "name": "find", "input": {}}
        ),
        sent("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"city": "Li'}),
        sent("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": 'ma"}'}),
        sent("content_block_stop", index=1),
        sent("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9}),
        sent("message_stop"),
    )
)


def test_a_message_is_ended_with_its_open_block() -> None:
    """The open block is stopped, then comes max_tokens with the output so far, then message_stop."""
    found = [[event["type"] for event in events(cut.ending)] for cut in cuts(MESSAGE, "messages")]
    last, block = ["message_delta", "message_stop"], "content_block_stop"
    between, within = last, [block, *last]
    assert found == [between, within, within, between, between, *[within] * 3, between, ["message_stop"], []]


def test_a_messages_last_delta_names_the_output_tokens() -> None:
    """They are the caller's count; without one the larger of what the message said and a quarter of its bytes."""
    text = sent("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 40})

    def delta(*frames: bytes, usage: tuple[int, int] | None = None) -> Value:
        found: Value = ending(START, *frames, operation="messages", usage=usage)[-2]
        return found

    stop = {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta(usage=(5, 77)) == {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 77}}
    assert delta()["usage"] == {"output_tokens": 3}
    assert delta(text)["usage"] == {"output_tokens": 10}


# -- responses -----------------------------------------------------------------------------------


def response_stream(*kinds: tuple[str, Value]) -> bytes:
    return b"".join(
        frame({"type": kind, "sequence_number": number, **members}, event=kind)
        for number, (kind, members) in enumerate(kinds)
    )


OBJECT: Value = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1750705355,
    "status": "in_progress",
    "incomplete_details": None,
    "model": "m",
    "output": [],
    "tools": [{"type": "function", "name": "find"}],
    "usage": None,
    "temperature": 1.0,
}
THOUGHT: Value = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "So."}]}
MESSAGE_ITEM: Value = {"id": "msg_1", "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
CALL: Value = {
    "id": "fc_1",
    "type": "function_call",
    "status": "in_progress",
    "arguments": "",
    "call_id": "c",
    "name": "f",
}
IN_SUMMARY: Value = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
NO_SUMMARY: Value = {"type": "summary_text", "text": ""}
PART: Value = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
IN_PART: Value = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
TEXTS = ("Hé", " said", ' "no"', "\n", " to", " it", " \U0001f600")
WHOLE = "".join(TEXTS)
DONE_PART = {**PART, "text": WHOLE}
DONE_MESSAGE = {**MESSAGE_ITEM, "status": "completed", "content": [DONE_PART]}
DONE_CALL = {**CALL, "status": "completed", "arguments": '{"a":1}'}
DONE_OUTPUT = [THOUGHT, DONE_MESSAGE, DONE_CALL]
RESPONSE = response_stream(
    ("response.created", {"response": OBJECT}),
    ("response.in_progress", {"response": OBJECT}),
    ("response.output_item.added", {"output_index": 0, "item": {**THOUGHT, "summary": []}}),
    ("response.reasoning_summary_part.added", {**IN_SUMMARY, "part": NO_SUMMARY}),
    ("response.reasoning_summary_text.delta", {**IN_SUMMARY, "delta": "So."}),
    ("response.reasoning_summary_text.done", {**IN_SUMMARY, "text": "So."}),
    ("response.reasoning_summary_part.done", {**IN_SUMMARY, "part": THOUGHT["summary"][0]}),
    ("response.output_item.done", {"output_index": 0, "item": THOUGHT}),
    ("response.output_item.added", {"output_index": 1, "item": MESSAGE_ITEM}),
    ("response.content_part.added", {**IN_PART, "part": PART}),
    *[("response.output_text.delta", {**IN_PART, "delta": text, "obfuscation": "x" * len(text)}) for text in TEXTS],
    ("response.output_text.done", {**IN_PART, "text": WHOLE, "logprobs": []}),
    ("response.content_part.done", {**IN_PART, "part": DONE_PART}),
    ("response.output_item.done", {"output_index": 1, "item": DONE_MESSAGE}),
    ("response.output_item.added", {"output_index": 2, "item": CALL}),
    ("response.function_call_arguments.delta", {"item_id": "fc_1", "output_index": 2, "delta": '{"a"'}),
    ("response.function_call_arguments.delta", {"item_id": "fc_1", "output_index": 2, "delta": ":1}"}),
    ("response.function_call_arguments.done", {"item_id": "fc_1", "output_index": 2, "arguments": '{"a":1}'}),
    ("response.output_item.done", {"output_index": 2, "item": DONE_CALL}),
    ("response.completed", {"response": {**OBJECT, "status": "completed", "output": DONE_OUTPUT}}),
)  # fmt: skip


def test_a_response_is_ended_with_everything_that_is_open() -> None:
    """In the middle of a text: the text, its part, its item and the response are closed, each with all of it."""
    (found,) = [cut for cut in cuts(RESPONSE, "responses", usage=(11, 5)) if cut.frames == 14]
    part = {**PART, "text": "".join(TEXTS[:4])}
    item = {**MESSAGE_ITEM, "status": "incomplete", "content": [part]}
    usage = {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 16,
    }
    details = {"reason": "max_output_tokens"}
    whole = {**OBJECT, "status": "incomplete", "incomplete_details": details, "output": [THOUGHT, item], "usage": usage}
    base = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    assert events(found.ending) == [
        {"type": "response.output_text.done", "sequence_number": 14, **base, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", "sequence_number": 15, **base, "part": part},
        {"type": "response.output_item.done", "sequence_number": 16, "output_index": 1, "item": item},
        {"type": "response.incomplete", "sequence_number": 17, "response": whole},
    ]
    assert found.ending.count(b"event: ") == 4


def test_a_response_is_ended_in_the_middle_of_a_call() -> None:
    """The arguments so far are told, the call is incomplete, what was finished stays as it came."""
    (found,) = [cut for cut in cuts(RESPONSE, "responses") if cut.frames == 22]
    call = {**CALL, "status": "incomplete", "arguments": '{"a"'}
    closing = events(found.ending)
    assert [event["type"].partition(".")[2] for event in closing] == [
        *("function_call_arguments.done", "output_item.done", "incomplete"),
    ]
    assert closing[0]["arguments"] == '{"a"'
    assert closing[1]["item"] == call
    assert closing[2]["response"]["output"] == [THOUGHT, DONE_MESSAGE, call]
    assert closing[2]["response"]["usage"] is None


def test_wherever_a_response_is_cut_every_item_is_done_once_and_numbers_go_on() -> None:
    """At each frame: as many items done as added, none twice, sequence numbers without a gap, one terminal event."""
    places = 0
    for found in cuts(RESPONSE, "responses"):
        places += 1
        stream = events(found.body)
        kinds = [event["type"] for event in stream]
        assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
        for begun, done in (
            ("response.output_item.added", "response.output_item.done"),
            ("response.content_part.added", "response.content_part.done"),
            ("response.reasoning_summary_part.added", "response.reasoning_summary_part.done"),
        ):
            assert kinds.count(begun) == kinds.count(done)
        for text in ("output_text", "reasoning_summary_text", "function_call_arguments"):
            assert kinds.count(f"response.{text}.done") == any(kind == f"response.{text}.delta" for kind in kinds)
        indexes = [event["output_index"] for event in stream if event["type"] == "response.output_item.done"]
        assert indexes == list(range(len(indexes)))
        final = stream[-1]["response"]
        assert final["output"] == [event["item"] for event in stream if event["type"] == "response.output_item.done"]
        assert final["tools"] == OBJECT["tools"]
        assert kinds[-1] in ("response.incomplete", "response.completed")
    assert places == len(frames_of(RESPONSE))


def test_annotations_and_refusals_are_kept() -> None:
    """A part that is closed has the citations that came with it; a refusal is closed as one."""
    note = {"type": "url_citation", "url": "https://example.com", "title": "t", "start_index": 0, "end_index": 1}
    stream = response_stream(
        ("response.created", {"response": OBJECT}),
        ("response.output_item.added", {"output_index": 1, "item": MESSAGE_ITEM}),
        ("response.content_part.added", {**IN_PART, "part": PART}),
        ("response.output_text.delta", {**IN_PART, "delta": "a"}),
        ("response.output_text.annotation.added", {**IN_PART, "annotation_index": 0, "annotation": note}),
        ("response.content_part.added", {**IN_PART, "content_index": 1, "part": {"type": "refusal", "refusal": ""}}),
        ("response.refusal.delta", {**IN_PART, "content_index": 1, "delta": "No."}),
    )
    content = ending(*frames_of(stream), operation="responses")[-1]["response"]["output"][0]["content"]
    assert content == [{**PART, "text": "a", "annotations": [note]}, {"type": "refusal", "refusal": "No."}]


def test_a_hosted_tool_under_way_is_closed() -> None:
    """Where the API knows no incomplete search, it failed."""
    search = {"id": "ws_1", "type": "web_search_call", "status": "in_progress"}
    stream = response_stream(
        ("response.created", {"response": OBJECT}),
        ("response.output_item.added", {"output_index": 0, "item": search}),
        ("response.web_search_call.searching", {"output_index": 0, "item_id": "ws_1"}),
    )
    assert ending(*frames_of(stream), operation="responses")[0]["item"] == {**search, "status": "failed"}


# -- however the bytes arrive ----------------------------------------------------------------------

CHAT = b"".join(
    (
        said("", role="assistant"),
        *[said(word) for word in ("Hé", " is", " the", ' "the"', " end", " of", " it")],
        *[said(word, 1) for word in (" and", " the", " other")],
        called(1, "", id="call_1", type="function"),
        *[called(1, part) for part in ('{"a"', ":", '"b\\n"}')],
        ended(0),
        ended(1, "tool_calls"),
        usage_frame(**ENVELOPE),
        DONE,
    )
)
STREAMS: dict[Operation, bytes] = {"chat": CHAT, "messages": MESSAGE, "responses": RESPONSE}


@pytest.mark.parametrize("operation", STREAMS)
def test_the_ending_does_not_depend_on_how_the_bytes_came(operation: Operation) -> None:
    """Frame by frame (where templates skip decoding), byte by byte or at random: the same ending, the same count."""
    for found in cuts(STREAMS[operation], operation, usage=(3, 4)):
        for pieces in (singly(found.sent), cut(found.sent, 7, 12), [found.sent]):
            reader = cuttable(operation)
            for piece in pieces:
                reader.feed(piece, 1.0)
            assert reader.cut((3, 4)) == found.ending
            assert reader.output_bytes == found.meter.output_bytes


@pytest.mark.parametrize("operation", STREAMS)
def test_inside_a_frame_there_is_no_ending(operation: Operation) -> None:
    """Asked after every single byte, an ending is given exactly between two frames."""
    stream = STREAMS[operation]
    ends = {0}
    for piece in frames_of(stream):
        ends.add(max(ends) + len(piece))
    reader = cuttable(operation)
    found = set()
    for place, byte in enumerate(singly(stream), 1):
        reader.feed(byte, 1.0)
        if reader.cut(None) is not None:
            found.add(place)
    assert found == {place for place in ends if place}


@pytest.mark.parametrize("operation", STREAMS)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_stream_whose_chunks_end_inside_frames_can_be_cut(operation: Operation, ending: bytes) -> None:
    """Fed up to the end of the frame under way, every stream can be cut within the chunk that brings that end."""
    stream = STREAMS[operation].replace(b"\n", ending)
    pieces = frames_of(stream)
    for place in range(len(pieces[0]) + 1, len(stream) - 8, 53):
        reader = cuttable(operation)
        sent = reader.feed(stream[:place], 1.0)
        sent += reader.feed_frame(stream[place:], 1.0)
        last = reader.cut(None)
        assert last is not None
        assert b"".join(pieces).startswith(sent)
        assert len(sent) >= place
        events(sent + last)


def test_nothing_is_left_out_where_a_stream_cannot_be_cut() -> None:
    """Fed up to a frame's end, a stream that can't be ended there passes whole."""
    stream = b": ping\n\n: pong\n\n" + said("a")[:-1]
    assert cuttable("chat").feed_frame(stream, 1.0) == stream
    assert cuttable("chat", content_encoding="gzip").feed_frame(gzip.compress(CHAT), 1.0) == gzip.compress(CHAT)


@pytest.mark.parametrize("operation", STREAMS)
def test_the_last_frames_end_their_lines_as_the_stream_does(operation: Operation) -> None:
    """A stream with CRLF gets CRLF, however it was cut."""
    stream = STREAMS[operation].replace(b"\n", b"\r\n")
    for found in cuts(stream, operation):
        assert b"\n" not in found.ending.replace(b"\r\n", b"")
        assert not found.ending or found.ending.endswith(b"\r\n\r\n")
        reader = cuttable(operation)
        for piece in singly(found.sent):
            reader.feed(piece, 1.0)
        assert reader.cut(None) == found.ending


def test_with_a_usage_frame_withheld_the_ending_is_whole() -> None:
    """A stream out of which farebox takes its own usage frame is cut between the client's frames only."""
    own = CHAT.replace(usage_frame(**ENVELOPE), b"")
    for found in cuts(CHAT, "chat", withhold_usage=True):
        assert own.startswith(found.sent)
        assert events(found.body)[-1] == "[DONE]"
        assert not any(event != "[DONE]" and event.get("usage") for event in events(found.body))


# -- the text so far -------------------------------------------------------------------------------


def test_output_bytes_are_the_bytes_of_the_text() -> None:
    """Text, reasoning and tool calls count, as UTF-8 and unescaped; padding and envelopes do not."""
    words = 'Hé is the "the" end of it and the other' + '{"a":"b\\n"}'
    expected = {"chat": len(words.encode()), "messages": len('hmfind{"city": "Lima"}')}
    expected["responses"] = len(f'So.{WHOLE}{{"a":1}}'.encode())
    for operation, stream in STREAMS.items():
        reader = cuttable(operation)
        for piece in frames_of(stream):
            reader.feed(piece, 1.0)
        assert reader.output_bytes == expected[operation]


def test_escaped_text_in_covered_chunks_counts_as_what_it_says() -> None:
    r"""`\u4f60` is three bytes of text also where a template skips decoding."""
    reader = cuttable("chat")
    for _ in range(5):
        reader.feed(said("ab"), 1.0)
        reader.feed(said("你").replace("你".encode(), rb"\u4f60"), 1.0)
    assert reader.output_bytes == 5 * (2 + 3)


def test_reasoning_sent_under_two_names_counts_once() -> None:
    """Servers that repeat their reasoning under a second name do not double the pace."""
    delta = {"reasoning": "abc", "reasoning_content": "abc"}
    reader = cuttable("chat")
    for _ in range(5):
        reader.feed(frame({**ENVELOPE, "choices": [{"index": 0, "delta": delta}]}), 1.0)
    assert reader.output_bytes == 5 * 3


def test_what_is_no_text_does_not_count_when_it_repeats() -> None:
    """Sound comes as deltas too; neither decoded nor skipped by a template is it text."""
    reader = cuttable("responses")
    for number in range(5):
        kind = "response.audio.delta"
        reader.feed(frame({"type": kind, "sequence_number": number, "delta": "UklGRg=="}, event=kind), 1.0)
    assert reader.output_bytes == 0


def test_items_without_deltas_count_when_they_are_done() -> None:
    """Some servers send a call at once: its name and arguments are output all the same."""
    stream = response_stream(
        ("response.created", {"response": OBJECT}),
        ("response.output_item.added", {"output_index": 0, "item": CALL}),
        ("response.output_item.done", {"output_index": 0, "item": DONE_CALL}),
    )
    reader = cuttable("responses")
    reader.feed(stream, 1.0)
    assert reader.output_bytes == len('f{"a":1}')


def test_what_is_said_is_not_being_generated() -> None:
    """Once every choice asked for has its reason only usage and the end are missing; text that comes yet denies it."""
    reader = cuttable("chat", choices=2)
    states = []
    for piece in (said("a"), said("b", 1), ended(0), ended(1), usage_frame(), said("c"), ended(0)):
        reader.feed(piece, 1.0)
        states.append(reader.generating)
    assert states == [True, True, True, False, False, True, True]
    assert [found.meter.generating for found in cuts(MESSAGE, "messages")] == [*[True] * 9, False, False]
    unseen = cuttable("chat", choices=3)
    unseen.feed(said("a") + ended(0) + said("b", 1) + ended(1), 1.0)
    assert unseen.generating


def test_usage_that_is_on_its_way_is_waited_for() -> None:
    """Fed up to a frame's end, a stream of which only usage and end are missing passes whole."""
    reader = cuttable("chat")
    reader.feed(said("a"), 1.0)
    rest = ended() + usage_frame() + DONE
    assert reader.feed_frame(rest, 1.0) == rest
    assert reader.finish().usage.output_tokens == 3


# -- what can't be cut, and bounds ------------------------------------------------------------------


def test_what_is_not_cuttable_is_neither_counted_nor_cut() -> None:
    """A meter that was not asked to watch gives no ending and counts nothing."""
    reader = meter()
    reader.feed(said("a"), 1.0)
    assert (reader.cuttable, reader.cut(None), reader.output_bytes) == (False, None, 0)


def test_a_compressed_stream_is_counted_but_not_cut() -> None:
    """Nothing can be put behind compressed bytes; what they say still counts."""
    reader = cuttable("chat", content_encoding="gzip")
    reader.feed(gzip.compress(said("abc") + said("de")), 1.0)
    assert (reader.cuttable, reader.cut(None), reader.output_bytes) == (False, None, 5)


def test_a_document_is_not_cut() -> None:
    """A JSON answer has no end that farebox could write."""
    reader = cuttable("chat")
    assert reader.cuttable
    reader.feed(b'{"choices": [', 1.0)
    assert (reader.cuttable, reader.cut(None)) == (False, None)


def test_a_stream_that_is_not_read_any_more_counts_every_byte() -> None:
    """Where reading was given up nothing is known of the text, so all that passes is taken for it."""
    reader = cuttable("chat")
    for _ in range(1001):
        reader.feed(b"data: {\n\n", 1.0)
    before = reader.output_bytes
    reader.feed(b"x" * 50, 1.0)
    assert (reader.cuttable, reader.cut(None), reader.output_bytes - before) == (False, None, 50)


def test_an_event_too_large_to_be_read_does_not_spoil_the_ending() -> None:
    """An item that was skipped is left out of the last snapshot and is not closed again."""
    big = {**DONE_MESSAGE, "content": [{**PART, "text": "x" * 5000}]}
    stream = response_stream(
        ("response.created", {"response": OBJECT}),
        ("response.output_item.added", {"output_index": 1, "item": MESSAGE_ITEM}),
        ("response.output_item.done", {"output_index": 1, "item": big}),
        ("response.output_item.added", {"output_index": 2, "item": CALL}),
    )
    closing = ending(*frames_of(stream), operation="responses", event_bytes_max=2000)
    assert [event["type"] for event in closing] == ["response.output_item.done", "response.incomplete"]
    assert [item["id"] for item in closing[-1]["response"]["output"]] == ["fc_1"]


@pytest.mark.parametrize("covered", [True, False])
def test_what_is_kept_of_a_response_is_bounded(covered: bool) -> None:
    """Of 1.5 MB of text at most the bound is kept, without a hole, and the stream still ends properly."""
    reader = cuttable("responses")
    for piece in frames_of(RESPONSE)[:10]:
        reader.feed(piece, 1.0)
    text = "abcdefghij" * 300
    tracemalloc.start()
    try:
        for number in range(500):
            delta = text if covered else text + "\\"
            members = {"item_id": "msg_1", "output_index": 1, "content_index": 0, "delta": delta}
            kind = "response.output_text.delta"
            reader.feed(frame({"type": kind, "sequence_number": 10 + number, **members}, event=kind), 1.0)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kind = "response.output_text.delta"
    reader.feed(frame({"type": kind, **IN_PART, "delta": "zz"}, event=kind), 1.0)
    assert size < 3 << 20
    assert reader.output_bytes == len("So.zz") + 500 * (len(text) + (not covered))
    closing = events(reader.cut(None) or b"")
    assert (closing[0]["sequence_number"], closing[-1]["type"]) == (510, "response.incomplete")
    kept = closing[0]["text"]
    assert 1 << 19 < len(kept) <= 1 << 20
    assert (text if covered else text + "\\") * 500 != kept
    assert ((text if covered else text + "\\") * 500).startswith(kept)


def test_a_finished_part_is_kept_instead_of_its_text() -> None:
    """A text of 600 KB that came twice, as deltas and then whole, takes its room once."""
    text = "x" * 600_000
    part = {**PART, "text": text}
    stream = response_stream(
        ("response.created", {"response": OBJECT}),
        ("response.output_item.added", {"output_index": 1, "item": MESSAGE_ITEM}),
        ("response.content_part.added", {**IN_PART, "part": PART}),
        ("response.output_text.delta", {**IN_PART, "delta": text}),
        ("response.output_text.done", {**IN_PART, "text": text}),
        ("response.content_part.done", {**IN_PART, "part": part}),
        ("response.content_part.added", {**IN_PART, "content_index": 1, "part": PART}),
        ("response.output_text.delta", {**IN_PART, "content_index": 1, "delta": text[:400_000]}),
    )
    content = ending(*frames_of(stream), operation="responses")[-1]["response"]["output"][0]["content"]
    assert [len(part["text"]) for part in content] == [600_000, 400_000]


def test_the_number_of_several_covered_frames_is_the_last_ones() -> None:
    """Frames that arrive together and are skipped by a template still count on."""
    deltas = [
        frame({"type": "response.output_text.delta", "sequence_number": number, **IN_PART, "delta": "ab"})
        for number in range(10, 20)
    ]
    begun = frames_of(RESPONSE)[:10]
    closing = ending(*begun, deltas[0], deltas[1], b"".join(deltas[2:]), operation="responses")
    assert (closing[0]["sequence_number"], closing[0]["text"]) == (20, "ab" * 10)


def test_a_large_response_object_keeps_its_plain_members() -> None:
    """Long instructions and many tools are left out of the last snapshot; who and what it is stays."""
    large = {**OBJECT, "instructions": "x" * 200_000, "tools": [{"name": "y" * 100_000}]}
    stream = response_stream(("response.created", {"response": large}))
    (closing,) = ending(*frames_of(stream), operation="responses")
    assert closing["response"]["id"] == "resp_1"
    assert "tools" not in closing["response"]
    assert len(json.dumps(closing)) < 1000


def test_choices_are_bounded() -> None:
    """A server that counts choices without end gets a bounded number of last frames."""
    found = ending(*[said("a", index) for index in range(500)])
    assert len(found) == 128 + 1


@pytest.mark.parametrize("operation", STREAMS)
def test_no_stream_however_broken_makes_an_ending_fail(operation: Operation) -> None:
    """Bytes changed at random: they pass untouched, and asking for an ending gives bytes or None."""
    chance = random.Random(5)
    pieces = frames_of(STREAMS[operation])
    for _ in range(150):
        reader = cuttable(operation)
        for piece in pieces:
            broken = bytearray(piece)
            for _ in range(chance.choice((0, 0, 1, 3))):
                broken[chance.randrange(len(broken))] = chance.choice(b'{}[]":,0x\\ \xff')
            assert reader.feed(bytes(broken), 1.0) == broken
            found = reader.cut((1, 2))
            assert found is None or found == b"" or found.endswith(b"\n\n")


def test_a_watch_that_fails_stops_nothing() -> None:
    """A fault in following a stream's dialect: nothing is raised, the rest counts as text, and there is no ending."""

    class Faulty(ChatTerminal):
        def note(self, name: bytes, data: bytes) -> int:
            raise ValueError

    watch = Watch(Faulty(1, legacy=False))
    watch.note(b"", b"abc")
    assert (watch.broken, watch.output_bytes, watch.ending(None)) == (True, 3, None)


def test_a_template_finds_text_exactly_where_only_text_differs() -> None:
    """Changed at random, a chunk has text if it is whole frames of the template with other text, and else none."""
    frames = [said("abc"), frames_of(MESSAGE)[2], frames_of(RESPONSE)[11]]
    chance = random.Random(3)
    yes = 0
    for piece in frames:
        template = Template.learn(piece)
        assert template is not None
        for _ in range(300):
            broken = bytearray(piece * chance.choice((1, 2)))
            for _ in range(chance.choice((0, 1, 1, 2))):
                broken[chance.randrange(len(broken))] = chance.choice(b'{}[]":,0x\\ \xff')
            found = template.text(bytes(broken))
            assert (found is not None) == repeats(piece, bytes(broken))
            yes += found is not None
    assert 100 < yes < 800


def repeats(frame: bytes, chunk: bytes) -> bool:
    """Whether `chunk` is frames like this one with other texts and running numbers, found by a second, slower way."""
    hole = rb'("(?:content|text|delta|thinking|obfuscation)":")[^"\\\\]*"|("sequence_number":)[0-9]+'
    pattern, end = b"", 0
    for match in re.finditer(hole, frame):
        pattern += re.escape(frame[end : match.start()])
        pattern += re.escape(match[1]) + rb'[^"]*"' if match[1] else re.escape(match[2]) + rb"[0-9]+"
        end = match.end()
    pattern += re.escape(frame[end:])
    return re.fullmatch(b"(?s:(?:" + pattern + b")+)", chunk) is not None


def test_members_of_the_wrong_kind_are_taken_for_nothing() -> None:
    """Texts for numbers and numbers for objects: the stream ends all the same."""
    odd = frame({**ENVELOPE, "choices": [{"index": "x", "delta": 5}, 7, None, {"delta": {"tool_calls": [None, {}]}}]})
    assert ending(odd) == [length(0), "[DONE]"]
    block = sent("content_block_start", index=None, content_block=3)
    assert ending(START, block, operation="messages")[0]["type"] == "content_block_stop"


def test_a_finish_reason_is_noted_where_it_stands() -> None:
    """`finish` of the shared support closes choice 0."""
    assert ending(frame(chunk()), frame(finish())) == ["[DONE]"]
