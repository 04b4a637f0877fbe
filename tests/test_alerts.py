"""The alert rules: each is a rule, says what to do, fires when it should and only then."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import promql

GRAFANA = Path(__file__).resolve().parent.parent / "grafana"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
TESTS: list[dict[str, Any]] = yaml.safe_load((GRAFANA / "alerts_test.yml").read_text())["tests"]

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*words: str) -> str:
    """What a promtool command says; it has to be content."""
    ran = subprocess.run(["promtool", *words], cwd=GRAFANA, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@needs_promtool
def test_prometheus_accepts_the_rules() -> None:
    """Every rule and every text template in it is well-formed."""
    assert f"SUCCESS: {len(RULES)} rules found" in promtool("check", "rules", "alerts.yml")


@pytest.mark.long
@needs_promtool
def test_each_fires_when_it_should_and_only_then() -> None:
    """The unit tests of the rules pass: a quiet day raises nothing, each trouble raises its alert and no other."""
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_each_is_shown_firing() -> None:
    """No rule is without a unit test in which it fires."""
    expected = {
        re.search(r'alertname="(\w+)"', sample["labels"])[1]  # type: ignore[index]
        for test in TESTS
        for question in test["promql_expr_test"]
        for sample in question["exp_samples"]
    }
    assert expected == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_says_what_to_do(rule: dict[str, Any]) -> None:
    """An alert has a severity, a summary of one line that names what it is about, and a description with a way out."""
    assert rule["labels"]["severity"] in ("warning", "critical")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description"}
    assert len(notes["summary"]) < 120 and "\n" not in notes["summary"]
    assert len(notes["description"]) > 150
    # A file, command, setting or panel to turn to.
    assert re.search(r"farebox \w+|/\w+z\b|\w+\.\w+_\w+|Dashboard|scrape_configs|SIGHUP", notes["description"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_asks_for_what_farebox_has(rule: dict[str, Any]) -> None:
    """Metrics, labels and their values in the rules are those that farebox exposes."""
    assert list(promql.faults(rule["expr"])) == []
