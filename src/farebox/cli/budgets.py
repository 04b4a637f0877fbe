"""`farebox budgets`: list, show, set and delete budgets, and what stands in them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from farebox import csvtext
from farebox.admin.standings import as_definition, as_rows, key_names
from farebox.cli.common import BadUse, Commands, actor, not_found, on_store, parse_line
from farebox.cli.showing import show
from farebox.cli.tables import Column, print_table
from farebox.config.budgets import SCOPES, WINDOWS, BadBudget, BudgetRule, rule_of
from farebox.errors import FareboxError
from farebox.records import Budget
from farebox.store import BudgetStore, Store
from farebox.store.budgets import ROWS_MAX

_SOURCES = ("config", "api", "key")
_POLICIES = ("thresholds", "on_exceed", "admission", "clamp", "wait_s", "on_extend_denied")
_DEFINITION = (
    *("name", "id", "source", "scope", "only", "limit_usd", "limit_tokens", "window", "timezone"),
    *_POLICIES,
)
_COLUMNS = (
    Column("name", heading="NAME"),
    Column("scope", heading="SCOPE", rank=5),
    Column("whose", heading="SUBJECT", rank=1),
    Column("window", heading="WINDOW", rank=3),
    Column("limit", "right", "LIMIT"),
    Column("spent", "right", "SPENT"),
    Column("held", "right", "HELD", rank=4),
    Column("left", "right", "LEFT"),
    Column("resets_at", "time", "RESETS", rank=2),
)
_CSV = (
    *("name", "id", "source", "scope", "subject", "subject_name", "window", "timezone"),
    *("limit_usd", "spent_usd", "reserved_usd", "remaining_usd"),
    *("limit_tokens", "spent_tokens", "reserved_tokens", "remaining_tokens"),
    *("window_start", "resets_at", "on_exceed", "admission"),
)
_AMOUNTS = (("limit", "limit"), ("spent", "spent"), ("held", "reserved"), ("left", "remaining"))
"""Columns of the table, and the members they show."""
_SMALLEST = Decimal("0.000001")


def add(commands: Commands) -> None:
    """Add the command and its verbs to the command line."""
    verbs = commands.add_parser("budgets", help="list, show, set and delete budgets").add_subparsers(
        title="verbs", metavar="VERB", required=True
    )
    _add_list(verbs)
    one = verbs.add_parser("show", help="one budget: its definition, and what stands in each of its counters")
    one.add_argument("name", help="name or id")
    on_store(one, _show)
    _add_set(verbs)
    delete = verbs.add_parser("delete", help="end a budget; running farebox processes follow within seconds")
    delete.add_argument("name", help="name or id")
    on_store(delete, _delete)


def _add_list(verbs: Commands) -> None:
    listing = verbs.add_parser(
        "list", help="every budget and what stands in it: limit, spent, held by open calls, left"
    )
    listing.add_argument("--name", type=parse_line, help="this budget only")
    listing.add_argument("--scope", choices=SCOPES, help="those of this scope only")
    listing.add_argument("--source", choices=_SOURCES, help="where it is defined: the config, here or the API, a key")
    listing.add_argument(
        "--subject", type=parse_line, metavar="VALUE", help="the counters of this team, key (name or id), user ... only"
    )
    on_store(listing, _list, "table", "csv", "json")


def _add_set(verbs: Commands) -> None:
    change = verbs.add_parser(
        "set",
        help="make a budget, or change the given parts of one",
        description="Makes a budget of this name, or changes what is given of the one there is; the rest stays. A "
        "changed limit applies at once. Another scope, window, timezone or --only begins to count anew.",
    )
    change.add_argument("name", type=parse_line)
    change.add_argument("--scope", choices=SCOPES, help="whose spending is counted together (needed for a new one)")
    change.add_argument("--only", action="append", metavar="GLOB", help="for these values of the scope only")
    change.add_argument("--limit-usd", metavar="AMOUNT", help="US dollars a window may cost; none removes it")
    change.add_argument("--limit-tokens", metavar="N", help="tokens a window may use; none removes it")
    change.add_argument("--window", choices=WINDOWS, help="default: month")
    change.add_argument("--timezone", metavar="ZONE", help="where midnight is (default: UTC)")
    change.add_argument(
        "--threshold",
        action="append",
        metavar="PART",
        dest="thresholds",
        help="tell of it when so much is spent: 0.8; none for none (default: 0.5, 0.8 and 1)",
    )
    change.add_argument("--on-exceed", choices=("reject", "warn"), help="default: reject")
    change.add_argument("--admission", choices=("expected", "strict"), help="default: expected")
    change.add_argument("--clamp", choices=("true", "false"), help="lower max_tokens to what is left pays")
    change.add_argument("--wait-s", metavar="SECONDS", help="how long a call waits for room (default: 5)")
    change.add_argument("--on-extend-denied", choices=("cut", "overrun"), help="default: cut")
    on_store(change, _set)


# -- looking ---------------------------------------------------------------------------------------


async def _list(args: argparse.Namespace, store: Store) -> None:
    rows, more = await _rows(
        store, name=args.name, scope=args.scope, source=args.source, subject=await _subject(store, args.subject)
    )
    _print(rows, args.format, more)


async def _show(args: argparse.Namespace, store: Store) -> None:
    budget = await _found(store, args.name)
    rows, more = await _rows(store, name=budget.name)
    if args.format == "json":
        show(as_definition(budget) | {"data": rows}, (), "json")
        return
    _print_definition(budget)
    print()
    _print(rows, "table", more)


async def _rows(store: Store, **filters: Any) -> tuple[list[dict[str, Any]], bool]:
    """The first counters that match, and whether there are more."""
    budgets = BudgetStore(store)
    page = await budgets.overview(**filters, rows_max=ROWS_MAX)
    names = key_names(await store.list_keys(include_revoked=True))
    return await as_rows(budgets, page.rows, names), page.next is not None


async def _subject(store: Store, given: str | None) -> str | None:
    """A key's counter is its id's, but people know its name."""
    record = await store.get_key(given) if given is not None else None
    return given if record is None else str(record.id)


def _print(rows: list[dict[str, Any]], format: str, more: bool) -> None:
    if format == "json":
        show(rows, (), "json")
    elif format == "csv":
        sys.stdout.write(csvtext.header(_CSV) + csvtext.lines(rows, _CSV))
    elif not rows:
        print("no budget to show; one is made with: farebox budgets set NAME --scope SCOPE ...", file=sys.stderr)
    else:
        left_out = print_table(_COLUMNS, [line for row in rows for line in _lines(row)])
        if left_out:
            print(f"\nno room for: {', '.join(left_out)}", file=sys.stderr)
    if more:
        print(f"(the first {ROWS_MAX:,} counters; --name, --scope and --subject show others)", file=sys.stderr)


def _print_definition(budget: Budget) -> None:
    """Each value as `set` takes it."""
    texts = {name: text or None for name, text in _texts(budget).items() if name in _DEFINITION}
    several = {name: ", ".join(text) for name, text in texts.items() if isinstance(text, list)}
    texts["wait_s"] = f"{budget.wait_s:g}"
    show(texts | several | {"id": budget.id, "source": budget.source}, _DEFINITION, "table")


def _lines(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A counter as the table has it: a line for dollars, one for tokens, whichever is limited."""
    whose = row["subject_name"] or ("all" if row["scope"] == "global" else "-")
    same = {"name": row["name"], "scope": row["scope"], "whose": whose}
    same |= {"window": row["window"], "resets_at": row["resets_at"]}
    lines = []
    for unit, sign, word in (("usd", "$", ""), ("tokens", "", " tok")):
        if row[f"limit_{unit}"] is not None:
            amounts = {name: _amount(row[f"{member}_{unit}"], sign, word) for name, member in _AMOUNTS}
            lines.append(same | amounts)
    return lines


