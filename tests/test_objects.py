"""Which stored objects a path, a body and an answer name, and what is remembered of whose they are."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox import paths
from farebox.errors import BadRequest, Unavailable
from farebox.jsontext import holds
from farebox.objects.answers import ANSWER_BYTES_MAX, Sniffer, made
from farebox.objects.places import Place, may_refer, place_of
from farebox.objects.references import REFERENCES_MAX, Reference, references
from farebox.objects.registry import LOOKUPS_MAX, Objects
from farebox.records import Operation
from farebox.store import ObjectStore, Store
from farebox.store.objects import StoredObject

# -- paths ---------------------------------------------------------------------------------------

PLACES: dict[tuple[str, str], Place | None] = {
    ("POST", "/v1/chat/completions"): None,
    ("GET", "/v1/chat/completions"): Place("chat_completion"),
    ("GET", "/v1/chat/completions/c1/messages"): Place("chat_completion", "c1", ("messages",)),
    ("POST", "/v1/chat/completions/c1/messages"): Place("chat_completion", "c1"),
    ("POST", "/p/azure/openai/deployments/files/chat/completions"): None,
    ("POST", "/v1/agents/completions"): Place("agent"),
    ("GET", "/p/azure/openai/files/f1?api-version=1"): Place("file", "f1"),
    ("GET", "/p/google/v1beta/files/f1"): Place("file", "f1"),
    ("GET", "/v1/files/File-A%2Db"): Place("file", "File-A-b"),
    ("GET", "/v1/files/f1%2Fcontent"): Place("file", "f1", ("content",)),
    ("POST", "/v1/responses/compact"): None,
    ("POST", "/v1/responses/r1/cancel"): Place("response", "r1", ("cancel",)),
    ("POST", "/v1/threads/runs"): Place("run"),
    ("POST", "/v1/threads/t1/runs"): Place("thread", "t1", ("runs",)),
    ("GET", "/v1/messages/batches/b1/results"): Place("message_batch", "b1", ("results",)),
    ("POST", "/v1/messages/count_tokens"): None,
    ("POST", "/v1/videos/edits"): Place("video"),
    ("GET", "/v1/fine_tuning/jobs/j1/events"): Place("fine_tuning_job", "j1", ("events",)),
    ("GET", "/p/up/models/org/name"): None,
    ("DELETE", "/v1/models/ft:m:1"): Place("model", "ft:m:1"),
    ("GET", "/v1/brand-new/Thing"): None,
    ("POST", "/v1/audio/speech"): None,
}


@pytest.mark.parametrize(("method", "target"), PLACES, ids=" ".join)
def test_a_path_names_an_object_or_a_collection(method: str, target: str) -> None:
    """Ids stand behind the collections of known APIs, whatever prefix leads there; they are decoded, never folded."""
    assert place_of(method, paths.parse(method, target)) == PLACES[method, target]


def test_bodies_of_known_apis_may_refer() -> None:
    """JSON sent to a known API is looked at; unknown paths may use the same words, and uploads are streams."""
    wanted = {"/v1/batches": True, "/p/a/openai/images/edits": True, "/v1/brand-new": False, "/v1/files": False}
    assert {target: may_refer(paths.parse("POST", target)) for target in wanted} == wanted


# -- bodies --------------------------------------------------------------------------------------


def named(operation: Operation, body: Any) -> set[str]:
    return {reference.id for reference in references(operation, json.dumps(body).encode())}


def test_members_name_objects_where_the_apis_put_them() -> None:
    """Strings, lists and objects with an id count, wherever the API has them and nowhere else."""
    tools = [{"vector_store_ids": ["v1", "v2"]}, {"container": {"type": "auto", "file_ids": ["f1"]}}]
    body = {"previous_response_id": "r1", "conversation": {"id": "c1"}, "tools": tools, "x": {"conversation": "no"}}
    assert named("responses", body) == {"r1", "c1", "v1", "v2", "f1"}
    assert named("chat", body | {"messages": [{"content": [{"file": {"file_id": "f2"}}]}]}) == {"f1", "f2"}
    source = {"type": "file_id", "id": "f3"}
    assert named("other", {"data_source": {"source": source}, "video": {"id": "v"}}) == {"f3", "v"}
    skills = [{"type": "custom", "skill_id": "skill_1"}, {"type": "anthropic", "skill_id": "pptx"}]
    assert named("messages", {"container": {"id": "k1", "skills": skills}}) == {"k1", "skill_1"}
    assert named("embeddings", {"file_id": "f"}) == set()
    for empty in ("", None, 7, [], {}, [None], {"id": None}):
        assert named("responses", {"previous_response_id": empty, "conversation": empty}) == set()


def test_no_type_beside_it_hides_an_id() -> None:
    """What says it was written by a model, or by a prompt's author, hides nothing that the caller sends."""
    said = [{"role": "user", "content": [{"type": "input_file", "file_id": "f1"}]}]
    assert named("responses", {"type": "tool_use", "input": said}) == {"f1"}
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {"file_id": "a model's word"}}
    assert named("messages", {"messages": [{"role": "assistant", "content": [block]}]}) == set()
    item = b'{"input":[{"type":"%b","id":"i1","type":"%b"}]}'
    for kinds in ((b"item_reference", b"message"), (b"message", b"item_reference")):
        assert {one.id for one in references("responses", item % kinds)} == {"i1"}
    prompt = {"id": "pmpt_1", "variables": {"results": {"type": "input_file", "file_id": "f2"}}}
    assert named("responses", {"prompt": prompt}) == {"f2"}


