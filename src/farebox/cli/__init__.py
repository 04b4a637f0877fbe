"""The `farebox` command: each command in a module of its own, the common parts in `common`.

Only the module of the command that is asked for is imported, for the others' take time.

Exit codes: 0 fine, 1 failed, 2 bad use or bad config. Results go to standard output, everything
else to standard error.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from farebox import quickly  # noqa: F401  (first)
from farebox.cli.common import version
from farebox.config import ConfigError
from farebox.errors import FareboxError

_MODULES = {
    "serve": "serve",
    "migrate": "serve",
    "check": "configs",
    "init": "configs",
    "keys": "keys",
    "budgets": "budgets",
    "usage": "usage",
    "sessions": "sessions",
    "tokens": "tokens",
    "top": "top",
    "models": "models",
    "prices": "prices",
    "integrity": "integrity",
}
"""Where each command is, in the order in which help lists them."""
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        words = sys.argv[1:] if argv is None else argv
        args = parser(words[0] if words else None).parse_args(words)
        code: int = args.run(args)
        sys.stdout.flush()
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return 2
    except FareboxError as exc:
        print(f"farebox: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `farebox usage | head`
        _write_no_more()
        return 0
    except OSError as exc:
        if exc.errno not in _NO_ROOM or exc.filename is not None:
            raise
        _write_no_more()
        print(f"farebox: the output can't be written: {exc.strerror}", file=sys.stderr)
        return 1
    return code


def _write_no_more() -> None:
    """The interpreter must not try to write the rest at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line, as argparse understands it: with this command alone if there is one of that name."""
    line = argparse.ArgumentParser(
        prog="farebox", description="Meters OpenAI-compatible traffic: every call is one exact row."
    )
    line.add_argument("--version", action="version", version=f"farebox {version()}")
    commands = line.add_subparsers(title="commands", metavar="COMMAND", required=True)
    wanted = [_MODULES[command]] if command in _MODULES else dict.fromkeys(_MODULES.values())
    for name in wanted:
        import_module(f"farebox.cli.{name}").add(commands)
    return line
