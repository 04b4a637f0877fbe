"""Budgets of a process that begins or ends: made from the config, with connections of their own."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from farebox.budgets.definitions import fields_of
from farebox.budgets.service import Budgets, Drain, Settings
from farebox.config import Config
from farebox.store import Store
from farebox.store.budgets import BudgetStore
from farebox.store.owners import Owners

CONNECTIONS = 4
"""Connections to the database beyond `database.pool_size_max`, for reserves, releases and heartbeats alone: a report or
a long drain keeps none of them waiting."""
_CONNECT_S = 2.0
_STATEMENT_S = 5.0
"""What a heartbeat or a release may take; a reserve has `metering.reserve_timeout_s`."""


@asynccontextmanager
async def opened(config: Config, store: Store, drain: Drain) -> AsyncIterator[Budgets]:
    """Budgets, to be started; closed in order at the end, which must be after the ledger's."""
    quick = store.beside(
        connections=CONNECTIONS,
        connect_timeout_s=max(_CONNECT_S, config.metering.reserve_timeout_s),
        statement_timeout_s=max(_STATEMENT_S, config.metering.reserve_timeout_s),
    )
    await quick.open()
    budgets = Budgets(
        BudgetStore(quick),
        BudgetStore(store),
        Owners(store),
        fields_of(config.budgets),
        # The first two for people who look at the table of owners.
        label=f"{socket.gethostname()[:200]} {os.getpid()} {uuid4().hex}",
        drain=drain,
        settings=Settings.of(config.metering),
    )
    try:
        yield budgets
    finally:
        await budgets.close()
        await quick.close()