@given(st.lists(st.sampled_from([b"_", b"file", b"_id", b"\\", b"u00", b"x" * 700]), max_size=40))
def test_a_word_is_found_by_its_rare_byte_wherever_it_stands(parts: list[bytes]) -> None:
    """Looking for a byte of it first finds a word exactly where it is."""
    body = b"".join(parts)
    assert holds(body, b"file_id", b"_") == (b"file_id" in body)
    assert holds(body, b"\\u00", b"\\") == (b"\\u00" in body)
    assert holds(body, b"_id_", b"_") == (b"_id_" in body)


def test_items_are_references_where_they_stand_for_one() -> None:
    """An item by its id alone is the provider's; one that carries its content is the caller's, whatever its id says."""
    items = [
        {"type": "item_reference", "id": "i1"},
        {"id": "i2"},
        {"type": None, "id": "i3"},
        {"type": "image_generation_call", "id": "i4"},
        {"type": "image_generation_call", "id": "no", "result": "..."},
        {"type": "message", "id": "no", "role": "assistant", "content": []},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "no", "content": [{"type": "reasoning_text"}]},
    ]
    found = references("responses", json.dumps({"input": items, "prompt": {"id": "no"}}).encode())
    assert {one.id for one in found if one.strict} == {"i1", "i2", "i3", "i4"}
    assert [one for one in found if not one.strict] == [Reference("rs_1", "input", strict=False)]


def test_too_many_references_are_refused() -> None:
    """A body names a bounded number of objects."""
    ids = [f"f{n}" for n in range(REFERENCES_MAX)]
    assert len(named("responses", {"file_ids": ids})) == REFERENCES_MAX
    with pytest.raises(BadRequest):
        named("responses", {"file_ids": [*ids, "one more"]})


def test_deep_nesting_is_refused_or_read() -> None:
    """Brackets without end neither hide an id nor exhaust the stack."""
    for depth in (500, 100_000):
        body = b'{"x":' + b"[" * depth + b'{"file_id":"f1"}' + b"]" * depth + b"}"
        try:
            assert [one.id for one in references("chat", body)] == ["f1"]
        except BadRequest:
            assert depth > 500


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["f1", "item_reference", "reasoning"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "type", "file_id", "output", "data", "conversation", "name", "x"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON, st.sampled_from(["chat", "messages", "responses", "other", "embeddings"]))
def test_no_document_breaks_the_readers(document: Any, operation: Operation) -> None:
    """Whatever stands where, bodies and answers are read without a fault."""
    named(operation, document)
    for target in (
        "/v1/files",
        "/v1/responses/r1",
        "/v1/conversations/c/items",
        "/v1/threads/runs",
        "/v1/uploads/u/complete",
    ):
        for method in ("GET", "POST"):
            made(
                method, place_of(method, paths.parse(method, target)), [document] if isinstance(document, dict) else []
            )


