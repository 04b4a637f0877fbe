"""The recorded provider bodies, where they are at hand: `../shared/corpus` beside this repository.

`python tests/support/corpus.py` (with `src` and `tests` importable) prints the figures for each API.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from farebox.dialects import PROFILES
from farebox.meter import Meter, Reading
from farebox.records import Operation, Usage, UsageRow
from support.answers import meter

FOLDER = Path(__file__).parents[2] / "../shared/corpus"
MANIFEST = FOLDER / "manifest.jsonl"
APIS = ("chat", "completions", "responses", "embeddings", "messages")

assert set(APIS) <= set(get_args(Operation))


class Deviation(NamedTuple):
    """Memo fields of a body that differ from its label, and why."""

    fields: frozenset[str]
    reason: str


GROK_ON_AZURE = Deviation(
    frozenset({"cached"}),
    "more cached tokens than prompt tokens, with a total that leaves no room for them: unreported",
)
THINKING = Deviation(frozenset({"reasoning"}), "the label has no reasoning where Anthropic reports thinking_tokens")
MEMO_EXCEPTIONS = {
    **dict.fromkeys(
        (
            *("0392da443690", "071c513df045", "190c9be8625c", "2ef190bc602e", "3511908add18", "35483264bfa5"),
            *("68d05f653c9c", "7c1783f28425", "97c4e39e58bf", "bb7370a5b8bd", "c043ad8e2ef8", "ecd94e6512a1"),
            "f33dc4443492",
        ),
        GROK_ON_AZURE,
    ),
    **dict.fromkeys(("3799480f087f", "52791c44991a", "9a6f28a0bf52"), THINKING),
    "a19935df02dc": Deviation(
        frozenset({"reasoning"}),
        "more reasoning than output, with a total that leaves no room for it: cut to the output",
    ),
}
"""Bodies whose memo fields (caches, reasoning) differ from the label, by id."""

TOTAL_ONLY = dict.fromkeys(
    ("18fa68d10ba6", "26b097914f3a", "5a1b8cdd7265", "960fb499536f", "ea8006399f88", "f031a37bcd8b"),
    "embeddings that report a total only, which is all input",
)
"""Billable bodies without a label of input and output, with the reason. Their total is compared instead."""

INCOMPLETE = {
    "b8fae75fc664": "lines of JSON: results of a batch, no answer of this API",
    "e3baf69436ab": "ends without a finish reason and without [DONE]",
    "4c7b155aeab8": "the last event ends in a stray quotation mark",
    "3f666a4afd0c": "every event is a JSON string that quotes an event",
    "427567fefaa5": "every event is a JSON string that quotes an event",
    "76a1037cc217": "not JSON",
    "9465a1a50a7e": "not an event stream",
    "46ca351c0361": "an error inside the stream",
    "faf76981d131": "an error inside the stream",
}
"""Bodies under a status of success that are no complete answer, with the reason."""


class Body:
    """One recorded body with what its labels say."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.id: str = row["id"]
        self.api: Operation = row["api"]
        self.provider: str = row["provider"]
        self.core: bool = row["tier"] == "core"
        self.creates: bool = row["method"] in (None, "POST")
        self.effective: dict[str, Any] | None = row["effective"]
        self.expected: dict[str, Any] = row["expected"] or {}

    @property
    def data(self) -> bytes:
        return (FOLDER / self.row["file"]).read_bytes()

    @property
    def wire(self) -> bytes | None:
        """The bytes as they crossed the wire in gzip, where they were kept."""
        path = FOLDER / (self.row["file"] + ".gz")
        return path.read_bytes() if path.exists() else None

    def meter(self, *, dialect: str | None = None, withhold: bool = False, encoding: str = "") -> Meter:
        """A meter as the proxy makes it for this body; `dialect` instead of the recorded provider's."""
        return meter(
            self.api,
            profile=PROFILES[dialect or self.provider],
            stream=bool(self.row["stream"]),
            withhold=withhold,
            status=self.row["status"],
            content_type=self.row["response_headers"].get("content-type", ""),
            content_encoding=encoding,
        )

    def equals_label(self, reading: Reading) -> bool:
        """Whether input and output are what the label says on one scale."""
        label = self.effective
        return label is None or (reading.usage.input_tokens, reading.usage.output_tokens) == (
            label["input"],
            label["output"],
        )

    def deviates(self, found: Usage | UsageRow) -> set[str]:
        """The memo fields (caches, reasoning, audio, images, the total) in which `found` differs from the label."""
        total = None if found.input_tokens is None else found.input_tokens + (found.output_tokens or 0)
        memo = {
            "total": total,
            "cached": found.cache_read_tokens,
            "cache_write": found.cache_write_tokens,
            "reasoning": found.reasoning_tokens,
            "audio_in": found.audio_input_tokens,
            "audio_out": found.audio_output_tokens,
            "image_in": found.image_tokens,
        }
        label = {name: value for name, value in self.expected.items() if name in memo}
        if label.get("total") is None:
            label["total"] = total
        return {name for name, value in memo.items() if (label[name] != value if name in label else value)}


@cache
def bodies(apis: tuple[str, ...] = APIS) -> tuple[Body, ...]:
    """Every body of these APIs; none where the corpus is not at hand."""
    if not MANIFEST.exists():
        return ()
    rows = (json.loads(line) for line in MANIFEST.read_text().splitlines())
    return tuple(Body(row) for row in rows if row["api"] in apis)


def groups() -> dict[str, list[Body]]:
    """The bodies by API and provider, so that they can be tested side by side."""
    found: dict[str, list[Body]] = {}
    for body in bodies():
        found.setdefault(f"{body.api}-{body.provider}", []).append(body)
    return found


def figures(dialect: str | None = None) -> dict[str, Counter[str]]:
    """For each API: bodies, those with a label, those read equal to it, and the same of tier core."""
    table: dict[str, Counter[str]] = {api: Counter() for api in APIS}
    for body in bodies():
        reader = body.meter(dialect=dialect)
        reader.feed(body.data, 1.0)
        reader.eof()
        line = table[body.api]
        line["bodies"] += 1
        if body.effective is not None:
            equal = body.equals_label(reader.finish())
            line.update(labelled=1, equal=equal, core=body.core, core_equal=body.core and equal)
    return table


def lines(table: dict[str, Counter[str]]) -> Iterable[str]:
    """The figures as a table for people."""
    columns = ("bodies", "labelled", "equal", "core", "core_equal")
    yield f"{'':12}" + "".join(f"{name:>12}" for name in columns)
    for api, line in table.items():
        yield f"{api:12}" + "".join(f"{line[name]:12}" for name in columns)


if __name__ == "__main__":
    for text in lines(figures()):
        print(text)
