"""`farebox top`: what happens now, on a screen that renews itself.

What is shown is `watching`'s; here it is laid out, and the terminal is taken and given back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from farebox.cli.common import BadUse, Commands, add_config, add_format, read_config, store_of
from farebox.cli.filters import add_filters, add_timezone, explained, read_filter
from farebox.cli.showing import Output
from farebox.cli.tables import Column, amounts, count, make_table, milliseconds, plain
from farebox.cli.watching import Seen, Watch, scraping
from farebox.config import Config
from farebox.foundation import base_url
from farebox.store.reports import Reports, Sums, read_zone

_INTERVAL_S = (0.2, 3600.0)
_KEYS = {"m": "model", "k": "key", "p": "provider", "t": "team", "u": "user", "s": "session", "e": "endpoint"}
_TYPED_MAX = 64
"""Keys pressed that are not acted on yet; what comes on top is dropped."""
_AROUND = 9
"""Lines that are not the table's rows."""
_LINES_MIN = 3
_ONCE_LINES = 40
_COLUMNS = (
    Column("calls_minute", "count", "calls/min"),
    Column("tokens_minute", "count", "tokens/min", rank=1),
    Column("calls", "count", "calls 1h", rank=3),
    Column("total_tokens", "count", "tokens 1h", rank=4),
    Column("cost_usd", "money", "USD 1h"),
    Column("unknown_cost", "count", "unpriced", rank=6),
    Column("errors", "count", "errors", rank=2),
    Column("duration_p50_ms", "ms", "p50", rank=5),
    Column("duration_p95_ms", "ms", "p95", rank=5),
    Column("ttft_p50_ms", "ms", "ttft p50", rank=7),
)


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    top = commands.add_parser(
        "top",
        help="live view: requests in flight, rate, spend",
        description="A live view of calls, tokens, spend and latency. Keys: q quits; "
        + ", ".join(f"{key} {what}" for key, what in _KEYS.items())
        + " choose the table.",
    )
    add_config(top)
    add_format(top)
    top.add_argument("--by", choices=tuple(_KEYS.values()), default="model", help="the table's rows (default: model)")
    top.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between two looks (default: 1)")
    top.add_argument("--once", action="store_true", help="print one look and end, as without a terminal")
    add_filters(top, "since")
    add_timezone(top)
    top.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show until q or Ctrl-C."""
    least, most = _INTERVAL_S
    if not math.isfinite(args.interval) or not least <= args.interval <= most:
        raise BadUse(f"--interval takes {least:g} to {most:g} seconds.")
    with explained():
        read_zone(args.timezone)
        config = read_config(args)
        once = args.once or args.format == "json" or not sys.stdout.isatty()
        # Ctrl-C is a way to leave, not a failure.
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(_once(args, config) if once else _live(args, config))
    return 0


async def _once(args: argparse.Namespace, config: Config) -> None:
    url = _metrics_url(config)
    async with store_of(args) as store:
        seen = await _watch(args, config, Reports(store)).look()
    if args.format == "json":
        print(msgspec.json.format(msgspec.json.encode(seen), indent=2).decode())
        return
    console = Output() if sys.stdout.isatty() else Output(width=200)
    console.print(frame(seen, width=console.width, rows_max=_ONCE_LINES, asked=url))


async def _live(args: argparse.Namespace, config: Config) -> None:
    url = _metrics_url(config)
    async with store_of(args) as store:
        watch = _watch(args, config, Reports(store))
        console = Output()
        with Live(console=console, screen=True, auto_refresh=False) as live, _keyboard() as keys:
            while True:
                seen = await watch.look()
                rows_max = max(_LINES_MIN, console.height - _AROUND)
                live.update(frame(seen, width=console.width, rows_max=rows_max, help=True, asked=url), refresh=True)
                try:
                    async with asyncio.timeout(args.interval):
                        key = await keys.get()
                except TimeoutError:
                    continue
                if key == "q":
                    return
                if key in _KEYS:
                    watch.group_by(_KEYS[key])


def _watch(args: argparse.Namespace, config: Config, reports: Reports) -> Watch:
    return Watch(
        reports,
        scraping(_metrics_url(config), config.metrics.token),
        where=read_filter(args),
        by=args.by,
        zone=args.timezone,
        now=lambda: datetime.now(UTC),
        monotonic=time.monotonic,
    )


def _metrics_url(config: Config) -> str:
    return f"{base_url(config, config.server.port)}/metrics"


@contextlib.contextmanager
def _keyboard() -> Iterator[asyncio.Queue[str]]:
    """Keys as they are pressed, without Enter. The terminal is given back.

    A process that is told to end does so at once, whatever it waits for; should something it waits for keep
    the cancellation to itself, a `q` has been pressed as well.
    """
    keys: asyncio.Queue[str] = asyncio.Queue(_TYPED_MAX)

    def press(key: str) -> None:
        if not keys.full():
            keys.put_nowait(key)

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def leave() -> None:
        press("q")
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, leave)
    if not sys.stdin.isatty():
        yield keys
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed() -> None:
        typed = os.read(terminal, 32).decode("ascii", "replace").lower()
        for key in typed or "q":  # nothing: the terminal is gone
            press(key)

    try:
        tty.setcbreak(terminal)
        loop.add_reader(terminal, pressed)
        yield keys
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


# -- the frame -----------------------------------------------------------------------------------


def frame(
    seen: Seen, *, width: int, rows_max: int, help: bool = False, asked: str = "a running farebox"
) -> RenderableType:
    """One look, laid out in `width` characters and at most `rows_max` rows of the table.

    `asked`: where the gauges come from, named when they do not come.
    """
    minute, hour = seen.minute or Sums(), seen.hour or Sums()
    known = seen.minute is not None
    parts: list[RenderableType] = [
        _line(
            ("farebox top", f"{seen.at:%Y-%m-%d %H:%M:%S} UTC"),
            ("in flight", count(seen.in_flight)),
            ("calls/min", count(minute.calls) if known else "-"),
            ("tokens/min", count(minute.total_tokens or 0) if known else "-"),
            ("errors/min", count(minute.errors) if known else "-"),
            ("waiting for the database", count(seen.backlog) if seen.backlog else ""),
        ),
        _line(
            ("spend, USD:  minute", _spend(seen.minute)),
            ("hour", _spend(seen.hour)),
            ("today", _spend(seen.today)),
        ),
        _line(
            ("last hour:  p50", milliseconds(hour.duration_p50_ms)),
            ("p95", milliseconds(hour.duration_p95_ms)),
            ("first token p50", milliseconds(hour.ttft_p50_ms)),
            ("p95", milliseconds(hour.ttft_p95_ms)),
            ("errors", f"{count(hour.errors)} of {count(hour.calls)}" if seen.hour is not None else "-"),
        ),
        Text(""),
    ]
    if seen.in_flight is None:
        why = f"in flight: no numbers from {asked}. Is it there (server.port), and with this metrics.token?"
        parts.insert(3, Text(why, style="dim", no_wrap=True, overflow="ellipsis"))
    if seen.fault is not None:
        parts.append(Text(seen.fault, style="bold red"))
    elif not seen.groups:
        parts.append(Text("no calls in the last hour", style="dim"))
    else:
        parts += _table(seen, width, rows_max)
    if help:
        keys = "  ".join(f"{key} {what}" for key, what in _KEYS.items())
        parts += [Text(""), Text(f"q quit  {keys}", style="dim", no_wrap=True, overflow="ellipsis")]
    return Group(*parts)


def _table(seen: Seen, width: int, rows_max: int) -> list[RenderableType]:
    rows = [
        msgspec.structs.asdict(group.hour)
        | {
            "label": group.label,
            "calls_minute": group.minute.calls,
            "tokens_minute": group.minute.total_tokens or 0,
        }
        for group in seen.groups[:rows_max]
    ]
    table, _ = make_table((Column("label", heading=seen.by), *_COLUMNS), rows, width=width)
    more = len(seen.groups) - len(rows)
    return [table, Text(f"and {more} more", style="dim")] if more else [table]


def _line(*facts: tuple[str, str]) -> Text:
    """Names dim, values bold; what has no value is left out."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, value in facts:
        if value:
            line.append(f"{'   ' if line else ''}{name} ", style="dim").append(plain(value), style="bold")
    return line


def _spend(sums: Sums | None) -> str:
    if sums is None:
        return "-"
    if not sums.calls:
        return "0.00"
    spent = amounts([sums.cost_usd])[0]
    return f"{spent} ({count(sums.unknown_cost)} unpriced)" if sums.unknown_cost else spent
