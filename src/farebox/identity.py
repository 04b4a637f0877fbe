"""Whom and what a request claims to be for: session, end user and tags, from its headers and the facts of its body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import msgspec

from farebox.identifiers import UNSTORABLE, identifier
from farebox.request import RequestFacts

TAGS_MAX = 16
TAG_NAME_CHARS_MAX = 64
TAG_VALUE_CHARS_MAX = 256
"""Tags past the count, and tags with a longer name or value, are dropped."""

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whom and what a request claims to be for."""

    session: str | None = None
    end_user: str | None = None
    tags: dict[str, str] = {}


_NOBODY = Identity()

_SESSION_HEADERS = ("x-session-id", "session-id", "thread-id", "session_id", "conversation_id", "helicone-session-id")
_USER_HEADERS = ("helicone-user-id", "x-litellm-end-user-id", "x-litellm-customer-id")
_READ_HEADERS = frozenset(("x-farebox-session", "x-farebox-tags", "baggage", *_SESSION_HEADERS, *_USER_HEADERS))


def identify(headers: Headers, facts: RequestFacts | None) -> Identity:
    """Session, end user and tags of a request; per dimension the first source that says something.

    Session: `x-farebox-session`; `x-VENDOR-session-id`; `x-session-id`; `session-id`, `thread-id`,
    `session_id`, `conversation_id`; `helicone-session-id`; W3C `baggage`, entry `session.id`; the body
    (`session_id`, `metadata.session_id`, Anthropic's `metadata.user_id`, then the Responses API's
    `conversation`; not `previous_response_id`, which is another with every turn, nor `prompt_cache_key`,
    which may be one for a whole application).
    End user: the body (`safety_identifier`, `user`, `metadata.user_id`), then the headers of Helicone
    and LiteLLM. Tags: `x-farebox-tags` alone.

    `headers` in any case; of a repeated header the first counts, tags are joined.
    """
    seen: dict[str, str] = {}
    vendor: list[str] = []
    for spelling, value in headers.items() if isinstance(headers, Mapping) else headers:
        name = spelling.lower()
        if name in _READ_HEADERS:
            joined = name in ("x-farebox-tags", "baggage") and name in seen
            seen[name] = f"{seen[name]},{value}" if joined else seen.get(name, value)
        elif name.startswith("x-") and name.endswith("-session-id") and "parent" not in name:
            vendor.append(value)
    if not seen and not vendor:
        return _NOBODY if facts is None else claims(_NOBODY, facts)
    sessions = [seen.get("x-farebox-session"), *vendor, *(seen.get(name) for name in _SESSION_HEADERS)]
    if "baggage" in seen:
        sessions.append(_baggage_session(seen["baggage"]))
    claimed = Identity(
        session=_first(sessions),
        end_user=_first(seen.get(name) for name in _USER_HEADERS),
        tags=parse_tags(seen["x-farebox-tags"]) if "x-farebox-tags" in seen else {},
    )
    return claimed if facts is None else claims(claimed, facts)


def claims(headers: Identity, facts: RequestFacts) -> Identity:
    """`identify` where it is known what the `headers` alone claim."""
    if facts.session is None and facts.end_user is None:
        return headers
    return Identity(
        session=headers.session or facts.session, end_user=facts.end_user or headers.end_user, tags=headers.tags
    )


def _first(values: Iterable[str | None]) -> str | None:
    return next((kept for value in values if value and (kept := identifier(value))), None)


def _baggage_session(baggage: str) -> str | None:
    """The value of `session.id` in a W3C baggage header: `name=value;property, name=value`, percent-encoded."""
    for entry in baggage.split(","):
        name, mark, value = entry.partition(";")[0].partition("=")
        if mark and name.strip() == "session.id":
            return unquote(value.strip())
    return None


def parse_tags(header: str) -> dict[str, str]:
    """`k=v,k=v` as a dict: at most TAGS_MAX, in order; of equal names the last counts.

    Blanks around names and values are dropped. So is a tag without `=`, without a name, with
    control characters, or longer than the bounds.
    """
    tags: dict[str, str] = {}
    for entry in header.split(","):
        name, mark, value = (part.strip() for part in entry.partition("="))
        if (
            mark
            and 0 < len(name) <= TAG_NAME_CHARS_MAX
            and len(value) <= TAG_VALUE_CHARS_MAX
            and not UNSTORABLE.search(entry)
            and (name in tags or len(tags) < TAGS_MAX)
        ):
            tags[name] = value
    return tags
