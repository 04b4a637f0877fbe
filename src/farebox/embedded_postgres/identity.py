"""Who PostgreSQL runs as. It refuses root and (initdb) an id without a name; containers give farebox both."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

_ACCOUNTS = ("postgres", "_postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Identity:
    """One way to run PostgreSQL's programs. `text` is launch.py's IDENTITY; `uid` and `gid` own its files on disk."""

    text: str
    uid: int
    gid: int

    @classmethod
    def parse(cls, text: str) -> Identity:
        """From launch.py's notation. Only `dropped` and `bare` change who owns the files."""
        kind, *ids = text.split(":")
        if kind in {"dropped", "bare"}:
            return cls(text, int(ids[0]), int(ids[1]))
        return cls(text, os.geteuid(), os.getegid())

    @property
    def bare(self) -> bool:
        """True when folders closed to others stop it, so that the way to its files must be open for passing."""
        return self.text.startswith("bare:")

    @property
    def dropped(self) -> bool:
        """True when farebox is root and PostgreSQL is another user."""
        return self.bare or self.text.startswith("dropped:")


def identities(
    *, euid: int, named: bool, owner: tuple[int, int] | None, linux: bool, spare: tuple[int, int]
) -> list[str]:
    """Ways to try, best first.

    `named`: our id is in the user database. `owner`: uid and gid of the data, where there is any.
    `spare`: an ordinary account to borrow.
    """
    if euid != 0:
        return ["plain"] if named or not linux else [f"namespace:{spare[0]}", "plain"]
    if owner is not None and owner[0] != 0:
        # Data made by an ordinary user stays that user's, even when root starts farebox once.
        return [f"{kind}:{owner[0]}:{owner[1]}" for kind in (["dropped"] if linux else []) + ["bare"]]
    account = f"{spare[0]}:{spare[1]}"
    return [f"namespace:{spare[0]}", f"dropped:{account}", f"bare:{account}"] if linux else [f"bare:{account}"]


def is_named(uid: int) -> bool:
    """Whether the user database knows `uid`."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def spare_account() -> tuple[int, int]:
    """uid and gid of an account that is not root's: PostgreSQL's own where it exists."""
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    others = ((entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall() if entry.pw_uid != 0)
    return next(others, (65534, 65534))
