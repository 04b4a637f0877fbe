"""Heads: what is remembered of one says the same as reading it, and no other is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox import heads, keys
from farebox.errors import BadRequest, Forbidden, MethodNotAllowed, Refusal
from farebox.heads import Heads, RawHeaders, RequestHead, read_head

TARGET = "/v1/chat/completions"
SECRET = keys.mint_secret().encode()
PLAIN: RawHeaders = ((b"Host", b"localhost"), (b"Content-Type", b"application/json"))
fixed = settings(derandomize=True, database=None, deadline=None, max_examples=200)


def facts(head: RequestHead) -> tuple[object, ...]:
    """Everything a head says, but for what others keep in it."""
    return (
        head.method, head.version, head.raw, head.target, head.credentials, head.identity, head.encoding,
        head.expects_continue, head.websocket,
    )  # fmt: skip


def outcome(known: Heads, method: str, target: str, raw: RawHeaders) -> object:
    try:
        return facts(known.of(method, target, (1, 1), raw))
    except Refusal as refusal:
        return type(refusal), refusal.message


_names = st.sampled_from(
    [b"Host", b"authorization", b"X-Api-Key", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Expect",
     b"Upgrade", b"X-HTTP-Method-Override", b"Content-Encoding", b"x-session-id", b"x-farebox-tags", b"Origin"]
)  # fmt: skip
_values = st.sampled_from(
    [b"", b"localhost", b"17", b"Bearer " + keys.mint_secret().encode(), b"chunked", b"gzip", b"100-continue",
     b"websocket", b"h2c", b"GET", b"POST", b"a=b,c=d", b"http://evil.example", b"\xff\x00\xe9"]
)  # fmt: skip
_fields = st.lists(st.tuples(_names, _values), max_size=6)


@fixed
@given(
    st.lists(
        st.tuples(st.sampled_from(["GET", "POST", "TRACE"]), st.sampled_from([TARGET, "/v1/files", "/x"]), _fields),
        max_size=8,
    )
)
def test_whatever_came_before_a_head_says_what_reading_it_anew_says(
    requests: list[tuple[str, str, list[tuple[bytes, bytes]]]],
) -> None:
    """No sequence of heads makes one of them be taken for another."""
    known = Heads("virtual")
    for method, target, listed in requests:
        lengths = [i for i, (name, _) in enumerate(listed) if name.lower() == b"content-length"]
        raw = tuple(field for i, field in enumerate(listed) if i not in lengths[1:])  # the parser takes but one
        assert outcome(known, method, target, raw) == outcome(Heads("virtual"), method, target, raw)


def test_the_same_head_is_read_once_whatever_the_length() -> None:
    """Requests that differ in Content-Length alone, wherever it stands, share what is known of them."""
    known = Heads("virtual")
    first = known.of("POST", TARGET, (1, 1), (*PLAIN, (b"Content-Length", b"5")))
    assert known.of("POST", TARGET, (1, 1), (*PLAIN, (b"content-length", b"77"))) is first
    assert known.of("POST", TARGET, (1, 1), (PLAIN[0], (b"Content-Length", b"5"), PLAIN[1])) is first
    assert known.of("POST", TARGET, (1, 1), PLAIN) is first
    assert first.raw == PLAIN


@pytest.mark.parametrize(
    "other",
    [
        ("GET", TARGET, (1, 1), PLAIN),
        ("POST", TARGET + "?a", (1, 1), PLAIN),
        ("POST", TARGET, (1, 0), PLAIN),
        ("POST", TARGET, (1, 1), (*PLAIN, (b"X-Api-Key", b"k"))),
        ("POST", TARGET, (1, 1), PLAIN[::-1]),
    ],
)
def test_any_other_difference_makes_another_head(other: tuple[str, str, tuple[int, int], RawHeaders]) -> None:
    """Method, target, version, fields and their order are all part of a head."""
    known = Heads("virtual")
    assert known.of("POST", TARGET, (1, 1), PLAIN) is not known.of(*other)


def test_heads_are_bounded_and_what_is_in_use_stays() -> None:
    """However many heads there are, two generations are kept, and what is asked for again is among them."""
    known = Heads("virtual")
    used = known.of("POST", TARGET, (1, 1), PLAIN)
    for number in range(5 * heads.HEADS_MAX):
        known.of("POST", TARGET, (1, 1), ((b"Host", b"h%d" % number),))
        assert known.of("POST", TARGET, (1, 1), PLAIN) is used
    assert len(known) <= 2 * heads.HEADS_MAX


def test_heads_of_many_fields_are_remembered_by_their_weight() -> None:
    """Small in bytes, they are large in memory: whoever sends them, without a key even, makes farebox keep but few."""
    known = Heads("virtual")
    fields = tuple((b"x-%d" % at, b"") for at in range(120))
    for number in range(heads.HEADS_MAX):
        known.of("POST", f"{TARGET}?{number}", (1, 1), fields)
    assert len(known) * 120 * 128 <= 2 * heads.GENERATION_BYTES_MAX


_credentials = st.tuples(
    st.sampled_from([b"Authorization", b"X-Api-Key", b"x-farebox-key", b"api-key", b"X-Session-Id"]),
    st.sampled_from([b"Bearer a", b"bearer " + SECRET, b"Basic x", b"", SECRET]),
)


@fixed
@given(st.lists(_credentials, max_size=4))
def test_the_head_of_another_key_says_what_reading_it_says(fields: list[tuple[bytes, bytes]]) -> None:
    """What is taken over from a head that differs in its credentials alone is no other key's."""
    known = Heads("virtual")
    kept = tuple(one for one in fields if one[0] == b"X-Session-Id")
    for raw in ((*kept, (b"Authorization", b"Bearer " + keys.mint_secret().encode())), kept, tuple(fields)):
        assert outcome(known, "POST", TARGET, raw) == outcome(Heads("virtual"), "POST", TARGET, raw)


