"""The text of a prompt, gathered from a request body for counting: only when a provider reports no usage.

One walk serves every family, because they differ in names more than in shape: a request holds
texts, lists of blocks, and blocks that hold texts and lists again. Each block is read by the same
few members; whatever else it has (ids, base64 data, cache marks) is skipped unbuilt. What is no
text is counted by kind, so that `tokens` can put an estimate on it and the row can say it guessed.

The result holds prompt text. It is counted and dropped, never stored or logged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from farebox.jsontext import decode_members
from farebox.records import Operation

Kind = Literal["image", "audio", "video", "file"]

DEPTH_MAX = 8
"""Blocks within blocks that are walked (a tool result in a message is 3); deeper ones count as bytes."""

BLOCKS_MAX = 100_000
"""Values walked in one request, and elements of one list (judged by its commas); what is beyond counts as bytes."""

_RAW = msgspec.Raw()

_KINDS: dict[str, Kind] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "computer_screenshot": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
    "document": "file",
    "file": "file",
    "input_file": "file",
}


@dataclass(slots=True)
class Prompt:
    """What a request puts in front of a model.

    texts         the pieces of text, in no promised order
    token_ids     tokens that the client counted itself, by sending arrays of them
    messages      turns and other items that a chat template wraps
    names         members `name` of such turns
    tools         the request offers tools
    others        blocks that are not text, by kind
    unread_bytes  JSON that could not be walked: to be counted by its size
    walked        values looked at so far
    """

    texts: list[str] = field(default_factory=list)
    token_ids: int = 0
    messages: int = 0
    names: int = 0
    tools: bool = False
    others: dict[Kind, int] = field(default_factory=dict)
    unread_bytes: int = 0
    walked: int = 0


class _Body(msgspec.Struct):
    system: msgspec.Raw = _RAW
    instructions: msgspec.Raw = _RAW
    messages: msgspec.Raw = _RAW
    input: msgspec.Raw = _RAW
    prompt: msgspec.Raw = _RAW
    suffix: msgspec.Raw = _RAW
    tools: msgspec.Raw = _RAW
    functions: msgspec.Raw = _RAW
    response_format: msgspec.Raw = _RAW
    text: msgspec.Raw = _RAW


class _Block(msgspec.Struct):
    type: msgspec.Raw = _RAW
    role: msgspec.Raw = _RAW
    name: msgspec.Raw = _RAW
    text: msgspec.Raw = _RAW
    refusal: msgspec.Raw = _RAW
    thinking: msgspec.Raw = _RAW
    content: msgspec.Raw = _RAW
    summary: msgspec.Raw = _RAW
    output: msgspec.Raw = _RAW
    tool_calls: msgspec.Raw = _RAW
    function_call: msgspec.Raw = _RAW
    function: msgspec.Raw = _RAW
    custom: msgspec.Raw = _RAW
    arguments: msgspec.Raw = _RAW
    input: msgspec.Raw = _RAW
    source: msgspec.Raw = _RAW


class _Source(msgspec.Struct):
    type: msgspec.Raw = _RAW
    data: msgspec.Raw = _RAW
    content: msgspec.Raw = _RAW


_BODY = msgspec.json.Decoder(_Body)
_BLOCK = msgspec.json.Decoder(_Block)
_SOURCE = msgspec.json.Decoder(_Source)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_STR = msgspec.json.Decoder(str)

_TURNS: frozenset[Operation] = frozenset(("chat", "messages", "responses"))
_WALKED = (
    "text",
    "refusal",
    "thinking",
    "content",
    "summary",
    "output",
    "tool_calls",
    "function_call",
    "function",
    "custom",
)
_MAYBE_IDS = re.compile(rb"\[\s*(?:\[\s*)?\d")
_DIGITS = bytes.maketrans(b"0123456789,[] \t\r\n", b"1111111111       ")


def read_prompt(operation: Operation, body: bytes) -> Prompt:
    """The prompt in a request body (decoded, UTF-8). Never raises: what cannot be walked is counted in bytes."""
    prompt = Prompt()
    members = decode_members(body, _BODY)
    if members is None:
        prompt.unread_bytes = len(body)
        return prompt
    turns = operation in _TURNS
    for raw in (members.system, members.instructions):
        if _holds(raw):
            _add_turn("system", prompt, turns=turns)
            _walk(raw, prompt, 0)
    for raw in (members.messages, members.input):
        if _holds(raw):
            _read_turns(raw, prompt, turns=turns)
    for raw in (members.prompt, members.suffix):
        if raw:
            _walk(raw, prompt, 0)
    for raw in (members.tools, members.functions):
        prompt.tools |= _as_json(raw, prompt)
    for raw in (members.response_format, members.text):
        if b'"schema"' in bytes(raw):  # the schema is shown to the model, a mere format name is not
            _as_json(raw, prompt)
    return prompt


def _read_turns(raw: msgspec.Raw, prompt: Prompt, *, turns: bool) -> None:
    """A member that holds the turns of a conversation, or just a text (one turn), or texts or token ids."""
    if not _opens(raw, b"["):
        _add_turn("user", prompt, turns=turns)
        _walk(raw, prompt, 0)
    elif not _token_ids(raw, prompt):
        items = _items(raw, prompt)
        prompt.messages += len(items) if turns else 0
        for item in items:
            _walk(item, prompt, 1, turn=turns)


def _walk(raw: msgspec.Raw, prompt: Prompt, depth: int, *, turn: bool = False) -> None:
    """Add the text in any value: a string, a list, or a block."""
    prompt.walked += 1
    if depth > DEPTH_MAX or prompt.walked > BLOCKS_MAX:
        prompt.unread_bytes += memoryview(raw).nbytes
    elif _opens(raw, b'"'):
        _add_text(raw, prompt)
    elif _opens(raw, b"["):
        if not _token_ids(raw, prompt):
            for item in _items(raw, prompt):
                _walk(item, prompt, depth + 1)
    elif _opens(raw, b"{"):
        _walk_block(raw, prompt, depth, turn=turn)


def _walk_block(raw: msgspec.Raw, prompt: Prompt, depth: int, *, turn: bool) -> None:
    block = decode_members(raw, _BLOCK)
    if block is None:
        prompt.unread_bytes += memoryview(raw).nbytes
        return
    kind = _KINDS.get(_string(block.type))
    if kind is not None:
        if not (kind == "file" and _walk_document(block.source, prompt, depth)):
            prompt.others[kind] = prompt.others.get(kind, 0) + 1
        return
    for name in _WALKED:
        value = getattr(block, name)
        if value:
            _walk(value, prompt, depth + 1)
    for value in (block.arguments, block.input):
        # Strings of JSON in OpenAI's calls, objects in Anthropic's: the model sees JSON either way.
        if _opens(value, b'"'):
            _add_text(value, prompt)
        else:
            _as_json(value, prompt)
    for value in (block.name, block.role):
        if value:
            _walk(value, prompt, depth + 1)
    prompt.names += turn and bool(block.name) and bool(block.role)


def _walk_document(source: msgspec.Raw, prompt: Prompt, depth: int) -> bool:
    """Anthropic's document block, if its source is text or blocks rather than data or an address."""
    document = decode_members(source, _SOURCE) if source else None
    if document is None:
        return False
    form = _string(document.type)
    if form == "text" and document.data:
        _walk(document.data, prompt, depth + 1)
    elif form == "content" and document.content:
        _walk(document.content, prompt, depth + 1)
    else:
        return False
    return True


