"""`farebox integrity`: whether the budgets' counters say what the rows behind them say."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from farebox.admin.integrity import TIME_S, VIOLATIONS_MAX, found
from farebox.cli.common import Commands, add_config, add_format, store_of
from farebox.cli.showing import show
from farebox.cli.tables import Column, print_table
from farebox.store import BudgetStore

_VIOLATION = (
    Column("name", heading="budget"),
    Column("subject"),
    Column("window_start", "time", rank=2),
    Column("budget", heading="id", rank=3),
    Column("is_usd", "right"),
    Column("should_usd", "right"),
    Column("is_tokens", "count", rank=1),
    Column("should_tokens", "count", rank=1),
)


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "integrity",
        help="check that budgets' counters agree with the rows behind them",
        description=f"Evaluates every invariant of the budgets on live data, in {TIME_S:g} seconds at most. Exits with "
        "1 where one is violated; what could not be read in that time is told, and is no failure.",
    )
    add_config(command)
    add_format(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 where anything is wrong."""
    told = asyncio.run(_evaluated(args))
    if args.format == "json":
        show(told, (), "json")
    else:
        show(told["invariants"], ("name", "status", "checked", "skipped"), "table")
        for row in told["invariants"]:
            if row["violations"]:
                print(f"\n{row['name']}:", file=sys.stderr)
                print_table(_VIOLATION, row["violations"])
    return 1 if told["status"] == "violated" else 0


async def _evaluated(args: argparse.Namespace) -> dict[str, Any]:
    async with store_of(args) as store:
        budgets = BudgetStore(store)
        told = found(await budgets.integrity(VIOLATIONS_MAX, TIME_S))
        named = {budget.id: budget.name for budget in await budgets.list_budgets(include_rate=True)}
    for row in told["invariants"]:
        # A budget that has ended has an id only.
        row["violations"] = [one | {"name": named.get(one["budget"])} for one in row["violations"]]
    return told
