"""Which stored objects a request's body names.

Only members that the APIs define are looked at, never free text: what a model or a tool wrote
(arguments, annotations, results, metadata, schemas) may say anything. Where a member stands twice,
both count: which one a provider's parser takes is not known. A body without any of the names costs a
search for them; no more is decoded than that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from farebox.errors import BadRequest
from farebox.jsontext import BACKSLASH, holds
from farebox.records import Operation

REFERENCES_MAX = 1000
"""Objects one body may name; one that names more gets 400."""

_FILES = frozenset(("file_id", "file_ids"))
_RESPONSES = _FILES | {"vector_store_ids", "container", "container_id", "skill_id"}
_STORED_WORDS = (
    "agent_id assistant_id batch_id comparison_response_id conversation conversation_id deployment_id "
    "environment_id environment_template_id eval_id input_file_id input_files library_ids memory_store_id "
    "previous_response_id response_id skill_ids thread_id training_file training_files validation_file "
    "validation_files vault_id vault_ids vector_store_id video video_id"
)
_STORED = _RESPONSES.union(_STORED_WORDS.split())
_NAMES: dict[Operation, frozenset[str]] = {
    "chat": _FILES,
    "messages": _FILES | {"skill_id"},
    "responses": _RESPONSES,
    "other": _STORED,
}
"""Members that name objects wherever they stand."""
_TOP_NAMES: dict[Operation, frozenset[str]] = {
    "messages": frozenset(("container",)),
    "responses": frozenset(("previous_response_id", "conversation")),
}
"""Members that do so at the top level only."""
_SKIPPED_WORDS = (
    "annotations arguments attributes citations environment_variables headers input_examples input_schema "
    "item_schema json_schema logprobs metadata outputs parameters results sample_schema schema tags"
)
_SKIPPED = frozenset(_SKIPPED_WORDS.split())
"""Members whose content is the caller's, a model's or a tool's own."""
_NOTHING = frozenset[str]()
"""Skipped among a stored prompt's `variables`: they are called what its author chose."""
_ITEM_NAMES: dict[Operation, tuple[str, ...]] = {
    "responses": ("item_reference", "image_generation_call"),
    "other": ("item_reference", "image_generation_call"),
}
"""Types of conversation items that stand for one the provider has."""
_BARE = [b"rs_", rb'id"\s*+:\s*+"(?:[^"\\]|\\.)*+"\s*+\}', rb'type"\s*+:\s*+null']
"""Behind a quote: the id of a reasoning item; what an object ends with, or has, that is nothing but an id."""
_SCHEMED = "file_id"
"""In evals a source of this type names a file by its `id`."""
_ESCAPED_LETTER = re.compile(rb"\\u00(?:5[fF]|[67])")


class Reference(NamedTuple):
    """An object's id as it stands in a body."""

    id: str
    param: str
    """The member it stands in."""
    strict: bool = True
    """False: it may also be unknown, as an item that the request itself carries; it must not be another's."""


class _Object(list[tuple[str, Any]]):
    """A JSON object with all its members, repeated ones included."""

    def get(self, name: str) -> Any:
        """The last member of that name, as most parsers read it."""
        return next((value for key, value in reversed(self) if key == name), None)


def _marks(operation: Operation) -> re.Pattern[bytes]:
    """What stands in every body of `operation` that names an object, unless a name is spelt with escapes.

    One pattern that begins with a plain character: searching for it costs less than for two of the names.
    """
    names = {*_NAMES[operation], *_TOP_NAMES.get(operation, ()), *_ITEM_NAMES.get(operation, ())}
    marks = [b"(?:" + b"|".join(name.encode() for name in sorted(names)) + b')"']
    return re.compile(b'"(?:' + b"|".join(marks + (_BARE if operation in _ITEM_NAMES else [])) + b")")


_MARKS = {operation: _marks(operation) for operation in _NAMES}
_COMMON: dict[Operation, bytes] = {"chat": b"file_id"}
"""What all names of an operation have in common."""


def may_name(operation: Operation, body: bytes) -> bool:
    """Whether `body`, or a part of one, has to be decoded to know which objects it names."""
    marks = _MARKS.get(operation)
    if marks is None:
        return False
    # UTF-16 has a NUL at the beginning, and there are parsers that take it.
    if 0 in body[:4]:
        return True
    # Plain searches first: a long prompt costs them a tenth of what the patterns cost, which look at each quote.
    common = _COMMON.get(operation)
    if (common is None or holds(body, common, b"_")) and marks.search(body):
        return True
    return BACKSLASH in body and holds(body, b"\\u00", b"\\") and _ESCAPED_LETTER.search(body) is not None