def _add_turn(role: str, prompt: Prompt, *, turns: bool) -> None:
    """A turn that the API makes of a bare text."""
    if turns:
        prompt.messages += 1
        prompt.texts.append(role)


def _holds(raw: msgspec.Raw) -> bool:
    """The member is there and not null."""
    return bool(raw) and not _opens(raw, b"n")


def _opens(raw: msgspec.Raw, mark: bytes) -> bool:
    return bytes(memoryview(raw)[:1]) == mark


def _items(raw: msgspec.Raw, prompt: Prompt) -> list[msgspec.Raw]:
    """The elements of a list; none, and its bytes counted, if there are too many."""
    text = bytes(raw)
    if text.count(b",") < BLOCKS_MAX:
        try:
            return _LIST.decode(text)
        except (msgspec.DecodeError, RecursionError):
            pass
    prompt.unread_bytes += len(text)
    return []


def _token_ids(raw: msgspec.Raw, prompt: Prompt) -> bool:
    """Count a list of token ids, or a list of such lists, exactly; False for any other list."""
    if _MAYBE_IDS.match(raw) is None:
        return False
    plain = bytes(raw).translate(_DIGITS)
    if plain.strip(b"1 "):
        return False
    prompt.token_ids += plain.count(b" 1")  # the opening bracket became the blank before the first
    return True


def _string(raw: msgspec.Raw) -> str:
    try:
        return _STR.decode(bytes(raw)) if raw and memoryview(raw).nbytes <= 64 else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _add_text(raw: msgspec.Raw, prompt: Prompt) -> None:
    try:
        prompt.texts.append(_STR.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        prompt.unread_bytes += memoryview(raw).nbytes


def _as_json(raw: msgspec.Raw, prompt: Prompt) -> bool:
    """Text of a value as it stands, for what a template renders from JSON; False if there is nothing in it."""
    value = bytes(raw)
    if value in (b"", b"null", b"[]"):
        return False
    prompt.texts.append(value.decode("utf-8", "replace"))
    return True
