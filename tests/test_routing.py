"""Routing: which providers get a call, and whose calls get none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.config import Config
from farebox.errors import Forbidden, ModelNotAllowed, NotFound, Refusal
from farebox.paths import Target, parse
from farebox.records import Caller
from farebox.routing import MODEL_CHARS_MAX, Route, allows, choose
from support.config import CLAUDE, LOCAL, OPENAI, providers, read

CHAT = parse("POST", "/v1/chat/completions")
FILES = parse("GET", "/v1/files")
ANYONE = Caller(kind="virtual")
RULES = """
routes:
  - {match: {model: "claude-*"}, to: [claude]}
  - {match: {model: [gpt-*, o1], tags: {tier: cheap}}, to: [local, openai], retry_sent: true}
  - {match: {model: gpt-*}, to: [openai, local]}
  - {match: {tags: {where: here}}, to: [local]}
"""
CONFIG = read(providers(OPENAI, CLAUDE, LOCAL) + RULES)


def names(
    model: str | None,
    *,
    caller: Caller = ANYONE,
    target: Target = CHAT,
    tags: Mapping[str, str] = {},
    config: Config = CONFIG,
) -> list[str]:
    return [provider.name for provider in choose(config, caller, target, model, tags).providers]


def caller(**fields: object) -> Caller:
    return Caller(kind="virtual", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "tags", "to"),
    [
        ("claude-haiku-4-5", {}, ["claude"]),
        ("gpt-4o", {}, ["openai", "local"]),
        ("gpt-4o", {"tier": "cheap", "more": "x"}, ["local", "openai"]),
        ("gpt-4o", {"tier": "Cheap"}, ["openai", "local"]),
        ("o1", {"tier": "cheap"}, ["local", "openai"]),
        ("anything", {"where": "here"}, ["local"]),
    ],
)
def test_the_first_rule_that_matches_decides(model: str, tags: dict[str, str], to: list[str]) -> None:
    """Rules are tried in order; model and every tag must fit; `to` keeps its order."""
    assert names(model, tags=tags) == to


def test_a_route_carries_its_rule_s_retry_sent() -> None:
    """retry_sent belongs to the rule that decided, and to no direct call."""
    assert choose(CONFIG, ANYONE, CHAT, "o1", {"tier": "cheap"}).retry_sent is True
    assert choose(CONFIG, ANYONE, CHAT, "gpt-4o", {}).retry_sent is False
    assert choose(CONFIG, ANYONE, parse("POST", "/p/local/chat/completions"), "o1", {"tier": "cheap"}) == Route(
        (CONFIG.providers["local"],)
    )


@pytest.mark.parametrize(
    ("glob", "model", "matches"),
    [
        ("gpt-4", "gpt-4", True),
        ("gpt-4", "gpt-4o", False),
        ("gpt-4", "GPT-4", False),
        ("GPT-*", "gpt-4", False),
        ("*", "", True),
        ("*", "a/b\nc", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[ab]-1", "b-1", True),
        ("[!ab]-1", "b-1", False),
        ("[", "[", True),
        ("a.c", "abc", False),
        ("{a,b}", "a", False),
        ("meta-llama/*:free", "meta-llama/llama-3:free", True),
    ],
)
def test_globs_are_case_sensitive_with_star_question_mark_and_sets(glob: str, model: str, matches: bool) -> None:
    """A glob matches the whole name; `*`, `?` and `[...]` are special, case counts, nothing else is special."""
    assert allows((glob,), model) is matches


def test_a_hostile_glob_and_name_do_not_blow_up() -> None:
    """Many stars against a long name that almost fits end at once instead of backtracking."""
    assert allows(("*a" * 60 + "b",), "a" * MODEL_CHARS_MAX) is False


def test_a_model_without_rule_is_refused_by_name() -> None:
    """No rule for a model: 404 model_not_found, naming the model, its length bounded."""
    with pytest.raises(ModelNotAllowed, match=r"^No rule of routes matches: the model is 'o1'\.$") as caught:
        names("o1")
    assert caught.value.param == "model"
    with pytest.raises(ModelNotAllowed) as caught:
        names("x" * MODEL_CHARS_MAX)
    assert len(caught.value.message) < 200
    with pytest.raises(ModelNotAllowed, match="longer than 512 characters"):
        names("claude-" + "x" * MODEL_CHARS_MAX, config=read(providers(LOCAL)))


def test_without_any_provider_every_call_is_refused() -> None:
    """An empty config routes nothing."""
    with pytest.raises(ModelNotAllowed):
        names("gpt-4o", config=Config())
    with pytest.raises(ModelNotAllowed, match="the request names no model"):
        names(None, target=FILES, config=Config())


# -- without a model -------------------------------------------------------------------------------


def test_without_a_model_the_first_provider_of_the_first_rule_without_one() -> None:
    """Stored objects live at one provider: rules that ask for a model are passed over, and nothing falls back."""
    config = read(providers(OPENAI, CLAUDE, LOCAL) + RULES + "  - {match: {}, to: [openai, local]}\n")
    assert names(None, target=FILES, config=config) == ["openai"]
    assert names(None, target=FILES, tags={"where": "here"}, config=config) == ["local"]
    with pytest.raises(ModelNotAllowed, match="the request names no model"):
        names(None, target=FILES)


def test_a_key_with_models_is_refused_where_no_model_is_read() -> None:
    """What cannot be checked is not allowed: neither by the rules nor by naming a provider."""
    limited = caller(models=("gpt-*",))
    for target in (CHAT, FILES, parse("POST", "/p/local/anything")):
        with pytest.raises(Forbidden, match=r"limited to models \(gpt-\*\), and farebox reads no model"):
            names(None, target=target, caller=limited)


# -- what a key may use ----------------------------------------------------------------------------


def test_a_key_with_models_may_use_these_only() -> None:
    """A key's globs restrict every way to a provider."""
    limited = caller(models=("gpt-4*", "o1"))
    assert names("gpt-4o", caller=limited) == ["openai", "local"]
    direct = parse("POST", "/p/claude/v1/messages")
    for target in (CHAT, direct):
        with pytest.raises(ModelNotAllowed, match=r"may not use the model 'claude-x'; it is limited to gpt-4\*, o1"):
            names("claude-x", caller=limited, target=target)
    assert names("o1", caller=limited, target=direct) == ["claude"]


