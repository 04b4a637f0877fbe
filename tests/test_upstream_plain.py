"""Answers that come in one piece are read without the parser: what that gives is what the parser gives."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.upstream.answer import Answer
from farebox.upstream.errors import UpstreamError
from farebox.upstream.head import Head, read_plain
from farebox.upstream.link import Link
from farebox.upstream.shapes import SHAPES_MAX, UNKNOWN_MAX, Shapes
from support.wires import Wire

SECRET = b"sk-secret-12345"
ORDINARY = (
    b"HTTP/1.1 200 OK\r\nDate: Sun, 22 Nov 2026 04:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"X-Request-Id: req_1\r\nContent-Length: 2\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n{}"
)


class Seen(NamedTuple):
    """What came of the bytes: the head, the body, why it broke off, and whether the connection is kept."""

    head: Head | None
    body: bytes
    failure: str | None
    kept: bool | None


def answered(*pieces: bytes, bodiless: bool = False) -> Seen:
    """What an answer in these pieces is taken for."""

    async def run() -> Seen:
        loop = asyncio.get_running_loop()
        over: list[bool] = []
        link = Link(loop, memoryview(bytearray(65536)), lambda _, reusable: over.append(reusable))
        wire = Wire(loop, link)
        answer = Answer(loop, link, shapes=Shapes([SECRET]), idle_timeout_s=60, head_by=loop.time() + 60)
        link.begin(answer, b"", loop.time(), bodiless=bodiless)
        for piece in pieces:
            wire.say(piece)
        kept = over[-1] if over else None
        wire.end()
        await asyncio.sleep(0)
        body, failure = b"", None
        try:
            await answer.started()
            while piece := await answer.read():
                body += piece
        except UpstreamError as exc:
            failure = exc.kind
        link.close()
        return Seen(answer.head if answer.begun else None, body, failure, kept)

    return asyncio.run(run())


_names = st.sampled_from(
    b"content-length Content-Length content-type Content-Type transfer-encoding connection Connection keep-alive te "
    b"trailer trailers upgrade proxy-authenticate proxy-connection content-encoding x-request-id Request-Id "
    b"x-farebox-request-id X-Farebox location set-cookie date server".split()
) | st.from_regex(rb"\A[!#$%&'*+.^_`|~0-9A-Za-z :()-]{0,12}\Z")
_odd = b"2, 2|2 |text/event-stream; charset=utf-8|a\tb|\xc3\xa9|\xff||a".split(b"|")
_usual = b"0 2 02 +2 3 chunked close keep-alive Keep-Alive upgrade identity gzip".split()
_values = st.sampled_from([*_odd, *_usual, SECRET, b"a" + SECRET]) | st.binary(max_size=6)
_spaces = st.sampled_from((b": ", b":", b":  ", b":\t", b" : "))
_ends = st.sampled_from((b"\r\n", b" \r\n", b"\n"))
_line = st.builds(lambda *parts: b"".join(parts), _names, _spaces, _values, _ends)
_tidy = st.builds(lambda name, value: name + b": " + value + b"\r\n", _names, _values)
_status = st.sampled_from(
    (
        *(b"200 OK", b"201 ", b"404 Not Found", b"204 No Content", b"304 Not Modified", b"100 Continue"),
        *(b"101 Switching", b"200", b"999 Odd", b"500 \xff", b"200 a\tb"),
    )
)
_answers = st.builds(
    lambda version, status, lines, end, body: version + b" " + status + b"\r\n" + b"".join(lines) + end + body,
    st.sampled_from((b"HTTP/1.1", b"HTTP/1.0", b"http/1.1")),
    _status,
    st.lists(_tidy | _line, max_size=6),
    st.sampled_from((b"\r\n", b"Content-Length: 2\r\n\r\n", b"content-length: 2\r\nServer: x\r\n\r\n", b"\n")),
    st.sampled_from((b"{}", b"", b"{}x", b"{", b"2\r\n{}\r\n0\r\n\r\n")),
)
_pairs = st.tuples(_names, st.sampled_from([*_odd, *_usual]))
_nearly = st.builds(
    lambda line, at: ORDINARY[:at] + line + ORDINARY[at:],
    st.builds(lambda pair: b"%b: %b\r\n" % pair, _pairs),
    st.sampled_from([at + 2 for at in range(len(ORDINARY)) if ORDINARY.startswith(b"\r\n", at)][:-1]),
)


def test_an_ordinary_answer_needs_no_parser() -> None:
    """The head that nearly all providers send is read at once: all of its fields but the connection's own."""
    found = read_plain(ORDINARY, [SECRET])
    assert found is not None
    head, body = found
    assert body == b"{}"
    assert head.lines == (
        b"Date: Sun, 22 Nov 2026 04:00:00 GMT\r\nContent-Type: application/json\r\nX-Request-Id: req_1\r\n"
    )
    assert (head.status, head.length, head.content_type, head.request_id) == (200, 2, "application/json", "req_1")
    assert answered(ORDINARY) == Seen(head, b"{}", None, True)