def test_a_large_head_is_not_kept() -> None:
    """A head past the size is read each time, so what is kept has a bound in bytes."""
    known = Heads("virtual")
    raw = (*PLAIN, (b"X-Long", b"x" * heads.REMEMBERED_BYTES_MAX))
    assert known.of("POST", TARGET, (1, 1), raw) is not known.of("POST", TARGET, (1, 1), raw)
    assert len(known) == 0


def test_a_refused_head_is_refused_again() -> None:
    """What is taken from nobody is not remembered as if it were."""
    known = Heads("virtual")
    for _ in range(2):
        with pytest.raises(MethodNotAllowed):
            known.of("TRACE", TARGET, (1, 1), PLAIN)
        with pytest.raises(BadRequest):
            known.of("POST", TARGET, (1, 1), (*PLAIN, (b"Transfer-Encoding", b"gzip, chunked")))


def test_nothing_of_a_head_is_printed() -> None:
    """A head in a log line or a traceback shows no credential and no header."""
    secret = keys.mint_secret()
    head = read_head("POST", TARGET, (1, 1), (*PLAIN, (b"Authorization", b"Bearer " + secret.encode())), "virtual")
    assert head.credentials.given == (secret,)
    assert secret not in repr(head) and secret not in repr(head.credentials)


def test_open_mode_asks_for_a_loopback_name() -> None:
    """In open mode, and only there, a page from elsewhere is refused by the head alone."""
    raw = ((b"Host", b"evil.example"),)
    with pytest.raises(Forbidden):
        Heads("open").of("POST", TARGET, (1, 1), raw)
    assert Heads("virtual").of("POST", TARGET, (1, 1), raw).credentials.given == ()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_keys_share_what_does_not_depend_on_who_calls(place: int) -> None:
    """Wherever the key stands among the fields: its head is its own, the memo everybody's."""
    known, made = Heads("virtual"), []
    for _ in range(3):
        fields = list(PLAIN)
        fields.insert(place, (b"Authorization", b"Bearer " + keys.mint_secret().encode()))
        made.append(known.of("POST", TARGET, (1, 1), tuple(fields)))
        assert facts(made[-1]) == facts(read_head("POST", TARGET, (1, 1), tuple(fields), "virtual"))
    assert len({head.credentials.digests for head in made}) == 3
    assert made[0].memo is made[1].memo is made[2].memo
    assert made[0].kinds is not made[1].kinds is not made[2].kinds
