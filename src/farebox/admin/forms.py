"""What the control plane reads and writes: JSON in, values out, every fault named by its member."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec

from farebox.errors import BadRequest
from farebox.records import KeyRecord

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
