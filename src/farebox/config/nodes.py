"""YAML text to a plain tree that knows the place of every key and value.

Built on PyYAML's composer rather than its constructor: a constructed dict has lost the places, the
duplicates and the text as written (`no`, `010`, `1.10`), and this reader needs all three. Types are
left to the schema. Anchors, aliases and `<<` work; what they expand to is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from farebox.config.faults import Faults, Mark, shown

TEXT_CHARS_MAX = 262_144
"""A longer file is refused whole, unread: PyYAML takes seconds per megabyte."""
DEPTH_MAX = 12
"""A value nested deeper is refused; the schema needs nine. Also ends an anchor that holds itself."""
VALUES_MAX = 20_000
"""Keys and values after aliases are expanded; a file that gives more is refused."""

_CORE = "tag:yaml.org,2002:"
_SCALARS = frozenset({"str", "int", "float", "bool", "null", "timestamp", "value", "merge"})


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar as written. `word` is what YAML takes it for when unquoted: `bool`, `null`, else empty."""

    text: str
    word: str
    at: Mark


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    at: Mark


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping."""

    key: str
    at: Mark
    value: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping, keys unique."""

    entries: tuple[Entry, ...]
    at: Mark


Node: TypeAlias = Text | Items | Table


def parse(text: str, faults: Faults) -> Node | None:
    """The tree of `text`, or None when it is empty or unreadable; what is wrong goes to `faults`."""
    if len(text) > TEXT_CHARS_MAX:
        faults.add("", f"the file has {len(text)} characters; at most {TEXT_CHARS_MAX} are read", Mark(1, 1))
        return None
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        at = _mark(error.problem_mark or error.context_mark)
        faults.add("", _syntax(error, text, at), at)
        return None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        faults.add("", "a control character, which YAML does not allow; remove it", at)
        return None
    return None if root is None else _Tree(faults).node(root, "", 0)


class _Loader(yaml.SafeLoader):
    """SafeLoader's composer with a depth: the plain one recurses until Python's stack ends."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.depth > DEPTH_MAX:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)  # type: ignore[arg-type]
        finally:
            self.depth -= 1


class _Tree:
    """Turns composed nodes into ours: flattens `<<`, finds duplicates, bounds what aliases expand to."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._values = 0

    def node(self, node: yaml.Node, path: str, depth: int) -> Node | None:
        """Our form of `node`, or None after a fault."""
        at = _mark(node.start_mark)
        self._values += 1
        if self._values > VALUES_MAX or depth > DEPTH_MAX:
            if self._faults.sound(""):
                what = "nested too deep" if depth > DEPTH_MAX else f"more than {VALUES_MAX} values"
                self._faults.add("", f"{what}, once anchors and aliases are expanded", at)
            return None
        tag = node.tag.removeprefix(_CORE)
        if isinstance(node, yaml.ScalarNode) and tag in _SCALARS:
            return Text(node.value, tag if tag in ("bool", "null") else "", at)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            items = [self.node(child, f"{path}[{i}]", depth + 1) for i, child in enumerate(node.value)]
            return Items(tuple(item for item in items if item is not None), at)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return Table(tuple(self._entries(node, path, depth)), at)
        self._faults.add(path, "a YAML tag (!...) is not used here; write the plain value", at)
        return None

    def _entries(self, node: yaml.MappingNode, path: str, depth: int) -> Iterator[Entry]:
        own: dict[str, Mark] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            at = _mark(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self._faults.add(path, "a key must be a plain word, not a list or mapping", at)
            elif key_node.tag == _CORE + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif key_node.value in own:
                first = own[key_node.value].line
                self._faults.add(
                    join(path, key_node.value), f"given twice; the first is on line {first}. Remove one", at
                )
            else:
                own[key_node.value] = at
                value = self.node(value_node, join(path, key_node.value), depth + 1)
                if value is not None:
                    yield Entry(key_node.value, at, value)
        yield from self._merged(merged, set(own), path, depth)

    def _merged(self, sources: list[yaml.Node], taken: set[str], path: str, depth: int) -> Iterator[Entry]:
        for source in sources:
            table = self.node(source, path, depth + 1)
            if isinstance(table, Table):
                yield from (entry for entry in table.entries if entry.key not in taken)
                taken |= {entry.key for entry in table.entries}
            elif table is not None:
                self._faults.add(path, "`<<` takes a mapping, or a list of mappings", table.at)


def join(path: str, key: str) -> str:
    """The path of `key` inside `path`; a key that is not a plain word is quoted."""
    word = key if key and key.isascii() and key.replace("_", "").replace("-", "").isalnum() else shown(key)
    return f"{path}.{word}" if path else word


def _mark(mark: yaml.Mark | None) -> Mark:
    return Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)


def _syntax(error: yaml.MarkedYAMLError, text: str, at: Mark) -> str:
    """A sentence for a YAML syntax error. Quotes nothing of the file: the line may hold a secret."""
    problem = error.problem or "not valid YAML"
    lines = text.splitlines()
    line = lines[at.line - 1] if at.line <= len(lines) else ""
    rest = line[at.col - 1 :]
    if "undefined alias" in problem or rest.startswith("*") or line[: at.col - 1].rstrip(" ").endswith("*"):
        return "a value that begins with * must be in quotes (YAML takes *NAME for an alias)"
    if rest.startswith("\t"):
        return "a tab; YAML is indented with spaces"
    if rest[:1] in ("@", "`", "%"):
        return f"a value that begins with {rest[0]} must be in quotes"
    if "${" in line:
        return f'not valid YAML: {problem}. A value with ${{...}} is safest in quotes: "${{NAME}}"'
    if "single document" in (error.context or ""):
        return "a second document (`---`); the config is one document"
    return f"not valid YAML: {problem}"
