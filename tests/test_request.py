"""What a request says about itself: facts of its body, whom it claims to be for, repeated members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from farebox.doubts import WATCHED_MEMBERS, duplicate_members, other_models
from farebox.identifiers import IDENTIFIER_CHARS_MAX, identifier
from farebox.identity import TAGS_MAX, Identity, identify, parse_tags
from farebox.jsontext import SCAN_STEPS_MAX, top_members
from farebox.records import Operation
from farebox.request import RequestFacts, read_facts, read_odd_facts

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=150)
CORPUS = Path(__file__).parents[1] / "../shared/corpus/requests.jsonl"


def facts(body: bytes | dict[str, Any], operation: Operation = "chat") -> RequestFacts:
    return read_facts(operation, body if isinstance(body, bytes) else json.dumps(body).encode())


# -- facts ---------------------------------------------------------------------------------------


def test_the_facts_of_an_ordinary_chat_request() -> None:
    """Model, streaming, bounds and tier are read from where the OpenAI API has them."""
    read = facts(
        {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 50,
            "max_tokens": 70,
            "n": 2,
            "service_tier": "flex",
            "user": "u-1",
        }
    )
    assert read == RequestFacts(
        is_object=True,
        model="gpt-4o",
        stream=True,
        has_stream_options=True,
        include_usage=True,
        output_tokens_max=50,
        n=2,
        service_tier="flex",
        end_user="u-1",
    )


@pytest.mark.parametrize(
    ("operation", "member"),
    [
        ("chat", "max_tokens"),
        ("chat", "max_completion_tokens"),
        ("completions", "max_tokens"),
        ("responses", "max_output_tokens"),
        ("messages", "max_tokens"),
    ],
)
def test_each_operation_has_its_own_output_bound(operation: Operation, member: str) -> None:
    """The bound is read from the member of that API, and one of another API is none."""
    assert facts({member: 9}, operation).output_tokens_max == 9
    assert facts({member: 9}, "embeddings").output_tokens_max is None


@pytest.mark.parametrize("value", ["0", "-1", "1.5", '"5"', "true", "null", "1e400", "9" * 5000, "[]"])
def test_a_bound_that_is_no_whole_number_is_none(value: str) -> None:
    """An odd bound is the provider's to judge; farebox reads it as absent."""
    read = facts(b'{"model":"m","max_tokens":' + value.encode() + b',"n":' + value.encode() + b"}")
    assert (read.model, read.output_tokens_max, read.n) == ("m", None, None)


@pytest.mark.parametrize("value", ["false", "null", "1", '"true"', "[true]", "{}", "1.0"])
def test_only_true_is_a_stream(value: str) -> None:
    """`stream` counts when it is exactly `true`, and so does `include_usage`."""
    read = facts(b'{"stream":' + value.encode() + b',"stream_options":{"include_usage":' + value.encode() + b"}}")
    assert not read.stream
    assert not read.include_usage
    assert read.has_stream_options


@pytest.mark.parametrize("value", ["null", "[]", "true", '"include_usage"', "7"])
def test_stream_options_of_any_type_are_seen(value: str) -> None:
    """The member is noticed whatever it holds, and only an object can ask for usage."""
    read = facts(b'{"stream":true,"stream_options":' + value.encode() + b"}")
    assert read.has_stream_options
    assert not read.include_usage


def test_of_a_repeated_member_the_last_counts() -> None:
    """Facts agree with the parsers most providers use."""
    read = facts(b'{"model":"a","stream":true,"mod\\u0065l":"b","stream":false}')
    assert (read.model, read.stream) == ("b", False)


def test_members_deeper_down_are_not_the_requests() -> None:
    """A tool schema with members of the same names changes no fact."""
    read = facts({"model": "m", "tools": [{"stream": True, "model": "x", "user": "y"}], "metadata": {"user": "z"}})
    assert read == RequestFacts(is_object=True, model="m")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"null",
        b"[]",
        b'"model"',
        b"{",
        b'{"model":"m"',
        b'{"model":"m",}',
        b'{"model":"m"} x',
        b'\xef\xbb\xbf{"model":"m"}',
        b'{"model":NaN}',
        '{"model":"m"}'.encode("utf-16"),
        b"--boundary\r\ncontent-disposition: form-data\r\n",
        b'{"a":"\\ud8',
    ],
)
def test_what_is_no_json_object_has_no_facts(body: bytes) -> None:
    """Anything unreadable gives the defaults instead of an error."""
    assert read_facts("chat", body) == RequestFacts()


