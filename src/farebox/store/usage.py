"""Which rows of the ledger are asked for, and a page of them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from farebox.records import UsageRow


class UsageFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempts; None: any. `since` is included, `until` is not; `model`: that answered, else was asked for.

    `since` and `until` are about when a call started, `finished_since` about its end. `user` is the claimed
    end user. `tags`: a row has all of these.
    """

    since: datetime | None = None
    until: datetime | None = None
    finished_since: datetime | None = None
    key_id: UUID | None = None
    key_name: str | None = None
    team: str | None = None
    project: str | None = None
    user: str | None = None
    provider: str | None = None
    model: str | None = None
    session: str | None = None
    outcome: str | None = None
    tags: dict[str, str] | None = None
    request_id: UUID | None = None

    def values(self) -> tuple[object, ...]:
        """$1 to $14 of every statement that has the filter (`matching` in reports.sql)."""
        tags = msgspec.json.encode(self.tags).decode() if self.tags else None
        fields = msgspec.structs.asdict(self)
        return tuple(tags if name == "tags" else fields[name] for name in self.__struct_fields__)


ANY = UsageFilter()


class Page(msgspec.Struct, frozen=True):
    """Rows, newest first, and where the next page starts (None: there is none)."""

    rows: list[UsageRow]
    next: tuple[datetime, UUID] | None
