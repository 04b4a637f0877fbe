"""PromQL held against the metrics that farebox has: names, labels, and the values that farebox itself gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from farebox.metrics.families import FAMILIES, Family

_METRIC = re.compile(r"\b(farebox_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
_GROUPS = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")
_ADDED = {"job", "instance", "le"}
"""Labels that Prometheus and histograms add."""
_PARTS = ("_bucket", "_sum", "_count")


def metrics(expression: str) -> set[str]:
    """The names of farebox's metrics in an expression."""
    return {match[1] for match in _METRIC.finditer(expression)}


def faults(expression: str) -> Iterator[str]:
    """What in an expression farebox has not: metrics, labels, values. They would silently give no data."""
    known = {family.name: family for family in FAMILIES}
    used: list[Family] = []
    for match in _METRIC.finditer(expression):
        name, matchers = match[1], match[2] or ""
        base = next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)
        family = known.get(name) or known.get(base)
        if family is None or (family.kind == "histogram") != (family.name != name):
            yield f"no metric {name}"
            continue
        used.append(family)
        for label, _, value in _MATCHER.findall(matchers):
            if label not in family.labels and label not in _ADDED:
                yield f"{name} has no label {label}"
            values = family.closed.get(label)
            if values is not None and "$" not in value:
                yield from (f"{name}: {label} is never {word}" for word in value.split("|") if word not in values)
    for label in chain.from_iterable(re.split(r",\s*", match[1]) for match in _GROUPS.finditer(expression)):
        yield from (
            f"{family.name} has no label {label}"
            for family in used
            if label and label not in family.labels and label not in _ADDED
        )
