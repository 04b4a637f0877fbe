"""What can be said of a provider that was never heard: the demo's one model, or those whose price is known.

The price book that farebox ships names the models of many publishers. At a publisher's own host, or
where the config says whose prices hold, these stand in, marked as such, until the provider gives a
list of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache

from farebox.config import Provider
from farebox.models.shelf import Known
from farebox.pricing import NONE, book_of, shipped
from farebox.records import Model


def known_models(demo_model: str) -> Callable[[Provider], Known]:
    """A function from a provider to what is known of it; `demo_model` is what the demo provider has.

    The shipped book is read when it is first needed.
    """

    @cache
    def books() -> tuple[dict[str, tuple[Model, ...]], datetime]:
        found: dict[str, dict[str, Model]] = {}
        facts = shipped()
        for price in facts.entries:
            if not price.deprecated:
                model = Model(id=price.model, context_length=price.context_window, max_output_tokens=price.max_output)
                found.setdefault(price.book, {})[price.model] = model
        return {name: tuple(models.values()) for name, models in found.items()}, facts.snapshot

    def known(provider: Provider) -> Known:
        if provider.dialect == "demo":
            return Known((Model(id=demo_model, owned_by="farebox"),))
        # The dialect alone says nothing: most servers speak a publisher's without having its models.
        name = book_of(price_book=provider.price_book, base_url=provider.base_url, dialect="")
        if name == NONE:
            return Known()
        models, as_of = books()
        return Known(models[name], as_of) if name in models else Known()

    return known
