"""Runs one of PostgreSQL's programs so that it cannot outlive farebox and is never root.

A program of its own, run by path as `python -I -S launch.py`, standard library only:

    launch.py probe IDENTITY -- FOLDER PROGRAM ARGS…
                                      can IDENTITY reach FOLDER and run PROGRAM?
    launch.py run PARENT WATCH IDENTITY TEXT -- PROGRAM ARGS…
                                      be PROGRAM (WATCH signal), or guard it (WATCH pipe); TEXT is its input

Why not `preexec_fn`: it runs Python between fork and exec in a process that had threads, where any
lock another thread held stays locked for ever. This is a fresh interpreter with one thread, so it
may fork, load libc and change ids, and farebox's own spawn stays a plain fork and exec.

IDENTITY, since PostgreSQL refuses to run as root:

- `plain`: as we are.
- `namespace:UID`: a user namespace in which our id appears as UID. Files stay ours on disk.
- `dropped:UID:GID`: become that id, keeping one capability that lets it pass through folders
  closed to others (a clone under /root, mode 0700).
- `bare:UID:GID`: the same without the capability, where the system grants none.

WATCH, what happens when farebox dies without a word:

- `signal` (Linux): the kernel sends this process SIGINT, a fast shutdown, when the *thread* that
  started it ends. The program replaces the launcher, so its pid is the one farebox holds.
- `pipe` (elsewhere): the launcher stays as a guard. Its standard input is a pipe that only farebox
  holds open; at end of file the guard stops the program. Signals sent to the guard are passed on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

FAST_STOP_S = 20.0
"""How long the guard gives a fast shutdown, once farebox is gone, before an immediate one."""
IMMEDIATE_STOP_S = 10.0
"""How long the guard gives an immediate shutdown before it kills."""
EXIT_UNABLE = 70
"""Exit status when the program was not started: identity not available, or farebox already gone."""

Extent = tuple[int, int, int]
"""One line of a uid_map: first id inside, first id outside, how many."""

_NO_CTYPES = "this Python cannot make Linux's own system calls (it was built without ctypes)"
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def swapped(held: Iterable[tuple[int, int]], a: int, b: int) -> list[Extent]:
    """The map that shows every id of `held` (first, count) as itself, except that `a` and `b` trade places.

    Everything stays mapped because a capability inside a user namespace counts only for files
    whose owner is mapped there.
    """
    extents: list[Extent] = []
    present: set[int] = set()
    for first, count in held:
        end = first + count
        cuts = sorted(i for i in {a, b} if first <= i < end)
        present.update(cuts)
        for cut in [*cuts, end]:
            if cut > first:
                extents.append((first, first, cut - first))
            first = cut + 1
    extents += [(inside, outside, 1) for inside, outside in ((a, b), (b, a)) if outside in present]
    # Two lines are one when only one id was asked for.
    return list(dict.fromkeys(extents))


class _Linux:
    """The three system calls that Python has no name for (in all versions we run on)."""

    def __init__(self, ctypes: Any) -> None:
        self._ctypes = ctypes
        self._libc: Any = ctypes.CDLL(None, use_errno=True)

    def unshare_user(self) -> None:
        self._check(self._libc.unshare(_CLONE_NEWUSER), "unshare")

    def prctl(self, option: int, value: int, argument: int = 0) -> None:
        number = self._ctypes.c_ulong
        self._check(self._libc.prctl(option, number(value), number(argument), number(0), number(0)), "prctl")

    def keep_only(self, capability: int) -> bool:
        """Give up every capability but this one, which then survives exec. False when it is not ours to keep."""
        header = (self._ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        sets = (self._ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their high halves
        self._check(self._libc.capget(header, sets), "capget")
        kept = sets[1] & (1 << capability)
        if not kept:
            return False
        sets[:] = [kept, kept, kept, 0, 0, 0]
        self._check(self._libc.capset(header, sets), "capset")
        self.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
        return True

    def _check(self, result: int, name: str) -> None:
        if result != 0:
            code = self._ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")


def _linux() -> _Linux | None:
    """None where there is no Linux, or no ctypes (absent from some builds of Python)."""
    try:
        import ctypes
    except ImportError:
        return None
    return _Linux(ctypes) if sys.platform == "linux" else None


def assume(identity: str, linux: _Linux | None) -> None:
    """Become `identity`, with exactly the rights the program will have after exec. Raises OSError."""
    kind, *ids = identity.split(":")
    if kind == "plain":
        return
    if kind == "bare":
        _become(int(ids[0]), int(ids[1]))
    elif linux is None:
        raise OSError(_NO_CTYPES)
    elif kind == "namespace":
        _enter_namespace(linux, int(ids[0]))
    else:
        linux.prctl(_PR_SET_KEEPCAPS, 1)
        _become(int(ids[0]), int(ids[1]))
        if not (linux.keep_only(_CAP_DAC_READ_SEARCH) or linux.keep_only(_CAP_DAC_OVERRIDE)):
            raise PermissionError("no capability to pass through closed folders")


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _enter_namespace(linux: _Linux, inside: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    # Whole maps must be written from outside the namespace, by a process that kept its rights there.
    wait_end, go_end = os.pipe()
    target = os.getpid()
    writer = os.fork()
    if writer == 0:
        os.close(go_end)
        os._exit(_write_maps(target, uid, inside) if os.read(wait_end, 1) else 0)
    os.close(wait_end)
    try:
        linux.unshare_user()
        os.write(go_end, b"x")
    finally:
        os.close(go_end)
        failed = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
    # Without that right a process may still map its own single id.
    if failed & 1:
        Path("/proc/self/uid_map").write_text(f"{inside} {uid} 1")
    if failed & 2:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    linux.keep_only(_CAP_DAC_READ_SEARCH)


def _write_maps(target: int, uid: int, inside: int) -> int:
    """Bit 1 set: the uid map was refused; bit 2: the gid map."""
    failed = 0
    for bit, name, a, b in ((1, "uid_map", inside, uid), (2, "gid_map", 0, 0)):
        try:
            lines = (line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines())
            held = [(int(first), int(count)) for first, _, count in lines]
            text = "".join(f"{i} {o} {n}\n" for i, o, n in swapped(held, a, b))
            Path(f"/proc/{target}/{name}").write_text(text)
        except OSError:
            failed |= bit
    return failed


def run(parent: int, watch: str, identity: str, text: str, command: Sequence[str]) -> NoReturn:
    """Be, or guard, `command`. `parent` is farebox's pid; `text` must fit into a pipe unread (4 KiB)."""
    # Before the change of identity, which may put Python's own files out of reach.
    linux = _linux()
    assume(identity, linux)
    # A shell starts background jobs with SIGINT ignored, and ignoring is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if watch == "pipe":
        sys.exit(_guard(command, _input(text)))
    if linux is None:
        raise OSError(_NO_CTYPES)
    os.dup2(_input(text), 0)
    # Last before exec: a change of ids clears it. SIGINT is PostgreSQL's fast shutdown.
    linux.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:
        # farebox died before the request was in place, so no signal will come.
        sys.exit(EXIT_UNABLE)
    os.execv(command[0], list(command))


