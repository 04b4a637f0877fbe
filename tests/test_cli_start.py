"""What a command takes to start: its own module, and of what others need as little as can be."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import farebox.cli
from farebox.cli import parser


def _imported(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code`."""
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(said.stdout.split())


@pytest.mark.parametrize(
    "code", ["import farebox.cli; farebox.cli.parser('serve')", "import farebox.worker"], ids=["serve", "worker"]
)
def test_who_serves_does_without_what_prints_tables(code: str) -> None:
    """Neither rich, which structlog would bring along, nor other commands are imported by what serves."""
    found = _imported(code)
    assert "structlog" in found
    assert not {name for name in found if name.partition(".")[0] in ("rich", "pygments")}
    assert "farebox.cli.top" not in found


def test_rich_is_there_for_who_wants_it() -> None:
    """It was kept from structlog alone."""
    assert {"structlog", "rich.table"} <= _imported("import farebox.cli; farebox.cli.parser('top')")


def test_each_command_is_known_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone and among the others it is the same, and every module with a command is among them."""
    whole = parser().format_help()
    names = [line.split()[0] for line in whole.splitlines() if line.startswith("    ") and line[4] != " "]
    assert len(names) == 13
    for name in names:
        helps = []
        for line in (parser(name), parser()):
            with pytest.raises(SystemExit):
                line.parse_args([name, "--help"])
            helps.append(capsys.readouterr().out)
        assert helps[0] == helps[1]
    with pytest.raises(SystemExit):
        parser("nonsense").parse_args(["nonsense"])
    assert "serve" in capsys.readouterr().err
    modules = [
        importlib.import_module(f"farebox.cli.{found.name}") for found in pkgutil.iter_modules(farebox.cli.__path__)
    ]
    unlisted = [one.__name__ for one in modules if hasattr(one, "add") and one.__name__ != "farebox.cli.reprice"]
    assert {name.rpartition(".")[2] for name in unlisted} == set(farebox.cli._MODULES.values())