def test_a_key_with_providers_may_use_these_only() -> None:
    """A key's providers narrow a rule's list; when nothing is left the first matching rule still decides."""
    limited = caller(providers=("local",))
    assert names("gpt-4o", caller=limited) == ["local"]
    config = read(providers(OPENAI, CLAUDE, LOCAL) + "routes: [{match: {}, to: [openai, local]}]")
    assert names(None, target=FILES, caller=limited, config=config) == ["local"]
    with pytest.raises(Forbidden, match="The routes send this call to claude, and this key is limited to local"):
        names("claude-x", caller=limited, tags={"where": "here"})
    for path in ("/p/openai/files", "/p/nowhere/files"):
        with pytest.raises(Forbidden, match="limited to local"):
            names(None, target=parse("GET", path), caller=limited)


def test_the_key_s_tags_outrank_the_request_s() -> None:
    """A client's claim does not override what its key says."""
    tagged = caller(tags={"tier": "cheap"})
    assert names("gpt-4o", caller=tagged) == ["local", "openai"]
    assert names("gpt-4o", caller=tagged, tags={"tier": "dear"}) == ["local", "openai"]


# -- /p/PROVIDER -----------------------------------------------------------------------------------


def test_a_provider_can_be_named_in_the_path() -> None:
    """/p/PROVIDER picks that provider, whatever the rules say of the model."""
    target = parse("POST", "/p/local/chat/completions")
    assert names("claude-x", target=target) == names(None, target=target) == ["local"]


