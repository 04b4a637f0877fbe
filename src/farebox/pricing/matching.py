"""Whether a model name is meant by an entry, and the names to try for one that nothing means as it stands.

Names come from providers and clients; each function takes any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import translate

from farebox.pricing.entry import Match

NAME_CHARS_MAX = 256
"""A longer name matches nothing."""

_COMPACT = re.compile(r"(-)(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")
_SNAPSHOT = re.compile(r"(?:[-@](?:20\d{2}-\d{2}-\d{2}|20\d{6})|@latest|@default)(?=:|$)")

Test = Callable[[str], object]


def spellings(name: str) -> Iterator[str]:
    """The lower-case forms of a model name in which it is looked up, most literal first.

    As written; with a compact date in dashes, as gateways write what a publisher dashes; without its
    date, for a snapshot newer than the book (gpt-4o-2024-08-06, claude-x@20250101).
    """
    plain = name.lower()
    seen = [plain]
    for form in (_COMPACT.sub(r"\1\2-\3-\4", plain), _SNAPSHOT.sub("", plain)):
        if form and form not in seen:
            seen.append(form)
    yield from seen


def test(match: Match) -> Test:
    """A function from a lower-case name to whether `match` holds; a broken expression matches nothing."""
    equals = frozenset(text.lower() for text in match.equals)
    starts = tuple(text.lower() for text in match.starts)
    ends = tuple(text.lower() for text in match.ends)
    contains = tuple(text.lower() for text in match.contains)
    # A glob is for the whole name; what `translate` gives is held to its end only.
    globs = [_compiled(r"\A" + translate(text.lower())) for text in match.globs]
    patterns = [_compiled(text) for text in match.regex] + globs
    every = [[test(inner) for inner in group] for group in match.every]

    def holds(name: str) -> bool:
        return (
            name in equals
            or (starts != () and name.startswith(starts))
            or (ends != () and name.endswith(ends))
            or any(text in name for text in contains)
            or any(pattern.search(name) for pattern in patterns if pattern is not None)
            or any(all(inner(name) for inner in group) for group in every if group)
        )

    return holds


def only_equals(match: Match) -> bool:
    """Whether `match` is a plain list of names, which an index can answer for."""
    return not (match.starts or match.ends or match.contains or match.regex or match.every or match.globs)


def _compiled(expression: str) -> re.Pattern[str] | None:
    try:
        return re.compile(expression)
    except re.error:
        return None
