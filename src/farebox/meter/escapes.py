"""Text as it stands in JSON, escaped: how much it is, and what it says. Decoded only where a backslash is in it."""

from __future__ import annotations

import json

import msgspec

_TEXT = msgspec.json.Decoder(str)


def unescape(text: bytes) -> str:
    """The text between two quotation marks of a JSON document; what is no valid text is read as it can be."""
    try:
        return _TEXT.decode(b'"' + text + b'"')
    except (msgspec.MsgspecError, ValueError):
        pass
    # Half a surrogate pair somewhere must not spoil what all the other escapes say: a whole stream may be read at once.
    kept = text.decode("utf-8", "replace")
    try:
        whole: str = json.loads(f'"{kept}"', strict=False)
    except ValueError:
        return kept.replace("\\", "")
    return whole.encode("utf-8", "replace").decode()


def size_of(text: bytes) -> int:
    """Its length in bytes of UTF-8."""
    return len(unescape(text).encode("utf-8", "replace")) if b"\\" in text else len(text)
