"""Which providers get a call, in order: rules of the config, narrowed by what the caller may use.

Decides on values only. Reading the model and the tags out of a request is `request`'s, what a path
names is `paths`', and trying one provider after the other is the proxy's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from farebox.config import Config, Match, Provider
from farebox.errors import BadRequest, Forbidden, ModelNotAllowed, NotFound
from farebox.paths import Target
from farebox.records import Caller

MODEL_CHARS_MAX = 512
"""A longer model name is refused unmatched: no provider has one, and a pattern's cost grows with it."""
_NAMED_MAX = 10
"""A message names at most this many providers or globs."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes: `providers` in order, never empty.

    `retry_sent`: the next provider may also be tried after a timeout of a call that was sent.
    """

    providers: tuple[Provider, ...]
    retry_sent: bool = False


def choose(
    config: Config,
    caller: Caller,
    target: Target,
    model: str | None,
    tags: Mapping[str, str],
    homes: Collection[str] = (),
) -> Route:
    """The providers for a call to `target`; `model` is None where the request names none.

    `tags` are the request's own; the caller's are added and win. `homes`: the providers that have the
    stored objects the request names, if it names any; no other is of use. Raises `NotFound` for an unknown
    `/p/PROVIDER`, `Forbidden` or `ModelNotAllowed` when the caller may not go there or no rule is for the
    call, `BadRequest` when its rule leads elsewhere than to its objects.
    """
    check_model(caller, model)
    if caller.models and (deployment := target.deployment) is not None:
        check_model(caller, deployment)
    if target.provider is not None:
        return Route((_named(config, caller, target.provider),))
    if homes and model is None:
        return Route((_home(config, caller, homes),))
    if homes:
        return _homewards(_by_rules(config, caller, model, {**tags, **caller.tags}), homes)
    route = _by_rules(config, caller, model, {**tags, **caller.tags})
    return Route((_credentialed(route.providers),)) if config.auth.mode == "passthrough" else route


def same_account(config: Config, name: str) -> frozenset[str]:
    """The providers that are one to whoever answers them: the same address and the same credentials."""
    provider = config.providers.get(name)
    if provider is None:
        return frozenset((name,))
    account = _account(provider)
    return frozenset(other.name for other in config.providers.values() if _account(other) == account)


def _account(provider: Provider) -> tuple[str, tuple[str, ...]]:
    return provider.base_url.rstrip("/"), tuple(provider.credentials)


def allows(globs: Iterable[str], model: str) -> bool:
    """Whether `model` matches one of `globs` (`*`, `?`, `[abc]`; case counts).

    The standard library keeps the compiled patterns, at most 32,768 of them; past that it compiles again.
    """
    return any(fnmatchcase(model, glob) for glob in globs)


def check_model(caller: Caller, model: str | None) -> None:
    """Raises `ModelNotAllowed` where the caller may not use `model`, `Forbidden` where it may not go unread (None)."""
    if model is not None and len(model) > MODEL_CHARS_MAX:
        raise ModelNotAllowed(f"The model name is longer than {MODEL_CHARS_MAX} characters.", param="model")
    if not caller.models:
        return
    if model is None:
        raise Forbidden(
            f"This key is limited to models ({_list(caller.models)}), and farebox reads no model in this request."
        )
    if not allows(caller.models, model):
        raise ModelNotAllowed(
            f"This key may not use the model {_quoted(model)}; it is limited to {_list(caller.models)}.", param="model"
        )


def _named(config: Config, caller: Caller, name: str) -> Provider:
    """The provider of `/p/NAME/...`."""
    provider = config.providers.get(name)
    if provider is not None and _may_use(caller, name):
        if config.auth.mode == "passthrough" and not provider.passthrough:
            raise Forbidden(
                f"auth.mode is passthrough, and the provider {name} is not marked `passthrough: true`, so your "
                "credential is not sent to it."
            )
        return provider
    if caller.providers and not _may_use(caller, name):
        raise Forbidden(
            f"This key may not use the provider {_quoted(name)}; it is limited to {_list(caller.providers)}."
        )
    if name in config.disabled:
        raise NotFound(f"The provider {name} is disabled: {config.disabled[name]}.")
    known = _list(config.providers) or "none"
    raise NotFound(f"There is no provider {_quoted(name)}. Known: {known}.")


def _by_rules(config: Config, caller: Caller, model: str | None, tags: Mapping[str, str]) -> Route:
    """The first rule that matches decides, also when it leaves the caller nothing."""
    for rule in config.routes:
        if not _holds(rule.match, model, tags):
            continue
        providers = tuple(config.providers[name] for name in rule.to if _may_use(caller, name))
        if not providers:
            raise Forbidden(
                f"The routes send this call to {_list(rule.to)}, and this key is limited to "
                f"{_list(caller.providers)} ({_subject(model)})."
            )
        # Without a model it is about stored things (files, batches): a second provider would not have them.
        return Route(providers if model is not None else providers[:1], rule.retry_sent)
    raise ModelNotAllowed(f"No rule of routes matches: {_subject(model)}.", param="model")


def _home(config: Config, caller: Caller, homes: Collection[str]) -> Provider:
    """The provider that has an object. Two that know one of the same id are told apart by their order only."""
    there = [name for name in config.providers if name in homes]
    if not there:
        raise NotFound(f"The provider that has this object is not configured: {_list(sorted(homes))}.")
    usable = next((name for name in there if _may_use(caller, name)), None)
    if usable is None:
        raise Forbidden(f"This object is at {_list(there)}, and this key is limited to {_list(caller.providers)}.")
    return config.providers[usable]


def _homewards(route: Route, homes: Collection[str]) -> Route:
    """Those of `route` that have the objects: a fallback to another provider could not find them."""
    providers = tuple(provider for provider in route.providers if provider.name in homes)
    if not providers:
        raise BadRequest(
            f"This request names a stored object of {_list(sorted(homes))}, and the routes send its model to "
            f"{_list(provider.name for provider in route.providers)}. Use a model that is routed to the object."
        )
    return Route(providers, route.retry_sent)


def _holds(match: Match, model: str | None, tags: Mapping[str, str]) -> bool:
    if match.model is not None and (model is None or not allows(match.model, model)):
        return False
    return all(tags.get(name) == value for name, value in match.tags.items())


def _credentialed(providers: tuple[Provider, ...]) -> Provider:
    """The one provider that may see the client's own credential: it is never offered to a second."""
    marked = [provider for provider in providers if provider.passthrough]
    if len(marked) != 1:
        raise Forbidden(
            "auth.mode is passthrough: the rule for this request needs exactly one provider marked "
            f"`passthrough: true`, and it has {len(marked) or 'none'}."
        )
    return marked[0]


def _may_use(caller: Caller, name: str) -> bool:
    return not caller.providers or name in caller.providers


def _subject(model: str | None) -> str:
    return "the request names no model" if model is None else f"the model is {_quoted(model)}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _list(names: Iterable[str]) -> str:
    some = list(names)
    more = [f"{len(some) - _NAMED_MAX} more"] if len(some) > _NAMED_MAX else []
    return ", ".join(some[:_NAMED_MAX] + more)
