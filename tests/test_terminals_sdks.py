"""What the official SDKs make of streams that farebox ended: an answer that met its limit, never an error.

Recorded streams (where the corpus is at hand) and small ones are cut at every frame; the SDKs get
the bytes without a network in between. At the end a running farebox cuts streams whose budget is used up.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import pytest_asyncio

from farebox.records import Operation
from support.answers import DONE, frame, usage_frame
from support.app import ADMIN_TOKEN, Farebox
from support.corpus import MANIFEST, bodies
from support.cuts import Cut, cuts
from support.live import Serving, relaying, serving
from support.postgres import PostgresServer
from support.provider import Received, Script, Wire
from support.sdks import anthropic_sdk, openai_sdk

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
BYTES_MAX = 30_000
"""Larger recordings are left out: a stream of n frames is read n times."""


class Replay:
    """The SDKs' clients, whose every answer is the stream that was put in last. Making one takes far longer than
    reading a stream."""

    def __init__(self) -> None:
        self.body = b""
        http = httpx2.Client(transport=httpx2.MockTransport(self._answer))
        self.openai = openai.OpenAI(api_key="k", http_client=http, max_retries=0)
        self.anthropic = anthropic.Anthropic(api_key="k", http_client=http, max_retries=0)

    def _answer(self, _: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=self.body)


REPLAY = Replay()


def openai_client(body: bytes) -> Any:
    REPLAY.body = body
    return REPLAY.openai


def anthropic_client(body: bytes) -> Any:
    REPLAY.body = body
    return REPLAY.anthropic


def chat_chunks(body: bytes) -> list[Any]:
    return list(openai_client(body).chat.completions.create(model="m", messages=HELLO, stream=True))


def chat_helper(body: bytes) -> Any:
    """The completion that the SDK's accumulator puts together."""
    with openai_client(body).chat.completions.stream(model="m", messages=HELLO) as pieces:
        for _ in pieces:
            pass
        return pieces.current_completion_snapshot


def completion_chunks(body: bytes) -> list[Any]:
    return list(openai_client(body).completions.create(model="m", prompt="Hello!", stream=True))


def response_events(body: bytes) -> list[Any]:
    """What the SDK's accumulator passes on."""
    with openai_client(body).responses.stream(model="m", input="Hello!") as pieces:
        return list(pieces)


def response_helper(body: bytes) -> Any:
    """The response of the last event."""
    return response_events(body)[-1].response


def message_helper(body: bytes) -> Any:
    with anthropic_client(body).messages.stream(model="m", messages=HELLO, max_tokens=9) as pieces:
        return pieces.get_final_message()


RECORDED: dict[Operation, str] = {
    "chat": "3e460a3d08d2 64ecc146e12f 9bdf98441359 99cb331d245d 125b6bab01cb",
    "completions": "0bb915c00988 b992458bc560",
    "messages": "3fc17622ca10 3799480f087f bd36aacca410",
    "responses": "73057076d3b0 480c07ed202b aa089d96fef8",
}
"""Small ones of several providers, with text, reasoning, calls and hosted tools, which the SDKs read when whole."""


def recorded(operation: Operation) -> list[Any]:
    """Recorded streams to be cut, one test each."""
    found = {body.id: body for body in bodies((operation,))}
    ids = [id for id in RECORDED[operation].split() if id in found]
    return [pytest.param(found[id].data, id=f"{found[id].provider}-{id}") for id in ids]


def every(operation: Operation) -> dict[str, list[bytes]]:
    """Every recorded stream of moderate size, by provider."""
    found: dict[str, list[bytes]] = {}
    for body in bodies((operation,)):
        if body.row["stream"] and body.row["status"] == 200 and body.row["bytes"] <= BYTES_MAX:
            found.setdefault(body.provider, []).append(body.data)
    return found


def readable(read: Callable[[bytes], Any], data: bytes) -> bool:
    """Whether the SDK can read a stream at all: some recordings are errors, or cut themselves."""
    try:
        read(data)
    except Exception:
        return False
    return True


corpus = pytest.mark.skipif(not MANIFEST.exists(), reason="the shared corpus is not here")


# -- chat ----------------------------------------------------------------------------------------


def reasons(chunks: list[Any]) -> dict[int, list[str]]:
    """The finish reasons of each choice."""
    found: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            found.setdefault(choice.index, []).extend([choice.finish_reason] if choice.finish_reason else [])
    return found