@given(
    st.lists(st.sampled_from(["messages", "content", "input", "source", "x y", 'q"', "z"]), max_size=6), st.booleans()
)
def test_an_id_is_found_however_deep(way: list[str], listed: bool) -> None:
    """A file's id is found below any members and lists, but for those whose content is somebody's own."""
    body: Any = {"file_id": "f1"}
    for name in way:
        body = {name: [body] if listed else body, "type": "message"}
    assert named("chat", body) == {"f1"}
    assert named("chat", {"metadata": body, "arguments": body}) == set()


# -- answers -------------------------------------------------------------------------------------


def read(method: str, target: str, document: Any) -> set[tuple[str, str, bool]]:
    place = place_of(method, paths.parse(method, target))
    return {tuple(one) for one in made(method, place, [document])}


def test_answers_tell_what_was_made() -> None:
    """A creating call's id is its caller's; what came along belongs to the object in the path."""
    assert read("POST", "/v1/files", {"id": "f1", "object": "file"}) == {("file", "f1", False)}
    assert read("GET", "/v1/files/f1", {"id": "f1", "object": "file"}) == set()
    batch = {"id": "b1", "output_file_id": "o1", "error_file_id": None}
    assert read("GET", "/v1/batches/b1", batch) == {("file", "o1", True)}
    job = {"id": "j1", "result_files": ["r1", "r2"], "fine_tuned_model": "ft:1"}
    kinds = {("file", "r1", True), ("file", "r2", True), ("model", "ft:1", True)}
    assert read("GET", "/v1/fine_tuning/jobs/j1", job) == kinds
    run = {"id": "run_1", "object": "thread.run", "thread_id": "t1"}
    assert read("POST", "/v1/threads/runs", run) == {("run", "run_1", False), ("thread", "t1", False)}
    assert read("POST", "/v1/uploads/u1/complete", {"id": "u1", "object": "upload", "file": {"id": "f2"}}) == {
        ("file", "f2", False)
    }
    assert read("POST", "/v1/videos/v1/remix", {"id": "v2", "object": "video"}) == {("video", "v2", False)}
    assert read("POST", "/p/g/v1beta/files", {"file": {"name": "files/abc"}}) == {("file", "abc", False)}
    response = {"id": "r1", "output": [{"id": "ci", "container_id": "k1"}], "conversation": {"id": "c1"}}
    assert read("GET", "/v1/responses/r1", response) == {
        ("item", "ci", True),
        ("container", "k1", True),
        ("conversation", "c1", True),
    }
    items = {"data": [{"id": "m1"}, {"id": "m2"}]}
    assert read("GET", "/v1/conversations/c1/items", items) == {("item", "m1", True), ("item", "m2", True)}
    message = {
        "content": [{"type": "image_file", "image_file": {"file_id": "f9"}}],
        "metadata": {"image": {"file_id": "no"}},
    }
    assert read("GET", "/v1/threads/t1/messages", {"data": [message]}) == {("file", "f9", True)}
    assert read("POST", "/v1/brand-new", {"id": "x", "object": "file"}) == set()


@pytest.mark.parametrize(
    "target", ["/v1/files/f1/content", "/v1/containers/k1/files/f1/content", "/v1/messages/batches/b1/results"]
)
def test_the_content_of_a_file_claims_nothing(target: str) -> None:
    """Whoever uploads JSON that looks like an answer, and reads it back, has not made what it names."""
    forged = {"output_file_id": "f9", "conversation": {"id": "c9"}, "output": [{"id": "m9", "container_id": "k9"}]}
    assert read("GET", target, forged) == set()


