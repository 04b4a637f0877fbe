"""The overview, in the order an operator asks: is it well, is it fast, what does it cost, is that true.

`python -m grafana.dashboard` writes `farebox-overview.json` beside this file. Every description ends with what to do.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana.budgets import budgets
from grafana.health import at_a_glance, latency, traffic
from grafana.money import cost, tokens
from grafana.panels import Json, arrange, choice, datasource
from grafana.queries import MODELLED, PROVIDED, selector
from grafana.trust import ledger, reloads, trust
from grafana.words import REQUESTS

OUTPUT = Path(__file__).with_name("farebox-overview.json")


def build() -> Json:
    """The dashboard as Grafana reads it."""
    parts = (at_a_glance, traffic, latency, cost, budgets, tokens, trust, ledger)
    return {
        "annotations": {"list": [reloads()]},
        "description": "farebox: is it well, is it fast, what does it cost, can the figures be trusted.",
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "links": [],
        "panels": arrange(panel for part in parts for panel in part()),
        "refresh": "30s",
        "schemaVersion": 39,
        "tags": ["farebox", "llm"],
        "templating": {
            "list": [
                datasource(),
                choice("provider", "Provider", f"label_values({REQUESTS}, provider)"),
                choice("model", "Model", f"label_values({selector(REQUESTS, PROVIDED)}, model)"),
                choice("key", "Key", f"label_values({selector(REQUESTS, MODELLED)}, key)"),
            ]
        },
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": "farebox: overview",
        "uid": "farebox-overview",
        "version": 1,
        "weekStart": "",
    }


def render() -> str:
    """The committed file's text."""
    return json.dumps(build(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(render(), encoding="utf-8")