def is_ended_chat(found: Cut, chunks: list[Any], *, natural: dict[int, list[str]]) -> None:
    """Every choice has a reason: its own if that had come, else length; all chunks are one stream's."""
    told = reasons(chunks)
    assert told
    for index, reason in told.items():
        # OpenRouter repeats the reason on its usage chunk.
        assert reason == ["length"] or (reason and set(reason) <= set(natural[index]))
    named = {chunk.model for chunk in chunks if chunk.choices}
    assert chunks[-1].model in named or not chunks[-1].choices
    assert len(named) <= len({chunk.model for chunk in chunks})


@corpus
@pytest.mark.parametrize("data", recorded("chat"))
def test_recorded_chats_cut_anywhere_are_answers_that_met_their_limit(data: bytes) -> None:
    """At every frame of a recorded chat, tool calls included, the SDK reads to the end and finds finish reasons."""
    natural = reasons(chat_chunks(data))
    places = list(cuts(data, "chat"))
    # The accumulator passes over chunks that do not say what kind of object they are.
    whole = chat_helper if readable(chat_helper, data) else None
    for found in places:
        is_ended_chat(found, chat_chunks(found.body), natural=natural)
        assert whole is None or all(choice.finish_reason for choice in whole(found.body).choices)
    # A few recordings are shortened to one chunk, which ends its choice at once.
    met = [
        "length" in [reason for told in reasons(chat_chunks(found.body)).values() for reason in told]
        for found in places
    ]
    assert any(met) or len(places) <= 2


def chat(*choices: dict[str, Any], **more: Any) -> bytes:
    envelope = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "usage": None}
    return frame({**envelope, "choices": list(choices), **more})


