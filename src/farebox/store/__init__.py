"""Postgres, the truth: keys, the ledger's rows, prices, lists of models. The only package that talks to a database.

`store` has the connections, the events and the keys, `keys` these with their limits; `budgets`, `reports`,
`corrections`, `prices` and `models` are calls over it; `migrations` brings the schema up to date, `failures`
says which errors pass by themselves. The SQL is in `farebox/sql`.
"""

from farebox.store.alerts import AlertStore
from farebox.store.budgets import BudgetStore
from farebox.store.failures import SchemaError, StoreUnavailable, is_refusal, is_transient
from farebox.store.keys import Keys
from farebox.store.models import ModelLists
from farebox.store.objects import ObjectStore
from farebox.store.prices import PriceLists
from farebox.store.store import Store
from farebox.store.usage import Page, UsageFilter

__all__ = [
    "AlertStore",
    "BudgetStore",
    "Keys",
    "ModelLists",
    "ObjectStore",
    "Page",
    "PriceLists",
    "SchemaError",
    "Store",
    "StoreUnavailable",
    "UsageFilter",
    "is_refusal",
    "is_transient",
]
