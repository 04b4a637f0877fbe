"""Postgres, the truth: keys, the ledger's rows, prices, lists of models. The only package that talks to a database.

`store` has the connections, the events and the keys; `reports`, `corrections`, `prices` and `models` are
calls over it; `migrations` brings the schema up to date, `failures` says which errors pass by
themselves. The SQL is in `farebox/sql`.
"""

from farebox.store.failures import SchemaError, StoreUnavailable, is_refusal, is_transient
from farebox.store.models import ModelLists
from farebox.store.prices import PriceLists
from farebox.store.store import Store
from farebox.store.usage import Page, UsageFilter

__all__ = [
    "ModelLists",
    "Page",
    "PriceLists",
    "SchemaError",
    "Store",
    "StoreUnavailable",
    "UsageFilter",
    "is_refusal",
    "is_transient",
]
