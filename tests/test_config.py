"""The config: what a file means."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from farebox.config import Config, ConfigError, Match, Provider, RouteRule, Secret, load
from farebox.config.interpolate import FILE_CHARS_MAX
from farebox.dialects import PROFILES
from support.config import CLAUDE, KEYS, LOCAL, OPENAI, fault, faults, providers, read

# -- what a file means -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "{}", "~", "server:\nproviders:\nroutes:\n"])
def test_an_empty_file_is_the_defaults(text: str) -> None:
    """A file without settings, and one with empty sections, is the default config."""
    assert read(text) == Config()


def test_the_file_of_the_readme_loads() -> None:
    """The sections, the providers and the rules of a usual file come out as they were written."""
    config = read(
        """
server: {host: 127.0.0.1, port: 9000, admin_token: "${FAREBOX_ADMIN_TOKEN}"}
database: {url: embedded, data_dir: ./data}
auth: {mode: virtual}
providers:
  openai: {dialect: openai, base_url: "https://api.openai.com/v1/", api_key: "${OPENAI_API_KEY}"}
  claude: {dialect: anthropic, base_url: "https://api.anthropic.com", api_key: "${ANTHROPIC_API_KEY}"}
  local:
    dialect: vllm
    base_url: http://localhost:8000/v1
    stream_options: skip
    headers: {x-team: a b}
routes:
  - {match: {model: "claude-*"}, to: [claude]}
  - {match: {model: [gpt-*, o1], tags: {tier: cheap}}, to: [openai, local], retry_sent: true}
  - {match: {}, to: openai}
metering: {on_client_disconnect: drain, drain_timeout_s: 2.5}
ledger: {fsync_ms: off}
log: {format: json}
""",
        KEYS,
    )
    assert (config.server.port, config.server.admin_token, config.database.data_dir) == (9000, "admin-token", "./data")
    assert list(config.providers) == ["openai", "claude", "local"]
    assert config.providers["openai"].base_url == "https://api.openai.com/v1"
    assert config.providers["openai"].api_key == Secret("sk-openai")
    local = config.providers["local"]
    assert (local.name, local.api_key, local.stream_options, dict(local.headers)) == (
        "local",
        None,
        "skip",
        {"x-team": "a b"},
    )
    assert config.routes == (
        RouteRule(match=Match(model=("claude-*",)), to=("claude",)),
        RouteRule(match=Match(model=("gpt-*", "o1"), tags={"tier": "cheap"}), to=("openai", "local"), retry_sent=True),
        RouteRule(match=Match(), to=("openai",)),
    )
    assert (config.metering.on_client_disconnect, config.metering.drain_timeout_s) == ("drain", 2.5)
    assert (config.ledger.fsync_ms, config.log.format, config.warnings) == (None, "json", ())


@pytest.mark.parametrize("dialect", sorted(PROFILES))
def test_a_dialect_brings_its_profile_and_any_field_of_it_can_be_overridden(dialect: str) -> None:
    """What a provider leaves open is as its dialect's profile says; what it gives wins."""
    profile = PROFILES[dialect]
    plain = read(f"providers: {{p: {{dialect: {dialect}, base_url: 'http://h'}}}}").providers["p"]
    assert plain.stream_options == profile.stream_options
    assert plain.reasoning == profile.reasoning
    assert plain.auth_header == ("bearer" if profile.auth_header == "none" else profile.auth_header)
    own = "stream_options: learn, reasoning: included, auth_header: x-api-key"
    given_ = read(f"providers: {{p: {{dialect: {dialect}, base_url: 'http://h', {own}}}}}").providers["p"]
    assert given_.profile == dataclasses.replace(
        profile, stream_options="learn", reasoning="included", auth_header="x-api-key"
    )


def test_anchors_and_merges_share_settings_between_providers() -> None:
    """`<<` brings in what the mapping itself does not say, the first of several sources winning."""
    config = read(
        """
providers:
  a: &a {dialect: vllm, base_url: "http://a:1", idle_timeout_s: 7, connections_max: 9}
  b: &b {base_url: "http://b:1", <<: *a}
  c: {<<: [*b, *a], connections_max: 3}
"""
    )
    b, c = config.providers["b"], config.providers["c"]
    assert (b.base_url, b.idle_timeout_s, b.dialect) == ("http://b:1", 7, "vllm")
    assert (c.base_url, c.connections_max) == ("http://b:1", 3)


