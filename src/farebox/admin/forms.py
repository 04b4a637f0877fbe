"""What the control plane reads and writes: JSON in, values out, every fault named by its member."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec

from farebox.admin.members import texts
from farebox.config.budgets import BadBudget
from farebox.errors import BadRequest
from farebox.keylimits import NONE, RATE_MAX, RATES, KeyLimits, key_budgets
from farebox.records import KeyRecord

T = TypeVar("T")

Line = Annotated[str, msgspec.Meta(max_length=200, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
"""These stand in every row and every log line of the key: a line of text, and not a long one."""
_Lines = Annotated[list[Line], msgspec.Meta(max_length=200)]
_Tags = Annotated[dict[Line, Line], msgspec.Meta(max_length=16)]
_Rate = Annotated[int, msgspec.Meta(ge=1, le=RATE_MAX)]
_Budgets = list[dict[str, msgspec.Raw]]
LIMITS = ("budgets", *RATES)
"""Members of a key that are stored as budgets of its own, not in its row."""


class _NewKey(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: Line
    team: Line | None = None
    project: Line | None = None
    user: Line | None = None
    models: _Lines = []
    providers: _Lines = []
    tags: _Tags = {}
    allow_shared_objects: bool = False
    expires_at: datetime | None = None
    budgets: _Budgets = []
    rpm: _Rate | None = None
    tpm: _Rate | None = None
    max_parallel: _Rate | None = None


class _KeyChanges(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    name: Line | msgspec.UnsetType = msgspec.UNSET
    team: Line | msgspec.UnsetType | None = msgspec.UNSET
    project: Line | msgspec.UnsetType | None = msgspec.UNSET
    user: Line | msgspec.UnsetType | None = msgspec.UNSET
    models: _Lines | msgspec.UnsetType = msgspec.UNSET
    providers: _Lines | msgspec.UnsetType = msgspec.UNSET
    tags: _Tags | msgspec.UnsetType = msgspec.UNSET
    allow_shared_objects: bool | msgspec.UnsetType = msgspec.UNSET
    expires_at: datetime | msgspec.UnsetType | None = msgspec.UNSET
    budgets: _Budgets | msgspec.UnsetType = msgspec.UNSET
    rpm: _Rate | msgspec.UnsetType | None = msgspec.UNSET
    tpm: _Rate | msgspec.UnsetType | None = msgspec.UNSET
    max_parallel: _Rate | msgspec.UnsetType | None = msgspec.UNSET


def encode(payload: Any) -> bytes:
    """JSON, money as exact decimal strings."""
    return msgspec.json.encode(payload)


def public(record: KeyRecord, limits: KeyLimits = NONE) -> dict[str, Any]:
    """A key with its limits, and without anything of its secret."""
    members = msgspec.structs.asdict(record)
    del members["secret_hash"]
    return members | limits.as_shown()


def read_new_key(body: bytes) -> tuple[dict[str, Any], KeyLimits]:
    """The fields of a key to make, and what it is limited to. Raises `BadRequest`."""
    fields, limits = _parted(msgspec.structs.asdict(_zoned(read(body, _NewKey))))
    return fields, KeyLimits(**limits)


def read_key_changes(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a key to change, and those of its `KeyLimits`; only what is given. Raises `BadRequest`."""
    changes = msgspec.structs.asdict(_zoned(read(body, _KeyChanges)))
    given = {name: value for name, value in changes.items() if value is not msgspec.UNSET}
    if not given:
        raise BadRequest("Nothing to change was given.")
    return _parted(given)


def _parted(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    limits = {name: given.pop(name) for name in LIMITS if name in given}
    if "budgets" in limits:
        try:
            limits["budgets"] = key_budgets([texts(members) for members in limits["budgets"]])
        except BadBudget as bad:
            raise BadRequest(f"budgets: {bad}", param="budgets") from None
    return given, limits


def read(body: bytes, shape: type[T]) -> T:
    """A body in the shape of a form. Raises BadRequest."""
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