@given(_answers | _nearly, st.integers(1, 400))
def test_one_piece_says_what_two_say(data: bytes, at: int) -> None:
    """However odd an answer is, it means the same whether it is read at once or parsed in two pieces."""
    at = min(at, len(data) - 1)
    whole, parted = answered(data), answered(data[:at], data[at:])
    # What turns out to be broken before anything of it was passed on is no answer at all.
    assert whole == parted or whole.failure == "broken_answer"


@given(_answers | _nearly)
def test_what_is_read_at_once_is_what_the_parser_reads(data: bytes) -> None:
    """Where an answer is taken for an ordinary one, the parser takes it for the same."""
    found = read_plain(data, [SECRET])
    if found is not None:
        assert answered(data[:9], data[9:]) == Seen(found[0], found[1], None, True)


@given(st.lists(_answers | _nearly, max_size=6), _answers | _nearly)
def test_what_was_read_before_changes_nothing(before: list[bytes], data: bytes) -> None:
    """An answer of a known shape is read as one of an unknown shape is."""
    shapes = Shapes([SECRET])
    for earlier in [ORDINARY, *before]:
        shapes.read(earlier)
    assert shapes.read(data) == read_plain(data, [SECRET])
    assert shapes.read(data) == read_plain(data, [SECRET])


@given(_pairs, st.binary(max_size=4), _status)
def test_a_known_shape_with_other_values(field: tuple[bytes, bytes], body: bytes, status: bytes) -> None:
    """Whatever stands in the fields of a head whose names are known, it means what it meant without knowing them."""

    def said(value: bytes, length: int) -> bytes:
        head = b"HTTP/1.1 %b\r\nA: %b\r\n%b: %b\r\nConnection: %b\r\nX-Request-Id: %b\r\n"
        fields = head % (status, value, field[0], value, value, value)
        return fields + b"Content-Type: a/%b\r\nContent-Length: %d\r\n\r\n" % (value, length) + body

    shapes = Shapes([SECRET])
    first = said(b"keep-alive", len(body)).replace(status, b"200 OK")
    shapes.read(first)
    for data in (first, *(said(value, len(body) + more) for value in (field[1], SECRET) for more in (0, 1))):
        assert shapes.read(data) == read_plain(data, [SECRET])


def test_shapes_are_bounded() -> None:
    """So many are kept; a further one waits until the known ones have not fitted for long."""

    def answer(number: int) -> bytes:
        return b"HTTP/1.1 200 OK\r\nX-%d: y\r\nContent-Length: 0\r\n\r\n" % number

    shapes = Shapes([])
    for number in range(SHAPES_MAX + 1):
        assert shapes.read(answer(number)) == read_plain(answer(number), [])
    known = list(shapes._shapes)
    assert len(known) == SHAPES_MAX
    for _ in range(UNKNOWN_MAX):
        shapes.read(answer(SHAPES_MAX))
    assert len(shapes._shapes) == SHAPES_MAX and list(shapes._shapes)[1:] == known[:-1]


@pytest.mark.parametrize("at", range(1, len(ORDINARY)))
def test_an_ordinary_answer_in_two_pieces(at: int) -> None:
    """Wherever an ordinary answer is cut, it is the same answer."""
    assert answered(ORDINARY[:at], ORDINARY[at:]) == answered(ORDINARY)


def test_what_answers_head_has_no_body() -> None:
    """An announced length is no body where only a head was asked for."""
    assert answered(ORDINARY.removesuffix(b"{}"), bodiless=True).body == b""