def _input(text: str) -> int:
    read_end, write_end = os.pipe()
    os.write(write_end, text.encode())
    os.close(write_end)
    return read_end


def _guard(command: Sequence[str], standard_input: int) -> int:
    child: subprocess.Popen[bytes] | None = None
    quitting = False

    def pass_on(number: int, _: object) -> None:
        nonlocal quitting
        if child is None:
            os._exit(EXIT_UNABLE)
        # A second SIGQUIT asks for what a guard cannot be sent without losing its child: SIGKILL.
        child.send_signal(signal.SIGKILL if quitting else number)
        quitting = number == signal.SIGQUIT

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, pass_on)
    child = subprocess.Popen(command, stdin=standard_input)
    threading.Thread(target=_stop_at_end_of_input, args=(child,), daemon=True).start()
    code = child.wait()
    return 128 - code if code < 0 else code


def _stop_at_end_of_input(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    for number, patience_s in ((signal.SIGINT, FAST_STOP_S), (signal.SIGQUIT, IMMEDIATE_STOP_S)):
        child.send_signal(number)
        try:
            child.wait(patience_s)
            return
        except subprocess.TimeoutExpired:
            continue
    child.kill()


def _probe(identity: str, folder: str, command: Sequence[str]) -> NoReturn:
    assume(identity, _linux())
    if os.geteuid() == 0:
        raise PermissionError("still root")
    os.stat(os.path.join(folder, "."))
    os.execv(command[0], list(command))


def main(arguments: Sequence[str]) -> NoReturn:
    """Entry point; `arguments` without the script's own name."""
    verb, *rest = arguments
    options, command = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    try:
        if verb == "probe":
            _probe(options[0], command[0], command[1:])
        run(int(options[0]), options[1], options[2], options[3], command)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
    sys.exit(EXIT_UNABLE)


if __name__ == "__main__":
    main(sys.argv[1:])
