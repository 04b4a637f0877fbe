"""Ids of attempts: version 7 of RFC 9562, in the order of their times, none twice."""

from __future__ import annotations

import copy
import os
import pickle
from uuid import UUID, SafeUUID

from hypothesis import given
from hypothesis import strategies as st

from farebox.ids import Ids, text_of


@given(st.floats(0, 2**47 / 1000), st.binary(min_size=640, max_size=640))
def test_an_id_is_a_uuid_like_any_other(unix_s: float, random: bytes) -> None:
    """Version, variant and time stand where the RFC has them, and it is what UUID's own constructor makes of it."""
    id = Ids(lambda size: random[:size]).mint(unix_s)
    assert (id.version, id.variant) == (7, "specified in RFC 4122")
    assert id.int >> 80 == int(unix_s * 1000)
    same = UUID(int=id.int)
    assert (id, hash(id), str(id), id.bytes, id.is_safe) == (same, hash(same), str(same), same.bytes, SafeUUID.unknown)
    assert copy.copy(id) == pickle.loads(pickle.dumps(id)) == id


def test_every_random_bit_is_used() -> None:
    """74 bits are random: all but version and variant, whatever is drawn at once."""
    ones, zeros = (Ids(lambda size, byte=byte: byte * size).mint(0.0).int for byte in (b"\xff", b"\0"))
    assert (ones ^ zeros).bit_count() == 74


def test_no_id_is_minted_twice() -> None:
    """Within one millisecond too, and over many draws."""
    ids = Ids(os.urandom)
    assert len({ids.mint(1_800_000_000.0) for _ in range(1000)}) == 1000
    assert ids.mint(1.0) < ids.mint(1.5) < ids.mint(1_800_000_000.0)


def test_an_id_is_written_as_str_writes_it() -> None:
    """Whatever its number is."""
    for id in (UUID(int=0), UUID(int=2**128 - 1), Ids(os.urandom).mint(1_795_320_000.5)):
        assert text_of(id) == str(id).encode()
