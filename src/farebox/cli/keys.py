"""`farebox keys`: make, limit, list, show, rotate and revoke keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from farebox import keys as secrets
from farebox.admin.forms import public
from farebox.cli.common import BadUse, Commands, actor, not_found, on_store, parse_line, parse_pair, parse_time
from farebox.cli.showing import show
from farebox.config.budgets import BadBudget, BudgetRule
from farebox.errors import FareboxError
from farebox.keylimits import NONE, RATE_MAX, RATES, KeyLimits, parse_budgets
from farebox.records import KeyRecord
from farebox.store import Keys, Store

_LISTED = ("name", "id", "team", "project", "user", "budgets", "rates", "created_at", "expires_at", "revoked_at")
_SHOWN = (
    "name",
    "id",
    "team",
    "project",
    "user",
    "models",
    "providers",
    "tags",
    "allow_shared_objects",
    "budgets",
    "rpm",
    "tpm",
    "max_parallel",
    "created_at",
    "expires_at",
    "revoked_at",
)


def add(commands: Commands) -> None:
    """Add the command and its verbs to the command line."""
    verbs = commands.add_parser("keys", help="make, limit, list, show, rotate and revoke keys").add_subparsers(
        title="verbs", metavar="VERB", required=True
    )
    create = verbs.add_parser("create", help="make a key; its secret is shown this once")
    create.add_argument("name", type=parse_line)
    for field in ("team", "project", "user"):
        create.add_argument(f"--{field}", type=parse_line)
    create.add_argument(
        "--model", action="append", default=[], metavar="GLOB", type=parse_line, help="may use these models only"
    )
    create.add_argument(
        "--provider", action="append", default=[], metavar="NAME", type=parse_line, help="may use these providers only"
    )
    create.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", type=parse_pair)
    _add_limits(create, _rate)
    create.add_argument("--expires-at", metavar="TIME", type=parse_time, help="2026-12-31 or 2026-12-31T12:00:00Z")
    create.add_argument("--allow-shared-objects", action="store_true", help="may list files, batches ... of all keys")
    on_store(create, _create)
    limit = verbs.add_parser(
        "limit",
        help="change what a key may spend, and how fast",
        description="Changes what is given; the rest stays. --budget replaces all budgets of the key's own, and those "
        "of a window it had already count on. none ends a limit.",
    )
    limit.add_argument("key", help="name or id")
    _add_limits(limit, _rate_or_none)
    on_store(limit, _limit)
    listing = verbs.add_parser("list", help="the keys")
    listing.add_argument("--all", action="store_true", help="revoked ones too")
    on_store(listing, _list)
    for verb, run, words in (
        ("show", _show, "everything about one key, except its secret"),
        ("rotate", _rotate, "give a key a new secret; the old one ends at once"),
        ("revoke", _revoke, "end a key; running farebox processes follow within seconds"),
    ):
        one = verbs.add_parser(verb, help=words)
        one.add_argument("key", help="name or id")
        on_store(one, run)


def _add_limits(parser: argparse.ArgumentParser, rate: Callable[[str, str], object]) -> None:
    parser.add_argument(
        "--budget",
        action="append",
        metavar="AMOUNT/WINDOW",
        help="may spend so much: 25/month, 2.50/day, 100000tok/hour, 500/total (several, each window once)",
    )
    for flag, what in (
        ("--rpm", "requests a minute"),
        ("--tpm", "tokens a minute"),
        ("--max-parallel", "calls at once"),
    ):
        parser.add_argument(flag, metavar="N", type=partial(rate, flag), help=f"at most so many {what}")


async def _create(args: argparse.Namespace, store: Store) -> None:
    limits = KeyLimits(budgets=_budgets(args.budget or ()), rpm=args.rpm, tpm=args.tpm, max_parallel=args.max_parallel)
    secret = secrets.mint_secret()
    fields = {
        "name": args.name,
        "secret_hash": secrets.hash_secret(secret),
        "team": args.team,
        "project": args.project,
        "user": args.user,
        "models": args.model,
        "providers": args.provider,
        "tags": dict(args.tag),
        "allow_shared_objects": args.allow_shared_objects,
        "expires_at": args.expires_at,
    }
    record = await Keys(store).create(fields, limits, actor())
    _show_secret(args, public(record, limits), secret)


async def _limit(args: argparse.Namespace, store: Store) -> None:
    changes: dict[str, Any] = {name: getattr(args, name) for name in RATES if getattr(args, name) is not None}
    changes = {name: None if rate == "none" else rate for name, rate in changes.items()}
    if args.budget is not None:
        changes["budgets"] = () if args.budget == ["none"] else _budgets(args.budget)
    if not changes:
        raise BadUse("no limit was given; see: farebox keys limit --help")
    record = await _find(store, args.key)
    changed = await Keys(store).change(record.id, {}, changes, actor())
    if changed is None:
        raise FareboxError(f"the key {args.key!r} was revoked: it has no limits any more")
    _show_one(args, await _shown(store, changed))


async def _list(args: argparse.Namespace, store: Store) -> None:
    records = await store.list_keys(include_revoked=args.all)
    columns = _LISTED if args.all else _LISTED[:-1]
    limits = await Keys(store).limits()
    rows = [public(record, limits.get(record.id, NONE)) for record in records]
    if args.format == "table":
        rows = [_in_words(row) for row in rows]
    show(rows, columns, args.format, empty="no keys yet: farebox keys create NAME")


async def _show(args: argparse.Namespace, store: Store) -> None:
    _show_one(args, await _shown(store, await _find(store, args.key)))


async def _rotate(args: argparse.Namespace, store: Store) -> None:
    record = await _find(store, args.key)
    secret = secrets.mint_secret()
    rotated = await store.rotate_key(record.id, secrets.hash_secret(secret))
    if rotated is None:
        raise FareboxError(f"the key {args.key!r} was revoked: it can't be given a new secret")
    _show_secret(args, await _shown(store, rotated), secret)


async def _revoke(args: argparse.Namespace, store: Store) -> None:
    record = await _find(store, args.key)
    revoked = await Keys(store).revoke(record.id, actor())
    _show_one(args, await _shown(store, revoked or record))


async def _find(store: Store, key: str) -> KeyRecord:
    record = await store.get_key(key)
    if record is None:
        raise not_found("key", key)
    return record


async def _shown(store: Store, record: KeyRecord) -> dict[str, Any]:
    limits = await Keys(store).limits(record.id)
    return public(record, limits.get(record.id, NONE))


def _show_one(args: argparse.Namespace, key: dict[str, Any]) -> None:
    show(_in_words(key) if args.format == "table" else key, _SHOWN, args.format)


def _show_secret(args: argparse.Namespace, key: dict[str, Any], secret: str) -> None:
    if args.format == "json":
        show(key | {"key": secret}, (), "json")
        return
    print(secret)
    name, id = key["name"], key["id"]
    print(f"key {name!r} ({id}): the secret is shown this once; it is stored as a hash", file=sys.stderr)


def _in_words(key: dict[str, Any]) -> dict[str, Any]:
    """A key with its limits as they are written on the command line: `25/month, 100000tok/day`."""
    budgets = [
        f"{budget[name]}{unit}/{budget['window']}"
        for budget in key["budgets"]
        for name, unit in (("limit_usd", ""), ("limit_tokens", "tok"))
        if budget[name] is not None
    ]
    rates = [f"{name} {key[name]}" for name in RATES if key[name] is not None]
    return key | {"budgets": ", ".join(budgets) or None, "rates": ", ".join(rates) or None}


def _budgets(texts: Sequence[str]) -> tuple[BudgetRule, ...]:
    try:
        return parse_budgets(texts)
    except BadBudget as bad:
        raise BadUse(f"--budget: {bad}") from None


def _rate_or_none(flag: str, text: str) -> int | str:
    return text if text == "none" else _rate(flag, text)


def _rate(flag: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]) <= RATE_MAX:
        raise BadUse(f"{flag} {text[:60]!r} is not a whole number from 1 to {RATE_MAX:,}.")
    return int(text)
