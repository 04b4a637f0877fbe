"""Recognises the frames that a stream mostly consists of, without decoding them.

Nearly every chunk of a stream repeats the one before it except for a few bytes of text (and
padding, and a running number). Once such a frame has been decoded and held nothing but text, its
constant parts are kept; a later chunk made of exactly these parts, with only strings or digits in
the holes between, can hold nothing else either. Comparing is several times cheaper than any
search through the chunk (measured in tests/benchmarks/meter_chunk.py), and unlike a search for
certain words it cannot overlook anything: whatever does not match is decoded.
"""

from __future__ import annotations

import re

FRAME_BYTES_MAX = 4 * 1024
"""Larger frames are not learned."""
HOLES_MAX = 4

_HOLE = re.compile(
    rb'"(?:content|text|delta|reasoning|reasoning_content|thinking)"\s{0,2}:\s{0,2}"([^"\\]*)"'
    rb'|"(?:obfuscation|p)"\s{0,2}:\s{0,2}"([^"\\]*)"'
    rb'|"sequence_number"\s{0,2}:\s{0,2}([0-9]+)'
)
"""Members whose value may change from frame to frame without meaning anything for the bill."""
_TEXT, _FILL, _DIGITS = 1, 2, 3
_QUOTE = ord('"')
"""A byte is looked for by its number: asked for a `bytes`, Python first makes an error that it then drops."""
END = b"\n\n"
"""What ends a raw frame: with it frames can follow each other."""


class Template:
    """The constant parts of one frame."""

    __slots__ = ("_lead", "_parts", "_single", "_tail")

    def __init__(self, lead: bytes, parts: list[tuple[bytes, int]]) -> None:
        self._lead = lead
        # A hole ends where the first byte of its part is: a quotation mark after a string.
        self._parts = [(part[:1], part, len(part), kind == _DIGITS, kind == _TEXT) for part, kind in parts]
        self._tail = parts[-1][0]
        self._single = len(lead) + len(self._tail) if [kind for _, kind in parts] == [_TEXT] else 0
        """Bytes of a frame whose one hole, of text, is empty; 0 where there are more holes or it is another."""

    @classmethod
    def learn(cls, frame: bytes, end: bytes = END) -> Template | None:
        """The template of a raw frame known to hold nothing but text; None where it would not be safe.

        `end` is what a frame has to end with: nothing where it is only the data of one.

        Without a backslash in the frame every quotation mark is structure, so the holes found are
        the members they seem to be.
        """
        if len(frame) > FRAME_BYTES_MAX or not frame.endswith(end) or b"\\" in frame or b"\r" in frame:
            return None
        holes = list(_HOLE.finditer(frame))
        if not 0 < len(holes) <= HOLES_MAX:
            return None
        edges = [(match.span(match.lastindex or 0), _kind(match, holes)) for match in holes]
        ends = [span[0] for span, _ in edges[1:]] + [len(frame)]
        parts = [(frame[span[1] : end], kind) for (span, kind), end in zip(edges, ends, strict=True)]
        return cls(frame[: edges[0][0][0]], parts)

    def around(self, frame: bytes, data: bytes) -> Template | None:
        """What `learn` makes of `frame`, whose data this is the template of."""
        if not frame.endswith(data + END):
            return Template.learn(frame)  # not all data, or not as it stands there
        before = frame[: -len(data + END)]
        if b"\\" in before or b"\r" in before or _HOLE.search(before):
            return None
        kinds = [_DIGITS if digits else _TEXT if text else _FILL for _, _, _, digits, text in self._parts]
        parts = [(part, kind) for (_, part, *_), kind in zip(self._parts, kinds, strict=True)]
        parts[-1] = (parts[-1][0] + END, kinds[-1])
        return Template(before + self._lead, parts)

    def text(self, chunk: bytes, *, one: bool = False) -> bytes | None:
        """The generated text in `chunk`, as escaped in JSON; None where it is not one or more whole frames of this
        template, or just `one`."""
        lead = self._lead
        if self._single and len(chunk) >= self._single and chunk.startswith(lead) and chunk.endswith(self._tail):
            text = chunk[len(lead) : -len(self._tail)]
            if _QUOTE not in text:
                return text
        position, length = 0, len(chunk)
        found: list[bytes] = []
        while position < length:
            if not chunk.startswith(lead, position):
                return None
            position += len(lead)
            for edge, part, size, digits, text_here in self._parts:
                end = chunk.find(edge, position)
                if end < 0 or not chunk.startswith(part, end) or (digits and not chunk[position:end].isdigit()):
                    return None
                if text_here:
                    found.append(chunk[position:end])
                position = end + size
            if one and position < length:
                return None
        return found[0] if len(found) == 1 else b"".join(found)


def _kind(match: re.Match[bytes], holes: list[re.Match[bytes]]) -> int:
    """What a hole holds. Reasoning that a server sends under both its names is text once."""
    kind = match.lastindex or 0
    if match[0].startswith(b'"reasoning') and any(
        hole[0].startswith(b'"reasoning') and hole.start() < match.start() for hole in holes
    ):
        return _FILL
    return kind
