"""Whole answers of the ordinary kind are read in one step, and read as they would be the general way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.dialects import PROFILES, Profile
from farebox.dialects.plain import plain_usage
from farebox.dialects.usage import read_usage
from farebox.meter import Meter
from farebox.meter.reading import encoded_usage
from farebox.records import Operation
from support.answers import meter
from support.corpus import MANIFEST, bodies

JSON = "application/json"
SMALL = st.integers(0, 5)
NAMES = st.sampled_from(["a", "b", "look_up", "us"])


def told(reader: Meter) -> dict[str, Any]:
    """Everything a meter says of a whole answer, as plain data; the usage object as the JSON value it is."""
    reading = reader.finish()
    fields = {name: getattr(reading, name) for name in reading.__struct_fields__ if name != "plain"}
    raw = None if reading.usage_raw is None else json.loads(msgspec.json.encode(reading.usage_raw))
    return {**fields, "usage_raw": raw, "terminal": reader.terminal, "id": reader.stored_id, "stored": reader.stored}


def both(body: bytes, operation: Operation, profile: str | Profile) -> tuple[bool, dict[str, Any], dict[str, Any]]:
    """Whether a body was read in one step, what the meter says of it, and what it says having read it generally."""
    first, second = (meter(operation, profile=profile, stream=False, content_type=JSON) for _ in range(2))
    first.feed(body, 1.0)
    first.eof()
    second.feed(body, 1.0)
    assert second._body is not None
    second._read_any_body(second._body)
    return first._plain is not None, told(first), told(second)


@pytest.mark.skipif(not MANIFEST.exists(), reason="the shared corpus is not here")
def test_recorded_answers_are_read_alike() -> None:
    """Every recorded answer is read the same in both ways, most of OpenAI's and Anthropic's in one step."""
    at_once, all_of_them = 0, 0
    for body in bodies():
        if body.row["status"] >= 400 or not body.data.lstrip().startswith(b"{"):
            continue
        for dialect in (body.provider, "openai", "perplexity", "google"):
            plain, found, wanted = both(body.data, body.api, dialect)
            assert found == wanted, (body.row["file"], dialect)
        if body.provider in ("openai", "anthropic"):
            all_of_them += 1
            at_once += plain
    assert at_once > all_of_them / 2


def details(*names: str) -> st.SearchStrategy[dict[str, Any] | None]:
    return st.one_of(st.none(), st.fixed_dictionaries({}, optional=dict.fromkeys(names, SMALL)))


def usage(input: str, output: str) -> st.SearchStrategy[dict[str, Any]]:
    """A usage object whose total adds up."""

    def with_total(members: dict[str, Any]) -> dict[str, Any]:
        total = members[input] + members[output]
        return {"total_tokens": total, **members}

    return st.fixed_dictionaries(
        {input: st.integers(8, 20), output: st.integers(8, 20)},
        optional={
            f"{input}_details": details("cached_tokens", "cache_write_tokens", "audio_tokens", "text_tokens"),
            f"{output}_details": details("reasoning_tokens", "audio_tokens", "rejected_prediction_tokens"),
            "service_tier": st.sampled_from(["flex", "default"]),
        },
    ).map(with_total)


def answer(usage: st.SearchStrategy[Any], **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An ordinary answer with this usage and maybe these parts."""
    head = {"id": NAMES, "model": st.sampled_from(["gpt-4o", "models/gemini-2.5"]), "service_tier": NAMES}
    return st.fixed_dictionaries({"usage": usage, "error": st.none()}, optional={**head, **parts})


