"""What commands share: finding the config, opening the store, reading arguments."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from farebox import logs
from farebox.config import Config, ConfigError
from farebox.database import open_store
from farebox.errors import FareboxError
from farebox.source import ConfigFile
from farebox.store import Store

DEFAULT_CONFIG = Path("config.yaml")
_LINE_CHARS_MAX = 200


class Commands(Protocol):
    """argparse's collection of sub-commands, as far as it is used."""

    def add_parser(self, name: str, **kwargs: Any) -> argparse.ArgumentParser: ...


class BadUse(ConfigError):
    """An argument that does not make sense: exit code 2, like a bad config."""

    def __init__(self, message: str) -> None:
        super().__init__([])
        self._message = message

    def __str__(self) -> str:
        return f"farebox: {self._message}"


def version() -> str:
    """The installed version."""
    return metadata.version("farebox")


def command(program: str) -> str:
    """How a user who started `program` (as in `sys.argv[0]`) calls farebox again: by name where the shell finds it."""
    found = shutil.which("farebox")
    if Path(program).name != "farebox" or (found and os.path.realpath(found) == os.path.realpath(program)):
        return "farebox"
    return shlex.quote(program)


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option every command has."""
    parser.add_argument(
        "--config", metavar="PATH", type=Path, help="config file (default: ./config.yaml, else built-in defaults)"
    )


def add_format(parser: argparse.ArgumentParser, *formats: str) -> None:
    """How the result is printed."""
    parser.add_argument("--format", choices=formats or ("table", "json"), default="table", help="default: table")


def read_config(args: argparse.Namespace) -> Config:
    """The config the command line names. Raises `ConfigError` with every fault."""
    file = ConfigFile(args.config or DEFAULT_CONFIG, env=os.environ, optional=args.config is None)
    config = file.read().config
    if isinstance(config, ConfigError):
        raise config
    return config


@asynccontextmanager
async def store_of(args: argparse.Namespace) -> AsyncIterator[Store]:
    """The store the config names, migrated; the embedded database is started unless a running farebox has it up."""
    config = read_config(args)
    # Standard output is the result's alone, and a command that works has no more to say than that.
    logs.configure("warning", config.log.format, config.secrets())
    _say_if_new(config)
    async with open_store(config) as store:
        await store.migrate()
        yield store


def on_store(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace, Store], Awaitable[None]], *formats: str
) -> None:
    """Complete a command that does its work on the store: its common options, and how it is started."""

    async def work(args: argparse.Namespace) -> None:
        async with store_of(args) as store:
            await run(args, store)

    def start(args: argparse.Namespace) -> int:
        asyncio.run(work(args))
        return 0

    add_config(parser)
    add_format(parser, *formats)
    parser.set_defaults(run=start)


def _say_if_new(config: Config) -> None:
    # A relative data_dir counts from the working folder: in another one, an empty report would look like the truth.
    folder = Path(config.database.data_dir)
    if config.database.embedded and not (folder / "postgres").exists():
        print(f"farebox: there is no database in {folder.absolute()}; an empty one is made", file=sys.stderr)


def parse_time(text: str) -> datetime:
    """A point in time: `2026-11-22`, `2026-11-22T10:00:00Z`, or so long ago: `90m`, `24h`, `7d`."""
    unit = {"m": "minutes", "h": "hours", "d": "days"}.get(text[-1:])
    try:
        if unit and text[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(**{unit: int(text[:-1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise BadUse(f"{text!r} is not a time. Write 2026-11-22, 2026-11-22T10:00:00Z, 90m, 24h or 7d.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_line(text: str, chars_max: int = _LINE_CHARS_MAX) -> str:
    """A name or a label: it will stand in rows, tables and log lines."""
    # Control characters; and lone surrogates, as which an argument that is not UTF-8 reaches Python.
    odd = any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c < "\ue000" for c in text)
    if odd or not 1 <= len(text) <= chars_max:
        raise BadUse(f"{text[:_LINE_CHARS_MAX]!r} is not 1 to {chars_max} characters on one line.")
    return text


def parse_pair(text: str) -> tuple[str, str]:
    """A `k=v` argument."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise BadUse(f"{text!r} is not NAME=VALUE.")
    return parse_line(name), parse_line(value) if value else ""


def actor() -> str:
    """Who makes a change, for the audit: the system's user who started the command."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return f"cli: {user[:100]}"


def not_found(what: str, name: str) -> FareboxError:
    """The error for a thing that is not there."""
    return FareboxError(f"there is no {what} {name!r}")
