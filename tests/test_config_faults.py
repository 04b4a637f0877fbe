"""The config: what is said about a file that means nothing."""

# ruff: noqa: E501  the tables hold whole messages

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.config import Config, ConfigError, Match, RouteRule, with_address
from farebox.config.nodes import DEPTH_MAX, TEXT_CHARS_MAX
from support.config import LOCAL, fault, faults, providers, read

# -- faults, one by one ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # numbers
        ("server:\n  port: http\n", "2:9: server.port: 'http' is not a whole number from 0 to 65535"),
        ("server: {port: 65536}", "1:16: server.port: '65536' is not a whole number from 0 to 65535"),
        ("server: {port: -1}", "1:16: server.port: '-1' is not a whole number from 0 to 65535"),
        ("server: {port: 80.0}", "1:16: server.port: '80.0' is not a whole number from 0 to 65535"),
        ("server: {port: true}", "1:16: server.port: 'true' is not a whole number from 0 to 65535"),
        (
            "server: {port: 0777}",
            "1:16: server.port: '0777' is not a whole number from 0 to 65535: YAML reads a leading zero as octal; "
            "leave it out",
        ),
        (
            "server: {port: }",
            "1:15: server.port: is empty; write a whole number from 0 to 65535, or remove the line",
        ),
        ("server: {port: [1]}", "1:16: server.port: a list cannot stand here; write a whole number from 0 to 65535"),
        (
            "server: {shutdown_timeout_s: .nan}",
            "1:30: server.shutdown_timeout_s: '.nan' is not a number from 0 to 3600",
        ),
        (
            "server: {shutdown_timeout_s: .inf}",
            "1:30: server.shutdown_timeout_s: '.inf' is not a number from 0 to 3600",
        ),
        ("server: {shutdown_timeout_s: inf}", "1:30: server.shutdown_timeout_s: 'inf' is not a number from 0 to 3600"),
        (
            "server: {shutdown_timeout_s: -0.1}",
            "1:30: server.shutdown_timeout_s: '-0.1' is not a number from 0 to 3600",
        ),
        ("ledger: {fsync_ms: 5000}", "1:20: ledger.fsync_ms: '5000' is not a number from 0 to 1000, or off"),
        ("ledger: {fsync_ms: }", "1:19: ledger.fsync_ms: is empty; write a number from 0 to 1000, or off, or remove the line"),
        ("auth: {key_poll_s: 5}", "1:20: auth.key_poll_s: '5' is not a number from 0.05 to 4"),
        # words
        ("auth: {mode: virtal}", "1:14: auth.mode: 'virtal' is not one of virtual, passthrough, open: did you mean virtual?"),
        ("log: {level: off}", '1:14: log.level: YAML reads an unquoted off as true or false; write "off"'),
        ("database: {data_dir: no}", '1:22: database.data_dir: YAML reads an unquoted no as true or false; write "no"'),
        ("server: {response_headers: 1}", "1:28: server.response_headers: '1' is not true or false"),
        # text
        ('database: {data_dir: ""}', "1:22: database.data_dir: '' is not a path: it is empty"),
        (
            'database: {data_dir: "a\\nb"}',
            "1:22: database.data_dir: 'a\\nb' is not a path: it holds a line break or another control character",
        ),
        ("server: {host: '[::1]'}", "1:16: server.host: '[::1]' is not an IP address or a host name: write the IPv6 address without brackets"),
        ("server: {host: 'a:80'}", "1:16: server.host: 'a:80' is not an IP address or a host name: the port has a setting of its own"),
        ("server: {host: 127.0.0}", "1:16: server.host: '127.0.0' is not an IP address or a host name"),
        (
            "server: {admin_token: a b}",
            "1:23: server.admin_token: the value is not a token of visible ASCII characters: it holds a space",
        ),
        (
            "database: {url: 'mysql://u:p@h/d'}",
            "1:17: database.url: the value is not embedded, or a URL like postgresql://USER:PASSWORD@HOST:5432/DATABASE",
        ),
        # shapes
        ("- a", "1:1: (file): a list cannot stand here; write a mapping of settings (server, database, auth, providers, routes, budgets, metering, alerts, ledger, limits, models, metrics, log)"),
        ("server: 8787", "1:9: server: a single value cannot stand here; write a mapping of settings (host, port, workers, admin_token, response_headers, shutdown_timeout_s, keepalive_timeout_s, header_bytes_max, headers_max, backlog, reload_poll_s)"),
        ("providers: [a]", "1:12: providers: a list cannot stand here; write a mapping of NAME: {...} pairs"),
        ("routes: {a: 1}", "1:9: routes: a mapping cannot stand here; write a list, each item after `- `"),
        # keys
        ("server: {prot: 1}", "1:10: server.prot: unknown setting; did you mean port?"),
        ("server: {Port: 1}", "1:10: server.Port: unknown setting; did you mean port?"),
        ("port: 80", "1:1: port: unknown setting; did you mean server.port?"),
        ("base_url: x", "1:1: base_url: unknown setting; did you mean providers.NAME.base_url?"),
        ("log: {colour: 1}", "1:7: log.colour: unknown setting; known here: level, format"),
        ("log: {level: info, level: info}", "1:20: log.level: given twice; the first is on line 1. Remove one"),
        ("log:\n  level: info\nlog:\n  level: info\n", "3:1: log: given twice; the first is on line 1. Remove one"),
        ("log: {? [a] : b}", "1:9: log: a key must be a plain word, not a list or mapping"),
        ("log: {<<: 3}", "1:11: log: `<<` takes a mapping, or a list of mappings"),
        ("log: {level: !!python/name:os.system x}", "1:14: log.level: a YAML tag (!...) is not used here; write the plain value"),
        ("log: {level: !secret sk-1}", "1:14: log.level: a YAML tag (!...) is not used here; write the plain value"),
    ],
)  # fmt: skip
def test_a_fault_says_where_and_what(text: str, expected: str) -> None:
    """Each mistake gives one line: its place, its path, what is wrong and what would be right."""
    assert fault(text) == expected