@pytest.mark.parametrize(
    ("written", "value"),
    [("8080", 8080), ("'8080'", 8080), ("8_080", 8080), ('"${P}"', 9999), ("${P}", 9999), ("+80", 80), ("0", 0)],
)
def test_a_number_may_be_quoted_grouped_or_come_from_the_environment(written: str, value: int) -> None:
    """A number is its digits, wherever they come from."""
    assert read(f"server:\n  port: {written}\n", {"P": "9999"}).server.port == value


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", '"true"', "${W}"])
def test_a_flag_takes_every_word_yaml_has_for_it(word: str) -> None:
    """true, yes and on mean true; their opposites mean false."""
    assert read(f"server:\n  response_headers: {word}\n", {"W": "true"}).server.response_headers is True


@pytest.mark.parametrize("word", ["false", "FALSE", "no", "off", '"off"'])
def test_a_flag_takes_every_word_for_false(word: str) -> None:
    """false, no and off mean false."""
    assert read(f"server:\n  response_headers: {word}\n").server.response_headers is False


@pytest.mark.parametrize("written", ["1.10", "010", "2026-01-01", "0x1F", "1e3", "1:30", "="])
def test_text_is_taken_as_written(written: str) -> None:
    """An unquoted text that YAML would read as a number or a date stays the text that stands there."""
    config = read(f"{providers(LOCAL)}routes:\n  - match:\n      tags:\n        v: {written}\n    to: local\n")
    assert dict(config.routes[0].match.tags) == {"v": written}


# -- ${...} ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("a${X}b${X}", "a1b1"),
        ("$${X}", "${X}"),
        ("$$${X}", "$${X}"),
        ("${X}$${X}${Y}", "1${X}${X}"),
        ("$X $ {X}", "$X $ {X}"),
        ("${file:/run/dir}", "from: #file"),
        ("${file:/run/dir}/${X}", "from: #file/1"),
    ],
)
def test_values_are_interpolated_once(written: str, value: str) -> None:
    """`${NAME}` and `${file:PATH}` are replaced, `$${` is `${`, and what comes in is not read again."""
    config = read(f"database: {{data_dir: '{written}'}}", {"X": "1", "Y": "${X}"}, {"/run/dir": "from: #file\r\n"})
    assert config.database.data_dir == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${NOPE}", "the environment variable NOPE has no value"),
        ("${EMPTY}", "the environment variable EMPTY has no value"),
        ("${NOPE}${EMPTY}${NOPE}", "the environment variable NOPE, EMPTY have no value"),
        ("x${NOPE", "`${` without its `}`; a literal `${` is written `$${`"),
        (
            "${NOPE:-x}",
            "`${...}` takes the name of an environment variable, or `file:PATH`; a default is not supported, and a "
            "literal `${` is written `$${`",
        ),
        ("${file:}", "`${file:}` names no file; write ${file:PATH}"),
        ("${file:/no}", "cannot read /no: No such file or directory"),
        ("${file:/long}", f"/long has more than {FILE_CHARS_MAX} characters"),
    ],
)
def test_what_cannot_be_interpolated_is_a_fault(value: str, message: str) -> None:
    """An unset variable, an unreadable file and a malformed `${` are faults that say so."""
    files = {"/long": "x" * (FILE_CHARS_MAX + 1)}
    assert fault(f"database:\n  data_dir: '{value}'\n", {"EMPTY": ""}, files) == f"2:13: database.data_dir: {message}"


def test_a_file_that_is_not_text_is_a_fault_without_its_bytes() -> None:
    """A decoding error is reported without what it failed on."""

    def binary(path: str) -> str:
        return b"s3cret\xff".decode()

    with pytest.raises(ConfigError) as caught:
        load("server: {admin_token: '${file:/k}'}", filename="f", env={}, read_file=binary)
    assert str(caught.value) == (
        "f:1:23: server.admin_token: cannot read /k: not a text file in UTF-8, or not a usable path"
    )