@pytest.mark.parametrize("depth", [50_000, 1_000_000])
def test_nesting_breaks_nothing(depth: int) -> None:
    """A body nested beyond all reason is unreadable, not a crash."""
    assert read_facts("chat", b'{"model":"m","a":' + b"[" * depth + b"]" * depth + b"}") == RequestFacts()


def test_numbers_no_float_can_hold_do_no_harm() -> None:
    """Huge exponents and integers elsewhere in the body leave its facts readable."""
    body = b'{"a":1e400,"b":-1E+999,"c":' + b"9" * 10_000 + b',"model":"m","stream":true}'
    assert facts(body) == RequestFacts(is_object=True, model="m", stream=True)


@pytest.mark.parametrize(
    "text",
    [rb"\ud83d", rb"\udc00", rb"cut \ud83d.", rb"\ud83d\ud83d\ude00", rb"\ud83d\u0041", rb"\\\ud83d", rb"\uD83D\n"],
)
def test_half_a_surrogate_pair_hides_no_facts(text: bytes) -> None:
    """Clients that cut a text inside an emoji send lone surrogate escapes; their requests are read all the same."""
    body = b'{"messages":[{"content":"' + text + b'"}],"model":"m","stream":true}'
    json.loads(body)
    assert facts(body) == RequestFacts(is_object=True, model="m", stream=True)


def test_an_escaped_backslash_is_no_surrogate() -> None:
    """Text that merely looks like an escape is left alone while others are mended."""
    body = rb'{"model":"\\ud83d \ud83d\ude00","a":"\ud83d"}'
    assert facts(body).model == "\\ud83d \U0001f600"


def test_invalid_utf8_costs_only_the_member_it_is_in() -> None:
    """A broken byte in the model is an unknown model; in a message it is nobody's business here."""
    assert facts(b'{"model":"\xff","stream":true}') == RequestFacts(is_object=True, stream=True)
    assert facts(b'{"model":"m","messages":"\xff"}').model == "m"


def test_a_member_of_unreasonable_size_is_ignored() -> None:
    """A model name of megabytes is not read, and does no harm."""
    assert facts({"model": "m" * 100_000, "user": "u"}) == RequestFacts(is_object=True, end_user="u")


_texts = st.sampled_from(
    ['"gpt-4o"', '""', '" a "', '"\\u0000x"', '"\\ud83d"', '"\\ud83d\\ude00"', '"caf\u00e9"', '"' + "l" * 300 + '"',
     '"user_a_account_b_session_c"', '"{\\"session_id\\":\\"s\\",\\"account_uuid\\":\\"u\\"}"']
)  # fmt: skip
_numbers = st.sampled_from(["1", "0", "-1", "1.0", "2.5", "9223372036854775807", "9223372036854775808", "1" * 30])
_others = st.sampled_from(["null", "true", "false", "{}", "[]", "[1]", '{"id":"conv_1"}', '{"id":7}', '"\xff"'])
_anything = _texts | _numbers | _others
_inner = st.dictionaries(st.sampled_from(["session_id", "user_id", "include_usage", "id", "x"]), _anything, max_size=3)
_member = st.tuples(
    st.sampled_from(
        ["model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "n",
         "service_tier", "background", "store", "user", "safety_identifier", "session_id", "metadata", "conversation",
         "messages"]
    ),
    _anything | _inner.map(lambda members: "{" + ",".join(f'"{k}":{v}' for k, v in members.items()) + "}"),
)  # fmt: skip


_members = st.lists(_member, max_size=6)
_operations = st.sampled_from(["chat", "completions", "responses", "messages", "embeddings"])


@settings(fixed, max_examples=300)
@given(_members, _operations)
def test_an_ordinary_body_is_read_as_any_other(members: list[tuple[str, str]], operation: Operation) -> None:
    """The quick way for members of the expected types says what the way for all bodies says, repeated ones included."""
    body = ("{" + ",".join(f'"{name}":{value}' for name, value in members) + "}").encode("latin-1", "replace")
    assert read_facts(operation, body) == read_odd_facts(operation, body)