@pytest.mark.parametrize(
    "name", ["workforce", "statistics", "quotas", "price_list", "strategy", "pricing", "thresholds", "tls"]
)
def test_settings_that_do_not_exist_are_faults_everywhere(name: str) -> None:
    """A name farebox does not know is never quietly accepted, in any section."""
    text = f"{name}: 1\nserver: {{{name}: 1}}\nmetering: {{{name}: 1}}\n{providers(LOCAL[:-1] + f', {name}: 1}}')}"
    text += f"routes: [{{match: {{{name}: 1}}, to: local, {name}: 1}}]"
    found = faults(text)
    assert len(found) == 6
    assert all(f"{name}: unknown setting" in line for line in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: {port: ${PORT}}", "1:17: (file): not valid YAML: expected ',' or '}', but got '{'. A value with ${...} is safest in quotes"),
        ("server:\n\tport: 1\n", "2:1: (file): a tab; YAML is indented with spaces"),
        ("routes:\n  - {match: {model: *}, to: a}", "a value that begins with * must be in quotes (YAML takes *NAME for an alias)"),
        ("routes:\n  - match:\n      model: *-mini\n", "a value that begins with * must be in quotes (YAML takes *NAME for an alias)"),
        ("log: {level: @a}", "1:14: (file): a value that begins with @ must be in quotes"),
        ("log: {}\n---\nlog: {}\n", "2:1: (file): a second document (`---`); the config is one document"),
        ("server:\n  host: a\n port: 1\n", "3:2: (file): not valid YAML: "),
        ("log: {level: 'a\x07'}", "1:16: (file): a control character, which YAML does not allow; remove it"),
        ("log: '" + "x" * TEXT_CHARS_MAX + "'", f"1:1: (file): the file has {TEXT_CHARS_MAX + 7} characters; at most {TEXT_CHARS_MAX} are read"),
        ("[" * 5000, f"1:{DEPTH_MAX + 2}: (file): not valid YAML: nested too deep"),
    ],
)  # fmt: skip
def test_text_that_is_not_yaml_gets_one_fault_with_its_place(text: str, expected: str) -> None:
    """A syntax error is reported where it is, with a hint for the usual causes."""
    assert expected in fault(text)


