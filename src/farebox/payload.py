"""Events as bytes: JSON objects that the journal has room for and that Postgres takes.

Names a client made up, headers and a provider's usage object can hold what JSON or `jsonb` refuse
(NUL, lone surrogates, bytes that are no UTF-8) or be too large. An event must not be lost for
that, so `encode` always returns something: it drops the least needed first. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from farebox.dialects.raw import nothing_kept, shortened
from farebox.records import FloatHold, UsageEvent

BYTES_MAX = 4096
"""Largest payload; the journal's room is counted in it."""
_TEXT_MAX = 200
"""Characters a text column keeps when an event is too large."""
_BARE_TEXT_MAX = 60
_TOOLS_MAX = 20
_DEPTH_MAX = 20
_STATUS_MAX = 999
_BIGINT_MAX = 2**63 - 1
_EPOCH = datetime.fromtimestamp(0, UTC)

_encode = msgspec.json.Encoder().encode
_BARE = (
    "request_id",
    "key_id",
    "started_at",
    "finished_at",
    "outcome",
    "status",
    "usage_source",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_tokens",
)
_BARE_TEXTS = ("provider", "dialect", "endpoint", "operation")
_TYPES = {field.name: field.type for field in msgspec.structs.fields(UsageEvent)}


def encode(event: UsageEvent) -> bytes:
    """`event` as a JSON object whose members are columns, at most `BYTES_MAX` bytes, valid for `jsonb`."""
    try:
        data = _encode(event)
    except UnicodeEncodeError:
        return _shrunk(_members(event))
    # `\\u` stands for NUL among others, and a provider's raw object may hold half of a pair. Both are rare, so an
    # event that only looks like it may take the slow way too. The search for one byte comes first because it costs a
    # tenth of that for two.
    if len(data) > BYTES_MAX or (b"\\" in data and b"\\u" in data) or not (data.isascii() or _is_utf8(data)):
        return _shrunk(_members(event))
    return data


def cut(payload: bytes, seen_at: float) -> bytes:
    """The event of a call that a crash cut off, from its `begin`. `seen_at`: Unix seconds of the last sign of life.

    ValueError if it is no JSON object.
    """
    members = _object(payload)
    members["outcome"] = "farebox_cut"
    finished_at = datetime.fromtimestamp(seen_at, UTC)
    started_at = members.get("started_at")
    try:
        if isinstance(started_at, str):
            finished_at = max(finished_at, datetime.fromisoformat(started_at))
    except (ValueError, TypeError):
        pass
    members["finished_at"] = finished_at.isoformat()
    return _shrunk(_clean(members))


def bare(payload: bytes, now: datetime) -> bytes:
    """What is left of an event that Postgres refused: who, when, how it ended and the counts, all made harmless.

    The id survives, so that it is still recorded once. `now` stands in for times that can't be read.
    ValueError if there is no id to be had.
    """
    return _bare(_clean(_object(payload)), now)


def _bare(old: dict[str, Any], now: datetime) -> bytes:
    id = _as_type(old.get("id"), UUID)
    if id is None:
        raise ValueError("the event has no id")
    kept = {name: _as_type(old.get(name), _TYPES[name]) for name in _BARE}
    for name, value in kept.items():
        if isinstance(value, int) and not 0 <= value <= (_STATUS_MAX if name == "status" else _BIGINT_MAX):
            kept[name] = None
    kept |= {"id": id, "request_id": kept["request_id"] or id, "attempt": 1, "error_type": "farebox_row_refused"}
    for name in ("started_at", "finished_at"):
        value = kept[name]
        kept[name] = value if isinstance(value, datetime) and value.tzinfo is not None else now
    kept["outcome"] = kept["outcome"] or "farebox_cut"
    kept["usage_source"] = kept["usage_source"] or "none"
    if isinstance(old.get("budget_ids"), list):
        kept |= _charged(old)
    for name in _BARE_TEXTS:
        kept[name] = str(old.get(name))[:_BARE_TEXT_MAX].encode("ascii", "replace").decode()
    return _encode(kept)


def _charged(old: dict[str, Any]) -> dict[str, Any]:
    """What the budgets of a call need: without it their hold on it would stand, or go uncharged."""
    ids = [id for id in old["budget_ids"] if _as_type(id, UUID) is not None]
    cost = _as_type(old.get("cost_usd"), Decimal)
    known = cost is not None and cost.is_finite() and cost >= 0
    source = old.get("cost_source")
    return {
        "budget_ids": ids or None,
        # In its own shape or not at all: the database must take it.
        "from_float": _as_type(old.get("from_float"), FloatHold),
        "cost_usd": cost if known else None,
        "cost_source": source[:_BARE_TEXT_MAX] if known and isinstance(source, str) else None,
    }


def _members(event: UsageEvent) -> dict[str, Any]:
    members = {name: getattr(event, name) for name in event.__struct_fields__}
    if isinstance(raw := members.get("usage_raw"), msgspec.Raw):
        try:
            members["usage_raw"] = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, ValueError):
            members["usage_raw"] = None
    cleaned = _clean(members)
    assert isinstance(cleaned, dict)
    return cleaned


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(payload.decode("utf-8", "replace"))
    except msgspec.MsgspecError as error:
        raise ValueError("the event is no JSON") from error
    if not isinstance(value, dict):
        raise ValueError("the event is no JSON object")
    return value


def _clean(value: Any, depth: int = 0) -> Any:
    """`value` as plain data that both JSON and `jsonb` can hold."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if value is None or isinstance(value, (bool, int, float, Decimal, datetime, UUID)):
        return value
    if depth == _DEPTH_MAX:
        return None
    if isinstance(value, dict):
        return {_clean(str(name)): _clean(member, depth + 1) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(member, depth + 1) for member in value]
    return _clean(msgspec.to_builtins(value), depth) if isinstance(value, msgspec.Struct) else None


def _shrunk(members: dict[str, Any]) -> bytes:
    """Encode within `BYTES_MAX`, giving up the least needed first."""
    for give_up in (_nothing, _raw, _raw_wholly, _long_texts, _collections):
        give_up(members)
        data = _encode(members)
        if len(data) <= BYTES_MAX:
            return data
    return _bare(members, _EPOCH)


def _nothing(members: dict[str, Any]) -> None:
    pass


def _raw(members: dict[str, Any]) -> None:
    raw = members.get("usage_raw")
    if raw is not None:
        members["usage_raw"] = shortened(raw) if isinstance(raw, dict) else nothing_kept()


def _raw_wholly(members: dict[str, Any]) -> None:
    # Not to nothing: a price worked out again must know that there was more than the counts.
    if members.get("usage_raw") is not None:
        members["usage_raw"] = nothing_kept()


def _long_texts(members: dict[str, Any]) -> None:
    for name, value in members.items():
        if isinstance(value, str):
            members[name] = value[:_TEXT_MAX]
    calls = members.get("tool_calls") or []
    members["tool_calls"] = [{**call, "name": str(call.get("name"))[:_TEXT_MAX]} for call in calls[:_TOOLS_MAX]]


def _collections(members: dict[str, Any]) -> None:
    # Units stay: they are few, and billed. So do the budgets, which hold money for the call.
    for name in ("tags", "tool_calls"):
        members.pop(name, None)


def _as_type(value: object, type: Any) -> Any:
    try:
        return msgspec.convert(value, type, strict=False)
    except (msgspec.ValidationError, OverflowError, ValueError):
        return None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
