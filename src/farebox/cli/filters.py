"""Which calls a report is about: the options that `usage`, `sessions` and `top` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args
from uuid import UUID

from farebox.cli.common import BadUse, parse_line, parse_pair, parse_time
from farebox.errors import BadRequest, FareboxError
from farebox.identifiers import IDENTIFIER_CHARS_MAX
from farebox.records import Outcome
from farebox.store import UsageFilter, is_refusal

_NAMES = ("team", "project", "user", "provider", "model", "session")


def add_filters(parser: argparse.ArgumentParser, *leave_out: str) -> None:
    """The options, all optional; `leave_out`: those that make no sense for a command."""
    if "since" not in leave_out:
        times = "2026-11-01 (UTC), 2026-11-01T10:00:00+01:00, or 90m, 24h, 7d ago"
        parser.add_argument("--since", metavar="TIME", type=parse_time, help=times)
        parser.add_argument("--until", metavar="TIME", type=parse_time, help="up to and without this time")
    parser.add_argument("--key", metavar="KEY", type=_text, help="only this key: name or id")
    for name in _NAMES:
        if name not in leave_out:
            what = "end user, as the client claims it" if name == "user" else name
            parser.add_argument(f"--{name}", metavar=name.upper(), type=_text, help=f"only this {what}")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="NAME=VALUE", type=parse_pair, help="only calls with this tag"
    )
    parser.add_argument("--outcome", choices=get_args(Outcome), help="only calls that ended so")


def add_timezone(parser: argparse.ArgumentParser) -> None:
    """Whose calendar days are."""
    parser.add_argument("--timezone", default="UTC", metavar="ZONE", help="of days and hours, e.g. Europe/Berlin")


def read_filter(args: argparse.Namespace) -> UsageFilter:
    """The filter that the options make."""
    key_id = None
    try:
        key_id = UUID(args.key) if args.key else None
    except ValueError:
        pass
    return UsageFilter(
        since=getattr(args, "since", None),
        until=getattr(args, "until", None),
        key_id=key_id,
        key_name=None if key_id else args.key,
        outcome=args.outcome,
        tags=dict(args.tag) or None,
        **{name: getattr(args, name, None) for name in _NAMES},
    )


def nothing(what: str, where: UsageFilter) -> str:
    """What is said where no call, or no session, is shown: there is none at all, or the options leave none."""
    return f"no {what} yet" if where == UsageFilter() else f"no {what} match these options"


@contextmanager
def explained() -> Iterator[None]:
    """What a report refuses is bad use; a value that no row could have is a failure, in words."""
    try:
        yield
    except BadRequest as exc:
        raise BadUse(exc.message) from None
    except Exception as exc:
        if not is_refusal(exc):
            raise
        raise FareboxError("a value given here is none that the database could hold") from None


def _text(text: str) -> str:
    return parse_line(text, IDENTIFIER_CHARS_MAX)
