"""What an exposition says, read by Prometheus' own Python parser; and metrics without a farebox around them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from farebox.keys import holds_key
from farebox.metrics import Metrics, Sources
from farebox.metrics.storage import OneProcess, Shared, Storage


class Exposition:
    """Samples by name and labels."""

    def __init__(self, text: bytes | str) -> None:
        self.text = text.decode() if isinstance(text, bytes) else text
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples of that name whose labels are among others these."""
        found = [s for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(s.value for s in found)

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample with exactly these labels."""
        [value] = [s.value for s in self.samples if s.name == name and s.labels == labels]
        return value

    def label_values(self, label: str) -> set[str]:
        return {s.labels[label] for s in self.samples if label in s.labels}

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums of one metric by labels, without those that are 0."""
        sums: dict[tuple[str, ...], float] = {}
        for s in self.samples:
            if s.name == name and s.value:
                key = tuple(s.labels[label] for label in labels)
                sums[key] = sums.get(key, 0) + s.value
        return sums


class Waiting(NamedTuple):
    """A ledger's backlog, as the metrics look at it."""

    events: int = 0
    oldest_s: float = 0.0


class World:
    """The sources of figures that are looked at, to be set by a test."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.backlog = Waiting()
        self.lost = 0

    def sources(self, **more: Any) -> Sources:
        return Sources(in_flight=lambda: self.in_flight, backlog=lambda: self.backlog, lost=lambda: self.lost, **more)


def metrics(
    storage: Storage | None = None,
    *,
    series_max: int = 20_000,
    label_values_max: int = 200,
    world: World | None = None,
    corrections: Callable[[], Any] | None = None,
    **more: Any,
) -> Metrics:
    """Metrics in memory, or in `storage`, that look at nothing in particular."""
    return Metrics(
        storage=storage or OneProcess(series_max),
        label_values_max=label_values_max,
        is_secret=holds_key,
        sources=(world or World()).sources(corrections=corrections),
        version="1.2.3",
        **more,
    )


def worker(folder: Path, slot: int, *, series_max: int = 20_000, **more: Any) -> Metrics:
    """The metrics of one of several workers."""
    return metrics(Shared(folder, slot, series_max), **more)


def shown(of: Metrics) -> Exposition:
    return Exposition(of.exposition())


def promtool() -> str | None:
    """Where Prometheus' own checker is, if it is installed."""
    return shutil.which("promtool")


def complaints(text: bytes) -> str:
    """What `promtool check metrics` has against an exposition."""
    tool = promtool()
    assert tool is not None
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode() + (f"exit code {done.returncode}" if done.returncode else "")
