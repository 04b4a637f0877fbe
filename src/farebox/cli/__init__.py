"""The `farebox` command: each command in a module of its own, the common parts in `common`.

Exit codes: 0 fine, 1 failed, 2 bad use or bad config. Results go to standard output, everything
else to standard error.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from farebox.cli import budgets, configs, integrity, keys, models, prices, serve, sessions, tokens, top, usage
from farebox.cli.common import version
from farebox.config import ConfigError
from farebox.errors import FareboxError

_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        args = parser().parse_args(argv)
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


def parser() -> argparse.ArgumentParser:
    """The command line, as argparse understands it."""
    line = argparse.ArgumentParser(
        prog="farebox", description="Meters OpenAI-compatible traffic: every call is one exact row."
    )
    line.add_argument("--version", action="version", version=f"farebox {version()}")
    commands = line.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (serve, configs, keys, budgets, usage, sessions, tokens, top, models, prices, integrity):
        module.add(commands)
    return line