@pytest.mark.long
@settings(fixed, max_examples=5000)
@given(_members, _operations)
def test_many_more_ordinary_bodies_are_read_as_any_other(members: list[tuple[str, str]], operation: Operation) -> None:
    """The same with many more bodies."""
    body = ("{" + ",".join(f'"{name}":{value}' for name, value in members) + "}").encode("latin-1", "replace")
    assert read_facts(operation, body) == read_odd_facts(operation, body)


@fixed
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_no_bytes_make_reading_raise(body: bytes) -> None:
    """Whatever arrives as a body can be asked for facts and for repeated members."""
    assert isinstance(read_facts("chat", body), RequestFacts)
    assert duplicate_members(body) <= WATCHED_MEMBERS


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the recorded corpus")
def test_recorded_requests_are_read_as_json_reads_them() -> None:
    """On every recorded request the facts equal those a full parse gives."""
    for line in CORPUS.read_text().splitlines():
        request = json.loads(line)["request"]
        body = json.dumps(request).encode()
        read = read_facts("chat", body)
        assert read.is_object is isinstance(request, dict)
        if not isinstance(request, dict):
            continue
        assert read.model == request.get("model")
        assert read.stream is (request.get("stream") is True)
        assert read.has_stream_options is ("stream_options" in request)
        assert read.include_usage is ((request.get("stream_options") or {}).get("include_usage") is True)
        assert duplicate_members(body) == frozenset()


# -- identity ------------------------------------------------------------------------------------

SESSION_HEADERS = [
    ("x-farebox-session", "own"),
    ("x-claude-code-session-id", "vendor"),
    ("x-session-id", "plain"),
    ("session-id", "codex"),
    ("thread-id", "thread"),
    ("session_id", "older"),
    ("conversation_id", "oldest"),
    ("helicone-session-id", "helicone"),
    ("baggage", "userId=7, session.id=b%C3%A1g;ttl=1"),
]


def test_session_sources_have_their_order() -> None:
    """Each source wins over all that come after it, however the headers are ordered."""
    body = facts({"session_id": "body", "metadata": {"session_id": "meta", "user_id": "user_a_session_claude"}})
    expected = [name if name != "userId=7, session.id=b%C3%A1g;ttl=1" else "bág" for _, name in SESSION_HEADERS]
    for at in range(len(SESSION_HEADERS)):
        headers = dict(reversed(SESSION_HEADERS[at:]))
        assert identify(headers, body).session == expected[at]
    assert identify({}, body).session == "body"
    assert facts({"metadata": {"session_id": "meta", "user_id": "user_a_session_claude"}}).session == "meta"
    assert facts({"metadata": {"user_id": "user_a_session_claude"}, "conversation": "c"}).session == "claude"


def test_a_header_that_says_nothing_gives_way() -> None:
    """Blank, or nothing but control characters, counts as absent."""
    headers = {"x-farebox-session": "  ", "x-litellm-session-id": "\x00\x01", "session-id": "real"}
    assert identify(headers, None).session == "real"


@pytest.mark.parametrize(
    ("value", "session"),
    [
        ("conv_1", "conv_1"),
        ({"id": "conv_2"}, "conv_2"),
        ({"id": 7}, None),
        ({}, None),
        (None, None),
        ([], None),
        (7, None),
    ],
)
def test_a_conversation_is_a_session_where_nothing_else_is(value: Any, session: str | None) -> None:
    """The Responses API's `conversation`, an id or an object with one, is the last source of a session."""
    body = {"conversation": value, "previous_response_id": "resp_1", "prompt_cache_key": "app"}
    assert facts(body, "responses").session == session
    assert facts({**body, "session_id": "said"}, "responses").session == "said"


def test_the_parents_session_is_not_the_sessions() -> None:
    """A header that names the parent session is not taken for the vendor's session header."""
    assert identify({"x-parent-session-id": "p", "x-claude-parent-session-id": "q"}, None) == Identity()


def test_headers_may_come_in_any_form() -> None:
    """A case-insensitive multidict, pairs and a plain mapping say the same."""
    pairs = [
        ("X-Session-Id", "first"),
        ("x-session-id", "second"),
        ("X-Farebox-Tags", "a=1"),
        ("x-farebox-tags", "b=2"),
    ]
    expected = Identity(session="first", tags={"a": "1", "b": "2"})
    assert identify(pairs, None) == expected
    assert identify(CIMultiDictProxy(CIMultiDict(pairs)), None) == expected
    assert identify({"X-SESSION-ID": "first", "x-farebox-tags": "a=1,b=2"}, None) == expected


