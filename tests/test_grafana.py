"""The dashboard: it is what the code says, Grafana's model takes it, and it asks for what farebox has."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from farebox.metrics.families import FAMILIES
from grafana import dashboard, panels
from support import promql
from support.dashboard import concrete, expressions

ROOT = Path(__file__).resolve().parent.parent
BOARD: dict[str, Any] = json.loads(dashboard.OUTPUT.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
COLUMNS = 24

NOT_SHOWN = {"farebox_build_info": "which release runs is a question for a single instance"}
"""Metrics without a panel, and why."""

UNPUBLISHED = {
    ".annotations.list.step",
    ".annotations.list.tagKeys",
    ".annotations.list.titleFormat",
    ".templating.list.definition",
    ".wideLayout",
}
"""Members that Grafana writes itself, though the published types have none of them."""


def test_the_committed_file_is_what_the_code_says() -> None:
    """`make dashboard` would change nothing."""
    assert dashboard.OUTPUT.read_text(encoding="utf-8") == dashboard.render()


def test_grafanas_own_model_knows_every_member() -> None:
    """Read into Grafana's published types and written again, the dashboard is the same: nothing in it is misspelt."""
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.models import dashboard as types
    from grafana_foundation_sdk.models import prometheus

    lost = {path for path, _ in unknown(types.Dashboard, BOARD)}
    for panel in PANELS:
        kind = importlib.import_module(f"grafana_foundation_sdk.models.{panel['type']}")
        lost |= {path for path, _ in unknown(kind.Options, panel["options"])}
        if panel["type"] == "timeseries":
            lost |= {path for path, _ in unknown(kind.FieldConfig, panel["fieldConfig"]["defaults"]["custom"])}
        for target in panel["targets"]:
            lost |= {path for path, _ in unknown(prometheus.Dataquery, target)}
    assert {re.sub(r"\[\d+\]", "", path) for path in lost} == UNPUBLISHED


def unknown(kind: Any, value: dict[str, Any]) -> set[tuple[str, str]]:
    """What of a document one of Grafana's published types does not keep."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    return set(leaves(value)) - set(leaves(json.loads(JSONEncoder().encode(kind.from_json(value)))))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value of a document with its place; empty containers, which mean nothing, left out."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    else:
        yield path, repr(value)


@pytest.mark.parametrize("title, expression", sorted(set(expressions(BOARD))))
def test_each_query_asks_for_what_farebox_has(title: str, expression: str) -> None:
    """Metrics, labels and their values in every query are those that farebox exposes."""
    assert promql.metrics(expression)
    assert list(promql.faults(expression)) == [], title


def test_every_metric_is_shown() -> None:
    """No metric is exposed for nothing: each has a panel, or a reason to have none."""
    shown = {name for _, expression in expressions(BOARD) for name in promql.metrics(expression)}
    shown = {re.sub("_bucket$", "", name) for name in shown}
    assert {family.name for family in FAMILIES} - shown == set(NOT_SHOWN)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_can_parse_every_query(tmp_path: Path) -> None:
    """Each query is PromQL once Grafana has filled in its variables."""
    rules = [{"record": f"q:{n}", "expr": concrete(expr)} for n, (_, expr) in enumerate(expressions(BOARD))]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    ran = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_explains_itself(panel: dict[str, Any]) -> None:
    """A panel has a title that fits, words on what it is and what to do, a unit, and words for when it is empty."""
    assert 2 <= len(panel["title"]) <= 50
    assert panel["description"].count(".") >= 2 or len(panel["description"]) > 60
    assert panel["fieldConfig"]["defaults"]["noValue"]
    if panel["type"] == "table":
        units = [
            part["value"] for o in panel["fieldConfig"]["overrides"] for part in o["properties"] if part["id"] == "unit"
        ]
        assert len(units) == len(panel["targets"])
    else:
        units = [panel["fieldConfig"]["defaults"]["unit"]]
    assert set(units) <= {"s", "currencyUSD", "percentunit", "reqps", "ops", "short", "none"}
    assert all(target["datasource"] == panels.DATASOURCE for target in panel["targets"])


def test_units_fit_what_is_asked() -> None:
    """Money is shown as USD, and metrics of seconds as seconds."""
    for panel in PANELS:
        unit = panel["fieldConfig"]["defaults"].get("unit")
        names = {name for target in panel["targets"] for name in promql.metrics(target["expr"])}
        if unit is not None and all("_usd_" in name for name in names):
            assert unit == "currencyUSD", panel["title"]
        if all(re.search("_seconds(_bucket)?$", name) for name in names):
            assert unit == "s", panel["title"]


def test_panels_fill_the_grid_without_overlap() -> None:
    """No two panels lie on each other, none sticks out, and every line of panels is as wide as the page."""
    cells: Counter[tuple[int, int]] = Counter()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert max(cells.values()) == 1
    width, height = (max(cell[axis] for cell in cells) + 1 for axis in (0, 1))
    assert width == COLUMNS
    assert len(cells) == width * height, "there are gaps"
    assert all(a["id"] != b["id"] for a, b in combinations(BOARD["panels"], 2))


def test_titles_are_unique_and_rows_have_panels() -> None:
    """Every panel can be named, and no heading stands over nothing."""
    titles = [panel["title"] for panel in BOARD["panels"]]
    assert len(set(titles)) == len(titles)
    kinds = [panel["type"] for panel in BOARD["panels"]]
    assert kinds[0] != "row", "the figures come first"
    assert ("row", "row") not in pairwise(kinds) and kinds[-1] != "row"


def test_every_variable_is_there_and_used() -> None:
    """Queries name only variables that the dashboard or Grafana has, and each choice has an effect."""
    named = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD["panels"])))
    own = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert named - {"__rate_interval", "__range"} == own
