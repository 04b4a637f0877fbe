"""`farebox integrity`: whether the budgets' counters say what the rows behind them say."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from farebox.admin.integrity import TIME_S, VIOLATIONS_MAX, found
from farebox.cli.common import Commands, add_config, add_format, show, store_of
from farebox.store import BudgetStore

_VIOLATION = ("window", "budget", "subject", "window_start", "is_usd", "should_usd", "is_tokens", "should_tokens")


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
                show(row["violations"], _VIOLATION, "table")
    return 1 if told["status"] == "violated" else 0


async def _evaluated(args: argparse.Namespace) -> dict[str, Any]:
    async with store_of(args) as store:
        return found(await BudgetStore(store).integrity(VIOLATIONS_MAX, TIME_S))
