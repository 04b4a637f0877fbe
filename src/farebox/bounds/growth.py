"""How many bytes a text may gain before it is cut into tokens.

Some tokenizers normalise first: to NFC (Qwen), to NFKC (SentencePiece's default, the one Anthropic
published). Nearly every character stays as long or gets shorter; some hundred get longer, one of
them from 3 bytes to 33. Without them a text of a few kilobytes could be made that has several
times as many tokens as bytes. Other forms (NFD, case folding) belong to embedding models that then
drop what they split off.
"""

from __future__ import annotations

import re
from unicodedata import normalize

from farebox.jsontext import BACKSLASH, holds

_GROWING = re.compile(
    "[\xa8\xaf\xb4\xb8\xbc-\xbe\u0132-\u01f3\u02d8-\u02dd\u0344\u037a\u0384\u0385\u0587\u0675-\u0678\u0958-\u095f"
    "\u09dc-\u09df\u0a33-\u0a5e\u0b5c\u0b5d\u0e33\u0eb3\u0edc\u0edd\u0f43-\u0fb9\u1fbd-\u1ffe\u2017\u2026-\u2057"
    "\u2100-\u2189\u222c-\u2230\u2474-\u24b5\u2a0c\u2a74-\u2add\u309b-\u309f\u30ff\u3200-\u33ff\ufa00-\ufbff\ufc00-\ufdff"
    "\ufe49-\ufefc\U0001d15e-\U0001d1c0\U0001f100-\U0001f24f]"
)
"""A set that holds every character that grows, with neighbours that don't: those add nothing."""

_ESCAPED = re.compile(
    rb"\\u(0[fF]7[0-9a-fA-F]|20[35]\d|22[23][0-9a-fA-F]|2[aA]0[cC]|3[23][0-9a-fA-F]{2}|[fF][dD][fF][0-9a-fA-F])"
)
"""An escape takes 6 bytes (12 for two halves): only characters that grow beyond that matter."""

_ESCAPE_BYTES = 6


def growth_of(body: bytes) -> int:
    """Bytes that the texts in a JSON body may have, normalised, beyond those of `body`. At least 0.

    Nothing to look for in a body of plain ASCII without escapes. What is no UTF-8 counts as it stands.
    """
    gained = 0
    if BACKSLASH in body and holds(body, b"\\u", b"\\"):
        for digits in _ESCAPED.findall(body):
            gained += max(0, _length(chr(int(digits, 16))) - _ESCAPE_BYTES)
    if not body.isascii():
        for character in _GROWING.findall(body.decode("utf-8", "replace")):
            gained += max(0, _length(character) - len(character.encode()))
    return gained


def _length(character: str) -> int:
    """The longer of both forms, in bytes of UTF-8."""
    return max(len(normalize(form, character).encode()) for form in ("NFC", "NFKC"))