def references(operation: Operation, body: bytes) -> list[Reference]:
    """The objects that `body` (decoded) names, each once. Raises `BadRequest` where that can't be read."""
    if not may_name(operation, body):
        return []
    try:
        document = json.loads(body, object_pairs_hook=_Object, parse_int=float)  # no bound on digits
    except (ValueError, RecursionError):
        raise BadRequest(
            "This body seems to name stored objects, and it is no JSON that farebox can read to see whose they are."
        ) from None
    found: dict[tuple[str, bool], Reference] = {}
    for reference in _walk(document, operation):
        found.setdefault((reference.id, reference.strict), reference)
        if len(found) > REFERENCES_MAX:
            raise BadRequest(f"This body names more than {REFERENCES_MAX} stored objects.")
    return list(found.values())


_FIELD = re.compile(
    rb'[ ;]name="?([a-z_]+)(?:\[([a-z_]*)\])?"?([^\r\n]*)\r?\n(?:[^\r\n]+\r?\n)*\r?\n([^\r\n]{0,1024})', re.IGNORECASE
)
"""A field of a multipart form: its name, the part of it in brackets, the rest of that line, the value."""


def form_references(body: bytes) -> list[Reference]:
    """The objects that a multipart form names, as `video[id]` does. Raises `BadRequest` like `references`."""
    found: list[Reference] = []
    for name, value in _fields(body):
        if value.startswith(b"{"):
            found += references("other", b'{"%b":%b}' % (name.encode(), value))
        elif value:
            found.append(Reference(value.decode("utf-8", "replace"), name))
    return found


def may_name_in_form(body: bytes) -> bool:
    """Whether `body`, or a part of one, has a field that names objects."""
    return any(True for _ in _fields(body))


def _fields(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Fields that name objects, and their values. One with a file in it is that file."""
    for field in _FIELD.finditer(body):
        name, part = field[1].decode().lower(), (field[2] or b"").decode().lower()
        if (name in _STORED or part in _STORED) and b"filename" not in field[3].lower():
            yield (part if part in _STORED else name), field[4]


def _walk(document: Any, operation: Operation) -> Iterator[Reference]:
    """Every reference below `document`, without recursion: a provider's parser may go deeper than this one."""
    names = _NAMES[operation]
    items = operation in _ITEM_NAMES
    top = names.union(_TOP_NAMES.get(operation, ()))
    waiting: list[tuple[Any, frozenset[str], frozenset[str], bool]] = [(document, top, _SKIPPED, False)]
    while waiting:
        value, wanted, skipped, listed = waiting.pop()
        if isinstance(value, _Object):
            kinds = [member for name, member in value if name == "type"] or [None]
            for kind in kinds:
                yield from _by_type(value, kind, items=items, listed=listed)
            # Only a block among others is a model's; at the top `input` is what the caller sends.
            written = listed and all(map(_is_tool_use, kinds))
            for name, member in value:
                if name in skipped or (name == "input" and written):
                    continue
                if name in wanted:
                    yield from _ids(name, member)
                if isinstance(member, list):
                    waiting.append((member, names, _NOTHING if name == "variables" else _SKIPPED, False))
        elif isinstance(value, list):
            waiting.extend((member, names, _SKIPPED, True) for member in value if isinstance(member, list))


def _ids(name: str, member: Any) -> Iterator[Reference]:
    """The ids that one member holds: a string, a list of strings, or an object with an `id`."""
    if isinstance(member, _Object):
        values = [value for key, value in member if key == "id"]
    else:
        values = member if isinstance(member, list) else [member]
    for value in values:
        # Skills that every account has go by names; those that somebody made have ids with this prefix.
        if isinstance(value, str) and value and (not name.startswith("skill") or value.startswith("skill_")):
            yield Reference(value, name)


def _by_type(value: _Object, kind: Any, *, items: bool, listed: bool) -> Iterator[Reference]:
    """References that an object's type makes: items of a conversation by id, and a file as an eval's source."""
    ids = [member for key, member in value if key == "id" and isinstance(member, str) and member]
    if not ids:
        return
    if kind == _SCHEMED:
        yield from (Reference(id, "id") for id in ids)
    elif items and _refers(value, kind, listed=listed):
        yield from (Reference(id, "input", strict=kind != "reasoning") for id in ids)


def _refers(item: _Object, kind: Any, *, listed: bool) -> bool:
    """Whether an item of a conversation stands for one that the provider has, rather than being it."""
    if kind is None:
        return listed and {key for key, _ in item} <= {"id", "type"}
    if kind == "image_generation_call":
        return not item.get("result")
    # Without its text a reasoning item is looked up by its id; where it is unknown there, nothing is.
    return kind == "item_reference" or (
        kind == "reasoning" and not item.get("encrypted_content") and not item.get("content")
    )


def _is_tool_use(kind: Any) -> bool:
    return isinstance(kind, str) and kind.endswith("tool_use")
