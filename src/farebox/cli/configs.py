"""`farebox check` and `farebox init`: the config, validated and begun."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from farebox.cli.common import DEFAULT_CONFIG, Commands, add_config, command, read_config
from farebox.config.example import render
from farebox.upstream import Unusable
from farebox.upstream.opening import Opener


def add(commands: Commands) -> None:
    """Add both commands to the command line."""
    check = commands.add_parser("check", help="validate the config; prints every fault as file:line:col")
    add_config(check)
    check.set_defaults(run=run_check)
    init = commands.add_parser("init", help="write a commented config to start from")
    place = init.add_mutually_exclusive_group()
    place.add_argument("path", nargs="?", type=Path, default=DEFAULT_CONFIG, help="default: ./config.yaml")
    place.add_argument("--config", metavar="PATH", type=Path, help="the same, as other commands have it")
    init.set_defaults(run=run_init)


def run_check(args: argparse.Namespace) -> int:
    """Load the config. Faults are raised and printed by `main`."""
    config = read_config(args)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for provider in config.providers.values():
        try:
            Opener(provider)
        except Unusable as exc:  # here; it may be otherwise where farebox is to serve
            print(f"warning: {exc}", file=sys.stderr)
    providers = ", ".join(config.providers) or "none enabled: the built-in demo provider will answer"
    print(f"ok: {args.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else 'built-in defaults')}")
    print(f"providers: {providers}")
    return 0


def run_init(args: argparse.Namespace) -> int:
    """Write the example config, never over an existing file."""
    path = args.config or args.path
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(render())
    except FileExistsError:
        print(f"farebox: {path} exists already; it is left as it is", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"farebox: {path} can't be written: {exc.strerror}", file=sys.stderr)
        return 1
    own = command(sys.argv[0])
    option = "" if path == DEFAULT_CONFIG else f" --config {shlex.quote(str(path))}"
    print(f"wrote {path}: set the variables it names, or change its providers; then run")
    print(f"  {own} check{option}\n  {own} serve{option}")
    return 0
