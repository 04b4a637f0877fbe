"""What the control plane reads and writes: JSON in, values out, every fault named by its member."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec

from farebox.errors import BadRequest
from farebox.records import KeyRecord
from farebox.store import UsageFilter

_ROWS_DEFAULT = 100
_ROWS_MAX = 1000
_PARAMETERS = frozenset(
    ("since", "until", "key", "key_id", "provider", "model", "session", "request_id", "limit", "cursor")
)
T = TypeVar("T")

_Line = Annotated[str, msgspec.Meta(max_length=200, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
"""These stand in every row and every log line of the key: a line of text, and not a long one."""
_Lines = Annotated[list[_Line], msgspec.Meta(max_length=200)]
_Tags = Annotated[dict[_Line, _Line], msgspec.Meta(max_length=16)]


class _NewKey(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: _Line
    team: _Line | None = None
    project: _Line | None = None
    user: _Line | None = None
    models: _Lines = []
    providers: _Lines = []
    tags: _Tags = {}
    allow_shared_objects: bool = False
    expires_at: datetime | None = None


class _KeyChanges(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    name: _Line | msgspec.UnsetType = msgspec.UNSET
    team: _Line | msgspec.UnsetType | None = msgspec.UNSET
    project: _Line | msgspec.UnsetType | None = msgspec.UNSET
    user: _Line | msgspec.UnsetType | None = msgspec.UNSET
    models: _Lines | msgspec.UnsetType = msgspec.UNSET
    providers: _Lines | msgspec.UnsetType = msgspec.UNSET
    tags: _Tags | msgspec.UnsetType = msgspec.UNSET
    allow_shared_objects: bool | msgspec.UnsetType = msgspec.UNSET
    expires_at: datetime | msgspec.UnsetType | None = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which rows of the ledger, from where, and how many."""

    where: UsageFilter
    after: tuple[datetime, UUID] | None
    rows_max: int


def encode(payload: Any) -> bytes:
    """JSON, money as exact decimal strings."""
    return msgspec.json.encode(payload)


def public(record: KeyRecord) -> dict[str, Any]:
    """A key without anything of its secret."""
    members = msgspec.structs.asdict(record)
    del members["secret_hash"]
    return members


def read_new_key(body: bytes) -> dict[str, Any]:
    """The fields of a key to make. Raises `BadRequest`."""
    return msgspec.structs.asdict(_zoned(_read(body, _NewKey)))


def read_key_changes(body: bytes) -> dict[str, Any]:
    """The fields of a key to change, only those given. Raises `BadRequest`."""
    changes = msgspec.structs.asdict(_zoned(_read(body, _KeyChanges)))
    given = {name: value for name, value in changes.items() if value is not msgspec.UNSET}
    if not given:
        raise BadRequest("Nothing to change was given.")
    return given


def read_usage_query(query: dict[str, str]) -> UsageQuery:
    """Filters and paging of `GET /usage`. Raises `BadRequest`."""
    unknown = set(query) - _PARAMETERS
    if unknown:
        raise BadRequest(f"There is no parameter {sorted(unknown)[0]!r}.", param=sorted(unknown)[0])
    where = UsageFilter(
        since=_time(query, "since"),
        until=_time(query, "until"),
        key_name=query.get("key"),
        key_id=_id(query, "key_id"),
        provider=query.get("provider"),
        model=query.get("model"),
        session=query.get("session"),
        request_id=_id(query, "request_id"),
    )
    limit = query.get("limit", str(_ROWS_DEFAULT))
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:6]) <= _ROWS_MAX:
        raise BadRequest(f"limit is a number from 1 to {_ROWS_MAX}.", param="limit")
    return UsageQuery(where, _cursor(query.get("cursor")), int(limit))


def cursor(place: tuple[datetime, UUID] | None) -> str | None:
    """Where the next page starts, for the client to hand back."""
    return None if place is None else f"{place[0].isoformat()}_{place[1]}".replace("+", "~")


def _cursor(text: str | None) -> tuple[datetime, UUID] | None:
    if text is None:
        return None
    moment, _, id = text.replace("~", "+").partition("_")
    try:
        place = datetime.fromisoformat(moment), UUID(id)
    except ValueError:
        raise BadRequest("This cursor is not one that farebox gave out.", param="cursor") from None
    return place


def _read(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as exc:
        raise BadRequest(f"The body does not fit: {exc}.") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadRequest("The body is not a JSON object.") from None


def _zoned(form: T) -> T:
    expires_at = getattr(form, "expires_at", None)
    if isinstance(expires_at, datetime) and expires_at.tzinfo is None:
        form.expires_at = expires_at.replace(tzinfo=UTC)  # type: ignore[attr-defined]
    return form


def _time(query: dict[str, str], name: str) -> datetime | None:
    if (text := query.get(name)) is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise BadRequest(f"{name} is a time such as 2026-11-22T10:00:00Z.", param=name) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _id(query: dict[str, str], name: str) -> UUID | None:
    if (text := query.get(name)) is None:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise BadRequest(f"{name} is a UUID.", param=name) from None
