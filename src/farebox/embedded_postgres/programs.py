"""Starting PostgreSQL's programs: which interpreter and which tie to our life, in which environment."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from farebox.embedded_postgres.errors import EmbeddedPostgresError
from farebox.embedded_postgres.identity import Identity, identities, is_named, spare_account
from farebox.embedded_postgres.sockets import temporary_folders

LAUNCHER = Path(__file__).with_name("launch.py")
OUTPUT_CHARS_MAX = 2000
"""How much of a failed program's output an error quotes, from its end."""
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine offers. `identities` empty: choose by who we are. See launch.py for `watch`."""

    python: str
    watch: Literal["signal", "pipe"]
    temporary: tuple[Path, ...]
    environ: Mapping[str, str]
    identities: tuple[str, ...] = ()

    @classmethod
    def here(cls) -> Host:
        """The machine as it is."""
        signals = sys.platform == "linux" and importlib.util.find_spec("_ctypes") is not None
        return cls(
            python=sys.executable,
            watch="signal" if signals else "pipe",
            temporary=tuple(temporary_folders(os.environ)),
            # Nothing else: provider keys are in our environment, and PGDATA and its kin would steer the server.
            environ={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )

    def identities_for(self, owner: tuple[int, int] | None) -> list[str]:
        """Ways to run PostgreSQL here on data of `owner` (uid, gid; None: no data yet), best first."""
        if self.identities:
            return list(self.identities)
        uid = os.geteuid()
        linux = sys.platform == "linux"
        return identities(euid=uid, named=is_named(uid), owner=owner, linux=linux, spare=spare_account())


class Programs:
    """Starts programs out of one bin folder. Use from the event loop's thread: see launch.py on `signal`."""

    def __init__(self, host: Host, bin_dir: Path) -> None:
        self._host = host
        self._bin_dir = bin_dir
        self._identity: Identity | None = None

    @property
    def identity(self) -> Identity:
        """Who programs run as, once chosen."""
        if self._identity is None:
            raise EmbeddedPostgresError("the embedded database was not prepared")
        return self._identity

    def settle(self, identity: Identity) -> None:
        """Run programs as `identity` from now on."""
        self._identity = identity

    async def start(self, name: str, *arguments: str, output: int, text: str = "") -> Process:
        """Start one program, tied to our life; `output` is a descriptor or PIPE, `text` its standard input."""
        return await self._spawn(
            "run", str(os.getpid()), self._host.watch, self.identity.text, text, "--", self._path(name), *arguments,
            output=output,
        )  # fmt: skip

    async def finish(self, name: str, *arguments: str, text: str = "", timeout_s: float) -> None:
        """Run one program to its end. Raises EmbeddedPostgresError, with the end of its output, if it fails."""
        process = await self.start(name, *arguments, output=PIPE, text=text)
        said = await _until_end(process, name, timeout_s)
        if process.returncode != 0:
            raise EmbeddedPostgresError(f"{name} failed: {said}")

    async def try_identity(self, identity: Identity, folder: Path, timeout_s: float) -> str | None:
        """None if `identity` can be had, reaches `folder` and runs `postgres`; else the reason."""
        process = await self._spawn(
            "probe", identity.text, "--", str(folder), self._path("postgres"), "--version", output=PIPE
        )
        said = await _until_end(process, "postgres --version", timeout_s)
        return None if process.returncode == 0 else said

    def _path(self, name: str) -> str:
        return str(self._bin_dir / name)

    async def _spawn(self, *arguments: str, output: int) -> Process:
        return await asyncio.create_subprocess_exec(
            # Isolated: no site packages, no PYTHON* variables. Starts in a few milliseconds.
            *(self._host.python, "-I", "-S", str(LAUNCHER), *arguments),
            # With `pipe`, only this process holds the other end, so it closes when we die.
            stdin=PIPE if self._host.watch == "pipe" else DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env={**self._host.environ, **_environment()},
            cwd="/",
            # Out of the terminal's process group: Ctrl-C is farebox's to handle, the database goes last.
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C",
        "TZ": "UTC",
        # With a guard between us and the server: see postmaster.disown_stale_pid.
        "PG_GRANDPARENT_PID": str(os.getpid()),
    }


async def _until_end(process: Process, name: str, timeout_s: float) -> str:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            # Reading rather than communicate(), which would close the guard's pipe.
            said = await process.stdout.read()
            await process.wait()
    except TimeoutError:
        raise EmbeddedPostgresError(f"{name} did not end within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.terminate()
    return said.decode("utf-8", "replace").strip()[-OUTPUT_CHARS_MAX:]
