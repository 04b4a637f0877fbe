"""Processes of the benchmark: started on a core of their own, and what they use, read from /proc (Linux)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 60.0
_STOP_S = 15.0
_QUIET_S = 0.5
PYTHON = sys.executable
CORES = sorted(os.sched_getaffinity(0))
"""Those this process may use. The last is the proxy's alone, all others are everything else's; with one, they share."""


def keep_to(cores: Sequence[int]) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, cores)


def start(command: Sequence[str], cores: Sequence[int], log: Path, env: Mapping[str, str] | None = None) -> Process:
    """A process on these cores that writes to `log`. Python keeps its bytecode, as where a package is installed."""
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(log.parent / "bytecode")}
    with log.open("ab") as out:
        return Process(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **kept, **(env or {})},
                preexec_fn=keep_to(cores),
                start_new_session=True,
            )
        )


class Process:
    """One that was started here, with its children."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def until_listening(self, port: int) -> None:
        """Return when somebody listens there. Raises RuntimeError when the process ends or nobody does."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if self.ended:
                raise RuntimeError(f"it ended with {self._process.returncode}")
            try:
                socket.create_connection(("127.0.0.1", port), 0.5).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise RuntimeError(f"nothing listens on {port}")

    def until_quiet(self) -> None:
        """Return when it does next to nothing: what it still loaded in the background is there."""
        end = time.monotonic() + _START_S
        before, now = -1.0, cpu_s(self.pid)
        while now - before > _QUIET_S / 10 and time.monotonic() < end:
            time.sleep(_QUIET_S)
            before, now = now, cpu_s(self.pid)

    def pause(self, paused: bool) -> None:
        """Stop it for the turn of another, or let it go on."""
        for pid in tree(self.pid):
            os.kill(pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL, to it and its children."""
        pids = tree(self.pid)
        self.pause(False)
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._process.wait()


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent, and clock ticks of the process and of the children it has reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), sum(map(int, fields[11:15]))


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    parents = {int(name): stat[0] for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(int(name)))}
    found = [pid] if pid in parents else []
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu_s(pid: int) -> float:
    """User and system time of a process and all below it."""
    return sum(stat[1] for one in tree(pid) if (stat := _stat(one))) / _TICKS


def machine_busy_s() -> float:
    """Time of all cores that processes or a hypervisor took; not that of interrupts, which is no process' own."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields[:3] + fields[7:]) / _TICKS


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    """Memory of a process and all below it: VmRSS now, VmHWM at most so far."""
    total = 0
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
    return total / 1024


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew."""
    for one in tree(pid):
        try:
            Path(f"/proc/{one}/clear_refs").write_text("5")
        except OSError:
            pass


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
