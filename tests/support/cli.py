"""The `farebox` command in this process, its two outputs and its exit code told apart."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from farebox import cli
from support.process import Ran


class Cli:
    """`cli(...)` runs one command to its end. In a test with a loop: `await cli.aside(...)`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.config: Path | None = None
        """Given to every command, if there is one."""

    def __call__(self, *argv: str) -> Ran:
        if self.config is not None:
            argv = (*argv, "--config", str(self.config))
        self._capsys.readouterr()
        try:
            code = cli.main(argv)
        except SystemExit as exc:  # argparse's way out
            code = int(exc.code or 0)
        out, err = self._capsys.readouterr()
        return Ran(code, out, err)

    async def aside(self, *argv: str) -> Ran:
        """The same in a thread: commands bring a loop of their own."""
        return await asyncio.to_thread(self, *argv)

    async def json(self, *argv: str) -> Any:
        """What a command that works prints with --format json."""
        ran = await self.aside(*argv, "--format", "json")
        assert ran.code == 0, ran
        return json.loads(ran.output)

    def configured(self, path: Path, settings: dict[str, Any]) -> None:
        """Write a config that every command is given from now on."""
        path.write_text(json.dumps(settings))  # JSON is YAML
        self.config = path


def commands(capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """A `Cli` whose changes to the process's logging are undone."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    libraries = [logging.getLogger(f"aiohttp.{name}") for name in ("server", "web", "access", "internal")]
    states = [(library, library.handlers[:], library.propagate) for library in libraries]
    yield Cli(capsys)
    structlog.configure(**before)
    root.handlers[:], root.level = handlers, level
    for library, its_handlers, propagate in states:
        library.handlers[:], library.propagate = its_handlers, propagate
