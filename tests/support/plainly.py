"""A second reading of a recorded body, the plainest there is: all its JSON, walked with the standard library alone.

It shares no code with farebox and knows no API: a body is the JSON values in it, one after another,
and of each fact the last one that says something counts. What it can't do is put counts on one
scale; the corpus' labels do that.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

TICKS_PER_USD = 10**10

_CALLS = ("tool_use", "server_tool_use", "mcp_tool_use")
_SEARCHES = (
    "server_tool_use.web_search_requests",
    "server_tool_use_details.web_search_requests",
    "server_side_tool_usage_details.web_search_calls",
    "num_search_queries",
)


class Plain:
    """What one body says besides its main counts."""

    def __init__(self, data: bytes) -> None:
        self._holders = [holder for value in values(data) for holder in _holders(value)]
        self._usages = [usage for holder in self._holders for usage in _usages(holder)]
        self.model = _last(holder.get("model") for holder in self._holders)
        self.service_tier = _last(
            at(holder, path) for holder in self._holders for path in ("service_tier", "usage.service_tier")
        )
        self.provider_cost_usd: Decimal | None = _last(map(_cost, self._usages), zero=True)
        self.cache_write_1h_tokens = self._usage("cache_creation.ephemeral_1h_input_tokens", zero=True)
        self.units = {name: value for name, value in self._units() if value}
        self.tools = self._tools()
        self.argument_bytes = sum(map(_size, self._arguments()))
        """Of all tool calls together: text as it came, values as compact JSON."""

    def _units(self) -> Iterator[tuple[str, Any]]:
        items = Counter(self._items("type").values())
        searches = self._items("action.type", kind="web_search_call")
        counted = sum(action in (None, "search") for action in searches.values())
        reported = _last((at(holder, "tool_usage.web_search.num_requests") for holder in self._holders), zero=True)
        in_usage = max((self._usage(path) or 0 for path in _SEARCHES), default=0)
        yield "web_searches", in_usage or counted if reported is None else reported
        yield "file_searches", items["file_search_call"]
        yield "x_searches", self._usage("server_side_tool_usage_details.x_search_calls")
        yield "sources", self._usage("num_sources_used")
        yield "citation_tokens", self._usage("citation_tokens")
        yield "seconds", self._usage("prompt_audio_seconds")

    def _usage(self, path: str, *, zero: bool = False) -> Any:
        """The last word of the usage objects on one member; a zero counts only if `zero`."""
        return _last((at(usage, path) for usage in self._usages), zero=zero)

    def _items(self, path: str, *, kind: str | None = None) -> dict[Any, Any]:
        """A member of each finished output item (Responses), by the item's id."""
        found: dict[Any, Any] = {}
        for holder in self._holders:
            items = [holder.get("item")] if holder.get("type") == "response.output_item.done" else []
            output = holder.get("output")
            for item in items + (output if isinstance(output, list) else []):
                if isinstance(item, dict) and (kind is None or item.get("type") == kind):
                    found[item.get("id") or item.get("call_id")] = at(item, path)
        return found

    def _tools(self) -> Counter[str]:
        """Tool calls by name."""
        found: Counter[str] = Counter()
        calls = self._items("type")
        places, names = self._items("namespace") | _without_none(self._items("server_label")), self._items("name")
        for id, kind in calls.items():
            if isinstance(kind, str) and kind.endswith("_call"):
                name = names[id] or kind.removesuffix("_call")
                found[f"{places[id]}.{name}" if names[id] and places[id] else name] += 1
        begun: set[Any] = set()
        for holder in self._holders:
            for block in _blocks(holder):
                server = block.get("server_name")
                found[f"{server}.{block['name']}" if server else block["name"]] += 1
            for choice in holder.get("choices") or ():
                for name in _chat_calls(choice, begun):
                    found[name] += 1
        return found

    def _arguments(self) -> Iterator[Any]:
        items = [self._items(path) for path in ("arguments", "input", "code")]
        for id, kind in self._items("type").items():
            if isinstance(kind, str) and kind.endswith("_call"):
                yield next((found[id] for found in items if isinstance(found[id], str)), None)
        for holder in self._holders:
            yield from (block.get("input") for block in _blocks(holder))
            yield at(holder, "delta.partial_json")
            for choice in holder.get("choices") or ():
                for part in ("message", "delta"):
                    for call in at(choice, f"{part}.tool_calls") or ():
                        yield at(call, "function.arguments") or at(call, "custom.input")
                    yield at(choice, f"{part}.function_call.arguments")


def values(data: bytes) -> Iterator[Any]:
    """Each JSON value of a body: the one document, or one for every event. What is no JSON is left out."""
    text = data.decode("utf-8", "replace").lstrip("\ufeff")
    try:
        yield json.loads(text, parse_float=Decimal)
        return
    except ValueError:
        pass
    for block in re.split(r"\r\n\r\n|\n\n|\r\r", text):
        lines = [line[5:] for line in re.split(r"\r\n|\n|\r", block) if line.startswith("data:")]
        try:
            yield json.loads("\n".join(lines), parse_float=Decimal)
        except ValueError:
            continue


def at(value: Any, path: str) -> Any:
    """What stands at a dotted path of members; None if nothing does."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _holders(value: Any) -> Iterator[dict[str, Any]]:
    """The objects that may describe an answer: a value, and what an event wraps in it."""
    for holder in (value, at(value, "response"), at(value, "message")):
        if isinstance(holder, dict):
            yield holder


def _usages(holder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in ("usage", "x_groq.usage", "delta.usage"):
        usage = at(holder, path)
        if isinstance(usage, dict):
            yield usage


def _cost(usage: dict[str, Any]) -> Decimal | None:
    """What the provider says it costs: ticks, a plain number, or an object whose zero stands for "not yet"."""
    if usage.get("cost_in_usd_ticks"):
        return Decimal(usage["cost_in_usd_ticks"]) / TICKS_PER_USD
    cost = usage.get("cost")
    if isinstance(cost, dict):
        return Decimal(cost.get("total_cost") or 0) or None
    return None if cost is None else Decimal(cost)


def _blocks(holder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Content blocks that are tool calls (Messages)."""
    content = holder.get("content")
    for block in [holder.get("content_block"), *(content if isinstance(content, list) else ())]:
        if isinstance(block, dict) and block.get("type") in _CALLS:
            yield block


def _size(arguments: Any) -> int:
    if isinstance(arguments, str):
        return len(arguments.encode())
    if not arguments:
        return 0
    return len(json.dumps(arguments, separators=(",", ":"), ensure_ascii=False, default=float).encode())


def _chat_calls(choice: Any, begun: set[Any]) -> Iterator[str]:
    """Names of the tool calls that a choice lists, or that begin in its delta; `begun` knows the earlier ones."""
    for call in at(choice, "message.tool_calls") or ():
        yield at(call, "function.name") or at(call, "custom.name")
    for call in at(choice, "delta.tool_calls") or ():
        name = at(call, "function.name") or at(call, "custom.name")
        identity = (choice.get("index"), call.get("index"), call.get("id"))
        if name and identity not in begun:
            begun.add(identity)
            yield name
    for part in ("message", "delta"):
        if name := at(choice, f"{part}.function_call.name"):
            yield name


def _last(found: Iterable[Any], *, zero: bool = False) -> Any:
    """The last that says something: null and empty say nothing, nor does a zero, unless `zero`."""
    said = [value for value in found if value or (zero and value is not None)]
    return said[-1] if said else None


def _without_none(found: dict[Any, Any]) -> dict[Any, Any]:
    return {name: value for name, value in found.items() if value is not None}
