"""The snapshot of public price lists that farebox ships, read from its own package.

Made by `genai` from the data of genai-prices (MIT, see data/README.md); reading it needs neither that
library nor a network.
"""

from __future__ import annotations

import gzip
from datetime import datetime
from functools import cache
from importlib.resources import files

import msgspec

from farebox.pricing.entry import Price

FILE = "prices.json.gz"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds: where its facts come from, and the entries."""

    source: str
    """The library and its version."""
    snapshot: datetime
    """As of when its facts were true."""
    licence: str
    entries: tuple[Price, ...]


@cache
def shipped() -> Snapshot:
    """The shipped snapshot. Decoded once for a process, which takes tens of milliseconds: nobody can change it."""
    data = files("farebox").joinpath("data", FILE).read_bytes()
    return decode(gzip.decompress(data))


def decode(data: bytes) -> Snapshot:
    """A snapshot from its JSON. Raises `msgspec.ValidationError` for anything else."""
    return msgspec.json.decode(data, type=Snapshot)
