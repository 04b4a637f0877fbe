"""A fake provider that stores what it is given: files, responses, conversations, batches and the like, by id.

It has one credential and shows any of its objects to whoever has that: keeping callers apart is farebox's.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from support import speech
from support.answers import frame
from support.provider import Received, Wire

_PREFIXES = {
    "assistants": "asst",
    "batches": "batch",
    "containers": "cntr",
    "conversations": "conv",
    "files": "file",
    "threads": "thread",
    "uploads": "upload",
    "vector_stores": "vs",
}
_WORDS = {"batches": "batch", "vector_stores": "vector_store", "files": "file"}


class Storing:
    """A script for `FakeProvider.default`. Ids begin with what they are and name this provider."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[str, dict[str, Any]] = {}

    def id(self, prefix: str) -> str:
        """An id that nobody has had, as long as a provider's."""
        return f"{prefix}_{self.name}{uuid4().hex}"

    async def __call__(self, received: Received, wire: Wire) -> None:
        method, parts = received.method, received.target.partition("?")[0].strip("/").split("/")[1:]
        asked = json.loads(received.body) if received.body.startswith(b"{") else {}
        if parts == ["responses"] and method == "POST":
            await self._respond(asked, wire)
        elif parts == ["chat", "completions"] and method == "POST":
            answer = json.loads(speech.chat()) | {"id": self.id("chatcmpl")}
            await send(wire, self._keep(answer) if asked.get("store") else answer)
        elif len(parts) == 1 and method == "POST":
            await send(wire, self._keep(self._object(parts[0], asked)))
        elif len(parts) == 1 and method == "GET":
            await send(wire, {"object": "list", "data": list(self.objects.values()), "has_more": False})
        elif parts[-1] == "content":
            await send(wire, {"content": parts[-2]})
        else:
            await self._one(method, parts, wire)

    async def _one(self, method: str, parts: list[str], wire: Wire) -> None:
        kept = self.objects.get(next((part for part in parts if part in self.objects), ""))
        if kept is None:
            await send(wire, {"error": {"message": "no such object", "type": "invalid_request_error"}}, status=404)
        elif method == "DELETE":
            del self.objects[kept["id"]]
            await send(wire, {"id": kept["id"], "object": kept["object"], "deleted": True})
        else:
            await send(wire, kept)

    def _object(self, root: str, asked: dict[str, Any]) -> dict[str, Any]:
        word = _WORDS.get(root, root.removesuffix("s"))
        made: dict[str, Any] = {
            "id": self.id(_PREFIXES[root]),
            "object": word,
            "created_at": 1741570283,
            "metadata": {},
        }
        if root == "files":
            made |= {"bytes": 3, "filename": "a.jsonl", "purpose": "batch", "status": "processed"}
        if root == "batches":
            written = self._keep(self._object("files", {}))["id"]
            made |= {"status": "completed", "endpoint": "/v1/responses", "completion_window": "24h"}
            made |= {"input_file_id": asked["input_file_id"], "output_file_id": written}
        return made

    async def _respond(self, asked: dict[str, Any], wire: Wire) -> None:
        item = {**json.loads(speech.response())["output"][0], "id": self.id("msg")}
        whole = json.loads(speech.response()) | {"id": self.id("resp"), "output": [item]}
        if conversation := asked.get("conversation"):
            whole["conversation"] = {"id": conversation if isinstance(conversation, str) else conversation["id"]}
        if asked.get("store", True):
            self._keep(whole)
        if not asked.get("stream"):
            await send(wire, whole)
            return
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for text in speech.response_stream():
            event = json.loads(text.partition(b"data:")[2])
            if "response" in event:
                event["response"] |= {"id": whole["id"]}
                event["response"]["output"] = [item] if event["response"]["output"] else []
            if "item" in event:
                event["item"] |= {"id": item["id"]}
            await wire.chunk(frame(event, event=event["type"]))
        await wire.end()

    def _keep(self, made: dict[str, Any]) -> dict[str, Any]:
        self.objects[made["id"]] = made
        return made


async def send(wire: Wire, document: dict[str, Any], *, status: int = 200) -> None:
    """A JSON answer, whole."""
    body = json.dumps(document).encode()
    await wire.head(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    await wire.send(body)
