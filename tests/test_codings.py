"""Content codings undone: whole bodies within a bound, responses piece by piece without ever raising."""

from __future__ import annotations

import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.codings import AT_ONCE_BYTES, EMPTY_MEMBERS_MAX, Decoder, decode_body, decoding
from farebox.errors import BadEncoding, BodyTooLarge

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=60)
MIB = 1024 * 1024
TEXT = "".join(f'data: {{"n":{number},"text":"añ🦀"}}\n\n' for number in range(400)).encode()


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip,
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=5),
    "zstd": zstd.compress,
}
every_coding = pytest.mark.parametrize("coding", ENCODERS)


def stack(data: bytes, codings: list[str]) -> bytes:
    for coding in codings:
        data = ENCODERS[coding](data)
    return data


def feed_in(decoder: Decoder, data: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return b"".join(decoder.feed(data[start:end]) for start, end in pairwise(places))


@fixed
@given(
    data=st.binary(max_size=3000) | st.text(max_size=800).map(str.encode),
    codings=st.lists(st.sampled_from(list(ENCODERS)), max_size=3),
    cuts=st.lists(st.integers(0, 4000), max_size=6),
)
def test_any_stack_of_codings_is_undone_wherever_it_is_cut(data: bytes, codings: list[str], cuts: list[int]) -> None:
    """What was encoded comes back, as a body and as a response in pieces."""
    packed = stack(data, codings)
    header = ", ".join(codings)
    assert decode_body(packed, header, len(data) + len(packed) + 200) == data
    decoder = Decoder(header)
    assert feed_in(decoder, packed, cuts) == data
    assert decoder.complete
    assert not decoder.broken


@every_coding
def test_a_response_is_readable_byte_by_byte(coding: str) -> None:
    """The smallest pieces give the same bytes as the whole, and the end is known only at the end."""
    packed = ENCODERS[coding](TEXT)
    decoder = Decoder(coding)
    read = b""
    for at in range(len(packed)):
        assert at == 0 or not decoder.complete
        read += decoder.feed(packed[at : at + 1])
    assert read == TEXT
    assert decoder.complete


@every_coding
def test_long_repetitions_are_read_to_their_end(coding: str) -> None:
    """A few bytes that stand for megabytes leave nothing waiting inside a decoder."""
    packed = ENCODERS[coding](bytes(3 * MIB))
    assert decode_body(packed, coding, 3 * MIB) == bytes(3 * MIB)
    decoder = Decoder(coding)
    assert len(decoder.feed(packed)) == 3 * MIB
    assert decoder.complete


@every_coding
def test_a_flushed_stream_is_readable_before_it_ends(coding: str) -> None:
    """Each event a server flushes can be read when it arrives, not when the response is over."""
    decoder = Decoder(coding)
    if coding == "br":
        stream = brotli.Compressor()
        first = stream.process(b"data: 1\n\n") + stream.flush()
        second = stream.process(b"data: 2\n\n") + stream.flush()
    elif coding == "zstd":
        frame = zstd.ZstdCompressor()
        first = frame.compress(b"data: 1\n\n", zstd.ZstdCompressor.FLUSH_BLOCK)
        second = frame.compress(b"data: 2\n\n", zstd.ZstdCompressor.FLUSH_BLOCK)
    else:
        packer = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
        first = packer.compress(b"data: 1\n\n") + packer.flush(zlib.Z_SYNC_FLUSH)
        second = packer.compress(b"data: 2\n\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    assert decoder.feed(first) == b"data: 1\n\n"
    assert decoder.feed(second) == b"data: 2\n\n"


@pytest.mark.parametrize("header", ["", "identity", " Identity , "])
def test_a_body_without_a_coding_is_handed_back_itself(header: str) -> None:
    """Nothing is copied where there is nothing to undo."""
    body = b"{}" * 10
    assert decode_body(body, header, 20) is body
    decoder = Decoder(header)
    assert decoder.identity
    assert decoder.feed(body) is body
    assert decoder.complete


@pytest.mark.parametrize("header", ["GZIP", "x-gzip", " gzip ", "identity, gzip", ",gzip,"])
def test_coding_names_are_read_as_http_writes_them(header: str) -> None:
    """Case, blanks, empty list elements and the old alias make no difference."""
    assert decode_body(gzip(b"x"), header, 10) == b"x"


def test_raw_deflate_is_told_from_the_zlib_form() -> None:
    """Both things that servers call deflate are read, even when the first byte arrives alone."""
    for packed in (raw_deflate(TEXT), zlib.compress(TEXT), zlib.compress(TEXT, wbits=9)):
        assert decode_body(packed, "deflate", len(TEXT)) == TEXT
        assert feed_in(Decoder("deflate"), packed, [1]) == TEXT


def test_gzip_members_follow_each_other() -> None:
    """A body of several members is their concatenation; zero padding after one is no fault."""
    packed = gzip(b"one ") + gzip(b"") + gzip(b"two") + bytes(600)
    assert decode_body(packed, "gzip", 7) == b"one two"
    decoder = Decoder("gzip")
    assert b"".join(decoder.feed(packed[at : at + 1]) for at in range(len(packed))) == b"one two"
    assert decoder.complete


def test_zstd_frames_follow_each_other() -> None:
    """Several frames are their concatenation, and a skippable frame adds nothing."""
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    packed = zstd.compress(b"one ") + skippable + zstd.compress(b"two")
    assert decode_body(packed, "zstd", 7) == b"one two"
    assert feed_in(Decoder("zstd"), packed, list(range(len(packed)))) == b"one two"


@every_coding
def test_an_empty_body_is_empty_in_every_coding(coding: str) -> None:
    """A client that announces a coding and sends no body is not at fault."""
    assert decode_body(b"", coding, 0) == b""
    assert Decoder(coding).complete


@pytest.mark.parametrize("coding", ["identity", *ENCODERS])
def test_the_limit_is_exact(coding: str) -> None:
    """A body of just the limit passes; one byte more is refused with 413."""
    packed = TEXT if coding == "identity" else ENCODERS[coding](TEXT)
    assert decode_body(packed, coding, len(TEXT)) == TEXT
    with pytest.raises(BodyTooLarge) as caught:
        decode_body(packed, coding, len(TEXT) - 1)
    assert caught.value.status == 413


@every_coding
def test_a_bomb_costs_no_more_memory_than_the_limit(coding: str) -> None:
    """16 MiB in a few kB are refused after the limit, not after unpacking."""
    bomb = ENCODERS[coding](bytes(16 * MIB))
    decode_body(ENCODERS[coding](b"warm"), coding, 10)
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decode_body(bomb, coding, MIB)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_a_bomb_that_yields_nothing_in_the_end_is_refused_too() -> None:
    """Padding unpacked by an outer coding and skipped by an inner one still counts against the limit."""
    with pytest.raises(BodyTooLarge):
        decode_body(gzip(gzip(b"") + bytes(8 * MIB)), "gzip, gzip", MIB)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_members_without_content_are_bounded(coding: str) -> None:
    """A body made of empty members, which never reaches a limit on output, is refused as corrupt."""
    empty = ENCODERS[coding](b"")
    assert decode_body(empty * EMPTY_MEMBERS_MAX, coding, 10) == b""
    with pytest.raises(BadEncoding):
        decode_body(empty * (EMPTY_MEMBERS_MAX + 1), coding, 10)
    alternating = (empty * EMPTY_MEMBERS_MAX + ENCODERS[coding](b"x")) * 3
    assert decode_body(alternating, coding, 10) == b"xxx"


@every_coding
def test_a_body_cut_anywhere_is_refused(coding: str) -> None:
    """However much of it is missing, a body that ends early does not pass for a whole one."""
    packed = ENCODERS[coding](b"some text, some text, some more")
    for size in range(1, len(packed)):
        with pytest.raises(BadEncoding) as caught:
            decode_body(packed[:size], coding, 1000)
        assert caught.value.status == 415


@every_coding
def test_data_after_the_end_is_refused(coding: str) -> None:
    """What follows a finished body is no part of it, so the body is not what its coding says."""
    with pytest.raises(BadEncoding):
        decode_body(ENCODERS[coding](b"text") + b"surplus", coding, 1000)
    decoder = Decoder(coding)
    decoder.feed(ENCODERS[coding](b"text"))
    decoder.feed(b"surplus")
    assert decoder.broken


def test_an_unknown_coding_is_named_and_an_unreadable_header_is_not_echoed() -> None:
    """The client learns which coding is meant; what does not look like one is not repeated."""
    with pytest.raises(BadEncoding, match="'compress'"):
        decode_body(b"x", "gzip, compress", 10)
    with pytest.raises(BadEncoding) as caught:
        decode_body(b"x", "sk-secret value \x1b[0m" * 20, 10)
    assert "secret" not in caught.value.message


def test_a_long_list_of_codings_is_refused() -> None:
    """Three codings on top of each other are read, four are not."""
    with pytest.raises(BadEncoding):
        decode_body(stack(b"x", ["gzip"] * 4), ",".join(["gzip"] * 4), 1000)


def test_a_zstd_window_above_the_standards_is_refused() -> None:
    """RFC 9659 bounds the window at 8 MiB, and with it the memory a header can ask for."""
    options = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0}
    frame = zstd.ZstdCompressor(options=options)
    packed = frame.compress(TEXT) + frame.flush()
    with pytest.raises(BadEncoding):
        decode_body(packed, "zstd", len(TEXT))


def test_a_decoder_of_an_unknown_coding_is_broken_from_the_start() -> None:
    """It says so and yields nothing, and does not raise."""
    decoder = Decoder("sdch")
    assert decoder.broken
    assert not decoder.identity
    assert not decoder.complete
    assert decoder.feed(b"abc") == b""


@every_coding
def test_a_corrupt_response_yields_a_true_prefix(coding: str) -> None:
    """What was read before the fault stays true, and nothing is made up after it."""
    packed = ENCODERS[coding](TEXT)
    decoder = Decoder(coding)
    safe = decoder.feed(packed[: len(packed) // 2])
    assert TEXT.startswith(safe)
    decoder.feed(random.Random(7).randbytes(50_000))
    assert decoder.broken
    assert not decoder.complete
    assert decoder.feed(ENCODERS[coding](TEXT)) == b""


@every_coding
def test_a_chunk_that_unpacks_to_too_much_breaks_the_decoder_only(coding: str) -> None:
    """A bomb in a response ends the reading at its bound, without raising."""
    decoder = Decoder(coding, feed_bytes_max=MIB)
    out = decoder.feed(ENCODERS[coding](bytes(8 * MIB)))
    assert len(out) <= MIB
    assert not any(out)
    assert decoder.broken
    assert "unpacks" in (decoder.fault or "")


def test_the_bound_of_a_decoder_is_for_each_chunk() -> None:
    """A long response within the bound a chunk is read to its end."""
    decoder = Decoder("gzip", feed_bytes_max=MIB)
    packed = gzip(bytes(8 * MIB))
    out = sum(len(decoder.feed(packed[at : at + 256])) for at in range(0, len(packed), 256))
    assert out == 8 * MIB
    assert decoder.complete


@fixed
@given(
    data=st.binary(max_size=300),
    header=st.sampled_from([*ENCODERS, "br, gzip", "zstd, deflate"]),
    cuts=st.lists(st.integers(0, 300), max_size=4),
)
def test_no_bytes_make_a_decoder_raise(data: bytes, header: str, cuts: list[int]) -> None:
    """Arbitrary bytes are decoded or end in the broken state; as a body they decode or are refused."""
    decoder = Decoder(header)
    out = feed_in(decoder, data, cuts)
    try:
        assert decode_body(data, header, 10 * MIB) == out
        assert decoder.complete
    except BadEncoding:
        assert decoder.broken or not decoder.complete


def test_others_have_their_turn_while_a_large_body_is_decoded() -> None:
    """A few kilobytes that unpack to megabytes stop on the way, and say in the end what decoding at once says."""
    body = bytes(8_000_000)
    packed, stops = gzip(body), 0
    work = decoding(packed, "gzip", len(body))
    while True:
        try:
            next(work)
        except StopIteration as end:
            assert end.value == body == decode_body(packed, "gzip", len(body))
            break
        stops += 1
    assert stops >= 8_000_000 // AT_ONCE_BYTES - 1