def sniffed(body: bytes, *, content_type: str = "application/json", encoding: str = "", piece: int = 7) -> list[Any]:
    sniffer = Sniffer(content_type=content_type, content_encoding=encoding)
    for at in range(0, len(body), piece):
        sniffer.feed(body[at : at + piece])
    return sniffer.documents()


def test_a_copy_of_an_answer_is_read() -> None:
    """In any pieces, compressed or as events; what is no JSON, or too long, or broken tells nothing."""
    document = {"id": "f1"}
    body = json.dumps(document).encode()
    assert sniffed(body) == sniffed(gzip.compress(body), encoding="gzip") == [document]
    events = b"".join(b"event: e\ndata: " + json.dumps({"id": f"e{n}"}).encode() + b"\n\n" for n in range(2))
    assert sniffed(events, content_type="text/event-stream; charset=utf-8") == [{"id": "e0"}, {"id": "e1"}]
    assert sniffed(body, content_type="application/octet-stream") == []
    assert sniffed(body[:-1]) == sniffed(b"[1]") == sniffed(body, encoding="rot13") == []
    assert sniffed(b'{"id":"f1","x":"' + b"x" * ANSWER_BYTES_MAX + b'"}', piece=65_536) == []


# -- memory and the way to Postgres --------------------------------------------------------------

MINE, THEIRS = UUID(int=1), UUID(int=2)


def stored(id: str, key_id: UUID = MINE, provider: str = "p") -> StoredObject:
    return StoredObject(id, provider, "file", key_id)


class FakeShelf:
    """A table in memory that can be away."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], StoredObject] = {}
        self.away = False
        self.asked: list[Collection[str]] = []
        self.written: list[int] = []

    async def keep(self, objects: Sequence[StoredObject]) -> list[StoredObject]:
        await self._reach()
        self.written.append(len(objects))
        held = [self.rows.setdefault((one.id, one.provider), one) for one in objects]
        return [one for one, wanted in zip(held, objects, strict=True) if one.key_id != wanted.key_id]

    async def find(self, ids: Collection[str], providers: Collection[str] | None) -> list[StoredObject]:
        await self._reach()
        self.asked.append(ids)
        return [one for one in self.rows.values() if one.id in ids and (providers is None or one.provider in providers)]

    async def forget(self, objects: Sequence[tuple[str, str]]) -> None:
        await self._reach()
        for key in objects:
            self.rows.pop(key, None)

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise OSError("away")


@asynccontextmanager
async def objects(shelf: FakeShelf, **bounds: int) -> AsyncIterator[Objects]:
    registry = Objects(shelf, **bounds)
    await registry.start()
    yield registry
    await registry.close(0.01)


async def known(registry: Objects, id: str, key_id: UUID = MINE) -> list[UUID]:
    found = await registry.find([id], providers=None, key_id=key_id)
    return [one.key_id for one in found.get(id, [])]


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.001)


async def test_what_was_noted_is_known_at_once_and_kept_soon() -> None:
    """Its owner is found without asking, others are told by the table; `kept` returns when it is written."""
    shelf = FakeShelf()
    async with objects(shelf) as registry:
        registry.note([stored("f1")])
        assert await known(registry, "f1") == [MINE]
        assert not shelf.asked
        await registry.kept([stored("f1")])
        assert list(shelf.rows) == [("f1", "p")]
        assert await known(registry, "f1", THEIRS) == [MINE]
        assert await known(registry, "f2") == []
        assert shelf.asked == [["f1"], ["f2"]]
        registry.note([stored("f1", THEIRS)])
        assert await known(registry, "f1", THEIRS) == [MINE]


async def test_the_first_owner_anywhere_stays() -> None:
    """Where another replica wrote an id down before, memory learns whose it is."""
    shelf = FakeShelf()
    shelf.rows["f1", "p"] = stored("f1", THEIRS)
    async with objects(shelf) as registry:
        registry.note([stored("f1", MINE)])
        await registry.kept([stored("f1", MINE)])
        assert await known(registry, "f1") == [THEIRS]


async def test_while_the_table_is_away() -> None:
    """What was seen is known, anything else is refused for now; records wait and are written when it is back."""
    shelf = FakeShelf()
    shelf.away = True
    async with objects(shelf) as registry:
        registry.note([stored(f"f{n}") for n in range(3)])
        await registry.kept([stored("f0")])
        assert await known(registry, "f0") == [MINE]
        with pytest.raises(Unavailable):
            await known(registry, "f0", THEIRS)
        registry.forget(stored("f1"))
        assert registry.waiting == 3
        shelf.away = False
        await until(lambda: not registry.waiting)
        assert sorted(shelf.rows) == [("f0", "p"), ("f2", "p")]
        assert await known(registry, "f1") == []


async def test_the_queue_and_the_memory_are_bounded() -> None:
    """The oldest records are given up past the queue's bound; what memory forgot is looked up."""
    shelf = FakeShelf()
    shelf.away = True
    async with objects(shelf, queue_max=2, remembered_max=2) as registry:
        registry.note([stored(f"f{n}") for n in range(4)])
        assert registry.waiting == 2
        shelf.away = False
        await until(lambda: not registry.waiting)
        assert sorted(shelf.rows) == [("f2", "p"), ("f3", "p")]
        shelf.rows["f9", "p"] = stored("f9")
        assert await known(registry, "f9") == [MINE]
        assert await known(registry, "f2") == [MINE]
        assert shelf.asked == [["f9"], ["f2"]]