def _amount(value: str | int, sign: str, word: str) -> str:
    """Dollars in cents at least, rounded where they have more than six places; tokens with their thousands apart."""
    if isinstance(value, int):
        return f"{value:,}{word}"
    exact = Decimal(value)
    if 0 < exact < _SMALLEST:
        return f"<{sign}{_SMALLEST}"
    whole, _, cents = f"{exact:,.6f}".partition(".")
    return f"{sign}{whole}.{cents.rstrip('0').ljust(2, '0')}"


# -- changing --------------------------------------------------------------------------------------


async def _set(args: argparse.Namespace, store: Store) -> None:
    budgets = BudgetStore(store)
    known = await _find(store, args.name)
    if known is not None and known.source == "key":
        raise FareboxError(f"the budget {known.name!r} belongs to a key: change it with farebox keys limit")
    name = known.name if known is not None else args.name
    fields = _changed(name, known, args).as_fields()
    budget = await budgets.put_budget(fields.pop("name"), fields, "api", actor())
    if args.format == "json":
        show(as_definition(budget), (), "json")
    else:
        _print_definition(budget)


def _changed(name: str, known: Budget | None, args: argparse.Namespace) -> BudgetRule:
    """What there is with what is given in its place."""
    given: dict[str, Any] = {}
    for field in ("scope", "limit_usd", "limit_tokens", "window", "timezone", *_POLICIES, "only"):
        value = getattr(args, field)
        if value is not None:
            given[field] = value
    for field in ("limit_usd", "limit_tokens"):
        if given.get(field) == "none":
            given[field] = None
    for field in ("thresholds", "only"):
        if given.get(field) in (["none"], [""]):
            given[field] = []
    if not given:
        raise BadUse("nothing to set was given; see: farebox budgets set --help")
    try:
        return rule_of({**(_texts(known) if known is not None else {}), **given, "name": name})
    except BadBudget as bad:
        option = "--" + bad.member.removesuffix("s" if bad.member == "thresholds" else "").replace("_", "-")
        raise BadUse(f"{option} {bad.why}") from None


def _texts(budget: Budget) -> dict[str, Any]:
    """A budget as the texts that would make it."""
    texts: dict[str, Any] = {}
    for field, value in as_definition(budget).items():
        if field in _DEFINITION and field not in ("id", "source"):
            texts[field] = value if isinstance(value, list) or value is None else str(value).lower()
    return texts | {"timezone": budget.timezone, "name": budget.name}


async def _delete(args: argparse.Namespace, store: Store) -> None:
    budget = await _found(store, args.name)
    deleted = await BudgetStore(store).delete_budget(budget.name, actor())
    if args.format == "json":
        show(as_definition(deleted), (), "json")
    else:
        print(f"the budget {deleted.name!r} has ended", file=sys.stderr)


async def _found(store: Store, text: str) -> Budget:
    budget = await _find(store, text)
    if budget is None:
        raise not_found("budget", text)
    return budget


async def _find(store: Store, text: str) -> Budget | None:
    """By name, else by id."""
    return await BudgetStore(store).find_budget(text)
