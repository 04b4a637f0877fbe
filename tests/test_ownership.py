"""Two keys on one provider: what one of them made is not there for the other, whatever it tries, on any replica."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import openai
import pytest
import pytest_asyncio

from farebox import keys
from farebox.store import ObjectStore
from support.app import Farebox, running, settings_of
from support.http import Answer, RawClient
from support.live import PROVIDER_KEY, Desk, Serving, eventually, serving
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Wire, plain
from support.sdks import Sdk, openai_sdk
from support.storing import Storing

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "gpt-4o"


def settings(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    providers = {
        name: {"dialect": "openai", "base_url": fake.base_url, "api_key": f"{PROVIDER_KEY}-{name}"}
        for name, fake in fakes.items()
    }
    providers["a-too"] = providers["a"]
    routes = [
        {"match": {"model": "too"}, "to": ["a-too"]},
        {"match": {"model": "only-b"}, "to": ["b"]},
        {"match": {"model": "either"}, "to": ["a", "b"]},
        {"match": {}, "to": ["a"]},
    ]
    return providers, routes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["a", "b"], settings) as serving_:
        yield serving_


class Two:
    """Two keys on one farebox, and providers that store."""

    def __init__(self, serving: Serving, mine: Desk, theirs: Desk, shared: Desk) -> None:
        self.mine, self.theirs, self.shared = mine, theirs, shared
        self.app = mine.app
        self.a, self.b = serving.providers["a"], serving.providers["b"]
        self.a.default, self.b.default = Storing("a"), Storing("b")

    @property
    def sent(self) -> list[tuple[str, str]]:
        """What reached a provider so far."""
        return [(one.method, one.target) for fake in (self.a, self.b) for one in fake.requests]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desks(served: Serving) -> AsyncIterator[list[Desk]]:
    """Two keys like any other, and one that may share."""
    yield [await served.desk(allow_shared_objects=shares) for shares in (False, False, True)]


@pytest_asyncio.fixture(loop_scope="module")
async def two(served: Serving, desks: list[Desk]) -> AsyncIterator[Two]:
    for fake in served.providers.values():
        fake.forget()
    yield Two(served, *desks)
    await served.settled()


@asynccontextmanager
async def sdks(two: Two) -> AsyncIterator[tuple[Sdk, Sdk]]:
    """The real client of each key, which asks once."""
    origin = two.app.base_url
    async with (
        openai_sdk(origin, two.mine.key, "async", max_retries=0) as mine,
        openai_sdk(origin, two.theirs.key, "async", max_retries=0) as theirs,
    ):
        yield mine, theirs


def told(answer: Answer) -> Any:
    return json.loads(answer.body)


async def make(desk: Desk, root: str, body: dict[str, Any] | None = None) -> str:
    """A new object's id."""
    answer = await desk.call(f"/v1/{root}", body or {}, headers={"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    id: str = told(answer)["id"]
    return id


async def refused(two: Two, desk: Desk, target: str, body: Any = None, *, method: str = "POST", **more: Any) -> Answer:
    """A call that is answered by farebox alone."""
    before = two.sent
    more.setdefault("headers", {"Content-Type": "application/json"} if isinstance(body, dict) else {})
    answer = await desk.call(target, body, method=method, **more)
    assert answer.status >= 400, (target, answer.status)
    assert two.sent == before, f"{target} reached a provider"
    return answer


# -- the real SDK --------------------------------------------------------------------------------


async def test_files_through_the_sdk(two: Two) -> None:
    """A file answers to the key that uploaded it: the other finds, reads and deletes nothing, and nothing goes up."""
    async with sdks(two) as (mine, theirs):
        made = await mine.client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
        assert (await mine.client.files.retrieve(made.id)).id == made.id
        assert (await mine.client.files.content(made.id)).content
        before = two.sent
        for method in (theirs.client.files.retrieve, theirs.client.files.content, theirs.client.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                await method(made.id)
            assert caught.value.code == "not_found"
        assert two.sent == before
        assert (await mine.client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await mine.client.files.retrieve(made.id)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_responses_through_the_sdk(two: Two, streamed: bool) -> None:
    """A response, streamed or not, may be read, continued and deleted by its key at once, and by no other."""
    async with sdks(two) as (mine, theirs):
        if streamed:
            events = [event async for event in await mine.client.responses.create(model=MODEL, input="Hi", stream=True)]
            made = events[-1].response
        else:
            made = await mine.client.responses.create(model=MODEL, input="Hi")
        assert (await mine.client.responses.retrieve(made.id)).id == made.id
        chained = await mine.client.responses.create(model=MODEL, input="And?", previous_response_id=made.id)
        again: list[Any] = [{"type": "item_reference", "id": made.output[0].id}]
        await mine.client.responses.create(model=MODEL, input=again)
        before = two.sent
        with pytest.raises(openai.NotFoundError):
            await theirs.client.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError) as caught:
            await theirs.client.responses.create(model=MODEL, input="And?", previous_response_id=chained.id)
        assert caught.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError):
            await theirs.client.responses.create(model=MODEL, input=again)
        assert two.sent == before
        await mine.client.responses.delete(made.id)
        await refused(two, two.mine, f"/v1/responses/{made.id}", method="GET")


async def test_conversations_through_the_sdk(two: Two) -> None:
    """A conversation takes responses of its own key only, and its items are shown to nobody else."""
    async with sdks(two) as (mine, theirs):
        made = await mine.client.conversations.create()
        first = await mine.client.responses.create(model=MODEL, input="Hi", conversation=made.id)
        assert first.conversation is not None and first.conversation.id == made.id
        await mine.client.responses.create(model=MODEL, input="Hi", conversation={"id": made.id})
        await mine.client.get(f"/conversations/{made.id}/items", cast_to=object)
        before = two.sent
        for conversation in (made.id, {"id": made.id}):
            with pytest.raises(openai.NotFoundError):
                await theirs.client.responses.create(model=MODEL, input="Hi", conversation=conversation)
        with pytest.raises(openai.NotFoundError):
            await theirs.client.get(f"/conversations/{made.id}/items", cast_to=object)
        assert two.sent == before


async def test_batches_through_the_sdk(two: Two) -> None:
    """A batch runs on its key's own file only, and what it wrote belongs to it once it has read so."""
    async with sdks(two) as (mine, theirs):
        given = await mine.client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
        how: dict[str, Any] = {"endpoint": "/v1/responses", "completion_window": "24h"}
        before = two.sent
        with pytest.raises(openai.NotFoundError) as caught:
            await theirs.client.batches.create(input_file_id=given.id, **how)
        assert (caught.value.param, two.sent) == ("input_file_id", before)
        made = await mine.client.batches.create(input_file_id=given.id, **how)
        read = await mine.client.batches.retrieve(made.id)
        assert (await mine.client.files.content(read.output_file_id)).content
        before = two.sent
        for method, id in (
            (theirs.client.batches.retrieve, made.id),
            (theirs.client.batches.cancel, made.id),
            (theirs.client.files.content, read.output_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                await method(id)
        assert two.sent == before


# -- paths ---------------------------------------------------------------------------------------


async def test_anothers_object_looks_like_none(two: Two) -> None:
    """The refusal for an object of another key is byte for byte that for an id that never was."""
    made = await make(two.mine, "files")
    foreign = await refused(two, two.theirs, f"/v1/files/{made}", method="GET")
    unknown = await refused(two, two.theirs, "/v1/files/file_never", method="GET")
    assert (foreign.status, foreign.body) == (unknown.status, unknown.body) == (404, unknown.body)
    anthropic = await refused(two, two.theirs, "/v1/messages/batches/msgbatch_1", method="GET")
    assert told(anthropic)["error"]["type"] == "not_found_error"


PATHS = [
    "/v1/files/{}",
    "/p/a/files/{}",
    "/p/a/v1/files/{}/content",
    "/v1//FILES/{}",
    "/v1/%66iles/{};x",
    "/v1/x/files/{}",
]


@pytest.mark.parametrize("path", PATHS)
async def test_no_method_and_no_spelling_reaches_anothers_object(two: Two, path: str) -> None:
    """Whatever the method and however the path is spelt, an object that is another's is not there."""
    made = await make(two.mine, "files")
    for method in ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH"):
        assert (await refused(two, two.theirs, path.format(made), method=method)).status == 404


@pytest.mark.parametrize(
    "root", ["files", "responses", "chat/completions", "batches", "vector_stores", "messages/batches"]
)
async def test_lists_need_the_flag(two: Two, root: str) -> None:
    """A list shows the objects of all keys: 403 that names the flag, without which nothing goes up."""
    answer = await refused(two, two.mine, f"/v1/{root}?limit=2", method="GET")
    assert answer.status == 403
    assert "allow_shared_objects" in told(answer)["error"]["message"]
    assert (await two.shared.call(f"/v1/{root}", method="GET")).status in (200, 404)


async def test_a_key_that_may_share_reaches_everything(two: Two) -> None:
    """With the flag a key reads others' objects, and those farebox has never seen."""
    made = await make(two.mine, "files")
    assert (await two.shared.call(f"/v1/files/{made}", method="GET")).status == 200
    assert (await two.shared.call("/v1/files/file_before_farebox", method="GET")).status == 404  # the provider's own
    assert two.sent[-1] == ("GET", "/v1/files/file_before_farebox")


async def test_what_lies_below_an_object_is_its_owners(two: Two) -> None:
    """Children go with the object in front of them: the owner reaches any of them, nobody else does."""
    made = await make(two.mine, "threads")
    for path in (f"/v1/threads/{made}/messages/msg_1", f"/v1/threads/{made}/runs/run_1/steps/step_1"):
        assert (await two.mine.call(path, method="GET")).status == 200
        assert (await refused(two, two.theirs, path, method="GET")).status == 404


async def test_a_fine_tuned_model_is_deleted_by_its_owner_only(two: Two) -> None:
    """Deleting a model needs the job that made it to be the key's own."""
    two.a.then(
        plain(b'{"id":"ftjob-1","object":"fine_tuning.job","fine_tuned_model":"ft:m:1"}'), plain(b'{"deleted":true}')
    )
    await make(two.mine, "fine_tuning/jobs", {"model": "m"})
    assert (await refused(two, two.theirs, "/v1/models/ft:m:1", method="DELETE")).status == 404
    assert (await two.mine.call("/v1/models/ft:m:1", method="DELETE")).status == 200


async def test_the_admin_paths_of_both_vendors_stay_closed(two: Two) -> None:
    """Anthropic's `/organizations` is as little forwarded as OpenAI's `/organization`."""
    assert (await refused(two, two.shared, "/v1/organizations/api_keys", method="GET")).status == 403


# -- bodies --------------------------------------------------------------------------------------

BODIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "an image of a response": ("files", "/v1/responses", {"input": [{"role": "user", "content": [{"file_id": "ID"}]}]}),
    "a vector store": (
        "vector_stores",
        "/v1/responses",
        {"tools": [{"type": "file_search", "vector_store_ids": ["ID"]}]},
    ),
    "a container": ("containers", "/v1/responses", {"tools": [{"type": "code_interpreter", "container": "ID"}]}),
    "files of a container": (
        "files",
        "/v1/responses",
        {"tools": [{"container": {"type": "auto", "file_ids": ["ID"]}}]},
    ),
    "a part of a chat": ("files", "/v1/chat/completions", {"messages": [{"content": [{"file": {"file_id": "ID"}}]}]}),
    "a document": (
        "files",
        "/v1/messages",
        {"messages": [{"content": [{"source": {"type": "file", "file_id": "ID"}}]}]},
    ),
    "a container of messages": ("containers", "/v1/messages", {"container": "ID", "messages": []}),
    "counting": ("conversations", "/v1/responses/input_tokens", {"conversation": "ID"}),
    "compacting": ("responses", "/v1/responses/compact", {"previous_response_id": "ID"}),
    "a run's assistant": ("assistants", "/v1/threads/runs", {"assistant_id": "ID"}),
    "training": ("files", "/v1/fine_tuning/jobs", {"training_file": "ID", "model": "m"}),
    "resources of an assistant": (
        "files",
        "/v1/assistants",
        {"tool_resources": {"code_interpreter": {"file_ids": ["ID"]}}},
    ),
    "a line of a message batch": (
        "files",
        "/v1/messages/batches",
        {"requests": [{"params": {"source": {"file_id": "ID"}}}]},
    ),
}


@pytest.mark.parametrize("case", BODIES)
async def test_bodies_name_own_objects_only(two: Two, case: str) -> None:
    """An id in a body is its owner's to use; for another key it does not exist, and neither does one nobody made."""
    root, target, template = BODIES[case]
    made = await make(two.mine, root, {"model": MODEL, "input": "Hi"} if root == "responses" else None)
    body = {"model": MODEL, **json.loads(json.dumps(template).replace("ID", made))}
    answers = [
        await refused(two, two.theirs, target, body),
        await refused(two, two.theirs, target, json.loads(json.dumps(body).replace(made, "id_of_nothing"))),
    ]
    assert [answer.status for answer in answers] == [404, 404]
    assert told(answers[0])["error"] == told(answers[1])["error"]
    two.a.then(plain(b"{}"))
    assert (await two.mine.call(target, body, headers={"Content-Type": "application/json"})).status == 200
    assert json.loads(two.a.requests[-1].body) == body


EVASIONS: dict[str, Any] = {
    "twice, the other's first": lambda id, own: (
        b'{"model":"m","previous_response_id":"%b","previous_response_id":"%b"}' % (id, own)
    ),
    "twice, the other's last": lambda id, own: (
        b'{"model":"m","previous_response_id":"%b","previous_response_id":"%b"}' % (own, id)
    ),
    "escaped name": lambda id, own: b'{"model":"m","previous\\u005fresponse_id":"%b"}' % id,
    "escaped value": lambda id, own: b'{"model":"m","previous_response_id":"%b\\u0070%b"}' % (id[:3], id[4:]),
    "half a surrogate": lambda id, own: b'{"model":"m","input":"\\ud83d","previous_response_id":"%b"}' % id,
    "UTF-16": lambda id, own: (
        b'{"model":"m","previous_response_id":"%b"}'.decode().replace("%b", id.decode()).encode("utf-16")
    ),
    "a bare item": lambda id, own: b'{"model":"m","input":[{ "id" : "%b" }]}' % id,
}


@pytest.mark.parametrize("case", EVASIONS)
async def test_no_spelling_of_a_body_hides_an_id(two: Two, case: str) -> None:
    """Repeated members, escapes, broken characters and other encodings hide no id from the check."""
    made = await make(two.mine, "responses", {"model": MODEL, "input": "Hi"})
    own = await make(two.theirs, "responses", {"model": MODEL, "input": "Hi"})
    body = EVASIONS[case](made.encode(), own.encode())
    for target in ("/v1/responses", "/v1/responses/input_tokens"):
        answer = await refused(two, two.theirs, target, body, headers={"Content-Type": "application/json"})
        assert answer.status == 404


async def test_a_body_that_can_not_be_read_names_nothing(two: Two) -> None:
    """What seems to name an object and is not JSON is refused: a provider might read it all the same."""
    for target in ("/v1/responses", "/v1/responses/compact"):
        body = b'{"model":"m","previous_response_id":"resp_1",}'
        answer = await refused(two, two.theirs, target, body, headers={"Content-Type": "application/json"})
        assert answer.status == 400


async def test_compressed_bodies_are_read_as_well(two: Two) -> None:
    """An unmetered body is decoded on a copy: another's id in it is found, and an own one goes up as it came."""
    made = await make(two.mine, "files")
    body = gzip.compress(json.dumps({"training_file": made}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await refused(two, two.theirs, "/v1/fine_tuning/jobs", body, headers=headers)).status == 404
    two.a.then(plain(b'{"id":"ftjob-9"}'))
    assert (await two.mine.call("/v1/fine_tuning/jobs", body, headers=headers)).status == 200
    assert two.a.requests[-1].body == body


async def test_words_are_not_ids(two: Two) -> None:
    """What a user, a model or a tool wrote names nothing, whatever words it uses: such calls pass as they are."""
    said = 'the "file_id" is "file_1", previous_response_id too'
    schema = {"type": "object", "properties": {"file_id": {"type": "string"}}, "required": ["file_id"]}
    bodies = {
        "/v1/chat/completions": {
            "messages": [
                {"role": "user", "content": said},
                {"tool_calls": [{"function": {"arguments": '{"file_id":"x"}'}}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            "metadata": {"file_id": "x", "thread_id": "y"},
        },
        "/v1/messages": {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"file_id": "x"}}]}
            ],
            "tools": [{"name": "f", "input_schema": schema, "input_examples": [{"file_id": "x"}]}],
        },
        "/v1/responses": {
            "input": [
                {"role": "user", "content": said},
                {"type": "message", "id": "msg_kept_by_the_client", "role": "assistant", "content": []},
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "..."},
                {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": '{"file_id":"x"}'},
            ],
            "prompt": {"id": "pmpt_of_the_dashboard"},
        },
        "/v1/brand-new": {"thread_id": "of somebody's own", "file_id": "x"},
    }
    for target, body in bodies.items():
        two.a.then(plain(b"{}"))
        answer = await two.theirs.call(target, {"model": MODEL, **body}, headers={"Content-Type": "application/json"})
        assert answer.status == 200, (target, answer.body)


async def test_a_large_body_streams_on_unless_it_may_name_something(two: Two) -> None:
    """Past the bound a JSON body passes as it comes; padding does not hide an id: 413, and no whole request went up."""
    padding = b'{"pad":"' + b"x" * (5 << 20) + b'"'
    headers = {"Content-Type": "application/json"}
    two.a.then(plain(b"{}"))
    assert (await two.mine.call("/v1/responses/input_tokens", padding + b"}", headers=headers)).status == 200
    assert two.a.requests[-1].body == padding + b"}"
    late = await two.theirs.call(
        "/v1/responses/input_tokens", padding + b',"previous_response_id":"resp_1"}', headers=headers
    )
    early = b'{"previous_response_id":"resp_1",' + padding[1:] + b"}"
    assert (await refused(two, two.theirs, "/v1/responses/input_tokens", early, headers=headers)).status == 413
    assert late.status == 413
    assert len([one for one in two.a.requests if one.target.endswith("input_tokens")]) == 1


FORM = b"--b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n--b--\r\n"


@pytest.mark.parametrize("name", [b'"video[id]"', b'"video"', b"video", b'"input_reference[file_id]"'])
async def test_forms_name_own_objects_only(two: Two, name: bytes) -> None:
    """A form that names a video or a file by its id goes up as it came for its owner, and to nobody else."""
    made = (await make(two.mine, "files")).encode()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for value in (made, b'{"id":"%b"}' % made):
        body = FORM % (name, value)
        assert (await refused(two, two.theirs, "/v1/videos/edits", body, headers=headers)).status == 404
        two.a.then(plain(b"{}"))
        assert (await two.mine.call("/v1/videos/edits", body, headers=headers)).status == 200
        assert two.a.requests[-1].body == body
    two.a.then(plain(b"{}"))
    file = FORM % (b'"video"; filename="file_id.mp4"', b"\x00\xff")
    assert (await two.theirs.call("/v1/videos/edits", file, headers=headers)).status == 200


async def test_a_file_is_not_copied_into_anothers_container(two: Two) -> None:
    """A container takes files by their id, in a form too: only its key's own."""
    container = await make(two.theirs, "containers")
    target = f"/v1/containers/{container}/files"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    theirs, mine = [FORM % (b'"file_id"', (await make(desk, "files")).encode()) for desk in (two.theirs, two.mine)]
    assert (await refused(two, two.theirs, target, mine, headers=headers)).status == 404
    two.a.then(plain(b"{}"))
    assert (await two.theirs.call(target, theirs, headers=headers)).status == 200


@pytest.mark.parametrize("types", [["text/plain"], []], ids=str)
async def test_no_content_type_hides_an_id(two: Two, types: list[str]) -> None:
    """A provider may take a body for JSON whatever its headers say, so farebox looks whatever they say."""
    made = (await make(two.mine, "files")).encode()
    body = b'{"input_file_id":"%b","endpoint":"/v1/responses"}' % made
    headers = [("Content-Type", type) for type in types]
    before = two.sent
    async with RawClient(two.app.port) as client:
        await client.send("POST", "/v1/batches", [two.theirs.auth, *headers], body)
        assert (await client.answer()).status == 404
    assert two.sent == before


# -- what is learned -----------------------------------------------------------------------------


async def test_answers_are_learned_however_they_come(two: Two) -> None:
    """In pieces, compressed or without a length: the id of what was made is known, and the bytes are untouched."""
    document = json.dumps({"id": "file_gz", "object": "file"}).encode()
    packed = gzip.compress(document)
    two.a.then(plain(packed, headers=[("Content-Encoding", "gzip")], pieces=7))
    assert (await two.mine.call("/v1/files", b"x")).body == packed

    async def chunked(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(b'{"id":"file_ch')
        await wire.chunk(b'unked","object":"file"}')
        await wire.end()

    two.a.then(chunked, *[plain(b"{}")] * 2)
    assert (await two.mine.call("/v1/files", b"x")).clean
    for id in ("file_gz", "file_chunked"):
        assert (await two.mine.call(f"/v1/files/{id}", method="GET")).status == 200
        assert (await refused(two, two.theirs, f"/v1/files/{id}", method="GET")).status == 404


async def test_a_realtime_call_is_known_by_its_location(two: Two) -> None:
    """The id of a call stands in a header only: its key may hang up, no other."""
    location = [("Location", "/v1/realtime/calls/rtc_1")]
    two.a.then(plain(b"v=0", status=201, content_type="application/sdp", headers=location), plain(b"{}"))
    await two.mine.call("/v1/realtime/calls", b"v=0", headers={"Content-Type": "application/sdp"})
    assert (await refused(two, two.theirs, "/v1/realtime/calls/rtc_1/hangup")).status == 404
    assert (await two.mine.call("/v1/realtime/calls/rtc_1/hangup")).status == 200


CONTAINERS: dict[str, tuple[str, Any]] = {
    "a response": (
        "/v1/responses",
        {"output": [{"type": "code_interpreter_call", "id": "ci_1", "container_id": "ID"}]},
    ),
    "a message": ("/v1/messages", {"type": "message", "content": [], "container": {"id": "ID"}}),
    "a metered response": (
        "/v1/responses",
        {
            "output": [{"type": "code_interpreter_call", "id": "ci_1", "container_id": "ID"}],
            "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        },
    ),
    "a metered message": (
        "/v1/messages",
        {
            "type": "message",
            "content": [],
            "container": {"id": "ID"},
            "usage": {"input_tokens": 1, "output_tokens": 2},
        },
    ),
}


@pytest.mark.parametrize("case", CONTAINERS)
async def test_the_container_an_answer_ran_in_is_its_callers(two: Two, case: str) -> None:
    """What a metered answer brought along, kept itself or not, may be used and read by the key that asked for it."""
    target, answer = CONTAINERS[case]
    id = f"cntr_{case.replace(' ', '_')}"
    two.a.then(plain(json.dumps(answer).replace("ID", id).encode()), plain(b"{}"))
    await two.mine.call(target, {"model": MODEL, "store": False, "input": "Hi"})
    path = f"/v1/containers/{id}/files/cfile_1/content"
    assert (await two.mine.call(path, method="GET")).status == 200
    assert (await refused(two, two.theirs, path, method="GET")).status == 404


async def test_what_is_not_stored_is_not_recorded(two: Two) -> None:
    """A failed creation, a chat without `store` and a response with `store: false` leave nothing behind."""
    two.a.then(plain(b'{"id":"file_failed"}', status=400))
    await two.mine.call("/v1/files", b"x")
    chat = told(await two.mine.call("/v1/chat/completions", {"model": MODEL, "messages": []}))["id"]
    kept = told(await two.mine.call("/v1/chat/completions", {"model": MODEL, "messages": [], "store": True}))["id"]
    response = await make(two.mine, "responses", {"model": MODEL, "input": "Hi", "store": False})
    for path in ("files/file_failed", f"chat/completions/{chat}", f"responses/{response}"):
        await refused(two, two.mine, f"/v1/{path}", method="GET")
    assert (await two.mine.call(f"/v1/chat/completions/{kept}", method="GET")).status == 200


async def test_an_owner_is_never_replaced(two: Two) -> None:
    """A provider that names an id again, to whomever, changes nothing: the first owner stays."""
    made = await make(two.mine, "files")
    two.a.then(plain(json.dumps({"id": made, "object": "file"}).encode()))
    await two.theirs.call("/v1/files", b"x")
    await refused(two, two.theirs, f"/v1/files/{made}", method="GET")
    assert (await two.mine.call(f"/v1/files/{made}", method="GET")).status == 200


async def test_what_a_sharing_key_reads_stays_its_owners(two: Two) -> None:
    """Files of a batch that another key happens to read first belong to the batch's key all the same."""
    given = await make(two.mine, "files")
    batch = json.dumps({"id": "batch_x", "object": "batch", "input_file_id": given})
    read = json.dumps({"id": "batch_x", "object": "batch", "output_file_id": "file_out_x"})
    two.a.then(plain(batch.encode()), plain(read.encode()), plain(b"{}"))
    await make(two.mine, "batches", {"input_file_id": given})
    await two.shared.call("/v1/batches/batch_x", method="GET")
    assert (await two.mine.call("/v1/files/file_out_x/content", method="GET")).status == 200


async def test_a_rotated_key_keeps_its_objects(two: Two) -> None:
    """A new secret is the same key: what it made stays its own."""
    secret, record = await two.mine.farebox.new_key("rotated", allow_shared_objects=False)
    made = told(await two.mine.call("/v1/files", b"x", key=secret))["id"]
    secret = keys.mint_secret()
    await two.app.store.rotate_key(record.id, keys.hash_secret(secret))
    assert (await two.mine.call(f"/v1/files/{made}", method="GET", key=secret)).status == 200
    assert (await refused(two, two.mine, f"/v1/files/{made}", method="GET")).status == 404


# -- providers -----------------------------------------------------------------------------------


async def test_ids_go_back_to_the_provider_that_made_them(two: Two) -> None:
    """An object made at another provider than the first is found there by the plain path, in path and body."""
    answer = await two.mine.call("/p/b/files", b"x")
    made = told(answer)["id"]
    assert (await two.mine.call(f"/v1/files/{made}", method="GET")).status == 200
    batch = await make(two.mine, "batches", {"input_file_id": made})
    assert (await two.mine.call(f"/v1/batches/{batch}", method="GET")).status == 200
    assert not two.a.requests
    assert (await refused(two, two.mine, f"/p/a/files/{made}", method="GET")).status == 404


async def test_a_metered_call_goes_to_its_objects(two: Two) -> None:
    """Of a route's providers the one that has the object is asked; where none has it, farebox says so."""
    made = await make(two.mine, "responses", {"model": "only-b", "input": "Hi"})
    assert len(two.b.requests) == 1
    more = {"input": "And?", "previous_response_id": made}
    assert (await two.mine.call("/v1/responses", {"model": "either", **more})).status == 200
    assert (len(two.a.requests), len(two.b.requests)) == (0, 2)
    answer = await refused(two, two.mine, "/v1/responses", {"model": "only-a", **more})
    assert answer.status == 400
    here = await make(two.mine, "files")
    both = {"model": "either", **more, "input": [{"content": [{"file_id": here}]}]}
    assert (await refused(two, two.mine, "/v1/responses", both)).status == 400


async def test_two_names_of_one_account_are_one_place(two: Two) -> None:
    """Providers with the same address and credential have the same objects: either name reaches the owner's."""
    made = await make(two.mine, "files")
    assert (await two.mine.call(f"/p/a-too/files/{made}", method="GET")).status == 200
    body = {"model": "too", "input": [{"content": [{"file_id": made}]}]}
    assert (await two.mine.call("/v1/responses", body)).status == 200
    assert (await refused(two, two.theirs, f"/p/a-too/files/{made}", method="GET")).status == 404


# -- replicas, and Postgres away -----------------------------------------------------------------


async def test_another_replica_knows_at_once(two: Two, served: Serving, postgres: PostgresServer) -> None:
    """As soon as a client has the last byte, a second farebox on that database knows whose the object is."""
    providers, routes = settings(served.providers)
    with tempfile.TemporaryDirectory(prefix="farebox-test-") as folder:
        config = settings_of(two.app.config.database.url, Path(folder), providers, routes)
        async with running(config) as other:
            mine, theirs = Farebox(other.app, two.mine.key), Farebox(other.app, two.theirs.key)
            for root in ("files", "responses"):
                made = await make(two.mine, root, {"model": MODEL, "input": "Hi"})
                assert (await theirs.call(f"/v1/{root}/{made}", method="GET")).status == 404
                assert (await mine.call(f"/v1/{root}/{made}", method="GET")).status == 200


async def test_with_the_database_away(postgres: PostgresServer, tmp_path: Path) -> None:
    """A process knows what it saw made; of anything else it says 503, not 404; the records are written afterwards."""
    async with postgres.database(priced=True) as database, FakeProvider(Storing("a")) as fake:
        providers = {"a": {"dialect": "openai", "base_url": fake.base_url}}
        async with running(settings_of(database, tmp_path, providers, auth={"stale_s": 60})) as farebox:
            mine = await farebox.with_key("mine", allow_shared_objects=False)
            theirs = await farebox.with_key("theirs", allow_shared_objects=False)
            before = told(await mine.call("/v1/files", b"x"))["id"]
            await theirs.call("/v1/files", b"x")
            async with away(postgres, database):
                made = told(await mine.call("/v1/files", b"x"))["id"]
                sent = len(fake.requests)
                for id in (before, made):
                    assert (await mine.call(f"/v1/files/{id}", method="GET")).status == 200
                answer = await theirs.call(f"/v1/files/{made}", method="GET")
                assert (answer.status, answer.header("retry-after")) == (503, "2")
                body = {"model": MODEL, "input": "Hi", "previous_response_id": "resp_1"}
                assert (await theirs.call("/v1/responses", body)).status == 503
                assert len(fake.requests) == sent + 2
                assert farebox.app.objects.waiting == 1
            await eventually(lambda: farebox.app.objects.waiting == 0)
            assert [one.id for one in await ObjectStore(farebox.app.store).find([made], None)] == [made]
            assert (await theirs.call(f"/v1/files/{made}", method="GET")).status == 404


@asynccontextmanager
async def away(postgres: PostgresServer, database: str) -> AsyncIterator[None]:
    """The database takes no connections, and those it had are gone."""
    name = urlsplit(database).path.strip("/")
    connection = await asyncpg.connect(postgres.dsn("postgres"))
    try:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    finally:
        await connection.close()


async def test_open_mode_has_no_owners(postgres: PostgresServer, tmp_path: Path) -> None:
    """Without keys there is nobody to keep apart: everything passes as it did."""
    async with postgres.database(priced=True) as database, FakeProvider(Storing("a")) as fake:
        providers = {"a": {"dialect": "openai", "base_url": fake.base_url}}
        async with running(settings_of(database, tmp_path, providers, auth={"mode": "open"})) as farebox:
            made = told(await farebox.call("/v1/files", b"x", key=None))["id"]
            for path in ("/v1/files", f"/v1/files/{made}", "/v1/files/file_never"):
                await farebox.call(path, method="GET", key=None)
            assert len(fake.requests) == 4
            assert farebox.app.objects.waiting == 0