def test_aliases_cannot_expand_without_end() -> None:
    """A file whose anchors multiply, or hold themselves, is refused after a bounded number of values."""
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    assert "more than 20000 values, once anchors and aliases are expanded" in fault(bomb)
    assert "nested too deep, once anchors and aliases are expanded" in fault("log: &a [*a]")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("base_url: 'ftp://h/v1'", "begin it with https:// or http://"),
        ("base_url: 'localhost:8000/v1'", "begin it with https:// or http://"),
        ("base_url: 'http:///v1'", "it names no host"),
        ("base_url: 'http://u:s3cret@h/v1'", "it holds a user or password; put the credential into api_key or headers"),
        ("base_url: 'http://h/v1?k=s3cret'", "it holds a query or fragment (? or #); a query comes with each request"),
        ("base_url: 'http://h/v1#a'", "it holds a query or fragment (? or #); a query comes with each request"),
        ("base_url: 'http://h?'", "it holds a query or fragment (? or #); a query comes with each request"),
        ("base_url: 'http://h:99999'", "its port is not a number from 1 to 65535"),
        ("base_url: 'http://h:x'", "its port is not a number from 1 to 65535"),
        ("base_url: 'http://h:0'", "its port is empty or 0"),
        ("base_url: 'http://h:/v1'", "its port is empty or 0"),
        ("base_url: 'http://h h/v1'", "it holds a space or a backslash"),
        ("base_url: 'http://h\\v1'", "it holds a space or a backslash"),
        ("base_url: 'http://[::1'", "its host is not valid"),
        ("base_url: 'http://1.2.3'", "its host is not a valid name or address"),
        ("base_url: 'http://bücher.example'", "its host is not a valid name or address (non-ASCII names in their xn-- form)"),
        ("base_url: 'http://h/a/%2E./b'", "its path holds a . or .. step"),
        ("base_url: 'http://h/ü'", "its path holds a character that is not allowed in a URL"),
        ('base_url: "http://h/\\r\\nx: y"', "it holds a line break or another control character"),
    ],
)  # fmt: skip
def test_a_base_url_is_a_plain_http_address(entry: str, expected: str) -> None:
    """Everything that could move a request, or hide a credential in it, is refused without quoting it."""
    line = fault(providers(f"p: {{dialect: openai, {entry}}}"))
    assert line.startswith("2:34: providers.p.base_url: the value is not an http:// or https:// URL: ")
    assert expected in line
    assert "s3cret" not in line


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000/v1", "https://[::1]:8/x", "http://10.0.0.1", "https://a-b.example/p_1/openai/", "HTTP://H"],
)
def test_usual_base_urls_are_taken(url: str) -> None:
    """A URL with host, port and path is taken; only slashes at its end are dropped."""
    config = read(providers(f"p: {{dialect: openai, base_url: '{url}', api_key: k}}"))
    assert config.providers["p"].base_url == url.rstrip("/")


@pytest.mark.parametrize("name", ["OpenAI", "a b", "-a", "a/b", "a.b", "ä", "", "x" * 65, '"a\\n"'])
def test_a_provider_name_fits_into_a_path(name: str) -> None:
    """Names are lower-case letters, digits, - and _, since they stand in URLs and rows."""
    quoted = name if name.startswith('"') else f"'{name}'"
    line = fault(providers(f"{quoted}: {{dialect: openai, base_url: 'http://h'}}"))
    assert "is not a name of lower-case letters, digits, - and _ that begins with a letter or digit" in line


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('"a b": x', "a header name has letters, digits and -, no space and no colon"),
        ('"a\\r\\nb": x', "it holds a line break or another control character"),
        ("Host: x", "farebox sets this one itself"),
        ("Transfer-Encoding: x", "farebox sets this one itself"),
        ("X-Farebox-Key: x", "farebox sets this one itself"),
        ('a: "s3cret\\r\\nb: c"', "the value is not a header value of visible ASCII characters and spaces: it holds a line break"),
        ("a: 's3crét'", "it holds a character outside ASCII"),
        ("a: 's3cret '", "it begins or ends with a space"),
        ("a: '${E}'", "the value of ${E} is not a header value of visible ASCII characters and spaces: it holds a line break"),
        ("a: [s3cret]", "a list cannot stand here"),
        ("a: x, A: x", "given twice; upper and lower case are the same here"),
        ("authorization: x", "api_key is sent in this header already; remove one of them"),
    ],
)  # fmt: skip
def test_added_headers_cannot_break_a_request(header: str, expected: str) -> None:
    """Header names and values are checked as they will be sent, and never quoted."""
    text = providers(f"p: {{dialect: openai, base_url: 'http://h', api_key: k, headers: {{{header}}}}}")
    line = fault(text, {"E": "s3cret\n"})
    assert expected in line
    assert "s3cr" not in line


