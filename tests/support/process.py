"""A farebox that is a process of its own, as operators run it: started, signalled, killed, and its words kept."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from support.http import call

_BANNER_ENDS = "Then see its row:"
_BASE_URL = re.compile(r"base_url\s+http://[^:\s]+:(\d+)/v1")
_FIRST_KEY = re.compile(r"first key\s+(fb-\w+)")
_START_S = 60.0
_END_S = 60.0
_WORKER = "farebox.worker"


class StartFailed(AssertionError):
    """farebox ended before it was up; `code` is its exit code and the text all it said."""

    def __init__(self, code: int, output: str) -> None:
        super().__init__(f"farebox ended with {code} before it was up:\n{output}")
        self.code = code
        self.output = output


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    output: str
    errors: str


class FareboxProcess:
    """One run of `farebox serve`. Everything it writes is in `output`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._pieces: list[str] = []
        self._said = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="farebox output")
        self.port = 0
        self.first_key: str | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def output(self) -> str:
        return "".join(self._pieces)

    def log(self, event: str) -> list[dict[str, Any]]:
        """The log lines whose event begins so (the config asks for JSON)."""
        lines = [json.loads(line) for line in self.output.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if str(line.get("event", "")).startswith(event)]

    async def up(self) -> None:
        """Until the banner is there. Raises StartFailed."""
        await self.says(_BANNER_ENDS, timeout_s=_START_S)
        found = _BASE_URL.search(self.output)
        assert found is not None, self.output
        self.port = int(found[1])
        key = _FIRST_KEY.search(self.output)
        self.first_key = key[1] if key else None

    async def says(self, text: str, *, timeout_s: float = 20) -> None:
        """Until its output holds `text`. Raises StartFailed when it ends without."""
        async with asyncio.timeout(timeout_s):
            while text not in self.output:
                if self._reader.done():
                    raise StartFailed(await self._process.wait(), self.output)
                self._said.clear()
                await self._said.wait()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait(self, timeout_s: float = _END_S) -> int:
        """Until it has ended by itself: its exit code (negative: the signal)."""
        async with asyncio.timeout(timeout_s):
            code = await self._process.wait()
            await self._reader
        return code

    async def stop(self, timeout_s: float = _END_S) -> int:
        """Ask it to stop; its exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait(timeout_s)

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.running:
            self._process.kill()
        await self.wait()

    def stop_listening(self) -> None:
        """Close the pipe it writes its log to: whatever it says now fails."""
        transport = self._process._transport.get_pipe_transport(2)  # type: ignore[attr-defined]
        transport.close()

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while piece := await self._process.stderr.read(65536):
            self._pieces.append(piece.decode("utf-8", "replace"))
            self._said.set()
        self._said.set()


class Installation:
    """A config in a folder, and the processes that were started with it: `async with installed(…) as farebox`."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.config = folder / "config.json"  # JSON is YAML
        self._processes: list[FareboxProcess] = []
        self.key = ""
        """The first key, once a first start has told it."""
        self.write(settings)

    def write(self, settings: dict[str, Any]) -> None:
        """Put the config there for the next start."""
        self.settings = settings
        self.config.write_text(json.dumps(settings))

    async def start(self, *arguments: str) -> FareboxProcess:
        """Start farebox and wait until it is up. Raises StartFailed."""
        process = await self.spawn(*arguments)
        await process.up()
        self.key = process.first_key or self.key
        return process

    async def spawn(self, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL) -> FareboxProcess:
        """Start farebox without waiting for anything."""
        process = FareboxProcess(
            await asyncio.create_subprocess_exec(
                *self._command("serve", *arguments),
                stdin=stdin,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        )
        self._processes.append(process)
        return process

    async def run(self, *arguments: str) -> Ran:
        """Run one command to its end."""
        process = await asyncio.create_subprocess_exec(
            *self._command(*arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_END_S):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Ran(await process.wait(), output.decode(), errors.decode())

    async def run_into_nothing(self, *arguments: str) -> Ran:
        """Run one command whose output nobody reads: the pipe is closed from the start."""
        reading, writing = os.pipe()
        os.close(reading)
        return await self._run_into(writing, *arguments)

    async def run_into_a_full_disk(self, *arguments: str) -> Ran:
        """Run one command whose output finds no room."""
        return await self._run_into(os.open("/dev/full", os.O_WRONLY), *arguments)

    async def _run_into(self, writing: int, *arguments: str) -> Ran:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(*arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.PIPE,
            )
        finally:
            os.close(writing)
        async with asyncio.timeout(_END_S):
            _, errors = await process.communicate()
        return Ran(await process.wait(), "", errors.decode())

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "farebox", *arguments, "--config", str(self.config)]

    async def close(self) -> None:
        """Nothing that was started stays."""
        for process in self._processes:
            await process.kill()


@asynccontextmanager
async def installed(folder: Path, settings: dict[str, Any]) -> AsyncIterator[Installation]:
    """An installation whose processes are gone at the end, however the test ended."""
    installation = Installation(folder, settings)
    try:
        yield installation
    finally:
        await installation.close()


async def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 20) -> None:
    """Poll until `condition` holds."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it did not come to pass within {timeout_s:g} s: {what}") from None


async def state(process: FareboxProcess, path: str) -> tuple[int, dict[str, Any]]:
    """Status and body of a probe."""
    answer = await call(process.port, path, method="GET")
    return answer.status, json.loads(answer.body)


async def until_ready(process: FareboxProcess, ready: bool, *, timeout_s: float = 20) -> dict[str, Any]:
    """Poll /readyz until it says so; what it said."""
    async with asyncio.timeout(timeout_s):
        while True:
            status, body = await state(process, "/readyz")
            if (status == 200) is ready:
                return body
            await asyncio.sleep(0.05)


def resident_kb(pid: int) -> int:
    """Memory a process holds (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"/proc/{pid}/status has no VmRSS")


def open_files(pid: int) -> int:
    """Descriptors a process holds (Linux)."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def worker_pids(pid: int) -> list[int]:
    """The workers of a supervisor that run, in the order of their start."""
    return sorted(own for own, (parent, state, args) in _processes().items() if parent == pid and state != "Z" and args)


def lives(pid: int) -> bool:
    """Whether there is such a process; one that has ended and waits to be reaped by somebody is none."""
    _, state, _ = _processes().get(pid, (0, "Z", False))
    return state != "Z"


def _processes() -> dict[int, tuple[int, str, bool]]:
    """pid -> (parent, first letter of the state, whether it is a worker). From /proc, or `ps` where there is none."""
    found: dict[int, tuple[int, str, bool]] = {}
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-A", "-o", "pid=,ppid=,stat=,args="]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            own, parent, state, args = (*line.split(maxsplit=3), "")[:4]
            found[int(own)] = (int(parent), state[:1], _WORKER in args)
        return found
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            found[int(folder.name)] = (int(parent), state, _WORKER in (folder / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue  # it has ended meanwhile
    return found


def embedded_postgres_pid(data_dir: Path) -> int | None:
    """The postmaster of an embedded database, as its own file says; None while there is none."""
    try:
        return int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