def test_an_unknown_or_disabled_provider_in_the_path_is_not_found() -> None:
    """The refusal names what there is, or why the named one is not."""
    target = parse("GET", "/p/other/models")
    with pytest.raises(NotFound, match=r"^There is no provider 'other'\. Known: openai, claude, local\.$"):
        names(None, target=target)
    disabled = read(providers('other: {dialect: openai, base_url: "http://h", api_key: "${NOPE}"}'))
    with pytest.raises(NotFound, match="The provider other is disabled: the environment variable NOPE has no value"):
        names(None, target=target, config=disabled)
    with pytest.raises(NotFound, match="Known: none"):
        names(None, target=target, config=Config())


# -- passthrough -----------------------------------------------------------------------------------

PASSTHROUGH = read(
    "auth: {mode: passthrough}\n"
    + providers(OPENAI[:-1] + ", passthrough: true}", CLAUDE[:-1] + ", passthrough: true}", LOCAL)
    + """
routes:
  - {match: {model: one}, to: [openai]}
  - {match: {model: mixed}, to: [local, openai]}
  - {match: {model: none}, to: [local]}
  - {match: {model: two}, to: [openai, claude], retry_sent: true}
"""
)


@pytest.mark.parametrize("model", ["one", "mixed"])
def test_a_client_s_credential_goes_to_the_one_marked_provider(model: str) -> None:
    """In passthrough mode a route is exactly the rule's one marked provider, without any to fall back to."""
    assert choose(PASSTHROUGH, Caller(kind="passthrough"), CHAT, model, {}) == Route((PASSTHROUGH.providers["openai"],))


@pytest.mark.parametrize(("model", "count"), [("none", "none"), ("two", "2")])
def test_a_client_s_credential_is_never_sent_by_guess(model: str, count: str) -> None:
    """No marked provider, or several: the call is refused instead of showing the credential to somebody."""
    with pytest.raises(Forbidden, match=f"exactly one provider marked `passthrough: true`, and it has {count}"):
        names(model, config=PASSTHROUGH, caller=Caller(kind="passthrough"))


def test_naming_a_provider_does_not_open_it_to_credentials() -> None:
    """/p/PROVIDER in passthrough mode needs the mark too, whoever asks."""
    assert names("x", config=PASSTHROUGH, target=parse("POST", "/p/claude/v1/messages")) == ["claude"]
    with pytest.raises(Forbidden, match="local is not marked `passthrough: true`"):
        names("x", config=PASSTHROUGH, target=parse("POST", "/p/local/chat/completions"))


# -- always ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    model=st.none() | st.sampled_from(["gpt-4o", "o1", "claude-x", "x"]),
    path=st.sampled_from(["/v1/chat/completions", "/p/openai/x", "/p/local/x", "/p/none/x"]),
    tags=st.dictionaries(st.sampled_from(["tier", "where"]), st.sampled_from(["cheap", "here"])),
    models=st.lists(st.sampled_from(["gpt-*", "claude-*", "o1", "*"]), max_size=2),
    allowed=st.lists(st.sampled_from(["openai", "claude", "local"]), max_size=2),
    config=st.sampled_from([CONFIG, PASSTHROUGH, Config()]),
)
def test_no_call_goes_where_its_key_may_not(
    model: str | None, path: str, tags: dict[str, str], models: list[str], allowed: list[str], config: Config
) -> None:
    """Whatever is asked, the answer is a refusal or providers that key, model and mode all allow."""
    who = caller(models=tuple(models), providers=tuple(allowed))
    try:
        route = choose(config, who, parse("POST", path), model, tags)
    except Refusal as refusal:
        assert refusal.status in (403, 404)
        return
    assert route.providers
    assert all(not allowed or provider.name in allowed for provider in route.providers)
    assert not models or (model is not None and allows(models, model))
    if config.auth.mode == "passthrough":
        assert [provider.passthrough for provider in route.providers] == [True]