def some(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(parts, max_size=3)


FUNCTION = st.fixed_dictionaries({"name": NAMES, "arguments": st.just('{"a":"ü"}')})
CALL = st.fixed_dictionaries({"function": FUNCTION}, optional={"id": NAMES})
MESSAGE = st.fixed_dictionaries(
    {"content": st.text(max_size=3)}, optional={"tool_calls": some(CALL), "function_call": st.none()}
)
CHOICE = st.fixed_dictionaries({"message": MESSAGE}, optional={"finish_reason": NAMES, "usage": st.none()})
CHAT = answer(
    usage("prompt_tokens", "completion_tokens"), choices=some(CHOICE), object=NAMES, timings=st.just({"prompt_n": 3})
)
ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "reasoning", "function_call"]), "name": NAMES, "arguments": NAMES},
    optional={"id": NAMES, "namespace": st.none()},
)
RESPONSE = answer(
    usage("input_tokens", "output_tokens"),
    output=some(ITEM),
    status=st.just("completed"),
    conversation=st.fixed_dictionaries({"id": NAMES}),
)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "tool_use"]), "name": NAMES},
    optional={"input": st.just({"a": 1.5, "b": ["ü"]})},
)
LIFETIMES = st.fixed_dictionaries({"ephemeral_5m_input_tokens": SMALL, "ephemeral_1h_input_tokens": SMALL})
MESSAGES = answer(
    st.fixed_dictionaries(
        {"input_tokens": SMALL, "output_tokens": SMALL},
        optional={
            "cache_creation_input_tokens": st.one_of(st.none(), SMALL),
            "cache_read_input_tokens": SMALL,
            "cache_creation": st.one_of(st.none(), LIFETIMES),
            "service_tier": NAMES,
            "inference_geo": NAMES,
        },
    ),
    content=some(BLOCK),
    container=st.none(),
)
EMBEDDINGS = answer(
    st.fixed_dictionaries({"prompt_tokens": SMALL, "total_tokens": SMALL}), data=st.just([{"embedding": [0.1]}])
)
ANSWERS: dict[Operation, st.SearchStrategy[dict[str, Any]]] = {
    "chat": CHAT,
    "completions": CHAT,
    "responses": RESPONSE,
    "messages": MESSAGES,
    "embeddings": EMBEDDINGS,
}
MISSING = object()
ODD_NAMES = (
    *("error", "usage", "total_tokens", "service_tier", "x_groq", "usage_breakdown", "tool_usage", "container"),
    *("reasoning_tokens", "cached_tokens", "container_id", "server_label", "server_name", "image_tokens", "cost"),
    *("function_call", "tool_calls", "custom", "object", "status", "type", "input_token_count", "name", "arguments"),
)
ODD = (
    *(None, -1, 0, 5, 25, 1.5, "7", 10**15 + 1, True, 10**30, "", "two words", "é\u200b", "x" * 300, {}, []),
    *("\ud800", {"\ud800": 1}),
    *("error", "failed", "web_search_call", "some_future_type", "server_tool_use", {"error": "x"}, {"id": "c-1"}),
    *({"type": "overloaded", "code": 529}, {"num_requests": 2}, {"models": []}, {"name": "n", "arguments": "{}"}),
    {"type": "bash_code_execution_tool_result", "content": {"content": [{"file_id": "file_1"}]}},
    [{"type": "text", "text": "t"}],
)


@st.composite
def answers(draw: st.DrawFn, operation: Operation) -> dict[str, Any]:
    """An ordinary answer, with up to two oddities somewhere in it."""
    value = deepcopy(draw(ANSWERS[operation]))
    for _ in range(draw(st.integers(0, 2))):
        holders = list(_holders(value))
        holder = draw(st.sampled_from(holders))
        if isinstance(holder, list):
            holder.append(deepcopy(draw(st.sampled_from(ODD))))
            continue
        name = draw(st.sampled_from([*holder, *ODD_NAMES]))
        if name in holder and draw(st.booleans()):
            del holder[name]
        else:
            holder[name] = deepcopy(draw(st.sampled_from(ODD)))
    return value


def _names(holder: Any) -> set[str]:
    return {*holder, *ODD_NAMES} if isinstance(holder, dict) else {""}


