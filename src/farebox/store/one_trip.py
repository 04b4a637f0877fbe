"""A connection on which the statements of a call under way cost one round trip to the database, not two.

farebox prepares nothing, because a pooler moves it from server connection to server connection. So asyncpg asks before
each statement what types it has, then sends it, anew and whole, with its values. For the few statements that calls
wait for, the first answer is kept, and from then on only the second message goes: parse, bind and execute together,
which is as good through PgBouncer as it was. Their types must stay: a migration that changes those of a function that
is called here gives it another name.

asyncpg has no public way for this; it stands on one method, which is asked first and whose answer is checked. An
asyncpg without that method makes two trips again, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


def one_trip(statements: Iterable[str]) -> type[_Connection]:
    """The class of connections that remember the types of these statements, word for word."""
    remembered = frozenset(statements)

    class OneTrip(_Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._known: dict[str, Any] = {}

        async def _get_statement(self, query: str, timeout: float | None, **options: Any) -> Any:
            if query not in remembered or not _plain(options):
                return await super()._get_statement(query, timeout, **options)  # type: ignore[misc]
            known = self._known.get(query)
            if known is None:
                known = await super()._get_statement(query, timeout, **options)  # type: ignore[misc]
                # One that has a name, or counts as prepared, may not be there the next time.
                if getattr(known, "prepared", True) is False and getattr(known, "name", None) == "":
                    self._known[query] = known
            return known

    return OneTrip


def _plain(options: dict[str, Any]) -> bool:
    return not any(options.values())
