"""JSON members as the texts they were written in: a number keeps its digits and never passes through a float."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from farebox.errors import BadRequest

Members = Mapping[str, msgspec.Raw]
Text = str | list[str] | None


def texts(members: Members) -> dict[str, Text]:
    """Each member as a text, a list as texts, null as None. Raises BadRequest for objects and lists of lists."""
    return {name: text(name, value) for name, value in members.items()}


def text(name: str, raw: msgspec.Raw) -> Text:
    """One member; `name` stands in faults."""
    written = bytes(raw).strip()
    match written[:1]:
        case b"[":
            return [_item(name, item) for item in msgspec.json.decode(written, type=list[msgspec.Raw])]
        case b"{":
            raise BadRequest(f"{name[:100]!r} is an object; write a single value or a list.", param=name[:100])
        case b"n":
            return None
        case b'"':
            return msgspec.json.decode(written, type=str)
        case _:
            return written.decode()


def _item(name: str, raw: msgspec.Raw) -> str:
    item = text(name, raw)
    if not isinstance(item, str):
        raise BadRequest(f"{name[:100]!r} has an item that is neither a text nor a number.", param=name[:100])
    return item
