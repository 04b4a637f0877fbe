"""An SDK's `talk` script as a process: a line asks for an act, a line says what the SDK saw of it."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from lineup.install import Environment

ANSWER_S_MAX = 120
"""Longest one act may take, the SDK's import included."""
_LINE_BYTES_MAX = 1 << 20


class Talker:
    """One running script. Its errors and warnings are kept: an SDK that is content writes none."""

    def __init__(self, process: asyncio.subprocess.Process, words: Any) -> None:
        self._process = process
        self._words = words

    async def saw(self, **act: Any) -> dict[str, Any]:
        """What the SDK saw of one act."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(act).encode() + b"\n")
        async with asyncio.timeout(ANSWER_S_MAX):
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        assert line, f"the script ended:\n{self.said()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def said(self) -> str:
        """All it wrote on stderr so far."""
        self._words.seek(0)
        text: str = self._words.read().decode()
        return text


@asynccontextmanager
async def talking(environment: Environment) -> AsyncIterator[Talker]:
    """The script in its own environment, knowing nothing of this process's: no keys, no proxies, no tracing."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with tempfile.TemporaryFile() as words:
        process = await asyncio.create_subprocess_exec(
            *environment.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=words,
            env=env,
            limit=_LINE_BYTES_MAX,
        )
        try:
            yield Talker(process, words)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()
