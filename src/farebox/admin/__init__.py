"""The control plane: health, readiness, and the JSON API, whose parts are the modules beside this one.

A small table of routes over the store. Everything below `/farebox/api` takes the admin token, but for
`/me`, which takes a farebox key; health and readiness take nothing and tell nothing that a stranger may
not know.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

import structlog

from farebox.admin import forms
from farebox.admin.budgets import BudgetsApi
from farebox.admin.health import Health
from farebox.admin.integrity import IntegrityApi
from farebox.admin.keys import KeysApi
from farebox.admin.me import PATH as ME
from farebox.admin.me import MeApi
from farebox.admin.models import ModelsApi
from farebox.admin.reports import ReportsApi
from farebox.admin.scrape import PATH as METRICS
from farebox.admin.scrape import Scrape
from farebox.admin.sizing import SizingApi
from farebox.config import Config
from farebox.errors import BadRequest, FareboxError, InvalidKey, MethodNotAllowed, NotFound, Refusal
from farebox.logs import exception_facts
from farebox.metrics import Metrics
from farebox.models import Catalogue
from farebox.pricing import Pricer
from farebox.records import Caller, KeyRecord
from farebox.server import Reply, Request, read_body, refuse, respond
from farebox.store import Store, is_refusal
from farebox.tokens import Tokens

API = "/farebox/api"
_BODY_BYTES_MAX = 256 * 1024
_STALL_S = 30.0
_NOTHING = (
    f"The control plane has keys, budgets, audit, integrity, usage, timeseries, tools, sessions, models, tokens and me "
    f"below {API}/."
)

Answer = tuple[int, Any]
Action = Callable[[Request, str, dict[str, str]], Awaitable[Answer | Reply]]


class Admin:
    """The control plane. `serves` says whether a target is its; `handle` answers one request."""

    def __init__(
        self,
        config: Config,
        *,
        token: str,
        store: Store,
        metrics: Metrics,
        models: Catalogue,
        tokens: Tokens,
        pricer: Callable[[], Pricer],
        identify: Callable[[Mapping[str, str]], Awaitable[Caller]],
        key_changed: Callable[[list[KeyRecord]], None],
        budgets_changed: Callable[[], Awaitable[None]],
        journal_ready: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._token = token.encode()
        self._me = MeApi(store, identify=identify, now=now)
        self._health = Health(config, store, journal_ready)
        self._scrape = Scrape(metrics, config)
        self._sizing = SizingApi(config, tokens, pricer, now)
        self._now = now
        self._actions: dict[tuple[str, str], Action] = {
            **KeysApi(store, self._body, key_changed=key_changed, budgets_changed=budgets_changed).actions,
            **BudgetsApi(store, self._body, budgets_changed=budgets_changed).actions,
            **IntegrityApi(store, now).actions,
            **ReportsApi(store, now).actions,
            **self._sizing.actions,
            **ModelsApi(models, now).actions,
        }

    def change(self, config: Config, *, token: str) -> None:
        """Follow a new config."""
        self._token = token.encode()
        self._health.config = config
        self._scrape.config = config
        self._sizing.config = config

    def serves(self, target: str) -> bool:
        """Whether the request target belongs to the control plane (the data plane answers all others)."""
        path = target.partition("?")[0]
        return path in ("/healthz", "/readyz", METRICS) or path.startswith("/farebox/")

    async def handle(self, request: Request) -> Reply:
        """Answer one request."""
        try:
            path, _, query = request.raw_path.partition("?")
            if path in ("/healthz", "/readyz"):
                return await self._health.answer(request, path)
            if path == METRICS:
                return await self._scrape.answer(request)
            answer = await self._act(request, path, query)
            if isinstance(answer, Reply):
                return answer
            status, payload = answer
            return respond(request, status, forms.encode(payload), headers=[(b"Cache-Control", b"no-store")])
        except Refusal as refusal:
            return refuse(request, refusal)
        except FareboxError as exc:
            structlog.get_logger().error("control plane failed", **exception_facts(exc))
            return refuse(request, BadRequest(str(exc)))
        except Exception as exc:
            if not is_refusal(exc):
                raise
            return refuse(request, BadRequest("A value of this request is none that the database could hold."))

    async def _act(self, request: Request, path: str, query: str) -> Answer | Reply:
        if not path.startswith(API + "/"):
            raise NotFound(_NOTHING)
        if path == API + ME:
            return await self._me.answer(request, _parameters(query))
        self._check_token(request)
        template, item = _template(path.removeprefix(API))
        action = self._actions.get((request.method, template))
        if action is None:
            if any(known == template for _, known in self._actions):
                raise MethodNotAllowed(f"{request.method} is not a method of {API}{template}.")
            raise NotFound(_NOTHING)
        return await action(request, item, _parameters(query))

    def _check_token(self, request: Request) -> None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token):
            raise InvalidKey("The control plane takes `Authorization: Bearer ADMIN_TOKEN`.")

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, _BODY_BYTES_MAX, _STALL_S)


def _parameters(query: str) -> dict[str, str]:
    """A query string, decoded. Of two filters of one name only one would count, so they are refused."""
    pairs = parse_qsl(query, keep_blank_values=True)
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)[:100]
        raise BadRequest(f"The parameter {name!r} is given more than once.", param=name)
    return parameters


def _template(path: str) -> tuple[str, str]:
    """`/keys/ID/rotate` -> (`/keys/{id}/rotate`, ID)."""
    parts = path.strip("/").split("/")
    if len(parts) >= 2:
        return "/".join(["", parts[0], "{id}", *parts[2:]]), parts[1]
    return "/" + parts[0], ""
