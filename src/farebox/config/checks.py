"""What settings must be to each other: rules that no single value can break.

Each check reads sound values only (`Faults.sound`), so that one mistake is not reported twice in
different words.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from farebox.config.budgets import BudgetRule, clash
from farebox.config.faults import ConfigError, Fault, Faults, shown
from farebox.config.kinds import Bad, Scalar, Whole
from farebox.config.metering import Alerts
from farebox.config.nodes import join
from farebox.config.providers import Provider, RouteRule
from farebox.config.schema import Config
from farebox.config.settings import Auth, Database, Ledger, Limits, Server
from farebox.config.web import Host, is_loopback

_PORT, _WORKERS = Whole(0, 65_535), Whole(1, 64)
_OPEN = "auth.mode is open, which needs no key, so {} must be a loopback address (127.0.0.1); this one is reachable"


def with_address(
    config: Config, host: str | None = None, port: int | None = None, workers: int | None = None
) -> Config:
    """`config` listening elsewhere, or by so many, as the command line asks. Raises `ConfigError` as loading would."""
    server, path = config.server, ""
    kind: Scalar = Host()
    try:
        if host is not None:
            path = "--host"
            server = replace(server, host=Host().parse(host))
            if config.auth.mode == "open" and not is_loopback(host):
                raise Bad(_OPEN.format("it"))
        if port is not None:
            path = "--port"
            kind = _PORT
            server = replace(server, port=_PORT.parse(str(port)))
        if workers is not None:
            path, kind = "--workers", _WORKERS
            server = replace(server, workers=_WORKERS.parse(str(workers)))
    except Bad as bad:
        raise ConfigError([Fault("command line", 0, 0, path, str(bad) or f"must be {kind.wants}")]) from None
    return replace(config, server=server)


def check(draft: Mapping[str, Any], faults: Faults) -> None:
    """Everything across sections. `draft` holds the sections that were given and could be read."""
    server: Server = draft.get("server", Server())
    database: Database = draft.get("database", Database())
    auth: Auth = draft.get("auth", Auth())
    providers: Mapping[str, Mapping[str, Any]] = draft.get("providers", {})
    _check_access(server, database, auth, providers, faults)
    _check_sizes(draft.get("ledger", Ledger()), draft.get("limits", Limits()), faults)
    _check_budgets(draft.get("budgets", ()), faults)
    _check_alerts(draft.get("alerts", Alerts()), faults)
    for name, values in providers.items():
        _check_provider(join("providers", name), values, faults)
    if faults.sound("providers"):
        _check_routes(draft.get("routes", ()), providers, faults)


def _check_access(
    server: Server, database: Database, auth: Auth, providers: Mapping[str, Mapping[str, Any]], faults: Faults
) -> None:
    if auth.mode == "open" and faults.sound("auth.mode", "server.host") and not is_loopback(server.host):
        faults.add("server.host", _OPEN.format("server.host"))
    if not database.embedded and server.admin_token is None and faults.sound("database.url", "server.admin_token"):
        faults.add(
            "server.admin_token", "is missing; with a database of your own it must be set", faults.where("database.url")
        )
    marks = [
        values.get("passthrough") or not faults.sound(f"providers.{name}.passthrough")
        for name, values in providers.items()
    ]
    if auth.mode == "passthrough" and faults.sound("providers") and not any(marks):
        faults.add("auth.mode", "is passthrough, but no provider is marked `passthrough: true`")


def _check_sizes(ledger: Ledger, limits: Limits, faults: Faults) -> None:
    if faults.sound("ledger.segment_mb", "ledger.journal_max_mb") and ledger.journal_max_mb < 2 * ledger.segment_mb:
        faults.add("ledger.journal_max_mb", f"must hold at least two segments: 2 x {ledger.segment_mb} (segment_mb)")
    for name in ("body_mb_max", "decoded_body_mb_max"):
        size = getattr(limits, name)
        if faults.sound(f"limits.{name}", "limits.bodies_in_flight_mb_max") and limits.bodies_in_flight_mb_max < size:
            faults.add(
                "limits.bodies_in_flight_mb_max", f"is less than {name} ({size}), so the largest body never passes"
            )


def _check_budgets(budgets: Iterable[BudgetRule | None], faults: Faults) -> None:
    """Each makes sense in itself, and has its name for itself. None stands for one that has a fault already."""
    names: dict[str, str] = {}
    for number, budget in enumerate(budgets):
        if budget is None:
            continue
        path = f"budgets[{number}]"
        first = names.setdefault(budget.name, path)
        if first != path:
            faults.add(f"{path}.name", f"{shown(budget.name)} is the name of {first} already")
        found = clash(budget.as_fields())
        # A value that could not be read was left out: what its absence seems to contradict says nothing.
        if found and faults.sound(*(f"{path}.{one.name}" for one in fields(BudgetRule))):
            faults.add(f"{path}.{found[0]}", found[1])


def _check_alerts(alerts: Alerts, faults: Faults) -> None:
    if not faults.sound("alerts.webhook_url", "alerts.webhook_secret"):
        return
    if alerts.webhook_url is not None and alerts.webhook_secret is None:
        faults.add("alerts.webhook_secret", "is missing; what goes to webhook_url is signed with it")
    if alerts.webhook_secret is not None and alerts.webhook_url is None:
        faults.add("alerts.webhook_secret", "has no effect without webhook_url")


def _check_provider(path: str, values: Mapping[str, Any], faults: Faults) -> None:
    if values.get("tls_ca_file") and values.get("tls_verify") is False:
        faults.add(f"{path}.tls_ca_file", "has no effect with `tls_verify: false`; remove one of them")
    header = {"bearer": "authorization", "none": None}.get(values["auth_header"], values["auth_header"])
    for name in values.get("headers", {}):
        if values.get("api_key") is not None and name.lower() == header:
            faults.add(join(f"{path}.headers", name), "api_key is sent in this header already; remove one of them")


def _check_routes(routes: Iterable[RouteRule | None], providers: Mapping[str, Any], faults: Faults) -> None:
    """Every name in `to` is a provider. None stands for a rule, or a name, that has a fault already."""
    for number, rule in enumerate(routes):
        for place, name in enumerate(rule.to if rule else ()):
            path = f"routes[{number}].to[{place}]"
            if name is not None and name not in providers:
                close = difflib.get_close_matches(name, providers, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(providers) or 'none'}"
                faults.add(path, f"{shown(name)} is not one of providers; {hint}")


def warnings(
    auth: Auth, providers: Mapping[str, Provider], disabled: Mapping[str, str], routes: Iterable[RouteRule]
) -> Iterator[str]:
    """Sentences about what works, but probably not as meant. `routes` are those of the file."""
    for name, why in disabled.items():
        yield f"providers.{name} is disabled: {why}"
    for name, provider in providers.items():
        bare = provider.api_key is None and not provider.headers and provider.auth_header != "none"
        if bare and auth.mode != "passthrough" and provider.base_url.startswith("https:"):
            yield f"providers.{name} has no api_key: calls go to it without a credential"
        if not provider.tls_verify:
            yield f"providers.{name} has tls_verify: false: its certificate is not checked"
    everything: int | None = None
    for number, rule in enumerate(routes):
        if everything is not None:
            yield f"routes[{number}] is never used: routes[{everything}] matches everything before it"
        elif rule.match.model is None and not rule.match.tags:
            everything = number
        enabled = [providers[name] for name in rule.to if name in providers]
        marked = [provider for provider in enabled if provider.passthrough]
        if auth.mode == "passthrough" and enabled and len(marked) != 1:
            yield (
                f"routes[{number}] refuses every call: in auth.mode passthrough it needs exactly one enabled provider "
                f"marked passthrough: true, and has {len(marked)}"
            )
