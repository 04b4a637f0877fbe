"""The config file: YAML text in, one frozen `Config` out, or all its faults at once with their places.

The way of a config: `nodes` (YAML, with places) -> `reader` along the `schema` (`settings`, `metering`,
`budgets`, `views`, `providers`, `prices`; each value through its `kinds` and `interpolate`) -> `checks`
across settings -> `load` builds it. `changes` says what of a new one can be put in force beside the old
one. `example` renders the schema's own documentation. Files, environment and reloading are left to the
callers.
"""

from farebox.config.budgets import BudgetRule
from farebox.config.changes import carry_over
from farebox.config.checks import with_address
from farebox.config.faults import ConfigError, Fault
from farebox.config.load import load
from farebox.config.metering import Alerts, Metering
from farebox.config.prices import ModelPrices
from farebox.config.providers import Match, Provider, RouteRule
from farebox.config.schema import Config
from farebox.config.secret import Secret
from farebox.config.settings import Auth, Database, Ledger, Limits, Server
from farebox.config.views import Log, Metrics, Models

__all__ = [
    "Alerts",
    "Auth",
    "BudgetRule",
    "Config",
    "ConfigError",
    "Database",
    "Fault",
    "Ledger",
    "Limits",
    "Log",
    "Match",
    "Metering",
    "Metrics",
    "ModelPrices",
    "Models",
    "Provider",
    "RouteRule",
    "Secret",
    "Server",
    "carry_over",
    "load",
    "with_address",
]
