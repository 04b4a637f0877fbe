"""Which database errors pass by themselves, which say that the data was bad, and how they may be put into words.

Codes are SQLSTATEs (PostgreSQL manual, appendix A). Messages of the server are never shown: they
quote rows; and the URL is never shown whole: it holds a password.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import asyncpg

from farebox.errors import FareboxError, Unavailable


class StoreUnavailable(Unavailable):
    """The database can't be reached or can't serve now; it may pass."""


class SchemaError(FareboxError):
    """The database's schema is not one this version of farebox can work with."""


_TRANSIENT_CLASSES = (
    "08",  # connection lost, or refused by a pooler
    "40",  # serialisation failure, deadlock
    "53",  # disk full, out of memory, too many connections
    "57",  # shut down, crashed, starting up, cancelled by a timeout
    "58",  # the server's own disk or files
)
_TRANSIENT = (
    "25006",  # read-only transaction: a standby, or a failover under way
    "55P03",  # lock not available
)
_TRANSIENT_TYPES = (
    OSError,
    TimeoutError,
    StoreUnavailable,
    asyncpg.InterfaceError,  # the pool or the connection was closed under the call
    asyncpg.InternalClientError,  # the same, seen by asyncpg in another state
)
_REFUSED_CLASSES = (
    "22",  # data exception: out of range, not representable, malformed JSON
    "23",  # a constraint
    "54",  # a limit of the server: row or index entry too large
)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: the database is away, restarting, overloaded or full."""
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT
    return isinstance(error, _TRANSIENT_TYPES) and not is_refusal(error)


def is_refusal(error: BaseException) -> bool:
    """Whether the database refused what the data says, so that the same data will be refused again."""
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _REFUSED_CLASSES
    return isinstance(error, (asyncpg.DataError, UnicodeError))


def in_words(error: BaseException) -> str:
    """A reason for people, without what the server or the library said."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return f"{type(error).__name__} (SQLSTATE {state})"
    if isinstance(error, OSError) and isinstance(error.strerror, str):
        return error.strerror
    return type(error).__name__


def place_of(dsn: str) -> str:
    """Where `dsn` points, without credentials: `host:port/name`. Raises FareboxError if it is no URL for Postgres."""
    try:
        parts = urlsplit(dsn)
        port = f":{parts.port}" if parts.port is not None else ""
        host = parts.hostname or ""
    except ValueError:
        # urllib quotes what it could not read, which may be a part of the password.
        raise FareboxError(
            "database.url can't be read (it is not shown, it may hold a password). A password with / : @ ? # or % "
            "must be percent-encoded."
        ) from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise FareboxError("database.url must be `embedded` or start with postgresql://")
    if "@" not in parts.netloc and "@" in parts.path + parts.query + parts.fragment:
        # A password with a / or ? in it is cut there, and its rest looks like the database's name.
        return "database.url (not shown; a password with / : @ ? # or % in it must be percent-encoded)"
    return f"{host or 'the local socket'}{port}{parts.path}"
