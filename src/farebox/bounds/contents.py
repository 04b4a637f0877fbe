"""Why the contents of a request may cost more than its bytes say: what in its turns and tools is no text.

Only what is known to be text passes. A block, an item or a tool of any other kind, today's or one
invented tomorrow, is named as the reason why there is no bound: a picture is a few bytes of address
and thousands of tokens, a hosted tool reads whole web sites, a stored item is an id.

The walk reads the members it needs and skips the rest unbuilt; texts are never decoded. It finds,
it does not count, but for the JSON that providers write out anew for the model.
"""

from __future__ import annotations

from operator import attrgetter

import msgspec

from farebox.bounds import plain
from farebox.jsontext import decode_members

IMAGE, AUDIO, VIDEO, FILE = "an image", "audio", "a video", "a file"
HOSTED_TOOL = "a tool the provider runs"
HOSTED_RESULT = "the result of a tool the provider runs"
STORED = "an item stored at the provider"
COMPACTED = "a compacted context"
UNKNOWN = "content of a kind farebox does not know"
UNREADABLE = "contents farebox cannot read"

DEPTH_MAX = 4
"""Lists of blocks within blocks: text in a tool's result in a turn is 2. Deeper is UNREADABLE."""

_RAW = msgspec.Raw()
_TEXTS = frozenset(
    ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text", "redacted_thinking", "tool_use")
)
_NESTED = frozenset(("thinking", "tool_result"))
_REASONS = {
    **dict.fromkeys(("image", "image_url", "input_image", "computer_screenshot", "computer_call_output"), IMAGE),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), AUDIO),
    **dict.fromkeys(("video", "video_url", "input_video"), VIDEO),
    **dict.fromkeys(("file", "file_url", "input_file", "container_upload", "document", "document_url"), FILE),
    **dict.fromkeys(("compaction", "compaction_summary", "context_compaction"), COMPACTED),
    "item_reference": STORED,
}
_CALLS = frozenset(("function_call", "custom_tool_call"))
_OUTPUTS = frozenset(("function_call_output", "custom_tool_call_output"))
PLAIN_TOOLS = frozenset(("", "function", "custom"))


class _Media(msgspec.Struct):
    """Members that bring something besides text, whatever the `type` beside them says."""

    image: msgspec.Raw = _RAW
    images: msgspec.Raw = _RAW
    image_url: msgspec.Raw = _RAW
    audio: msgspec.Raw = _RAW
    audio_url: msgspec.Raw = _RAW
    input_audio: msgspec.Raw = _RAW
    video: msgspec.Raw = _RAW
    video_url: msgspec.Raw = _RAW
    file: msgspec.Raw = _RAW
    file_id: msgspec.Raw = _RAW
    file_ids: msgspec.Raw = _RAW
    file_url: msgspec.Raw = _RAW
    file_data: msgspec.Raw = _RAW
    attachments: msgspec.Raw = _RAW
    inline_data: msgspec.Raw = _RAW


class _Turn(_Media):
    """A message of a chat or an item of a Responses input."""

    type: msgspec.Raw = _RAW
    role: msgspec.Raw = _RAW
    content: msgspec.Raw = _RAW
    output: msgspec.Raw = _RAW
    arguments: msgspec.Raw = _RAW
    input: msgspec.Raw = _RAW
    tool_calls: msgspec.Raw = _RAW
    function_call: msgspec.Raw = _RAW
    id: msgspec.Raw = _RAW
    encrypted_content: msgspec.Raw = _RAW


class _Part(_Media):
    """A block of a turn's content."""

    type: msgspec.Raw = _RAW
    text: msgspec.Raw = _RAW
    content: msgspec.Raw = _RAW
    thinking: msgspec.Raw = _RAW
    input: msgspec.Raw = _RAW
    source: msgspec.Raw = _RAW
    citations: msgspec.Raw = _RAW


class _Typed(msgspec.Struct):
    type: msgspec.Raw = _RAW


_TURNS = msgspec.json.Decoder(list[_Turn])
_PARTS = msgspec.json.Decoder(list[_Part])
_PART = msgspec.json.Decoder(_Part)
_KINDS = msgspec.json.Decoder(list[_Typed])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_STR = msgspec.json.Decoder(str)
_MEDIA = {
    **dict.fromkeys(("image", "images", "image_url"), IMAGE),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), AUDIO),
    **dict.fromkeys(("video", "video_url"), VIDEO),
    **dict.fromkeys(("file", "file_id", "file_ids", "file_url", "file_data", "attachments", "inline_data"), FILE),
}
_N = ord("n")
_MEDIA_OF = attrgetter(*_MEDIA)
_TYPED = msgspec.json.Decoder(_Typed)


