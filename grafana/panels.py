"""Grafana's JSON, as far as the dashboard needs it: targets, panels, variables, and a layout that flows.

Written for the classic dashboard model, which Grafana 11 and 12 load and keep. Panels come without a place;
`arrange` gives them one, from left to right in a grid of 24 columns, a row's title above them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24


@dataclass(frozen=True)
class Query:
    """One query of a panel. `legend` may name labels: `{{model}}`. `instant`: one value now instead of a line."""

    expression: str
    legend: str = ""
    instant: bool = False
    table: bool = False

    def target(self, letter: str) -> Json:
        return {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expression,
            "format": "table" if self.table else "time_series",
            "instant": self.instant,
            "legendFormat": self.legend or "__auto",
            "range": not self.instant,
            "refId": letter,
        }


def steps(*pairs: tuple[float | None, str]) -> Json:
    """Thresholds: from each value on its colour; the first value is None, from the bottom."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in pairs]}


def good_until(warning: float, critical: float) -> Json:
    """Green, then orange, then red."""
    return steps((None, "green"), (warning, "orange"), (critical, "red"))


NEUTRAL = steps((None, "blue"))


def _panel(kind: str, title: str, description: str, queries: Iterable[Query], size: tuple[int, int]) -> Json:
    width, height = size
    return {
        "datasource": DATASOURCE,
        "description": description,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "options": {},
        "targets": [query.target(chr(ord("A") + number)) for number, query in enumerate(queries)],
        "title": title,
        "type": kind,
    }


def stat(
    title: str,
    query: Query,
    *,
    description: str,
    unit: str,
    empty: str,
    thresholds: Json = NEUTRAL,
    decimals: int | None = None,
    size: tuple[int, int] = (3, 4),
) -> Json:
    """One large figure; `empty` stands in its place while there is no data."""
    panel = _panel("stat", title, description, [query], size)
    defaults: Json = {"color": {"mode": "thresholds"}, "noValue": empty, "thresholds": thresholds, "unit": unit}
    if decimals is not None:
        defaults["decimals"] = decimals
    panel["fieldConfig"]["defaults"] = defaults
    panel["options"] = {
        "colorMode": "background_solid" if thresholds is not NEUTRAL else "value",
        "graphMode": "none" if query.instant else "area",
        "justifyMode": "center",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
        "wideLayout": True,
    }
    return panel


def graph(
    title: str,
    *queries: Query,
    description: str,
    unit: str,
    empty: str,
    stacked: bool = False,
    colors: dict[str, str] | None = None,
    thresholds: Json | None = None,
    top: float | None = None,
    size: tuple[int, int] = (8, 8),
) -> Json:
    """Lines over time. `colors`: of named series. `thresholds`: drawn as dashed lines. `top`: end of the axis."""
    panel = _panel("timeseries", title, description, queries, size)
    custom: Json = {
        "axisSoftMin": 0,
        "drawStyle": "line",
        "fillOpacity": 30 if stacked else 8,
        "lineWidth": 1,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
    }
    defaults: Json = {"color": {"mode": "palette-classic-by-name"}, "custom": custom, "noValue": empty, "unit": unit}
    if thresholds is not None:
        defaults["thresholds"] = thresholds
        custom["thresholdsStyle"] = {"mode": "dashed"}
    if top is not None:
        defaults |= {"max": top, "min": 0}
    panel["fieldConfig"] = {
        "defaults": defaults,
        "overrides": [
            _override(name, "color", {"fixedColor": color, "mode": "fixed"}) for name, color in (colors or {}).items()
        ],
    }
    panel["options"] = {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


@dataclass(frozen=True)
class Column:
    """One figure of a table: its heading, an instant query grouped by the table's first column, its unit."""

    heading: str
    expression: str
    unit: str
    decimals: int = 0


def table(
    title: str, label: str, heading: str, *columns: Column, description: str, empty: str, size: tuple[int, int] = (8, 9)
) -> Json:
    """A row for each value of `label`, sorted by the last column, whose cells have a bar."""
    queries = [Query(column.expression, instant=True, table=True) for column in columns]
    panel = _panel("table", title, description, queries, size)
    values = {f"Value #{chr(ord('A') + number)}": column.heading for number, column in enumerate(columns)}
    if len(columns) == 1:
        values = {"Value": columns[0].heading}  # Grafana numbers the values only where there are several
    overrides = []
    for column in columns:
        overrides.append(_override(column.heading, "unit", column.unit))
        overrides[-1]["properties"].append({"id": "decimals", "value": column.decimals})
    cell = {"mode": "gradient", "type": "gauge", "valueDisplayMode": "text"}
    overrides[-1]["properties"] += [
        {"id": "custom.cellOptions", "value": cell},
        {"id": "color", "value": {"mode": "continuous-BlPu"}},
        {"id": "min", "value": 0},
    ]
    panel["fieldConfig"] = {
        "defaults": {"custom": {"align": "auto", "filterable": False}, "noValue": empty},
        "overrides": overrides,
    }
    order = {label: 0, **{value: number for number, value in enumerate(values, 1)}}
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": order,
                "renameByName": {label: heading, **values},
            },
        },
    ]
    panel["options"] = {
        "cellHeight": "sm",
        "footer": {"countRows": False, "fields": "", "reducer": ["sum"], "show": False},
        "showHeader": True,
        "sortBy": [{"desc": True, "displayName": columns[-1].heading}],
    }
    return panel


def _override(name: str, field: str, value: Any) -> Json:
    return {"matcher": {"id": "byName", "options": name}, "properties": [{"id": field, "value": value}]}


def row(title: str) -> Json:
    """The heading of what follows, which folds away."""
    return {
        "collapsed": False,
        "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": 0},
        "panels": [],
        "title": title,
        "type": "row",
    }


def arrange(panels: Iterable[Json]) -> list[Json]:
    """The panels with ids and places: left to right, a new line where one no longer fits."""
    placed: list[Json] = []
    x = y = line = 0
    for number, panel in enumerate(panels, 1):
        width, height = panel["gridPos"]["w"], panel["gridPos"]["h"]
        if x + width > COLUMNS:
            x, y, line = 0, y + line, 0
        placed.append({**panel, "gridPos": {"h": height, "w": width, "x": x, "y": y}, "id": number})
        x, line = x + width, max(line, height)
    return placed


def choice(name: str, label: str, query: str) -> Json:
    """A variable whose values Prometheus is asked for; several at once, or all."""
    return {
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "label": label,
        "multi": True,
        "name": name,
        "options": [],
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def datasource() -> Json:
    """The variable that says which Prometheus is asked."""
    return {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }
