"""`farebox keys`: make, list, show, rotate and revoke keys."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

from farebox import keys as secrets
from farebox.admin.forms import public
from farebox.cli.common import (
    Commands,
    add_config,
    add_format,
    not_found,
    parse_line,
    parse_pair,
    parse_time,
    show,
    store_of,
)
from farebox.errors import FareboxError
from farebox.records import KeyRecord
from farebox.store import Store

_LISTED = ("name", "id", "team", "project", "user", "created_at", "expires_at", "revoked_at")
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
    "created_at",
    "expires_at",
    "revoked_at",
)


def add(commands: Commands) -> None:
    """Add the command and its verbs to the command line."""
    verbs = commands.add_parser("keys", help="make, list, show, rotate and revoke keys").add_subparsers(
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
    create.add_argument("--expires-at", metavar="TIME", type=parse_time, help="2026-12-31 or 2026-12-31T12:00:00Z")
    create.add_argument("--allow-shared-objects", action="store_true", help="may list files, batches ... of all keys")
    _finish(create, _create)
    listing = verbs.add_parser("list", help="the keys")
    listing.add_argument("--all", action="store_true", help="revoked ones too")
    _finish(listing, _list)
    for verb, run, words in (
        ("show", _show, "everything about one key, except its secret"),
        ("rotate", _rotate, "give a key a new secret; the old one ends at once"),
        ("revoke", _revoke, "end a key; running farebox processes follow within seconds"),
    ):
        one = verbs.add_parser(verb, help=words)
        one.add_argument("key", help="name or id")
        _finish(one, run)


def _finish(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace, Store], Awaitable[None]]) -> None:
    async def go(args: argparse.Namespace) -> None:
        async with store_of(args) as store:
            await run(args, store)

    def start(args: argparse.Namespace) -> int:
        asyncio.run(go(args))
        return 0

    add_config(parser)
    add_format(parser)
    parser.set_defaults(run=start)


async def _create(args: argparse.Namespace, store: Store) -> None:
    secret = secrets.mint_secret()
    record = await store.create_key(
        name=args.name,
        secret_hash=secrets.hash_secret(secret),
        team=args.team,
        project=args.project,
        user=args.user,
        models=args.model,
        providers=args.provider,
        tags=dict(args.tag),
        allow_shared_objects=args.allow_shared_objects,
        expires_at=args.expires_at,
    )
    _show_secret(args, record, secret)


async def _list(args: argparse.Namespace, store: Store) -> None:
    records = await store.list_keys(include_revoked=args.all)
    columns = _LISTED if args.all else _LISTED[:-1]
    show([public(r) for r in records], columns, args.format, empty="no keys yet: farebox keys create NAME")


async def _show(args: argparse.Namespace, store: Store) -> None:
    show(public(await _find(store, args.key)), _SHOWN, args.format)


async def _rotate(args: argparse.Namespace, store: Store) -> None:
    record = await _find(store, args.key)
    secret = secrets.mint_secret()
    rotated = await store.rotate_key(record.id, secrets.hash_secret(secret))
    if rotated is None:
        raise FareboxError(f"the key {args.key!r} was revoked: it can't be given a new secret")
    _show_secret(args, rotated, secret)


async def _revoke(args: argparse.Namespace, store: Store) -> None:
    record = await _find(store, args.key)
    revoked = await store.revoke_key(record.id)
    show(public(revoked or record), _SHOWN, args.format)


async def _find(store: Store, key: str) -> KeyRecord:
    record = await store.get_key(key)
    if record is None:
        raise not_found("key", key)
    return record


def _show_secret(args: argparse.Namespace, record: KeyRecord, secret: str) -> None:
    if args.format == "json":
        show(public(record) | {"key": secret}, (), "json")
        return
    print(secret)
    print(f"key {record.name!r} ({record.id}): the secret is shown this once; it is stored as a hash", file=sys.stderr)
