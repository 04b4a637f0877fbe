"""The whole config as one value: its sections are in the modules beside this one.

A setting is added to its dataclass and nowhere else. Instances are frozen and hold only resolved
values: no `${...}`, nothing unset. Fields without `setting` metadata are not settable; they are
worked out while loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from farebox.config.budgets import BudgetRule
from farebox.config.kinds import Named, Rows, Section, setting
from farebox.config.metering import Alerts, Metering
from farebox.config.providers import Match, Provider, RouteRule, nothing
from farebox.config.settings import Auth, Database, Ledger, Limits, Server
from farebox.config.views import Log, Metrics, Models
from farebox.config.web import ProviderName


@dataclass(frozen=True, kw_only=True)
class Config:
    """One immutable snapshot of all settings.

    `providers` holds the enabled ones, `disabled` the reasons why others are not and `unavailable` these
    others without their credential, `routes` the rules in force (default ones when none are given),
    `warnings` sentences for the log.
    """

    server: Server = field(default=Server(), metadata=setting(Section(Server), "Where clients connect."))
    database: Database = field(
        default=Database(), metadata=setting(Section(Database), "Where keys and usage rows are kept.", at_start=True)
    )
    auth: Auth = field(default=Auth(), metadata=setting(Section(Auth), "Who may call."))
    providers: Mapping[str, Provider] = field(
        default_factory=lambda: MappingProxyType({}),
        metadata=setting(
            Named(ProviderName(), Provider),
            "Where calls go, by a name of your choice; /p/NAME/... reaches one directly. With none enabled, the "
            "built-in demo provider answers.",
        ),
    )
    routes: tuple[RouteRule, ...] = field(
        default=(),
        metadata=setting(
            Rows(RouteRule),
            "Which provider gets a call: the first rule that matches. Left out altogether, claude-* goes to the first "
            "enabled provider whose dialect is Anthropic's, and everything else to the first other one.",
        ),
    )
    budgets: tuple[BudgetRule, ...] = field(
        default=(),
        metadata=setting(
            Rows(BudgetRule),
            "What may be spent. Budgets written here are changed here; others are made with `farebox budgets set` or "
            "the API, and keys can have their own. A call must fit all that count it.",
        ),
    )
    metering: Metering = field(
        default=Metering(),
        metadata=setting(
            Section(Metering), "What happens when a count cannot be had the plain way, and what holds for all budgets."
        ),
    )
    alerts: Alerts = field(
        default=Alerts(), metadata=setting(Section(Alerts), "Where news of budgets goes, beside the log.")
    )
    ledger: Ledger = field(
        default=Ledger(),
        metadata=setting(
            Section(Ledger), "The journal on disk that holds usage until the database has it.", at_start=True
        ),
    )
    limits: Limits = field(default=Limits(), metadata=setting(Section(Limits), "Bounds on memory and on waiting."))
    models: Models = field(default=Models(), metadata=setting(Section(Models), "The models that GET /v1/models lists."))
    metrics: Metrics = field(
        default=Metrics(), metadata=setting(Section(Metrics), "What GET /metrics shows to Prometheus, and to whom.")
    )
    log: Log = field(default=Log(), metadata=setting(Section(Log), "What is logged; never prompts, never secrets."))
    disabled: Mapping[str, str] = field(default_factory=nothing)
    unavailable: Mapping[str, Provider] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()

    @property
    def known(self) -> Mapping[str, Provider]:
        """All providers, the disabled ones too: what a call costs there can be said without a credential."""
        return MappingProxyType({**self.providers, **self.unavailable})

    def with_provider(self, name: str, provider: Provider) -> Config:
        """A copy with one more provider, which also gets everything that no rule is for."""
        added = replace(provider, name=name)
        catch_all = RouteRule(match=Match(), to=(name,))
        return replace(
            self,
            providers=MappingProxyType({**self.providers, name: added}),
            routes=(*self.routes, catch_all),
        )

    def secrets(self) -> Iterator[str]:
        """Every credential in here, for masking them in logs."""
        if self.server.admin_token:
            yield self.server.admin_token
        if self.metrics.token:
            yield self.metrics.token
        yield from filter(None, (self.alerts.webhook_url, self.alerts.webhook_secret))
        if not self.database.embedded:
            yield self.database.url
            password = urlsplit(self.database.url).password
            if password:
                yield password
                yield unquote(password)
        for provider in self.known.values():
            yield from provider.credentials
            # `x-team: research` is no secret, and masking the word would spoil the log.
            yield from (value for value in provider.headers.values() if len(value) >= 16)