@pytest.mark.parametrize(
    "baggage", ["session.id", "session.identity=x", "a=session.id", "session.id=", ";session.id=x", ",,,", "=x"]
)
def test_baggage_without_a_session_is_none(baggage: str) -> None:
    """Only an entry of exactly that name and with a value counts."""
    assert identify({"baggage": baggage}, None).session is None


@pytest.mark.parametrize(
    ("user_id", "end_user", "session"),
    [
        ("user-7", "user-7", None),
        ("user_ab12_account_c-d_session_e-f", "user_ab12_account_c-d", "e-f"),
        ("user_ab12_account__session_e-f", "user_ab12_account_", "e-f"),
        ("a_session_b_session_c", "a_session_b", "c"),
        ("_session_c", None, "c"),
        ("user_session_", "user", None),
        ('{"device_id":"d","account_uuid":"a","session_id":"s"}', "a", "s"),
        ('{"device_id":"d","account_uuid":"","session_id":"s"}', "d", "s"),
        ('{"other":1}', '{"other":1}', None),
        ("{not json", "{not json", None),
    ],
)
def test_the_user_id_of_the_messages_api_holds_user_and_session(
    user_id: str, end_user: str | None, session: str | None
) -> None:
    """Claude Code packs both into one member, as text or as JSON; each goes where it belongs."""
    read = facts({"metadata": {"user_id": user_id}}, "messages")
    assert (read.end_user, read.session) == (end_user, session)


def test_end_user_sources_have_their_order() -> None:
    """The body's own members come first, then the headers of other gateways."""
    headers = {"helicone-user-id": "h", "x-litellm-end-user-id": "l", "x-litellm-customer-id": "c"}
    body = {"safety_identifier": "s", "user": "u", "metadata": {"user_id": "m"}}
    expected = ["s", "u", "m"]
    for name, value in zip(["safety_identifier", "user", "metadata"], expected, strict=True):
        assert identify(headers, facts(body)).end_user == value
        del body[name]
    assert identify(headers, facts(body)).end_user == "h"
    assert identify({"x-litellm-customer-id": "c", "x-litellm-end-user-id": "l"}, None).end_user == "l"


@pytest.mark.parametrize("value", [7, None, ["x"], {"a": 1}, "", " \n"])
def test_identifiers_of_other_types_are_none(value: object) -> None:
    """Only a string that says something is an identity."""
    read = facts({"user": value, "session_id": value, "model": value, "metadata": value, "safety_identifier": value})
    assert read == RequestFacts(is_object=True)


def test_long_identifiers_are_cut_and_stay_different() -> None:
    """Two long identifiers with the same beginning are still two, within the bound."""
    short, one, other = "s" * IDENTIFIER_CHARS_MAX, "s" * 5000 + "1", "s" * 5000 + "2"
    assert identifier(short) == short
    kept = {identifier(one), identifier(other)}
    assert len(kept) == 2
    assert all(value is not None and len(value) == IDENTIFIER_CHARS_MAX for value in kept)
    assert identifier(one) == identifier(one)


@fixed
@given(st.text(st.characters(), max_size=600))
def test_identifiers_can_always_be_stored(value: str) -> None:
    """Whatever a client sends, what is kept is bounded, printable enough for Postgres, and stable."""
    kept = identifier(value)
    if kept is not None:
        assert 0 < len(kept) <= IDENTIFIER_CHARS_MAX
        assert "\x00" not in kept
        kept.encode("utf-8")
        assert identifier(kept) == kept


def test_undecodable_header_bytes_are_dropped() -> None:
    """Header bytes that are no UTF-8 arrive as surrogates and do not reach a row."""
    assert identify({"x-farebox-session": "a\udcffb\x00"}, None).session == "ab"


