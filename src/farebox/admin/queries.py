"""What reports are asked for in a query string: filters, groupings, paging; every fault names its parameter."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args
from uuid import UUID

import msgspec

from farebox.errors import BadRequest
from farebox.identity import parse_tags
from farebox.records import Outcome
from farebox.store import UsageFilter
from farebox.store.reports import GROUPS_MAX, PAGE_ROWS, SUM_COLUMNS, TIMES

Query = Mapping[str, str]

FILTERS = frozenset(
    "since until key key_id team project user provider model session outcome tag request_id".split()  # noqa: SIM905
)
PAGING = frozenset(("limit", "cursor"))
METRICS = tuple(name for name in SUM_COLUMNS if name not in ("first_at", "last_at"))
"""What a time series can be of."""
BUCKETS_MAX = 2000
"""Steps of one time series."""

_ROWS_DEFAULT = 100
_GROUPS_DEFAULT = 1000
_STREAM_ROWS_MAX = 1_000_000_000
_STEP = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "month": timedelta(days=31),
}
_STEPS_DEFAULT = {"minute": 60, "hour": 24, "day": 30, "week": 26, "month": 12}


def check_known(query: Query, *known: frozenset[str]) -> None:
    """Refuse a parameter that means nothing here: a misspelt filter would match everything."""
    unknown = set(query).difference(*known)
    if unknown:
        name = min(unknown)
        raise BadRequest(f"There is no parameter {name[:100]!r}.", param=name[:100])


def read_filter(query: Query, *, session: str | None = None) -> UsageFilter:
    """The filter in `query`. Raises BadRequest. `session`: where the path names it."""
    outcome = query.get("outcome")
    if outcome is not None and outcome not in get_args(Outcome):
        raise BadRequest(f"outcome is one of {', '.join(get_args(Outcome))}.", param="outcome")
    tags = None
    if (text := query.get("tag")) is not None:
        tags = parse_tags(text)
        if len(tags) != len(text.split(",")):
            raise BadRequest("tag is NAME=VALUE, several with a comma between them.", param="tag")
    return UsageFilter(
        since=_time(query, "since"),
        until=_time(query, "until"),
        key_name=query.get("key"),
        key_id=_id(query, "key_id"),
        team=query.get("team"),
        project=query.get("project"),
        user=query.get("user"),
        provider=query.get("provider"),
        model=query.get("model"),
        session=session or query.get("session"),
        outcome=outcome,
        tags=tags,
        request_id=_id(query, "request_id"),
    )


def read_limit(query: Query) -> int:
    """Rows of a page."""
    return _number(query, "limit", _ROWS_DEFAULT, PAGE_ROWS)


def read_stream_limit(query: Query) -> int | None:
    """Rows of a stream; None: all."""
    return _number(query, "limit", 1, _STREAM_ROWS_MAX) if "limit" in query else None


def read_groups_limit(query: Query) -> int:
    """Groups of a sum."""
    return _number(query, "limit", _GROUPS_DEFAULT, GROUPS_MAX)


def read_series(query: Query, now: datetime) -> tuple[str, str, UsageFilter]:
    """Metric, interval and the rows of a time series, which always begins and ends somewhere. Raises BadRequest."""
    metric = query.get("metric", "cost_usd")
    if metric not in METRICS:
        raise BadRequest(f"metric is one of {', '.join(METRICS)}.", param="metric")
    interval = query.get("interval", "day")
    if interval not in TIMES:
        raise BadRequest(f"interval is one of {', '.join(TIMES)}.", param="interval")
    where = read_filter(query)
    try:
        until = where.until or now
        since = where.since or until - _STEP[interval] * _STEPS_DEFAULT[interval]
        steps = (until - since) / _STEP[interval]
    except OverflowError:
        raise BadRequest("since and until are too far out.", param="since") from None
    if steps > BUCKETS_MAX:
        raise BadRequest(
            f"From since to until it is {steps:,.0f} steps of a {interval}; at most {BUCKETS_MAX:,} are answered.",
            param="interval",
        )
    return metric, interval, msgspec.structs.replace(where, since=since, until=until)


def cursor(place: tuple[datetime, object] | None) -> str | None:
    """Where the next page starts, for the client to hand back."""
    return None if place is None else f"{place[0].isoformat()}_{place[1]}".replace("+", "~", 1)


def read_cursor(query: Query) -> tuple[datetime, UUID] | None:
    """The place in a list of rows that a page before named."""
    place = read_session_cursor(query)
    try:
        return None if place is None else (place[0], UUID(place[1]))
    except ValueError:
        raise BadRequest("This cursor is not one that farebox gave out.", param="cursor") from None


def read_session_cursor(query: Query) -> tuple[datetime, str] | None:
    """The place in a list of sessions that a page before named."""
    if (text := query.get("cursor")) is None:
        return None
    moment, _, name = text.partition("_")
    try:
        place = datetime.fromisoformat(moment.replace("~", "+"))
    except ValueError:
        place = None
    if place is None or place.tzinfo is None or not name:
        raise BadRequest("This cursor is not one that farebox gave out.", param="cursor")
    return place, name


def read_word(query: Query, name: str, words: Sequence[str]) -> str | None:
    """One of a few words, or None."""
    word = query.get(name)
    if word is not None and word not in words:
        raise BadRequest(f"{name} is one of {', '.join(words)}.", param=name)
    return word


def name_cursor(place: tuple[str, str] | None) -> str | None:
    """Where the next page of a list by names starts."""
    return None if place is None else urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def read_name_cursor(query: Query) -> tuple[str, str] | None:
    """The place in a list by names that a page before named."""
    if (text := query.get("cursor")) is None:
        return None
    try:
        return msgspec.json.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=tuple[str, str])
    except (ValueError, msgspec.MsgspecError):
        raise BadRequest("This cursor is not one that farebox gave out.", param="cursor") from None


def read_number_cursor(query: Query) -> int | None:
    """The place in a numbered list that a page before named."""
    if (text := query.get("cursor")) is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest("This cursor is not one that farebox gave out.", param="cursor")
    return int(text)


def _number(query: Query, name: str, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 12 or not 1 <= int(text) <= most:
        raise BadRequest(f"{name} is a number from 1 to {most:,}.", param=name)
    return int(text)


def _time(query: Query, name: str) -> datetime | None:
    if (text := query.get(name)) is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise BadRequest(f"{name} is a time such as 2026-11-22T10:00:00Z.", param=name) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _id(query: Query, name: str) -> UUID | None:
    if (text := query.get(name)) is None:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise BadRequest(f"{name} is a UUID.", param=name) from None
