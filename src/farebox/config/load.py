"""YAML text to a `Config`: read, complete, check, and only then build.

Reading the file, the environment and `${file:...}` is the caller's; nothing here touches the system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from farebox.config import nodes
from farebox.config.checks import check, warnings
from farebox.config.faults import Faults
from farebox.config.kinds import Missing
from farebox.config.providers import Match, Provider, RouteRule
from farebox.config.reader import Reader
from farebox.config.schema import Config
from farebox.config.settings import Auth
from farebox.dialects import PROFILES, Profile


def load(text: str, *, filename: str, env: Mapping[str, str], read_file: Callable[[str], str]) -> Config:
    """The config that `text` describes; empty text is the defaults.

    `filename` stands in messages. `env` resolves `${NAME}`; `read_file` gives the text of a
    `${file:PATH}` and raises OSError or ValueError. Raises `ConfigError` with every fault found.
    """
    faults = Faults(filename)
    root = nodes.parse(text, faults)
    faults.raise_any()
    draft = Reader(env, read_file, faults).read(Config, root)
    given: dict[str, dict[str, Any]] = draft.get("providers", {})
    for values in given.values():
        _complete(values)
    check(draft, faults)
    faults.raise_any()

    disabled = {name: _reason(values["api_key"]) for name, values in given.items() if _is_missing(values)}
    providers = {name: Provider(name=name, **values) for name, values in given.items() if name not in disabled}
    unavailable = {name: Provider(name=name, **{**given[name], "api_key": None}) for name in disabled}
    auth = draft.get("auth", Auth())
    rules = draft.pop("routes", None)
    routes = tuple(_defaults(providers, auth) if rules is None else _in_force(rules, disabled))
    draft["providers"] = MappingProxyType(providers)
    return Config(
        **draft,
        routes=routes,
        disabled=MappingProxyType(disabled),
        unavailable=MappingProxyType(unavailable),
        warnings=tuple(warnings(auth, providers, disabled, rules or ())),
    )


def _complete(values: dict[str, Any]) -> None:
    """Fill in what the dialect's profile says and the config leaves open."""
    profile = PROFILES.get(values.get("dialect", ""), Profile(name=""))
    # A profile without a credential is a local server's; one that is given a key wants it sent.
    header = "bearer" if profile.auth_header == "none" else profile.auth_header
    defaults = {"stream_options": profile.stream_options, "reasoning": profile.reasoning, "auth_header": header}
    values.update(defaults | values)


def _is_missing(values: Mapping[str, Any]) -> bool:
    return isinstance(values.get("api_key"), Missing)


def _reason(missing: Missing) -> str:
    verb = "have" if len(missing.names) > 1 else "has"
    return f"the environment variable {', '.join(missing.names)} {verb} no value"


def _in_force(rules: Iterable[RouteRule], disabled: Mapping[str, str]) -> Iterator[RouteRule]:
    """The rules without disabled providers, and without rules that have no other."""
    for rule in rules:
        to = tuple(name for name in rule.to if name not in disabled)
        if to:
            yield rule if to == rule.to else replace(rule, to=to)


def _defaults(providers: Mapping[str, Provider], auth: Auth) -> Iterator[RouteRule]:
    """The rules of a config without any: one provider each, so that no fallback happens unasked."""
    usable = [p for p in providers.values() if p.passthrough or auth.mode != "passthrough"]
    anthropic = [p.name for p in usable if PROFILES[p.dialect].family == "anthropic"]
    others = [p.name for p in usable if p.name not in anthropic]
    if anthropic and others:
        yield RouteRule(match=Match(model=("claude-*",)), to=(anthropic[0],))
    for name in (others or anthropic)[:1]:
        yield RouteRule(match=Match(), to=(name,))
