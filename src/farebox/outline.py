"""A JSON text without its long strings: all that is to be known of a large request, in a few hundred bytes.

What makes a prompt large are a few long strings: a document, an image. Nothing that farebox acts on
stands in one, so whoever looks for members looks into the outline, where each of them is empty. They
are found by searches for one byte, a thirtieth of the cost of reading them.

A parser that takes a text at all ends a string at its first quote that is not escaped, whatever else
it tolerates in it. So a text whose outline is JSON has, to every such parser, the members of its
outline; what it says in a long string is not judged, here or by who reads the outline.
"""

from __future__ import annotations

from farebox.pieces import Pieces, at_once

LONG_BYTES = 64 * 1024
"""A string this long, or longer, is left out."""

_BLOCK_BYTES = LONG_BYTES // 2
"""A long string without a quote in it covers at least one such block of the text."""
_STEPS = 256
_STEP_BYTES = 1024
"""Quotes looked at: so many, and one for so many bytes. A text with more is parsed as fast as it is searched."""
_FEW = 24
"""After so many quotes it is seen first whether any long string may follow, for who calls with many short ones."""
_STEPS_AT_ONCE = 4096
_PIECE_BYTES = 4 * 1024 * 1024
"""After so many quotes, or so many bytes without one, others may have their turn."""
_RUN = 64
"""Backslashes in a row that are counted."""


def outline(text: bytes) -> bytes:
    """`text` with each long string empty; `text` itself where it is short, or made of short strings.

    Where there are too many quotes to look at, the rest stays as it is.
    """
    return text if len(text) < LONG_BYTES else at_once(outlining(text))


def outlining(text: bytes) -> Pieces[bytes]:
    """`outline`, in pieces."""
    if len(text) < LONG_BYTES or b"\0" in text[:4]:  # UTF-16, to those who take it: other bytes, other quotes
        return text
    kept: list[memoryview] = []
    view = memoryview(text)
    copied = at = 0
    opening = -1
    for step in range(1, _STEPS + len(text) // _STEP_BYTES):
        if step == _FEW and not _has_bare_block(text, at):
            break
        if step % _STEPS_AT_ONCE == 0:
            yield
        while (found := text.find(b'"', at, at + _PIECE_BYTES)) < 0 and at < len(text):
            at += _PIECE_BYTES
            yield
        at = found
        if at < 0:
            break
        if opening < 0:
            opening = at
        elif (backslashes := _backslashes(text[max(opening + 1, at - _RUN) : at])) == _RUN:
            break
        elif backslashes % 2 == 0:
            if at - opening >= LONG_BYTES:
                kept.append(view[copied : opening + 1])
                copied = at
            opening = -1
        at += 1
    return b"".join((*kept, view[copied:])) if kept else text


def _has_bare_block(text: bytes, start: int) -> bool:
    """Whether any block of `text` from `start` on is without quotes."""
    last = len(text) - _BLOCK_BYTES
    return any(text.find(b'"', at, at + _BLOCK_BYTES) < 0 for at in range(start, last + 1, _BLOCK_BYTES))


def _backslashes(before: bytes) -> int:
    """How many of them stand at the end."""
    return len(before) - len(before.rstrip(b"\\"))
