"""Prometheus' text format (version 0.0.4): families and values in, pieces of text out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from farebox.metrics.families import Family
from farebox.metrics.series import Series

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PIECE_SAMPLES = 250
"""About as many samples are written at a time: a fraction of a millisecond."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def write(
    families: Sequence[Family], made: Mapping[str, Sequence[Series]], values_of: Callable[[Series], Sequence[float]]
) -> Iterator[bytes]:
    """The text of all `families`, in pieces. `made`: the series of each; `values_of`: `width` values of one.

    A histogram's values are counts of each bucket alone, +Inf the last, then the sum; what follows is not used.
    """
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}\n")
        lines.append(f"# TYPE {family.name} {family.kind}\n")
        bounds = [f'le="{_number(bound)}"}} ' for bound in family.buckets]
        for series in made[family.name]:
            pairs = ",".join([f'{k}="{_escaped(v)}"' for k, v in zip(family.labels, series.values, strict=True)])
            if family.kind == "histogram":
                lines += _histogram(family.name, pairs, bounds, values_of(series))
            else:
                labels = f"{{{pairs}}}" if pairs else ""
                lines.append(f"{family.name}{labels} {_number(values_of(series)[0])}\n")
            if len(lines) >= PIECE_SAMPLES:
                yield "".join(lines).encode()
                lines.clear()
    yield "".join(lines).encode()


def total(values: Iterable[float]) -> float:
    """The sum, the same in whatever order the values come.

    A plain sum of the same workers' values differs in its last digit from one worker's order to
    another's, and a counter that goes down by a digit has for Prometheus begun anew, at all of it.
    """
    values = tuple(values)
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _histogram(name: str, pairs: str, bounds: Sequence[str], values: Sequence[float]) -> Iterator[str]:
    head = f"{name}_bucket{{{pairs}," if pairs else f"{name}_bucket{{"
    labels = f"{{{pairs}}}" if pairs else ""
    counts = list(accumulate(values[: len(bounds) + 1]))
    for bound, count in zip(bounds, counts, strict=False):
        yield f"{head}{bound}{_number(count)}\n"
    yield f'{head}le="+Inf"}} {_number(counts[-1])}\n'
    yield f"{name}_sum{labels} {_number(values[len(bounds) + 1])}\n"
    yield f"{name}_count{labels} {_number(counts[-1])}\n"


def _escaped(value: str) -> str:
    # Few values need it, and looking is ten times as fast.
    return value.translate(_ESCAPES) if '"' in value or "\\" in value or "\n" in value else value


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    whole = int(value)
    return str(whole) if whole == value else repr(value)
