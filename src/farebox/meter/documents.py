"""Decodes what a provider sent as JSON, partly and patiently.

A `Reader` decodes only the members its struct names and skips the rest; fractions stay exact
(`Decimal`). Some servers send what JSON forbids (NaN, half surrogates, control characters,
invalid UTF-8), so what the strict decoder refuses is tried once more with a lenient one, up to a
size. `find_object` is the last resort, for a document of which only parts are at hand.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Generic, TypeVar

import msgspec

LENIENT_BYTES_MAX = 256 * 1024
"""Largest document the lenient decoder is given: it is a hundred times slower."""
OBJECT_BYTES_MAX = 16 * 1024
"""Largest object `find_object` returns."""
_EXPONENT_MAX = 400
_CANDIDATES_MAX = 8

_BOM = b"\xef\xbb\xbf"
_BRACKET_OR_STRING = re.compile(rb'[{}]|"(?:[^"\\]|\\.)*+"', re.DOTALL)

T = TypeVar("T", bound=msgspec.Struct)


def exact(literal: str) -> Decimal | None:
    """A JSON number with a fraction or an exponent, exactly; None where it is absurdly large or small."""
    try:
        value = Decimal(literal)
    except ArithmeticError:
        return None
    return value if abs(value.adjusted()) <= _EXPONENT_MAX else None


_ANY = msgspec.json.Decoder(float_hook=exact)


class Reader(Generic[T]):
    """Decodes JSON objects into the struct `kind`, whose members are all optional and untyped."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind, float_hook=exact)

    def read(self, data: bytes) -> T | None:
        """The object in `data`; None if there is no object or nothing can read it."""
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            value = read_lenient(data)
        if not isinstance(value, dict):
            return None
        return self._kind(**{name: value[name] for name in self._kind.__struct_fields__ if name in value})


def read_any(data: bytes) -> Any:
    """Whatever JSON value `data` holds; None if nothing can read it."""
    try:
        return _ANY.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return read_lenient(data)


def read_lenient(data: bytes) -> Any:
    """`read_any` for what strict JSON forbids; None also for what is larger than `LENIENT_BYTES_MAX`."""
    if len(data) > LENIENT_BYTES_MAX:
        return None
    try:
        return json.loads(
            data.removeprefix(_BOM).decode("utf-8", "replace"),
            parse_float=exact,
            parse_constant=lambda _: None,
            strict=False,
        )
    except (ValueError, RecursionError):
        return None


def find_object(data: bytes, name: str) -> dict[str, Any] | None:
    """The last JSON object that stands as member `name` in a fragment of JSON, at whatever depth.

    Inside a string such a member shows as `\\"name\\"` and is not found.
    """
    pattern = re.compile(rb'"' + re.escape(name.encode()) + rb'"\s{0,16}:\s{0,16}\{')
    for match in list(pattern.finditer(data))[: -_CANDIDATES_MAX - 1 : -1]:
        block = _balanced(data[match.end() - 1 : match.end() - 1 + OBJECT_BYTES_MAX])
        value = read_any(block) if block else None
        if isinstance(value, dict):
            return value
    return None


def _balanced(data: bytes) -> bytes | None:
    """The object that `data` starts with, up to the brace that closes it."""
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(data):
        if match[0] == b"{":
            depth += 1
        elif match[0] == b"}":
            depth -= 1
            if depth == 0:
                return data[: match.end()]
    return None