async def test_many_records_go_as_few_writes() -> None:
    """What arrives while a write is under way goes together with the next."""
    shelf = FakeShelf()
    async with objects(shelf) as registry:
        registry.note([stored("first")])
        await asyncio.sleep(0)
        registry.note([stored(f"f{n}") for n in range(100)])
        await registry.kept([stored("f99")])
        assert sum(shelf.written) == 101
        assert len(shelf.written) <= 2


async def test_look_ups_are_bounded() -> None:
    """Past so many look-ups under way a call is refused for now, not queued."""
    shelf = FakeShelf()
    async with objects(shelf) as registry:
        calls = [known(registry, f"f{n}") for n in range(LOOKUPS_MAX + 1)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in answers].count(Unavailable) == 1


async def test_ids_that_nobody_makes_are_not_looked_up() -> None:
    """An id with control characters, or of a kilobyte, is unknown without asking, and never written."""
    shelf = FakeShelf()
    async with objects(shelf) as registry:
        for id in ("", "a\0b", "x" * 1024, "\ud800"):
            registry.note([stored(id)])
            assert await known(registry, id) == []
        assert (shelf.asked, registry.waiting) == ([], 0)


async def test_the_table(store: Store) -> None:
    """Postgres keeps the first owner, tells of others, finds at one provider or at all, forgets what was deleted."""
    shelf = ObjectStore(store)
    assert await shelf.keep([stored("f1"), stored("f1"), stored("f1", provider="q"), stored("f2")]) == []
    assert await shelf.keep([stored("f1", THEIRS), stored("f2")]) == [stored("f1")]
    assert sorted(await shelf.find(["f1", "f3"], None)) == [stored("f1"), stored("f1", provider="q")]
    assert await shelf.find(["f1", "f2"], ["q"]) == [stored("f1", provider="q")]
    await shelf.forget([("f1", "p"), ("never", "p")])
    assert await shelf.find(["f1"], ["p"]) == []
    assert await shelf.keep([stored("f1", THEIRS)]) == []
    assert await shelf.find(["f1"], ["p"]) == [stored("f1", THEIRS)]


async def test_writers_in_any_order_do_not_lock_each_other_out(store: Store) -> None:
    """Batches of the same ids the other way round, written at once, all succeed."""
    shelf = ObjectStore(store)
    batch = [stored(f"f{n}", UUID(int=n + 1)) for n in range(200)]
    await asyncio.gather(*(shelf.keep(batch[::step]) for step in (1, -1, 1, -1)))
    await asyncio.gather(*(shelf.forget([(one.id, "p") for one in batch[::step]]) for step in (1, -1)))
    assert await shelf.find([one.id for one in batch], None) == []