# -- settings that must fit each other -------------------------------------------------------------


def test_open_mode_listens_on_loopback_only() -> None:
    """Without keys, an address others can reach is refused, from the file and from the command line."""
    line = fault("auth: {mode: open}\nserver: {host: 0.0.0.0}\n")
    assert line.startswith(
        "2:16: server.host: auth.mode is open, which needs no key, so server.host must be a loopback"
    )
    for host in ("127.0.0.1", "127.8.8.8", "localhost", '"::1"'):
        assert read(f"auth: {{mode: open}}\nserver: {{host: {host}}}\n").auth.mode == "open"
    with pytest.raises(ConfigError, match=r"^command line: --host: auth\.mode is open"):
        with_address(read("auth: {mode: open}"), host="0.0.0.0")


def test_the_command_line_overrides_the_address() -> None:
    """Host and port from the command line are checked like the file's, and win."""
    moved = with_address(Config(), host="0.0.0.0", port=0)
    assert (moved.server.host, moved.server.port) == ("0.0.0.0", 0)
    assert with_address(Config()) == Config()
    with pytest.raises(ConfigError, match=r"^command line: --port: must be a whole number from 0 to 65535$"):
        with_address(Config(), port=70_000)
    with pytest.raises(ConfigError, match=r"^command line: --host: must be an IP address or a host name$"):
        with_address(Config(), host="a/b")


def test_a_database_of_ones_own_needs_an_admin_token() -> None:
    """An external database without server.admin_token is a fault, and its URL is not quoted."""
    url = "postgresql://me:s3cret@db/farebox"
    assert fault(f"database:\n  url: {url}\n") == (
        "2:8: server.admin_token: is missing; with a database of your own it must be set"
    )
    config = read(f"database: {{url: '{url}'}}\nserver: {{admin_token: token}}\n")
    assert not config.database.embedded


def test_passthrough_needs_a_provider_that_allows_it() -> None:
    """auth.mode passthrough without a marked provider could never serve a call."""
    assert fault("auth: {mode: passthrough}\n" + providers(LOCAL)) == (
        "1:14: auth.mode: is passthrough, but no provider is marked `passthrough: true`"
    )
    marked = providers("p: {dialect: openai, base_url: 'https://h', passthrough: true}", LOCAL)
    config = read("auth: {mode: passthrough}\n" + marked)
    assert config.routes == (RouteRule(match=Match(), to=("p",)),)
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ledger: {segment_mb: 64, journal_max_mb: 100}", "1:42: ledger.journal_max_mb: must hold at least two segments: 2 x 64 (segment_mb)"),
        ("limits: {body_mb_max: 9, decoded_body_mb_max: 9, bodies_in_flight_mb_max: 8}", "limits.bodies_in_flight_mb_max: is less than body_mb_max (9)"),
        (providers("p: {dialect: openai, base_url: 'http://h', tls_verify: false, tls_ca_file: /a}"), "tls_ca_file: has no effect with `tls_verify: false`; remove one of them"),
        (providers("p: {base_url: 'http://h'}"), "2:6: providers.p.dialect: is missing; it has no default"),
        (providers("p: {dialect: vlm, base_url: 'http://h'}"), "did you mean vllm?"),
        (providers("p: {dialect: nonsense, base_url: 'http://h'}"), "is not one of anthropic, azure, "),
        (providers(LOCAL) + "routes: [{match: {}, to: [locl]}]", "3:27: routes[0].to[0]: 'locl' is not one of providers; did you mean local?"),
        (providers(LOCAL) + "routes: [{match: {}, to: [no-such]}]", "routes[0].to[0]: 'no-such' is not one of providers; known: local"),
        (providers(LOCAL) + "routes: [{match: {}, to: []}]", "3:26: routes[0].to: the list is empty; write a name of lower-case"),
        (providers(LOCAL) + "routes: [{match: {}, to: [local, local]}]", "routes[0].to[1]: 'local' stands in the list twice"),
        (providers(LOCAL) + "routes: [{to: local}]", "3:10: routes[0].match: is missing; it has no default"),
        (providers(LOCAL) + "routes: [{match: {}}]", "3:10: routes[0].to: is missing; it has no default"),
        (providers(LOCAL) + "routes: [{match: {model: ''}, to: local}]", "routes[0].match.model: '' is not a model name or glob: it is empty"),
    ],
)  # fmt: skip
def test_settings_are_checked_against_each_other(text: str, expected: str) -> None:
    """What only another setting makes wrong is found too, at the place that can be mended."""
    assert expected in "\n".join(faults(text))