def test_a_key_without_value_disables_the_provider_only() -> None:
    """An api_key whose variable is unset disables its provider: a warning, and the rules leave it out."""
    config = read(
        providers('a: {dialect: openai, base_url: "https://a", api_key: "${NOPE}"}', LOCAL)
        + "routes:\n  - {match: {model: x}, to: [a]}\n  - {match: {}, to: [a, local]}\n"
    )
    assert list(config.providers) == ["local"]
    assert config.disabled == {"a": "the environment variable NOPE has no value"}
    assert config.unavailable["a"].base_url == "https://a" and config.unavailable["a"].api_key is None
    assert list(config.known) == ["local", "a"]
    assert config.warnings == ("providers.a is disabled: the environment variable NOPE has no value",)
    assert config.routes == (RouteRule(match=Match(), to=("local",)),)


def test_a_disabled_provider_is_checked_all_the_same() -> None:
    """A missing key does not hide the other mistakes of a provider."""
    text = providers('a: {dialect: openai, base_url: "ftp://a", api_key: "${NOPE}"}')
    assert fault(text).startswith("2:34: providers.a.base_url: the value is not an http:// or https:// URL")


# -- default rules and additions -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "rules"),
    [
        ((), []),
        ((LOCAL, OPENAI), [(None, "local")]),
        ((CLAUDE,), [(None, "claude")]),
        ((CLAUDE, OPENAI, LOCAL), [(("claude-*",), "claude"), (None, "openai")]),
        (('off: {dialect: openai, base_url: "https://h", api_key: "${NOPE}"}', LOCAL), [(None, "local")]),
    ],
)
def test_without_routes_each_family_has_its_first_provider(entries: tuple[str, ...], rules: list[Any]) -> None:
    """No routes: claude-* to the first Anthropic provider, the rest to the first other one, nothing falls back."""
    routes = read(providers(*entries)).routes
    assert routes == tuple(RouteRule(match=Match(model=model), to=(to,)) for model, to in rules)


def test_routes_given_as_an_empty_list_are_none() -> None:
    """`routes: []` is a decision: only /p/PROVIDER serves."""
    assert read(providers(LOCAL) + "routes: []").routes == ()


def test_a_provider_can_be_added() -> None:
    """An added provider gets what no rule is for, and the config it was added to is unchanged."""
    config = read(providers(LOCAL) + "routes: [{match: {model: a}, to: local}]")
    more = config.with_provider("demo", Provider(name="", dialect="demo", base_url="http://127.0.0.1:1/v1"))
    assert more.providers["demo"].name == "demo"
    assert more.routes == (*config.routes, RouteRule(match=Match(), to=("demo",)))
    assert list(config.providers) == ["local"]


# -- secrets ---------------------------------------------------------------------------------------


def test_no_secret_is_printed_with_the_config() -> None:
    """The config's own text shows no credential, and `secrets` names every one for the log's mask."""
    config = read(
        "server: {admin_token: adm1n-s3cret}\ndatabase: {url: 'postgresql://u:p%40ss-s3cret@h/d'}\n"
        + providers(
            "p: {dialect: openai, base_url: 'http://h', api_key: sk-s3cret, headers: {x-auth: h-s3cret, x-t: ab}}"
        )
    )
    for text in (repr(config), str(config), f"{config.providers['p'].api_key}", f"{config.providers['p'].api_key!r}"):
        assert "s3cret" not in text
    assert set(config.secrets()) == {
        "adm1n-s3cret",
        "postgresql://u:p%40ss-s3cret@h/d",
        "p%40ss-s3cret",
        "p@ss-s3cret",
        "sk-s3cret",
        "h-s3cret",
    }


@pytest.mark.parametrize(
    "text",
    [
        "server: {admin_token: [s3cret]}",
        "server: {admin_token: *s3cret}",
        "server: {admin_token: &s3cret}",
        "server: {admin_token: !s3cret x}",
        "server: {admin_token: %s3cret}",
        "server: {admin_token: 's3cret}",
        'server: {admin_token: "\\s3cret"}',
        "server: {admin_token: s3cret s3cret}",
        "server: {admin_token: 's3crét'}",
        "server: {port: '${S}'}",
        "auth: {mode: '${S}'}",
        "server: {host: '${file:/s}!'}",
        "database: {url: 'postgres:s3cret'}",
        "providers: {p: {dialect: '${S}', base_url: '${S}', api_key: '${S} '}}",
    ],
)
def test_no_fault_quotes_a_secret(text: str) -> None:
    """Neither a credential's value nor anything from the environment or a file stands in a message."""
    assert "s3cr" not in "\n".join(faults(text, {"S": "s3cret/"}, {"/s": "s3cret"}))
