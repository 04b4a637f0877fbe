"""How a list of models looks: OpenAI's, Anthropic's, and farebox's own for its operators. Plain data for JSON.

Beside each family's own members stand `provider`, `context_length`, `max_output_tokens`, `pricing` (US
dollars per million tokens, as exact decimal strings; null where the price is not known), `source` and
`age_s`; the SDKs let members pass that they do not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from farebox.digits import digits
from farebox.errors import BadRequest, ModelNotAllowed
from farebox.models.shelf import Offer, Shelf

_PAGE = 20
_PAGE_MAX = 1000
"""Entries of a page of Anthropic's list: unasked, and at most."""
_RATES = ("input_usd_per_mtok", "output_usd_per_mtok", "cache_read_usd_per_mtok", "cache_write_usd_per_mtok")
_ID_CHARS_SHOWN = 100

Json = dict[str, Any]


def openai_model(offer: Offer, now: datetime) -> Json:
    """One model as OpenAI's API shows it. `created` is 0 where nobody says when."""
    model = offer.model
    return {
        "id": model.id,
        "object": "model",
        "created": model.created or 0,
        "owned_by": model.owned_by or offer.provider,
        **_more(offer, now),
    }


def openai_list(offers: Sequence[Offer], now: datetime) -> Json:
    """All models as OpenAI's API lists them: whole, without pages."""
    return {"object": "list", "data": [openai_model(offer, now) for offer in offers]}


def anthropic_model(offer: Offer, now: datetime) -> Json:
    """One model as Anthropic's API shows it. `created_at` is the epoch where nobody says when, as there."""
    model = offer.model
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.display_name or model.id,
        "created_at": _moment(datetime.fromtimestamp(model.created or 0, UTC)),
        "lifecycle": "active",
        "max_input_tokens": offer.context_length,
        "max_tokens": offer.max_output_tokens,
        **_more(offer, now),
    }


def anthropic_list(offers: Sequence[Offer], query: dict[str, str], now: datetime) -> Json:
    """One page as Anthropic's API gives it: `limit` models after `after_id`, or before `before_id`.

    Raises `BadRequest` for a limit that is none, and for an id that is not in the list.
    """
    limit = _limit(query.get("limit"))
    after, before = query.get("after_id"), query.get("before_id")
    if before:
        end = _place(offers, before, "before_id")
        page = offers[max(0, end - limit) : end]
        more = end > limit
    else:
        start = _place(offers, after, "after_id") + 1 if after else 0
        page = offers[start : start + limit]
        more = start + limit < len(offers)
    return {
        "data": [anthropic_model(offer, now) for offer in page],
        "has_more": more,
        "first_id": page[0].model.id if page else None,
        "last_id": page[-1].model.id if page else None,
    }


def not_listed(id: str) -> ModelNotAllowed:
    """The refusal for a model that the caller's list does not have."""
    shown = repr(id if len(id) <= _ID_CHARS_SHOWN else id[:_ID_CHARS_SHOWN] + "…")
    return ModelNotAllowed(f"The model {shown} is not in the list that GET /v1/models gives this key.", param="model")


def row(offer: Offer, now: datetime) -> Json:
    """One model of one provider, flat, for tables."""
    pricing = _pricing(offer) or {}
    return {
        "id": offer.model.id,
        "provider": offer.provider,
        "context_length": offer.context_length,
        "max_output_tokens": offer.max_output_tokens,
        **{rate: pricing.get(rate) for rate in _RATES},
        "price_id": offer.quote.price_id if offer.quote is not None else None,
        "source": offer.source,
        "age_s": offer.age_s(now),
    }


COLUMNS = ("id", "provider", "context_length", "max_output_tokens", *_RATES, "price_id", "source", "age_s")
"""The members of a `row`, in order."""


def providers(shelf: Shelf, now: datetime) -> list[Json]:
    """How each provider's list came about. `error` is why the last attempt failed, null when it did not."""
    return [
        {
            "provider": name,
            "models": len(stock.offers),
            "source": stock.source,
            "age_s": None if stock.as_of is None else max(0, int((now - stock.as_of).total_seconds())),
            "fetched_at": stock.held.fetched_at if stock.held is not None else None,
            "attempted_at": stock.held.attempted_at if stock.held is not None else None,
            "error": stock.held.error if stock.held is not None else None,
        }
        for name, stock in shelf.items()
    ]


def _more(offer: Offer, now: datetime) -> Json:
    return {
        "provider": offer.provider,
        "routed": offer.routed,
        "context_length": offer.context_length,
        "max_output_tokens": offer.max_output_tokens,
        "pricing": _pricing(offer),
        "source": offer.source,
        "age_s": offer.age_s(now),
    }


def _pricing(offer: Offer) -> Json | None:
    """What the standard tier costs, as far as it is known; None: nothing is."""
    if offer.quote is None:
        return None
    rates = {rate: digits(value) for rate in _RATES if (value := getattr(offer.quote, rate)) is not None}
    return rates or None


def _moment(value: datetime) -> str:
    return value.isoformat().replace("+00:00", "Z")


def _limit(given: str | None) -> int:
    if given is None:
        return _PAGE
    if not given.isascii() or not given.isdigit() or len(given) > 4 or not 1 <= int(given) <= _PAGE_MAX:
        raise BadRequest(f"limit takes a whole number from 1 to {_PAGE_MAX}.", param="limit")
    return int(given)


def _place(offers: Sequence[Offer], id: str, param: str) -> int:
    for place, offer in enumerate(offers):
        if offer.model.id == id:
            return place
    raise BadRequest(f"{param} names no model of this list.", param=param)