# -- tags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "tags"),
    [
        ("tier=cheap,env=prod", {"tier": "cheap", "env": "prod"}),
        (" tier = cheap , env=prod ", {"tier": "cheap", "env": "prod"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=b=c,d=", {"a": "b=c", "d": ""}),
        ("", {}),
        ("nothing,=x, = ,,", {}),
        ("ok=1,bad\x00=2,bad=\x1b[0m,worse=\udcff", {"ok": "1"}),
        (f"{'n' * 64}=1,{'n' * 65}=2", {"n" * 64: "1"}),
        (f"a={'v' * 256},b={'v' * 257}", {"a": "v" * 256}),
    ],
)
def test_tags_are_read_and_bad_ones_dropped(header: str, tags: dict[str, str]) -> None:
    """A bad tag costs itself, never its neighbours."""
    assert parse_tags(header) == tags


def test_tags_are_bounded_in_number() -> None:
    """The first sixteen are kept; a known one may still change its value."""
    header = ",".join(f"k{number}={number}" for number in range(40)) + ",k3=new"
    tags = parse_tags(header)
    assert list(tags) == [f"k{number}" for number in range(TAGS_MAX)]
    assert tags["k3"] == "new"


# -- repeated members ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "repeated"),
    [
        (b'{"model":"a","model":"b"}', {"model"}),
        (b'{"model":"a","m\\u006fdel":"b"}', {"model"}),
        (b'{"model":"a","MODEL":"b"}', {"model"}),
        (b'{"model":"a","\\u004dodel":"b"}', {"model"}),
        ('{"max_tokens":1,"max_to\u212aens":9}'.encode(), {"max_tokens"}),
        (b'{"\\u017ftream":true,"stream":false}', {"stream"}),
        (b'{"MODEL":"a","x":{"Model":"b"}}', set()),
        (b'{"stream" : true,\n"stream"\t: false,"n":1,"n":2}', {"stream", "n"}),
        (b'{"model":"a","x":{"model":"b","model":"c"},"y":["model",{"model":1}]}', set()),
        (b'{"model":"a","x":"\\"model\\":","y":"\\\\","model2":1}', set()),
        (b'{"temperature":1,"temperature":2}', set()),
        (b'{"x":[{"max_tokens":1}],"max_tokens":1,"z":{},"max_tokens":2}', {"max_tokens"}),
        (b'{"stream_options":{},"stream_options":null}', {"stream_options"}),
        (b"{}", set()),
        (b"not json", set()),
        (b'[{"model":1,"model":2}]', set()),
    ],
)
def test_repeated_members_are_found_at_the_top_level_only(body: bytes, repeated: set[str]) -> None:
    """A repetition counts by its meaning, not its spelling, and only where the API reads it."""
    assert duplicate_members(body) == repeated


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"model":"a","models":["b","c"]}', ["b", "c"]),
        (b'{"model":"a","fallbacks":[{"model":"b"},"c",7]}', ["b", "c", None]),
        (b'{"model":"a","m\\u006fdels":["b"]}', ["b"]),
        (b'{"model":"a","models":"b"}', ["b"]),
        (b'{"model":"a","preset":"p"}', [None]),
        (b'{"model":"a","models":[' + b'"b",' * 20_000 + b'"c"]}', [None]),
        (b'{"model":"a","models":null,"fallbacks":[],"preset":""}', []),
        (b'{"model":"a","messages":[{"models":["b"]}]}', []),
        (b"not json", []),
    ],
)
def test_models_offered_to_a_router_are_read(body: bytes, named: list[str | None]) -> None:
    """Whoever may use some models only may not have a router fall back to another one."""
    assert other_models(body) == named


def test_a_body_too_long_to_walk_is_suspect() -> None:
    """When the walk gives up, every watched member counts as repeated."""
    body = b'{"x":[' + b"[]," * SCAN_STEPS_MAX + b'{"model":1}],"model":"m","model":"n"}'
    assert duplicate_members(body) == WATCHED_MEMBERS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@fixed
@given(
    members=st.lists(
        st.tuples(st.sampled_from(["model", "n", 'a"b', "\\", "é", "", "stream"]), json_values), max_size=8
    ),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_members_stand_where_the_walk_says(
    members: list[tuple[str, Any]], indent: int | None, ascii_only: bool
) -> None:
    """Names and places of all members, repeated ones included, are exactly those of the text."""

    def dump(value: object) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    text = " {" + ",".join(f"\n {dump(name)} : {dump(value)}\t" for name, value in members) + "} "
    body = text.encode("utf-8", "surrogatepass")
    found = top_members(body)
    assert found is not None
    assert [member.name for member in found] == [name for name, _ in members]
    assert [json.loads(body[member.start : member.end]) for member in found] == [value for _, value in members]
    names = [name for name, _ in members]
    assert duplicate_members(body) == {name for name in names if names.count(name) > 1} & WATCHED_MEMBERS
