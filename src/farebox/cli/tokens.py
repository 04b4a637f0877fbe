"""`farebox tokens`: how many tokens a text or a request body is, whether the model takes it, what it costs.

Offline: the tokenizers and the price list are those of the package, prices of the config on top. No
database is opened. The arithmetic is `farebox.sizing`'s.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from farebox.cli.common import BadUse, Commands, add_config, add_format, parse_line, read_config
from farebox.cli.showing import Output
from farebox.cli.tables import amounts, plain
from farebox.errors import FareboxError, Refusal
from farebox.identifiers import IDENTIFIER_CHARS_MAX
from farebox.pricing import PriceBook, Pricer, shipped
from farebox.sizing import Certainty, Sizer, Sizing
from farebox.tokens import Tokens

INPUT_BYTES_MAX = 64 << 20
"""Longest input read; a longer one is refused."""

_HOW: dict[Certainty, str] = {
    "exact": "exact: the model's own tokenizer",
    "estimate": "an estimate: the model's own tokenizer, and rules of thumb for what is not plain text",
    "rough": "rough: the model's own tokenizer is not known here",
}


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    tokens = commands.add_parser(
        "tokens",
        help="count a text or a chat body: its limit, whether it fits, the bound",
        description="Count the tokens of a text (an argument, --file or standard input) or of a request body (--body).",
    )
    tokens.add_argument("text", nargs="?", help="the text; without it standard input is read")
    add_config(tokens)
    add_format(tokens)
    tokens.add_argument("--model", metavar="MODEL", type=_name, help="for a body: instead of the one it names")
    tokens.add_argument("--provider", metavar="NAME", type=_name, help="whose price and limits; default: by the routes")
    tokens.add_argument("--file", metavar="PATH", help="the text is in this file; - is standard input")
    tokens.add_argument(
        "--body", metavar="PATH", help="a request's JSON (messages, input or prompt); - is standard input"
    )
    tokens.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is known of the request."""
    if sum(given is not None for given in (args.text, args.file, args.body)) > 1:
        raise BadUse("one of TEXT, --file and --body is counted at a time.")
    config = read_config(args)
    pricer = Pricer(PriceBook(shipped().entries), config.providers)
    sizer = Sizer(Tokens(), config, pricer, datetime.now(UTC), provider=args.provider)
    try:
        if args.body is not None:
            sizing = sizer.body(_read(args.body), args.model)
        else:
            text = args.text if args.text is not None else _read(args.file or "-").decode("utf-8", "replace")
            sizing = sizer.text(text, args.model)
    except Refusal as refusal:
        raise BadUse(refusal.message) from None
    if args.format == "json":
        print(msgspec.json.format(msgspec.json.encode(sizing.as_json()), indent=2).decode())
    else:
        _show(sizing)
    return 0


def _show(sizing: Sizing) -> None:
    lines = [
        ("model", plain(sizing.model)),
        ("tokens", f"{sizing.input_tokens:,}  ({_HOW[sizing.certainty]}, {sizing.counted_by})"),
        ("at most", _number(sizing.input_tokens_max, "can't be said: not all of it is text in the request")),
        ("context window", _number(sizing.context_window, "not known") + _fits(sizing)),
        ("output at most", _number(sizing.output_tokens_max, "not known")),
        ("input cost", _usd(sizing.input_cost_usd)),
        ("cost at most", _usd(sizing.cost_usd_max)),
        ("price", _price(sizing)),
    ]
    console = Output()
    for name, value in lines:
        console.print(f"{name:<16}{value}", markup=False, highlight=False, soft_wrap=True)


def _number(value: int | None, unknown: str) -> str:
    return unknown if value is None else f"{value:,}"


def _fits(sizing: Sizing) -> str:
    if sizing.fits is None:
        return ""
    if not sizing.fits:
        return "  (too long: it does not fit)"
    return "  (it fits)" if sizing.fits_surely else "  (it fits by this count, not by the bound)"


def _usd(value: object) -> str:
    return "not known" if value is None else f"{amounts([str(value)])[0]} USD"


def _price(sizing: Sizing) -> str:
    if sizing.price_id is None:
        return "not known"
    whose = f"provider {sizing.provider}" if sizing.provider is not None else f"list price of {sizing.book}"
    return f"{plain(sizing.price_id)}  ({whose})"


def _read(path: str) -> bytes:
    if path == "-":
        if sys.stdin.isatty():
            print("reading standard input; Ctrl-D ends it", file=sys.stderr)
        data = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    else:
        try:
            with Path(path).open("rb") as file:
                data = file.read(INPUT_BYTES_MAX + 1)
        except OSError as exc:
            raise FareboxError(f"{path} can't be read: {exc.strerror}") from None
    if len(data) > INPUT_BYTES_MAX:
        raise BadUse(f"the input is longer than {INPUT_BYTES_MAX >> 20} MB.")
    return data


def _name(text: str) -> str:
    return parse_line(text, IDENTIFIER_CHARS_MAX)