class Contents:
    """What was found so far in one request.

    reason    the first thing that has no bound, None: all of it is text
    rendered  bytes of JSON that the provider writes out anew for the model: calls of tools
    """

    __slots__ = ("reason", "rendered")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.rendered = 0

    def turns(self, raw: msgspec.Raw, *, items: bool = False) -> None:
        """The turns of a chat, or (`items`) the input of a response: a list of them, or a text."""
        if not holds(raw) or opens(raw, b'"'):
            return
        rendered = plain.rendered_of(raw, items=items)
        if rendered is None:
            self.walk(raw)
        else:
            self.rendered += rendered

    def walk(self, raw: msgspec.Raw) -> None:
        """The same for a list that is not plainly text, member by member."""
        turns = decode_members(raw, _TURNS) if opens(raw, b"[") else None
        if turns is None:
            self.reason = self.reason or UNREADABLE
            return
        for turn in turns:
            self._turn(turn)
            if self.reason is not None:
                return

    def blocks(self, raw: msgspec.Raw, depth: int = 0) -> None:
        """The content of a turn, a system prompt or a tool's result: a text, or a list of blocks and texts."""
        if not opens(raw, b"["):
            if holds(raw) and not opens(raw, b'"'):
                self.reason = self.reason or UNREADABLE
            return
        parts = decode_members(raw, _PARTS) if depth < DEPTH_MAX else None
        if parts is None:
            parts = self._mixed(raw) if depth < DEPTH_MAX else None
        if parts is None:
            self.reason = self.reason or UNREADABLE
            return
        for part in parts:
            self._part(part, depth)

    def tools(self, raw: msgspec.Raw) -> None:
        """The tools offered: those that the client runs itself cost their description and nothing more."""
        if not holds(raw):
            return
        types = kinds(raw)
        if types is None:
            self.reason = self.reason or UNREADABLE
        elif not PLAIN_TOOLS.issuperset(types):
            self.reason = self.reason or HOSTED_TOOL

    def _mixed(self, raw: msgspec.Raw) -> list[_Part] | None:
        """A list in which some blocks are bare texts; those need no look."""
        items = decode_members(raw, _ITEMS)
        if items is None:
            return None
        parts = [decode_members(item, _PART) for item in items if not opens(item, b'"')]
        return None if None in parts else [part for part in parts if part is not None]

    def _turn(self, turn: _Turn) -> None:
        kind = string(turn.type)
        self._media(turn)
        for raw in (turn.tool_calls, turn.function_call, turn.arguments, turn.input):
            self.rendered += size(raw)
        if kind in ("", "message") and (not holds(turn.type) or kind):
            if not turn.role and holds(turn.id):
                self.reason = self.reason or STORED
            self.blocks(turn.content)
        elif kind in _OUTPUTS:
            self.blocks(turn.output)
        elif kind == "reasoning":
            # With its id alone it stands for what the provider kept of it.
            if holds(turn.id) and not holds(turn.encrypted_content):
                self.reason = self.reason or STORED
            self.blocks(turn.content)
        elif kind not in _CALLS:
            self.reason = self.reason or _REASONS.get(kind) or (HOSTED_RESULT if "call" in kind else UNKNOWN)

    def _part(self, part: _Part, depth: int) -> None:
        kind = string(part.type)
        self._media(part)
        self.rendered += size(part.input)
        if kind in _TEXTS or (not part.type and part.text):
            return
        if kind in _NESTED:
            self.blocks(part.content, depth + 1)
            self.blocks(part.thinking, depth + 1)
        elif kind == "document" and not holds(part.citations) and _is_text(part.source):
            return
        else:
            hosted = kind.endswith("_tool_result") or kind in ("server_tool_use", "mcp_tool_use")
            self.reason = self.reason or _REASONS.get(kind) or (HOSTED_RESULT if hosted else UNKNOWN)

    def _media(self, holder: _Media) -> None:
        if any(_MEDIA_OF(holder)) and self.reason is None:
            self.reason = next((reason for name, reason in _MEDIA.items() if holds(getattr(holder, name))), None)


def kinds(raw: msgspec.Raw) -> list[str] | None:
    """The types in a list of objects: "" for one without, "?" for one that can't be read; None: it is no such list."""
    items = decode_members(raw, _KINDS) if raw else None
    return None if items is None else [(string(item.type) or "?") if holds(item.type) else "" for item in items]


def holds(raw: msgspec.Raw) -> bool:
    """The member is there and not null."""
    return bool(raw) and memoryview(raw)[0] != _N


def opens(raw: msgspec.Raw, mark: bytes) -> bool:
    """Whether the member's JSON begins with `mark`, one byte."""
    return bool(raw) and memoryview(raw)[0] == mark[0]


def size(raw: msgspec.Raw) -> int:
    """Bytes of the member's JSON."""
    return memoryview(raw).nbytes


def string(raw: msgspec.Raw) -> str:
    """A short string, such as a type; "" for everything else."""
    try:
        return _STR.decode(raw) if raw and size(raw) <= 64 and opens(raw, b'"') else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _is_text(source: msgspec.Raw) -> bool:
    """The source of one of Anthropic's documents, if it is text in the request."""
    kind = decode_members(source, _TYPED) if source else None
    return kind is not None and string(kind.type) == "text"
