"""A newcomer's first minutes, for real: a fresh clone, `make run`, the printed curl line, the row, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOMEBODY = 54321
"""A user who is neither root nor known to the system."""
INSTALL_S = 900
START_S = 60
EVERYBODYS_PATH = "/usr/local/bin:/usr/bin:/bin"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a clone: there is nothing to clone"),
    *(
        pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")
        for program in ("git", "make", "curl", "bash")
    ),
]


class Newcomer:
    """Somebody at a fresh clone under a home of mode 0700, and what they run there."""

    def __init__(self, home: Path, uid: int | None) -> None:
        self.home = home
        self.uid = uid
        self.clone = home / "farebox"

    def prepare(self) -> None:
        """Clone this repository as it is committed."""
        clone = ["git", "clone", "-q", "--depth", "1", ROOT.as_uri(), str(self.clone)]
        subprocess.run(clone, check=True)
        if self.uid is not None:
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, self.uid, self.uid, follow_symlinks=False)
        assert self.home.stat().st_mode & 0o777 == 0o700

    def environment(self) -> dict[str, str]:
        """This machine's, as far as it is needed to install, and a home of their own."""
        if self.uid is None:
            # The virtual environment that runs this test is not part of their world.
            kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
            kept.setdefault("PIP_CACHE_DIR", pip("cache", "dir").strip())
            places = os.environ.get("PATH", os.defpath).split(os.pathsep)
            kept["PATH"] = os.pathsep.join(place for place in places if Path(place) != Path(sys.executable).parent)
        else:
            kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LC_"))}
            kept |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
            kept["PATH"] = EVERYBODYS_PATH
        return {**pip_settings(), **kept, "HOME": str(self.home), "TERM": "dumb"}

    async def begin(self, *command: str) -> asyncio.subprocess.Process:
        """Start a command in the clone, in a process group of its own, as a terminal does."""
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=self.clone,
            env=self.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            **({} if self.uid is None else {"user": self.uid, "group": self.uid, "extra_groups": []}),
        )

    async def run(self, command: str) -> str:
        """What one shell command prints; it has to work."""
        process = await self.begin("bash", "-c", command)
        async with asyncio.timeout(START_S):
            output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    def left_over(self) -> list[str]:
        """Processes that still run something of this home, or in it."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    place = os.readlink(process / "cwd")
                except OSError:
                    continue
                if str(self.home) in words or place.startswith(str(self.home)):
                    found.append(f"{process.name} {words}")
        return found


def pip(*words: str) -> str:
    ran = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    return ran.stdout


def pip_settings() -> dict[str, str]:
    """Where this machine installs from, as variables: another user can't read everybody's pip.conf."""
    settings = {}
    for line in pip("config", "list").splitlines():
        name, sign, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if sign and section in ("global", "install"):
            settings["PIP_" + option.upper().replace("-", "_")] = value.strip("'\"").replace("\\n", " ")
    return settings


@contextmanager
def newcomer(uid: int | None) -> Iterator[Newcomer]:
    """A newcomer whose home is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="farebox-newcomer-", dir="/tmp"))
    try:
        home.chmod(0o700)
        somebody = Newcomer(home, uid)
        somebody.prepare()
        yield somebody
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def until_said(process: asyncio.subprocess.Process, text: str, timeout_s: float) -> str:
    """All that a process printed, once a line with `text` is among it."""
    assert process.stdout is not None
    heard = ""
    async with asyncio.timeout(timeout_s):
        while not re.search(re.escape(text) + ".*\n", heard):
            piece = await process.stdout.read(4096)
            if not piece:
                if re.search(r"No matching distribution|Could not fetch|ConnectionError|Temporary failure", heard):
                    pytest.skip(f"nothing can be installed here: {heard[-500:]}")
                raise AssertionError(f"it ended with {await process.wait()}:\n{heard}")
            heard += piece.decode(errors="replace")
    return heard


def taken(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def first_minutes(somebody: Newcomer, *make: str) -> None:
    """From `make run` to Ctrl-C."""
    farebox = await somebody.begin("make", "run", *make)
    try:
        banner = await until_said(farebox, "Then see its row:", INSTALL_S)
        tried = re.search(r"Try it:\n\n(.*?)\n\nThen see its row:  (.*)\n", banner, re.DOTALL)
        assert tried is not None, banner
        curl, usage = tried[1].strip(), tried[2].strip()
        assert re.search(r"first key +fb-\w{38} ", banner)
        token = re.search(r"admin token +in (\S+)\n", banner)
        assert token is not None
        assert (somebody.clone / token[1]).stat().st_mode & 0o777 == 0o600

        asked = await somebody.begin("bash", "-c", curl)
        said = await until_said(asked, "data: ", START_S)
        assert asked.returncode is None, "the first words come while the rest is still to be said"
        assert asked.stdout is not None
        said += (await asked.stdout.read()).decode()
        assert await asked.wait() == 0
        assert "[farebox" in said and "echo" in said
        assert "data: [DONE]" in said
        assert '"choices":[],' not in said, "nobody asked for the usage frame"

        table = await somebody.run(usage)
        assert "farebox-demo" in table
        (row,) = json.loads(await somebody.run(f"{usage} --format json"))
        assert (row["key_name"], row["provider"], row["outcome"]) == ("first", "demo", "complete")
        assert row["input_tokens"] > 0 and row["output_tokens"] > 0
        assert row["usage_source"] == "provider"

        os.killpg(farebox.pid, signal.SIGINT)
        assert farebox.stdout is not None
        async with asyncio.timeout(START_S):
            rest = (await farebox.stdout.read()).decode()
            await farebox.wait()
        assert "stopped" in rest, rest
        assert "Traceback" not in rest
    finally:
        if farebox.returncode is None:
            os.killpg(farebox.pid, signal.SIGKILL)
            await farebox.wait()
    if Path("/proc/self").exists():
        async with asyncio.timeout(START_S):
            while somebody.left_over():
                await asyncio.sleep(0.1)
    written = {path.name for path in somebody.home.iterdir() if not path.name.startswith(".")}
    assert written == {"farebox"}, "it keeps to its folder"


async def test_two_commands_are_enough() -> None:
    """Clone and `make run` under a 0700 home: the printed line streams, its row is there, Ctrl-C leaves nothing."""
    with newcomer(None) as somebody:
        await first_minutes(somebody, *(["ARGS=--port 0"] if taken(8787) else []))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_somebody_without_any_rights_can_do_the_same() -> None:
    """The same for a user with no rights, no name and nothing but a home."""
    python = shutil.which("python3", path=EVERYBODYS_PATH)
    able = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    if python is None or subprocess.run([python, "-c", able], check=False).returncode:
        pytest.skip("this system has no Python 3.11 with venv that everybody may use")
    with newcomer(SOMEBODY) as somebody:
        await first_minutes(somebody, "ARGS=--port 0")
