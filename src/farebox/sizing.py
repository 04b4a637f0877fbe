"""How large a request is before it is sent: tokens, the most they can be, whether the model takes them, the price.

Puts `tokens` (the count), `pricing` (limits and rates) and `routing` (who would get the call) together.
Pure: the caller brings the config, the prices and the time. What cannot be known is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import msgspec

from farebox import paths, routing
from farebox.bounds import bound_of, refine
from farebox.config import Config, Provider
from farebox.errors import BadRequest, Refusal
from farebox.pricing import Pricer, Quote
from farebox.prompt import Prompt, read_prompt
from farebox.records import Caller, Operation, UsageEvent
from farebox.request import RequestFacts, read_facts
from farebox.tokens import InputEstimate, Tokens, encoding_for, is_own

Certainty = Literal["exact", "estimate", "rough"]
"""How an input was counted.

exact     text, by the model's own tokenizer
estimate  by the model's own tokenizer, and something besides text: turns, tools, images; or a very long text
rough     by another maker's tokenizer: the model's own is not known here
"""

_PUBLISHERS = ("openai", "anthropic", "google", "x-ai", "mistral", "deepseek", "cohere", "moonshotai", "zai")
"""Whose list is asked first for a model that no provider of the config is for."""
_PATHS: dict[Operation, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
}


class Sizing(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request before it is sent. Money is exact; None: not known.

    input_tokens         the count, and by `counted_by` (an encoding of tiktoken) how `certainty` says
    input_tokens_max     no more than this, as a budget holds it (None: nobody can say, as of a picture)
    output_tokens_max    no more than this: the request's own limit, else the model's, else the rest of its window
    fits                 the input as counted, and the output the request asks for, are within the window
    fits_surely          the same for `input_tokens_max`
    provider, book       who would get the call; where none of the config would, whose list the price is from
    """

    model: str | None
    operation: Operation
    input_tokens: int
    counted_by: str
    certainty: Certainty
    input_tokens_max: int | None
    output_tokens_max: int | None
    context_window: int | None
    model_output_tokens_max: int | None
    fits: bool | None
    fits_surely: bool | None
    provider: str | None
    book: str | None
    price_id: str | None
    input_cost_usd: Decimal | None
    cost_usd_max: Decimal | None

    def as_json(self) -> dict[str, Any]:
        """The members, money as digits."""
        members = msgspec.structs.asdict(self)
        for name in ("input_cost_usd", "cost_usd_max"):
            members[name] = None if members[name] is None else f"{members[name]:f}"
        return members


class _Seller(msgspec.Struct, frozen=True):
    name: str
    listed: bool
    """From a public list, not a provider of the config."""
    pricer: Pricer
    quote: Quote


class _Counted(msgspec.Struct, frozen=True):
    tokens: int
    most: int | None
    certainty: Certainty