def _holders(value: Any) -> Iterator[Any]:
    """Every object and list in `value`, itself first."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


@pytest.mark.parametrize("operation", ANSWERS)
@settings(derandomize=True, database=None, deadline=None, max_examples=80)
@given(data=st.data(), profile=st.sampled_from(["openai", "perplexity", "google", "vllm"]))
def test_any_answer_is_read_alike(operation: Operation, data: st.DataObject, profile: str) -> None:
    """Whatever a provider answers, reading it in one step says what reading it generally says, or says nothing."""
    body = json.dumps(data.draw(answers(operation))).encode()
    _, found, wanted = both(body, operation, profile)
    assert found == wanted


RICH_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 10,
    "total_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 2, "audio_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 0},
    "service_tier": "flex",
}
RICH_CHOICE = {
    "index": 0,
    "message": {"content": "t", "tool_calls": [{"id": "1", "function": {"name": "look_up", "arguments": "{}"}}]},
}
RICH_HEAD = {"id": "a-1", "model": "m-1", "service_tier": "default", "error": None}
RICH: dict[Operation, dict[str, Any]] = {
    "chat": {**RICH_HEAD, "usage": RICH_USAGE, "choices": [RICH_CHOICE], "object": "chat.completion"},
    "completions": {**RICH_HEAD, "usage": RICH_USAGE, "choices": [{"index": 0, "text": "t"}]},
    "responses": {
        **RICH_HEAD,
        "usage": {
            "input_tokens": 20,
            "output_tokens": 10,
            "total_tokens": 30,
            "input_tokens_details": {"cached_tokens": 8},
            "output_tokens_details": {"reasoning_tokens": 4},
        },
        "output": [
            {"type": "message", "id": "msg_1"},
            {"type": "function_call", "id": "fc_1", "name": "look_up", "arguments": "{}"},
        ],
        "status": "completed",
        "conversation": {"id": "conv_1"},
    },
    "messages": {
        **RICH_HEAD,
        "usage": {
            "input_tokens": 20,
            "output_tokens": 10,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 4,
            "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
            "service_tier": "standard",
            "inference_geo": "not_available",
        },
        "content": [{"type": "text", "text": "t"}, {"type": "tool_use", "name": "look_up", "input": {"a": 1.5}}],
    },
    "embeddings": {**RICH_HEAD, "usage": {"prompt_tokens": 20, "total_tokens": 20}, "data": []},
}


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("operation", RICH)
def test_each_oddity_is_read_alike(operation: Operation, every: int) -> None:
    """An ordinary answer is read in one step; with any member of it missing, odd or added it is read the same still.

    `every` third oddity of each member, beginning with another each time: the long run takes them all.
    """
    wanted_at_once = 0
    for number in range(len(list(_holders(RICH[operation])))):
        for at, name in enumerate(sorted(_names(list(_holders(RICH[operation]))[number]))):
            for odd in (MISSING, *ODD)[(number + at) % every :: every]:
                changed = deepcopy(RICH[operation])
                holder = list(_holders(changed))[number]
                if isinstance(holder, list):
                    holder.append(odd if odd is not MISSING else None)
                elif odd is not MISSING:
                    holder[name] = odd
                elif holder.pop(name, MISSING) is MISSING:
                    continue
                plain, found, wanted = both(json.dumps(changed).encode(), operation, "openai")
                assert found == wanted, (name, odd)
                wanted_at_once += plain
    assert wanted_at_once > 100
    assert both(json.dumps(RICH[operation]).encode(), operation, "openai")[0]


def _told_plainly(raw: dict[str, Any], operation: Operation, profile: Profile, model: str) -> bool:
    """Whether a usage object was read as a plain one; then it says what reading it generally says."""
    plain = plain_usage(raw, operation=operation, profile=profile, model=model)
    if plain is None:
        return False
    account = read_usage(raw, operation=operation, profile=profile, model=model)
    assert (plain[0], 0) == (account.usage, account.unexplained or 0)
    encoded = encoded_usage(raw, {})
    assert encoded is not None
    assert json.loads(msgspec.json.encode(plain[1])) == json.loads(bytes(encoded))
    return True


@pytest.mark.parametrize("operation", ["chat", "responses", "messages"])
def test_each_oddity_of_a_decoded_usage_object_is_read_alike(operation: Operation) -> None:
    """The usage object that a stream ends with is read like one in a whole answer: plainly where nothing is odd."""
    plainly = 0
    usage = RICH[operation]["usage"]
    for number in range(len(list(_holders(usage)))):
        for name in _names(list(_holders(usage))[number]):
            for odd in (MISSING, Decimal("1.5"), Decimal(7), *ODD):
                changed = deepcopy(usage)
                holder = list(_holders(changed))[number]
                if odd is not MISSING:
                    holder[name] = odd
                elif holder.pop(name, MISSING) is MISSING:
                    continue
                for profile in (PROFILES["openai"], PROFILES["perplexity"], PROFILES["google"]):
                    plainly += _told_plainly(changed, operation, profile, "m-1")
    assert plainly > 20
    assert _told_plainly(usage, operation, PROFILES["openai"], "m-1")
