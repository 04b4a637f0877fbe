"""Walks a YAML tree along the schema: values out, faults aside.

Knows nothing of single settings: the dataclasses' metadata say what each field takes. A value with
a fault is left out and the walk goes on, so that one reading finds every mistake. What concerns
more than one setting is left to `checks`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from farebox.config import kinds
from farebox.config.faults import Faults, shown
from farebox.config.interpolate import InterpolationError, Resolved, resolve
from farebox.config.nodes import Entry, Items, Node, Table, Text, join

_ABSENT: Any = object()


def settings_of(cls: type) -> dict[str, tuple[dataclasses.Field[Any], kinds.Setting]]:
    """The settable fields of a schema dataclass, by name, in order."""
    return {
        field.name: (field, field.metadata["setting"])
        for field in dataclasses.fields(cls)
        if "setting" in field.metadata
    }


class Reader:
    """Reads one file. `env` and `read_file` resolve `${...}`; mistakes go to `faults`."""

    def __init__(self, env: Mapping[str, str], read_file: Callable[[str], str], faults: Faults) -> None:
        self._env = env
        self._read_file = read_file
        self._faults = faults
        self._homes: dict[str, str] = {}

    def read(self, cls: type, root: Node | None) -> dict[str, Any]:
        """The values of a whole file whose schema is `cls`."""
        self._homes = dict(_homes(cls, ""))
        return self._fields(cls, root, "")

    def _fields(self, cls: type, node: Node | None, path: str) -> dict[str, Any]:
        """The values that a mapping gives for the fields of `cls`; faulty, empty and missing ones are left out."""
        settings = settings_of(cls)
        values: dict[str, Any] = {}
        named = _required(settings)
        for entry in self._entries(node, path, f"settings ({', '.join(settings)})"):
            where = join(path, entry.key)
            self._faults.note(where, entry.value.at)
            if entry.key not in settings:
                self._faults.add(where, _unknown(entry.key, settings, self._homes), entry.at)
                continue
            named.discard(entry.key)
            field, about = settings[entry.key]
            value = self._value(about.kind, entry.value, where, field)
            if value is not _ABSENT:
                values[entry.key] = value
        for name in sorted(named):
            self._faults.add(join(path, name), "is missing; it has no default", self._faults.where(path))
        return values

    def _value(self, kind: kinds.Kind, node: Node, path: str, field: dataclasses.Field[Any] | None) -> Any:
        """The value of `node`, or `_ABSENT` after a fault or for an empty section."""
        if isinstance(kind, kinds.Scalar):
            return self._scalar(kind, node, path, optional=field is not None and field.default is None)
        if isinstance(kind, kinds.OneOrMore):
            return self._one_or_more(kind, node, path)
        if isinstance(kind, kinds.Pairs):
            return self._pairs(kind, node, path)
        if isinstance(kind, kinds.Section):
            return self._instance(kind.cls, node, path)
        if isinstance(kind, kinds.Named):
            return self._named(kind, node, path)
        if isinstance(kind, kinds.Map):
            return self._map(kind, node, path)
        return self._rows(kind, node, path)

    def _scalar(self, kind: kinds.Scalar, node: Node, path: str, *, optional: bool = False) -> Any:
        if not isinstance(node, Text):
            self._faults.add(path, f"a {_shape(node)} cannot stand here; write {kind.wants}", node.at)
        elif node.word == "null":
            if optional and node.text:  # `null` or `~` written out; nothing at all is a value forgotten
                return None
            self._faults.add(path, f"is empty; write {kind.wants}, or remove the line", node.at)
        elif node.word == "bool" and not kind.takes_words:
            word = node.text
            self._faults.add(path, f'YAML reads an unquoted {word} as true or false; write "{word}"', node.at)
        else:
            return self._parse(kind, node, path)
        return _ABSENT

    def _parse(self, kind: kinds.Scalar, node: Text, path: str) -> Any:
        resolved = self._resolve(node, path)
        if resolved is None:
            return _ABSENT
        if resolved.unset:
            if isinstance(kind, kinds.Credential):
                return kinds.Missing(resolved.unset)
            verb = "have" if len(resolved.unset) > 1 else "has"
            names = ", ".join(resolved.unset)
            self._faults.add(path, f"the environment variable {names} {verb} no value", node.at)
            return _ABSENT
        try:
            return kind.parse(resolved.text)
        except kinds.Bad as bad:
            self._faults.add(path, _refusal(kind, resolved, str(bad)), node.at)
            return _ABSENT

    def _resolve(self, node: Text, path: str) -> Resolved | None:
        try:
            return resolve(node.text, self._env, self._read_file)
        except InterpolationError as error:
            self._faults.add(path, str(error), node.at)
            return None

    def _one_or_more(self, kind: kinds.OneOrMore, node: Node, path: str) -> Any:
        if isinstance(node, Table):
            self._faults.add(path, f"a mapping cannot stand here; write {kind.item.wants}, or a list", node.at)
            return _ABSENT
        if not isinstance(node, Items):
            value = self._scalar(kind.item, node, path)
            return value if value is _ABSENT else (value,)
        if not node.items and not kind.empty:
            self._faults.add(path, f"the list is empty; write {kind.item.wants}", node.at)
        values: list[Any] = []
        for where, item in _numbered(node, path):
            self._faults.note(where, item.at)
            value = self._scalar(kind.item, item, where)
            if value in values:
                self._faults.add(where, f"{shown(str(value))} stands in the list twice", item.at)
            # A faulty item keeps its place, so that later checks count right.
            values.append(None if value is _ABSENT else value)
        return tuple(values)

    def _pairs(self, kind: kinds.Pairs, node: Node, path: str) -> Any:
        values: dict[str, Any] = {}
        seen: set[str] = set()
        for entry in self._entries(node, path, f"pairs NAME: VALUE, each {kind.value.wants}"):
            where = join(path, entry.key)
            self._faults.note(where, entry.value.at)
            if not self._key(kind.key, entry, where):
                continue
            if kind.fold and entry.key.lower() in seen:
                self._faults.add(where, "given twice; upper and lower case are the same here", entry.at)
            seen.add(entry.key.lower())
            value = self._scalar(kind.value, entry.value, where)
            if value is not _ABSENT:
                values[entry.key] = value
        return MappingProxyType(values)

    def _named(self, kind: kinds.Named, node: Node, path: str) -> Any:
        found: dict[str, dict[str, Any]] = {}
        for entry in self._entries(node, path, "NAME: {...} pairs"):
            where = join(path, entry.key)
            self._faults.note(where, entry.value.at)
            self._key(kind.key, entry, where)
            found[entry.key] = self._fields(kind.cls, entry.value, where)
        return found

    def _map(self, kind: kinds.Map, node: Node, path: str) -> Any:
        values: dict[Any, Any] = {}
        for entry in self._entries(node, path, f"pairs of {kind.key.wants} and its settings"):
            where = join(path, entry.key)
            self._faults.note(where, entry.value.at)
            value = self._instance(kind.cls, entry.value, where)
            if not self._key(kind.key, entry, where):
                continue
            key = kind.key.parse(entry.key)
            if key in values:
                self._faults.add(where, "given twice, in another spelling", entry.at)
            elif value is not _ABSENT:
                values[key] = value
        return MappingProxyType(values)

    def _rows(self, kind: kinds.Rows, node: Node, path: str) -> Any:
        if _empty(node):
            return _ABSENT
        if not isinstance(node, Items):
            self._faults.add(path, f"a {_shape(node)} cannot stand here; write a list, each item after `- `", node.at)
            return _ABSENT
        rows = []
        for where, item in _numbered(node, path):
            self._faults.note(where, item.at)
            row = self._instance(kind.cls, item, where)
            rows.append(None if row is _ABSENT else row)
        return tuple(rows)

    def _instance(self, cls: type, node: Node, path: str) -> Any:
        values = self._fields(cls, node, path)
        return _ABSENT if _required(settings_of(cls)) - set(values) else cls(**values)

    def _entries(self, node: Node | None, path: str, what: str) -> Iterator[Entry]:
        if isinstance(node, Table):
            yield from node.entries
        elif node is not None and not _empty(node):
            self._faults.add(path, f"a {_shape(node)} cannot stand here; write a mapping of {what}", node.at)

    def _key(self, kind: kinds.Scalar, entry: Entry, path: str) -> bool:
        try:
            kind.parse(entry.key)
        except kinds.Bad as bad:
            self._faults.add(path, _refusal(kind, Resolved(entry.key), str(bad)), entry.at)
            return False
        return True


def _refusal(kind: kinds.Scalar, resolved: Resolved, why: str) -> str:
    """`VALUE is not WANTS: WHY`. What came from outside the file, or may be a credential, is never quoted."""
    if resolved.sources:
        value = "the value of " + ", ".join(dict.fromkeys(resolved.sources))
    else:
        value = "the value" if kind.secret else shown(resolved.text)
    return f"{value} is not {kind.wants}" + (f": {why}" if why else "")


def _unknown(key: str, known: Mapping[str, object], homes: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1, cutoff=0.7)
    if close or key in homes:
        return f"unknown setting; did you mean {close[0] if close else homes[key]}?"
    return f"unknown setting; known here: {', '.join(known)}"


def _homes(cls: type, path: str) -> Iterator[tuple[str, str]]:
    """Every setting's name with the path it belongs at; of equal names the last one counts."""
    for name, (_, about) in settings_of(cls).items():
        where = f"{path}.{name}" if path else name
        yield name, where
        if isinstance(about.kind, kinds.Section):
            yield from _homes(about.kind.cls, where)
        elif isinstance(about.kind, kinds.Named | kinds.Map):
            yield from _homes(about.kind.cls, f"{where}.NAME")
        elif isinstance(about.kind, kinds.Rows):
            yield from _homes(about.kind.cls, f"{where}[N]")


def _required(settings: Mapping[str, tuple[dataclasses.Field[Any], kinds.Setting]]) -> set[str]:
    missing = dataclasses.MISSING
    return {name for name, (field, _) in settings.items() if field.default is missing is field.default_factory}


def _numbered(node: Items, path: str) -> Iterator[tuple[str, Node]]:
    return ((f"{path}[{number}]", item) for number, item in enumerate(node.items))


def _empty(node: Node) -> bool:
    return isinstance(node, Text) and node.word == "null"


def _shape(node: Node) -> str:
    return {Text: "single value", Items: "list", Table: "mapping"}[type(node)]
