"""Bounds against a real llama.cpp whose vocabulary falls back to bytes: it never counts more than the bound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from farebox.bounds import bound_of
from farebox.records import Operation
from farebox.request import read_facts
from support.http import call
from support.llama import MODEL, llama_server

for module in ("gguf", "numpy"):
    pytest.importorskip(module, reason=f"{module} makes the model; `make test` installs it")
pytest.importorskip("xllamacpp", reason="xllamacpp has no wheel for this system: there is no llama.cpp server")

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = [
    "",
    " ",
    "plain words",
    "😀👩‍👩‍👧‍👦🏳️‍🌈" * 5,
    "漢字かな交じり文" * 8,
    "ﷺ㌖é\u0301ｶﾞ" * 5,
    "\x00\x01\x02\x1b[31m\x7f\u200b\u2028" * 5,
    "<|im_start|>system<|endoftext|></s><s>[INST]<0x0A>" * 4,
    '\\"\\u0041\n\t{}[]' * 8,
    "a" * 800,
    "\n" * 150,
    "שלום עליכם مرحبا ไทย हिन्दी क़ ज़" * 4,
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's origin."""
    with llama_server(tmp_path_factory.mktemp("llama")) as origin:
        yield origin


async def counted(
    llama: str, path: str, operation: Operation, request: dict[str, Any], *, escaped: bool = False
) -> tuple[int, int]:
    """Input and output as the server counts them, after comparing them with the bound; (0, 0) where it refuses."""
    body = json.dumps({"model": MODEL, **request}, ensure_ascii=escaped, separators=(",", ":")).encode()
    bound = bound_of(operation, body, read_facts(operation, body), max_output=None, assumed_max_output=8192)
    assert bound.reason is None
    answer = await call(urlsplit(llama).port or 0, path, body)
    if answer.status != 200:
        return 0, 0
    usage = json.loads(answer.body)["usage"]
    asked = usage.get("prompt_tokens", usage.get("input_tokens"))
    told = usage.get("completion_tokens", usage.get("output_tokens", 0))
    assert asked <= bound.input_tokens, (operation, request)
    assert operation == "embeddings" or told <= bound.output_tokens
    return asked, told


async def test_no_text_counts_more_than_its_bound(llama: str) -> None:
    """Emoji, CJK, control characters, escapes and text that looks like special tokens, by every operation."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    seen = 0
    for number, text in enumerate(TEXTS):
        turn = [{"role": "user", "content": text}]
        calls: list[tuple[str, Operation, dict[str, Any]]] = [
            ("/v1/chat/completions", "chat", {"messages": turn, "max_tokens": 2}),
            ("/v1/chat/completions", "chat", {"messages": turn * 3, "max_tokens": 2, "tools": tools}),
            ("/v1/completions", "completions", {"prompt": text, "max_tokens": 2}),
            ("/v1/messages", "messages", {"messages": turn, "max_tokens": 2, "system": text}),
            ("/v1/responses", "responses", {"input": text, "max_output_tokens": 2}),
            ("/v1/embeddings", "embeddings", {"input": [text, text]}),
        ]
        for path, operation, request in calls:
            asked, _ = await counted(llama, path, operation, request, escaped=number % 2 == 1)
            seen += asked > 0
    assert seen > 50


async def test_many_short_turns_and_prompts(llama: str) -> None:
    """What a template puts around empty turns is paid by the JSON around them; ids are counted as they are."""
    turns = [{"role": role, "content": ""} for role in ("user", "assistant")] * 100
    asked, _ = await counted(llama, "/v1/chat/completions", "chat", {"messages": turns, "max_tokens": 1})
    assert asked > 0
    ids = {"prompt": list(range(3, 250)), "max_tokens": 3}
    assert await counted(llama, "/v1/completions", "completions", ids) == (247, 3)


@pytest.mark.parametrize("odd", [0, -1, 5.0, "5", True, None], ids=repr)
async def test_odd_limits_write_no_more_than_the_bound(llama: str, odd: Any) -> None:
    """Whatever the server makes of a limit, it writes no more than the bound says."""
    request = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "n_predict": odd}
    await counted(llama, "/v1/chat/completions", "chat", request)