def choice(index: int, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def call(index: int, place: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": arguments} if name is None else {"arguments": arguments, "name": name}
    begun = {} if name is None else {"id": f"call_{place}", "type": "function"}
    return choice(index, tool_calls=[{"index": place, "function": function, **begun}])


TWO_CHOICES = b"".join(
    (
        chat(choice(0, role="assistant", content="")),
        chat(choice(1, role="assistant", content="")),
        *[chat(choice(0, content=word)) for word in ("One", " two", " three")],
        *[chat(choice(1, content=word)) for word in ("Eins", " zwei")],
        chat(call(1, 0, "", "find")),
        chat(call(1, 0, '{"city": "Li')),
        chat(call(1, 0, 'ma"}')),
        chat(call(1, 1, "", "look")),
        chat(call(1, 1, "{")),
        chat(choice(0, "stop")),
        chat(choice(1, "tool_calls")),
        usage_frame(id="chatcmpl-1", model="m-1", created=1),
        DONE,
    )
)


def test_two_choices_with_calls_under_way_are_both_ended() -> None:
    """With n = 2 and a half-written call, SDK and accumulator get both choices, with what had come of them."""
    seen: set[str] = set()
    for found in cuts(TWO_CHOICES, "chat", choices=2, usage=(5, 4)):
        chunks = chat_chunks(found.body)
        assert set(reasons(chunks)) == {0, 1}
        is_ended_chat(found, chunks, natural={0: ["stop"], 1: ["tool_calls"]})
        assert chunks[-1].choices == []
        assert chunks[-1].usage.total_tokens > 0
        assert [chunk.usage for chunk in chunks].count(None) == len(chunks) - 1
        whole = chat_helper(found.body)
        assert [choice.index for choice in whole.choices] == [0, 1]
        seen.update(call.function.arguments for call in whole.choices[1].message.tool_calls or ())
        assert whole.usage == chunks[-1].usage
    assert {"", "{", '{"city": "Li', '{"city": "Lima"}'} <= seen


def test_a_real_length_is_read_no_differently() -> None:
    """The SDK's `get_final_completion` raises for any answer that met its limit, a provider's own just the same."""
    begun = chat(choice(0, role="assistant", content="One"))
    (found,) = cuts(begun, "chat")
    for stream in (begun + chat(choice(0, "length")) + DONE, found.body):
        with (
            openai_client(stream).chat.completions.stream(model="m", messages=HELLO) as pieces,
            pytest.raises(openai.LengthFinishReasonError),
        ):
            pieces.get_final_completion()


def test_nobody_gets_usage_who_did_not_ask() -> None:
    """Where farebox withholds the usage frame, a cut stream shows none either."""
    for found in cuts(TWO_CHOICES, "chat", withhold_usage=True):
        assert all(chunk.choices and chunk.usage is None for chunk in chat_chunks(found.body))


@corpus
@pytest.mark.parametrize("data", recorded("completions"))
def test_recorded_completions_cut_anywhere_are_answers_that_met_their_limit(data: bytes) -> None:
    """Legacy completions end with a finish reason at every frame."""
    natural = reasons(completion_chunks(data))
    for found in cuts(data, "completions"):
        is_ended_chat(found, completion_chunks(found.body), natural=natural)


def test_completions_of_several_prompts_are_all_ended() -> None:
    """Each asked choice has its reason, seen or not, and the usage is told if it was asked for."""
    envelope = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    one = frame({**envelope, "choices": [{"text": "a", "index": 1, "logprobs": None, "finish_reason": None}]})
    (found,) = cuts(one, "completions", choices=3, usage=(1, 2))
    chunks = completion_chunks(found.body)
    assert reasons(chunks) == {0: ["length"], 1: ["length"], 2: ["length"]}
    assert chunks[-1].usage.completion_tokens == 2


# -- messages ------------------------------------------------------------------------------------


def is_ended_message(message: Any) -> None:
    assert message.stop_reason in ("max_tokens", "end_turn", "tool_use", "stop_sequence", "pause_turn", "refusal")
    assert isinstance(message.usage.output_tokens, int)


@corpus
@pytest.mark.parametrize("data", recorded("messages"))
def test_recorded_messages_cut_anywhere_are_answers_that_met_their_limit(data: bytes) -> None:
    """At every frame, with thinking, text or a tool's input under way, the SDK has a final message: max_tokens."""
    natural = message_helper(data).stop_reason
    stops = []
    for found in cuts(data, "messages"):
        message = message_helper(found.body)
        is_ended_message(message)
        stops.append(message.stop_reason)
    assert set(stops) <= {natural, "max_tokens"}
    assert "max_tokens" in stops


def sent(kind: str, **members: Any) -> bytes:
    return frame({"type": kind, **members}, event=kind)


def delta(index: int, kind: str, **members: Any) -> bytes:
    return sent("content_block_delta", index=index, delta={"type": f"{kind}_delta", **members})


BEGUN: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "c",
    "content": [],
    "stop_reason": None,
}
THINKING = b"".join(
    (
        sent("message_start", message={**BEGUN, "usage": {"input_tokens": 5, "output_tokens": 1}}),
        sent("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        delta(0, "thinking", thinking="Let me"),
        delta(0, "thinking", thinking=" see."),
        delta(0, "signature", signature="abc"),
        sent("content_block_stop", index=0),
        sent("content_block_start", index=1, content_block={"type": "text", "text": ""}),
        delta(1, "text", text="I look."),
        sent("content_block_stop", index=1),
        sent("content_block_start", index=2, content_block={"type": "tool_use", "id": "t", "name": "f", "input": {}}),
        delta(2, "input_json", partial_json=""),
        delta(2, "input_json", partial_json='{"city": "Li'),
        delta(2, "input_json", partial_json='ma"}'),
        sent("content_block_stop", index=2),
        sent("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 30}),
        sent("message_stop"),
    )
)


def test_thinking_and_a_tools_input_under_way_are_closed() -> None:
    """Every block that began is in the final message, with what had come; the SDK's events end in order."""
    places = list(cuts(THINKING, "messages", usage=(5, 8)))
    messages = [message_helper(found.body) for found in places]
    assert [len(message.content) for message in messages] == [0, *[1] * 5, *[2] * 3, *[3] * 7]
    assert [message.stop_reason for message in messages] == [*["max_tokens"] * 14, "tool_use", "tool_use"]
    assert messages[3].content[0].thinking == "Let me see."
    assert messages[11].content[2].type == "tool_use"
    assert {message.usage.output_tokens for message in messages} == {8, 30}
    for found in places:
        with anthropic_client(found.body).messages.stream(model="m", messages=HELLO, max_tokens=9) as pieces:
            kinds = [piece.type for piece in pieces]
        assert kinds.count("content_block_start") == kinds.count("content_block_stop")
        assert kinds[-1] == "message_stop"


# -- responses -----------------------------------------------------------------------------------


def said(events: list[Any], kind: str) -> str:
    return "".join(event.delta for event in events if event.type == kind)


@corpus
@pytest.mark.parametrize("data", recorded("responses"))
def test_recorded_responses_cut_anywhere_are_incomplete_ones(data: bytes) -> None:
    """At every frame the SDK's accumulator goes through, and the last response says why it is incomplete.

    Its text and its arguments are exactly the deltas that the client saw.
    """
    statuses = []
    for found in cuts(data, "responses", usage=(3, 4)):
        events = response_events(found.body)
        numbers = [event.sequence_number for event in events]
        assert numbers == sorted(set(numbers))
        response = events[-1].response
        statuses.append(response.status)
        if response.status == "incomplete":
            assert response.incomplete_details.reason == "max_output_tokens"
            assert response.usage.total_tokens == 7
            assert response.output_text == said(events, "response.output_text.delta")
            written = [item.arguments for item in response.output if item.type == "function_call"]
            assert "".join(written) == said(events, "response.function_call_arguments.delta")
    # Some servers send [DONE] after the terminal event.
    first = statuses.index(statuses[-1])
    assert statuses == ["incomplete"] * first + [statuses[-1]] * (len(statuses) - first)
    assert first >= len(statuses) - 2


def test_a_real_incomplete_response_is_read_no_differently() -> None:
    """The SDK's `get_final_response` knows `completed` only: after a provider's own limit it raises just the same."""
    body = {"id": "resp_1", "object": "response", "created_at": 1, "status": "in_progress", "model": "m", "output": []}
    created = frame({"type": "response.created", "sequence_number": 0, "response": body}, event="response.created")
    details = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    kind = "response.incomplete"
    last = frame({"type": kind, "sequence_number": 1, "response": {**body, **details}}, event=kind)
    (found,) = cuts(created, "responses")
    for stream in (created + last, found.body):
        assert response_helper(stream).status == "incomplete"
        with (
            openai_client(stream).responses.stream(model="m", input="Hello!") as pieces,
            pytest.raises(RuntimeError, match="Didn't receive"),
        ):
            pieces.get_final_response()


# -- by a running farebox --------------------------------------------------------------------------

on_wire = pytest.mark.asyncio(loop_scope="module")
WORDS = "abcdefgh " * 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as found:
        yield found


class Endless:
    """A provider's stream that goes on until farebox hangs up; what it said and when that was."""

    def __init__(self, begun: Iterable[bytes], going_on: Callable[[int], bytes]) -> None:
        self._begun = begun
        self._going_on = going_on
        self.hung_up = asyncio.Event()

    def script(self) -> Script:
        async def say(_: Received, wire: Wire) -> None:
            await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
            try:
                for piece in self._begun:
                    await wire.chunk(piece)
                for number in itertools.count():
                    await wire.chunk(self._going_on(number))
                    await asyncio.sleep(0.001)
            finally:
                self.hung_up.set()

        return say


async def tight(served: Serving, endless: Endless, tokens: int = 2600) -> Farebox:
    """A key with so many tokens, at a provider that would go on for ever."""
    desk = await served.desk()
    name = f"tight-{desk.farebox.key_name}"
    body = {"name": name, "budgets": [{"limit_tokens": tokens, "window": "total"}]}
    made = await desk.farebox.call("/farebox/api/keys", body, key=ADMIN_TOKEN)
    assert made.status == 201, made.body
    desk.provider.then(endless.script())
    return Farebox(served.farebox.app, json.loads(made.body)["key"], name)


async def was_cut(key: Farebox, endless: Endless) -> None:
    """The provider was hung up on, the row says why."""
    await asyncio.wait_for(endless.hung_up.wait(), 10)
    row = await key.row()
    assert (row.outcome, row.status) == ("budget_cut", 200)
    assert (row.total_tokens or 0) > 1000


@on_wire
async def test_farebox_ends_a_chat_whose_budget_is_used_up(served: Serving) -> None:
    """Both choices end with length, with the usage that was asked for; the SDK notices nothing else."""
    begun = [chat(choice(index, role="assistant", content="")) for index in (0, 1)]
    endless = Endless(begun, lambda number: chat(choice(number % 2, content=WORDS)))
    key = await tight(served, endless, 5000)
    options: dict[str, Any] = {"model": "gpt-4o", "messages": HELLO, "n": 2, "max_tokens": 50_000, "stream": True}
    async with openai_sdk(f"http://127.0.0.1:{key.port}", key.key, "async") as sdk:
        chunks = await sdk.stream(sdk.client.chat.completions.create, **options, stream_options={"include_usage": True})
    assert reasons(chunks) == {0: ["length"], 1: ["length"]}
    assert chunks[-1].usage.completion_tokens > 1000
    await was_cut(key, endless)


@on_wire
async def test_farebox_ends_a_response_whose_budget_is_used_up(served: Serving) -> None:
    """The response is incomplete, with all the text that was streamed."""
    item = {"id": "msg_1", "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    body = {"id": "resp_1", "object": "response", "created_at": 1, "status": "in_progress", "model": "m", "output": []}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}

    def event(kind: str, number: int, **members: Any) -> bytes:
        return frame({"type": kind, "sequence_number": number, **members}, event=kind)

    begun = [
        event("response.created", 0, response=body),
        event("response.output_item.added", 1, output_index=0, item=item),
        event("response.content_part.added", 2, **place, part=part),
    ]
    endless = Endless(begun, lambda number: event("response.output_text.delta", 3 + number, **place, delta=WORDS))
    key = await tight(served, endless)
    async with openai_sdk(f"http://127.0.0.1:{key.port}", key.key, "async") as sdk:
        options: dict[str, Any] = {"model": "gpt-4o", "input": "Hello!", "max_output_tokens": 50_000, "stream": True}
        events = await sdk.stream(sdk.client.responses.create, **options)
    response = events[-1].response
    assert (events[-1].type, response.incomplete_details.reason) == ("response.incomplete", "max_output_tokens")
    assert response.output_text == said(events, "response.output_text.delta") != ""
    assert response.usage.output_tokens > 1000
    assert [event.sequence_number for event in events] == list(range(len(events)))
    await was_cut(key, endless)


@on_wire
async def test_farebox_ends_a_message_whose_budget_is_used_up(served: Serving) -> None:
    """The message stops with max_tokens, its text whole; the SDK has a final message."""
    begun = [
        sent("message_start", message={**BEGUN, "usage": {"input_tokens": 5, "output_tokens": 1}}),
        sent("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    ]
    endless = Endless(begun, lambda _: delta(0, "text", text=WORDS))
    key = await tight(served, endless)
    async with anthropic_sdk(f"http://127.0.0.1:{key.port}", key.key, "async") as sdk:
        helped = sdk.client.messages.stream
        options: dict[str, Any] = {"model": "claude-opus-4-6", "messages": HELLO, "max_tokens": 50_000}
        _, message = await sdk.helped(helped, "get_final_message", **options)
    assert message.stop_reason == "max_tokens"
    assert message.content[0].text.startswith(WORDS)
    assert message.usage.output_tokens > 1000
    await was_cut(key, endless)


# -- all of them ------------------------------------------------------------------------------------


def check(operation: Operation, read: Callable[[bytes], Any], ended: Callable[[Any], bool], data: bytes) -> int:
    """Cut one stream everywhere; at how many places, 0 for one that the SDK can't read when it is whole."""
    if not readable(read, data):
        return 0
    places = list(cuts(data, operation, usage=(3, 4)))
    assert all(ended(read(found.body)) for found in places)
    return len(places)


def all_finished(chunks: list[Any]) -> bool:
    return all(reasons(chunks).values())


@corpus
@pytest.mark.long
def test_every_recorded_chat_can_be_cut_anywhere() -> None:
    """No provider's way of streaming chats leaves the SDK without a finish reason."""
    for provider, streams in every("chat").items():
        assert sum(check("chat", chat_chunks, all_finished, data) for data in streams) > 1, provider


@corpus
@pytest.mark.long
def test_every_recorded_message_can_be_cut_anywhere() -> None:
    """No recorded message leaves the SDK without a stop reason."""
    streams = [data for streams in every("messages").values() for data in streams]
    places = [check("messages", message_helper, lambda found: bool(found.stop_reason), data) for data in streams]
    assert sum(places) > 300


@corpus
@pytest.mark.long
def test_every_recorded_response_can_be_cut_anywhere() -> None:
    """No recorded response leaves the SDK's accumulator without an end."""
    streams = [data for streams in every("responses").values() for data in streams]
    ends = ("incomplete", "completed", "failed")
    places = [check("responses", response_helper, lambda found: found.status in ends, data) for data in streams]
    assert sum(places) > 300