class Sizer:
    """Sizes requests as of one moment. `provider`: who is asked, where it is not left to the routes."""

    def __init__(
        self, tokens: Tokens, config: Config, pricer: Pricer, at: datetime, *, provider: str | None = None
    ) -> None:
        self._tokens = tokens
        self._config = config
        self._pricer = pricer
        self._at = at
        self._provider = provider

    def text(self, text: str, model: str | None) -> Sizing:
        """A text as such, without the turns of a chat around it. Raises NotFound for a provider that is not there."""
        count = self._tokens.count_all((text,), encoding_for(model))
        certainty: Certainty = "rough" if not is_own(model) else "estimate" if count.extrapolated else "exact"
        most = count.tokens if certainty == "exact" else _bytes_of((text,))
        return self._sizing("completions", model, _Counted(count.tokens, most, certainty), RequestFacts())

    def body(self, body: bytes, model: str | None = None) -> Sizing:
        """A request body of any metered endpoint; `model` instead of its own. Raises BadRequest, NotFound."""
        operation = operation_of(body, model)
        facts = read_facts(operation, body)
        model = model or facts.model
        estimate = self._tokens.estimate_input(operation, model, body)
        bound = self._bound(operation, body, msgspec.structs.replace(facts, model=model))
        counted = _counted(estimate, read_prompt(operation, body), bound, is_own(model), b'"schema"' in body)
        return self._sizing(operation, model, counted, facts)

    def _bound(self, operation: Operation, body: bytes, facts: RequestFacts) -> int | None:
        """The most the input can be, as a budget would hold it after counting; None where there is no bound."""
        bound = bound_of(operation, body, facts, max_output=None, assumed_max_output=1)
        return None if bound.reason else refine(operation, body, bound, facts.model, self._tokens).input_tokens

    def _sizing(self, operation: Operation, model: str | None, counted: _Counted, facts: RequestFacts) -> Sizing:
        seller = self._seller(operation, model)
        quote = seller.quote if seller is not None else None
        window = quote.context_window if quote is not None else None
        longest = quote.max_output_tokens if quote is not None else None
        asked = facts.output_tokens_max
        if operation == "embeddings":
            asked = longest = 0
        limits = [limit for limit in (asked, longest) if limit is not None]
        if not limits and window is not None:
            limits = [max(0, window - counted.tokens)]
        output_max = min(limits) * (facts.n or 1) if limits else None
        event = _event(operation, model, facts, self._at)
        return Sizing(
            model=model,
            operation=operation,
            input_tokens=counted.tokens,
            counted_by=encoding_for(model),
            certainty=counted.certainty,
            input_tokens_max=counted.most,
            output_tokens_max=output_max,
            context_window=window,
            model_output_tokens_max=longest,
            fits=_within(window, counted.tokens, asked),
            fits_surely=_within(window, counted.most, asked),
            provider=seller.name if seller is not None and not seller.listed else None,
            book=seller.name if seller is not None and seller.listed else None,
            price_id=quote.price_id if quote is not None else None,
            input_cost_usd=_cost(seller, event, counted.tokens, 0),
            cost_usd_max=_cost(seller, event, counted.most, output_max),
        )

    # -- who would answer ----------------------------------------------------------------------------

    def _seller(self, operation: Operation, model: str | None) -> _Seller | None:
        names = self._providers(operation, model) if model is not None or self._provider is not None else []
        if model is None:
            return None
        for name in names:
            quote = self._pricer.quote(name, model, self._at)
            if quote is not None:
                return _Seller(name, False, self._pricer, quote)
        # Where the config says who answers, another's price or limit would be a guess.
        return None if names else self._listed(model)

    def _providers(self, operation: Operation, model: str | None) -> list[str]:
        prefix = "" if self._provider is None else f"/p/{self._provider}"
        target = paths.parse("POST", prefix + _PATHS[operation])
        try:
            route = routing.choose(self._config, Caller(kind="open"), target, model, {})
        except Refusal:
            if self._provider is not None:
                raise
            return []
        return [one.name for one in route.providers]

    def _listed(self, model: str) -> _Seller | None:
        book = self._pricer.book
        for name in _in_order(book.books):
            own = Pricer(book, {name: Provider(name=name, dialect="openai", base_url="", price_book=name)})
            quote = own.quote(name, model, self._at)
            if quote is not None:
                return _Seller(name, True, own, quote)
        return None


def operation_of(body: bytes, model: str | None) -> Operation:
    """Which endpoint a body is for, by its members. Raises BadRequest for a body that is for none."""
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is not a JSON object.") from None
    name = (model or bytes(members.get("model", msgspec.Raw())).decode("utf-8", "replace")).lower()
    if "messages" in members:
        return "messages" if "system" in members or "claude" in name.rpartition("/")[2] else "chat"
    if "input" in members:
        return "embeddings" if "embed" in name else "responses"
    if "prompt" in members:
        return "completions"
    raise BadRequest("The body has none of messages, input and prompt: there is nothing to count.")


def _counted(estimate: InputEstimate, prompt: Prompt, bound: int | None, own: bool, schema: bool) -> _Counted:
    plain = not (prompt.messages or prompt.tools or schema or estimate.non_text_parts or estimate.extrapolated)
    certainty: Certainty = "rough" if not own else "exact" if plain else "estimate"
    if plain and own:
        return _Counted(estimate.tokens, estimate.tokens, certainty)
    return _Counted(estimate.tokens, None if bound is None else max(bound, estimate.tokens), certainty)


def _within(window: int | None, tokens: int | None, asked: int | None) -> bool | None:
    return None if window is None or tokens is None else tokens + (asked or 0) <= window


def _event(operation: Operation, model: str | None, facts: RequestFacts, at: datetime) -> UsageEvent:
    return UsageEvent(
        id=UUID(int=0),
        request_id=UUID(int=0),
        attempt=1,
        started_at=at,
        finished_at=at,
        provider="",
        dialect="",
        endpoint="",
        operation=operation,
        model=model,
        service_tier=facts.service_tier,
        outcome="complete",
        usage_source="estimate",
    )


def _cost(seller: _Seller | None, event: UsageEvent, asked: int | None, told: int | None) -> Decimal | None:
    """What so many tokens cost, by the same arithmetic as a row's cost: long inputs and tiers are in it."""
    if seller is None or asked is None or told is None:
        return None
    used = msgspec.structs.replace(event, provider=seller.name, input_tokens=asked, output_tokens=told)
    costing = seller.pricer.cost(used)
    return costing.usd if costing is not None else None


def _in_order(books: Iterable[str]) -> list[str]:
    known = set(books)
    first = [book for book in _PUBLISHERS if book in known]
    return first + sorted(known.difference(first))


def _bytes_of(texts: Iterable[str]) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