def test_all_faults_come_at_once_in_the_order_of_the_file() -> None:
    """One run of `farebox check` names every mistake, also across sections, and none of them twice."""
    found = faults(
        """
server: {port: x, hots: y}
auth: {mode: passthrough}
providers:
  a: {dialect: opnai, base_url: nowhere, passthrough: perhaps}
  B: {dialect: openai, base_url: "http://b"}
routes:
  - {match: {model: [a, no]}, to: [a, no, c]}
  - {match: {tags: {t: }}, to: [A]}
limits: {body_mb_max: 0}
"""
    )
    paths = [re.match(r"(\d+):\d+: ([^:]+): ", line) for line in found]
    assert [match.groups() for match in paths if match] == [
        ("2", "server.port"),
        ("2", "server.hots"),
        ("5", "providers.a.dialect"),
        ("5", "providers.a.base_url"),
        ("5", "providers.a.passthrough"),
        ("6", "providers.B"),
        ("8", "routes[0].match.model[1]"),
        ("8", "routes[0].to[1]"),
        ("8", "routes[0].to[2]"),
        ("9", "routes[1].match.tags.t"),
        ("9", "routes[1].to[0]"),
        ("10", "limits.body_mb_max"),
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (providers(LOCAL) + "routes: [{match: {}, to: local}, {match: {model: a}, to: local}]", "routes[1] is never used: routes[0] matches everything before it"),
        (providers("p: {dialect: openai, base_url: 'https://h'}"), "providers.p has no api_key: calls go to it without a credential"),
        (providers("p: {dialect: openai, base_url: 'http://h', tls_verify: false}"), "providers.p has tls_verify: false: its certificate is not checked"),
        ("auth: {mode: passthrough}\n" + providers("p: {dialect: openai, base_url: 'https://h', passthrough: true}", LOCAL) + "routes: [{match: {}, to: local}]", "routes[0] refuses every call: in auth.mode passthrough it needs exactly one enabled provider marked passthrough: true, and has 0"),
    ],
)  # fmt: skip
def test_what_works_but_is_hardly_meant_is_a_warning(text: str, warning: str) -> None:
    """A config that can run, but not as its author will think, says so."""
    assert read(text).warnings == (warning,)


# -- whatever is written ---------------------------------------------------------------------------

_WORDS = st.sampled_from(
    [
        *("server", "port", "host", "auth", "mode", "open", "providers", "routes", "match", "model", "to", "headers"),
        *(
            "api_key",
            "dialect",
            "openai",
            "base_url",
            "http://h",
            "{}",
            "[]",
            "~",
            "on",
            "no",
            "1",
            "-1",
            "1e9",
            ".nan",
        ),
        *("${X}", "$${", "${", "${file:/x}", "*a", "&a", "<<:", "-", ":", "?", "!", "|", ">", "'", '"', "#", "%", "@"),
        *(",", "{", "}", "[", "]"),
    ]
)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=200), st.lists(st.one_of(_WORDS, st.sampled_from([" ", "\n", ": ", "\n  "]))).map("".join)
    )
)
def test_any_text_is_a_config_or_a_list_of_faults(text: str) -> None:
    """Whatever a file holds, loading gives a config or faults with places inside the file, never another error."""
    try:
        read(text, {"X": "value"})
    except ConfigError as error:
        lines = len(re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text))
        assert error.faults
        assert all(1 <= found.line <= lines and found.col >= 1 and found.path for found in error.faults)
