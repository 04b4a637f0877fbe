"""What a provider's answer says it stored: the object that was made, and others that came with it.

Of an answer that is not metered a bounded copy is read; of a metered one `meter` notes the ids. The
bytes themselves pass untouched. Only members that the APIs define are looked at: what a model wrote
can't claim an object, and the first owner of an id stays its owner whatever a later answer says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from farebox.codings import Decoder
from farebox.objects.places import Place

ANSWER_BYTES_MAX = 1024 * 1024
"""Of an unmetered answer this much is read, decoded; in a longer document nothing is looked for."""
DECODED_BYTES_MAX = 256 * 1024
"""What one piece of a compressed answer may unpack to; past that it is not read."""
MADE_MAX = 1000
"""Objects taken from one answer."""

_OBJECTS = {
    "assistant": "assistant",
    "batch": "batch",
    "container": "container",
    "conversation": "conversation",
    "eval": "eval",
    "file": "file",
    "fine_tuning.job": "fine_tuning_job",
    "message_batch": "message_batch",
    "response": "response",
    "thread": "thread",
    "upload": "upload",
    "vector_store": "vector_store",
    "video": "video",
}
"""What an object calls itself, in `object` or `type`, and what it is here."""
_DERIVED = {
    "error_file_id": "file",
    "fine_tuned_model": "model",
    "output_file": "file",
    "output_file_id": "file",
    "error_file": "file",
    "result_files": "file",
    "container": "container",
    "conversation": "conversation",
}
"""Members that name an object which the provider made along with the one they stand in."""
_CONTENTS = frozenset(("content", "results"))
"""What lies below an object and is no answer of the API, but what somebody put, or a model wrote, into a file."""
_FILE_HOLDERS = ("file_path", "image", "image_file")
"""Where a run's messages and steps name the files it wrote."""


class Made(NamedTuple):
    """An object that an answer tells of. `derived`: it belongs to whom the object in the path belongs to."""

    kind: str
    id: str
    derived: bool


class Sniffer:
    """A bounded copy of an unmetered answer, for its ids. Feed it what passes. Never raises."""

    def __init__(self, *, content_type: str, content_encoding: str) -> None:
        kind = content_type.partition(";")[0].strip().lower()
        self._events = kind == "text/event-stream"
        self._wanted = self._events or kind.endswith("json") or not kind
        self._decoder = Decoder(content_encoding, feed_bytes_max=DECODED_BYTES_MAX)
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Keep what may be needed of the next piece of the body."""
        if not self._wanted:
            return
        decoded = self._decoder.feed(piece)
        self._size += len(decoded)
        self._pieces.append(decoded)
        if self._decoder.broken or self._size > ANSWER_BYTES_MAX:
            # The beginning of a stream is as good as all of it; of a document it can't be read.
            self._wanted = False
            if not self._events:
                self._pieces.clear()

    def documents(self) -> list[Any]:
        """What was read so far: the document, or the events of a stream."""
        body = b"".join(self._pieces)
        if not self._events:
            return [document] if (document := _read(body)) is not None else []
        lines = (line[5:] for line in body.splitlines() if line.startswith(b"data:") and b'id"' in line)
        events = [event for line in lines if (event := _read(line)) is not None]
        return [member for event in events for member in (event, event.get("response")) if isinstance(member, dict)]


def made(method: str, place: Place | None, documents: list[Any]) -> list[Made]:
    """The objects that the answer to a request for `place` tells of, each once, at most `MADE_MAX`."""
    found: dict[str, Made] = {}
    for document in documents:
        for one in _made(method, place, document):
            found.setdefault(one.id, one)
            if len(found) >= MADE_MAX:
                return list(found.values())
    return list(found.values())


def _read(body: bytes) -> dict[str, Any] | None:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _made(method: str, place: Place | None, document: dict[str, Any]) -> Iterator[Made]:
    if place is None or not _CONTENTS.isdisjoint(place.below):
        return
    if method in ("POST", "PUT"):
        yield from _created(place, document)
    for name, kind in _DERIVED.items():
        for id in _ids(document.get(name)):
            yield Made(kind, id, derived=True)
    for item in (*_dicts(document.get("output")), *_dicts([document.get("item")])):
        yield from (Made(kind, id, derived=True) for kind, id in item_objects(item))
    if place.id is not None and place.below[-1:] in (("items",), ("input_items",)):
        yield from (Made("item", id, derived=True) for one in _dicts(document.get("data")) for id in _ids(one))
    if place.kind in ("thread", "run"):
        yield from (Made("file", id, derived=True) for id in _written_files(document))


def _created(place: Place, document: dict[str, Any]) -> Iterator[Made]:
    """The object a creating call made: in a collection, or another one below an object."""
    word = document.get("object", document.get("type"))
    known = _OBJECTS.get(word) if isinstance(word, str) else None
    # A stream also tells of what lies below: the messages and steps of a run.
    beside = isinstance(word, str) and word.startswith("thread.") and word != "thread.run"
    for id in _ids(document) if not beside else ():
        if place.id is None:
            yield Made(known or place.kind, id, derived=False)
        elif known is not None and id != place.id:
            yield Made(known, id, derived=False)
    if place.kind == "run":
        yield from (Made("thread", id, derived=False) for id in _ids(document.get("thread_id")))
    file = document.get("file")
    if isinstance(file, dict) and place.kind in ("upload", "file"):
        yield from (Made("file", id, derived=False) for id in (*_ids(file), *_named(file)))
    if place.id is None and "id" not in document:
        yield from (Made(place.kind, id, derived=False) for id in _named(document))


def item_objects(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and id of an output item of a response, and of the container it ran in."""
    yield from (("item", id) for id in _ids(item.get("id")))
    yield from (("container", id) for id in _ids(item.get("container_id")))


def _ids(value: Any) -> list[str]:
    """The id that is `value`, or its member `id`; of a list those of all of it."""
    if isinstance(value, list):
        return [id for one in value if not isinstance(one, list) for id in _ids(one)]
    if isinstance(value, dict):
        value = value.get("id")
    return [value] if isinstance(value, str) and value else []


def _named(value: dict[str, Any]) -> list[str]:
    """Gemini's objects have names like `files/abc`, and are asked for by them."""
    name = value.get("name")
    root, slash, id = name.partition("/") if isinstance(name, str) else ("", "", "")
    return [id] if slash and id and root.isalpha() else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _written_files(document: dict[str, Any]) -> Iterator[str]:
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            for name, member in value.items():
                if name in _FILE_HOLDERS and isinstance(member, dict):
                    yield from _ids(member.get("file_id"))
                elif name not in ("metadata", "arguments"):
                    waiting.append(member)
