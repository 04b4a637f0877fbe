"""The settings of one provider and of one routing rule: where calls go and which of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from farebox.config.kinds import Choice, Credential, Flag, Line, Map, Number, OneOrMore, Pairs, Section, Whole, setting
from farebox.config.prices import ModelPrices
from farebox.config.secret import Secret
from farebox.config.web import BaseUrl, HeaderName, HeaderValue, ProviderName
from farebox.dialects import PROFILES, AuthHeader, Profile, Reasoning, StreamOptions

_DAY_S = 86_400
_CREDENTIAL = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
_GLOB = Line("a model name or glob", chars_max=256)
_TAG = Line("a tag", chars_max=256)


def nothing() -> Mapping[str, str]:
    """An empty mapping that stays empty."""
    return MappingProxyType({})


def no_prices() -> Mapping[str, ModelPrices]:
    """No prices of a provider's own."""
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One provider as it is called. `name` is its key in the config."""

    name: str
    dialect: str = field(
        metadata=setting(
            Choice(tuple(sorted(PROFILES))), "How it speaks: a named profile. openai fits most.", "openai", live=True
        )
    )
    base_url: str = field(
        metadata=setting(
            BaseUrl(),
            "Where it answers; paths are appended. With its /v1 for OpenAI-style APIs, without for Anthropic. A proxy "
            "named by HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is used (an http:// one; another kind is refused), but not "
            "for loopback or what NO_PROXY lists.",
            '"https://api.openai.com/v1"',
            live=True,
        )
    )
    api_key: Secret | None = field(
        default=None,
        metadata=setting(
            Credential(),
            "Its credential. When a ${VAR} in it has no value, the provider is disabled with a warning and rules "
            "leave it out. Left out altogether, calls go up without one, as local servers like it.",
            '"${OPENAI_API_KEY}"',
            live=True,
        ),
    )
    headers: Mapping[str, str] = field(
        default_factory=nothing,
        repr=False,
        metadata=setting(
            Pairs(HeaderName(), HeaderValue(), fold=True),
            "Headers added to every request; they replace the client's of the same name.",
            '{OpenAI-Project: "proj_1"}',
        ),
    )
    stream_options: StreamOptions = field(
        default="inject",
        metadata=setting(
            Choice(("inject", "skip", "learn")),
            "Whether a stream that does not ask for usage is made to: inject, skip, or learn (inject; when refused, "
            "send the original once and remember). Left out: as the dialect needs it.",
            "inject",
        ),
    )
    reasoning: Reasoning = field(
        default="auto",
        metadata=setting(
            Choice(("auto", "included", "additive")),
            "Whether reported output tokens include reasoning (included) or not (additive). auto asks the reported "
            "total. Left out: as the dialect says.",
            "auto",
        ),
    )
    auth_header: AuthHeader = field(
        default="bearer",
        metadata=setting(
            Choice(("bearer", "x-api-key", "api-key", "none")),
            "How api_key is sent: bearer is authorization: Bearer; none does not send it. Left out: as the dialect "
            "needs it, bearer for one that needs none.",
            "bearer",
        ),
    )
    passthrough: bool = field(
        default=False,
        metadata=setting(Flag(), "Whether a client's own credential may go here; used by auth.mode passthrough."),
    )
    connect_timeout_s: float = field(
        default=10.0,
        metadata=setting(
            Number(0.1, 300),
            "Time to get a connection, waiting for a free one included. After it the next provider of the rule is "
            "tried, else the client gets 502.",
        ),
    )
    response_timeout_s: float = field(
        default=600.0,
        metadata=setting(
            Number(0.1, _DAY_S),
            "Time from the request to the head of the answer. After it 504; the next provider only with retry_sent.",
        ),
    )
    idle_timeout_s: float = field(
        default=600.0,
        metadata=setting(
            Number(0.1, _DAY_S),
            "Time without a byte from it, before the head (if shorter than response_timeout_s) or between "
            "two pieces of it. After it the call ends as upstream_cut.",
        ),
    )
    connections_max: int = field(
        default=1_000,
        metadata=setting(
            Whole(1, 100_000), "Connections open to it at once. A call past it waits for a free one: connect_timeout_s."
        ),
    )
    tls_verify: bool = field(
        default=True,
        metadata=setting(Flag(), "Whether its certificate must be valid. false is for tests: anyone may then listen."),
    )
    tls_ca_file: str | None = field(
        default=None,
        metadata=setting(
            Line("a path"),
            "PEM file of the authorities to trust for it, instead of the system's.",
            "/etc/ssl/certs/own-ca.pem",
        ),
    )

    price_book: str | None = field(
        default=None,
        metadata=setting(
            Line("the name of a price book", chars_max=64),
            "Whose price list holds there: openai, anthropic, azure, x-ai ... (`farebox prices list` names them), or "
            "none. Left out: that of the host in base_url, else of the dialect; servers of your own have none. A call "
            "without a known price gets no cost, never 0.",
            "openai",
        ),
    )
    prices: Mapping[str, ModelPrices] = field(
        default_factory=no_prices,
        metadata=setting(
            Map(_GLOB, ModelPrices),
            "Prices of its own, by model name or glob (* ? [abc]; case does not count), first match wins. They go "
            'before any book. {"*": {input_usd_per_mtok: 0, output_usd_per_mtok: 0}} makes all of it free.',
            "gpt-5*",
        ),
    )

    @cached_property
    def credentials(self) -> tuple[str, ...]:
        """What authenticates farebox there: the key, and the values of headers whose names say so."""
        named = tuple(value for name, value in self.headers.items() if _CREDENTIAL.search(name))
        return named if self.api_key is None else (self.api_key.reveal(), *named)

    @cached_property
    def profile(self) -> Profile:
        """The profile of its dialect with the overrides given here."""
        return replace(
            PROFILES.get(self.dialect) or Profile(name=self.dialect),
            stream_options=self.stream_options,
            reasoning=self.reasoning,
            auth_header=self.auth_header,
        )


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which requests a rule is for; every part given must hold."""

    model: tuple[str, ...] | None = field(
        default=None,
        metadata=setting(
            OneOrMore(_GLOB),
            "Model name as the client writes it, or a glob (* ? [abc], case counts), or a list of them. Left out: any "
            "model, and requests that name none.",
            '"claude-*"',
            live=True,
        ),
    )
    tags: Mapping[str, str] = field(
        default_factory=nothing,
        metadata=setting(
            Pairs(_TAG, _TAG),
            "Tags the request must carry, from its key or from x-farebox-tags: the client may claim them.",
            "{tier: batch}",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class RouteRule:
    """One routing rule: the first whose `match` holds decides."""

    match: Match = field(metadata=setting(Section(Match), "Which requests. {} is all of them."))
    to: tuple[str, ...] = field(
        metadata=setting(
            OneOrMore(ProviderName()),
            "Providers, tried in order. The next one gets the call only before the client got a byte, and only when "
            "no connection could be made or the answer is 429, 502 or 503. A request that names no model goes to the "
            "first only.",
            "[claude]",
            live=True,
        )
    )
    retry_sent: bool = field(
        default=False,
        metadata=setting(
            Flag(),
            "Whether the next provider also gets a call that timed out after it was sent: then both may bill it.",
        ),
    )
