"""The supervisor: brings a data folder's server up, keeps it up, takes it down.

Who reaches the socket is superuser without a password. That is no weakness here: the socket's
folder is closed to everybody who could not as well read and change the data files themselves, so
a password would only be one more secret to keep beside them.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

from farebox.embedded_postgres import postmaster, sockets
from farebox.embedded_postgres.cluster import choose_binaries, choose_identity, make_cluster, wait_for_leftovers
from farebox.embedded_postgres.errors import EmbeddedPostgresError
from farebox.embedded_postgres.folder import DataFolder, give
from farebox.embedded_postgres.programs import Host, Programs

START_TIMEOUT_S = 60.0
"""From starting the server to its first connection, crash recovery included; past it, start() gives up."""
STOP_TIMEOUT_S = 20.0
"""For a fast shutdown (with checkpoint); past it, an immediate one, from which the next start recovers."""
KILL_TIMEOUT_S = 10.0
"""For the immediate shutdown; past it the server is killed."""
IN_USE_WAIT_S = 5.0
"""How long start() waits for another farebox to give the folder up: it may be stopping."""
LEFTOVER_WAIT_S = 20.0
"""How long a start waits for the server of a killed farebox, or what a killed server left, to end."""
RESTART_DELAY_S = 0.1
"""Before the first restart; doubled for each that follows soon, up to RESTART_DELAY_S_MAX."""
RESTART_DELAY_S_MAX = 30.0
STEADY_S = 60.0
"""A server that ran this long has recovered: the next restart is quick again."""
LOG_CHECK_S = 60.0
CONNECTIONS_MAX = 100
"""PostgreSQL's own default, left as it is (or as postgresql.conf has it) unless more are asked for."""
_POLL_S = 0.02


class EmbeddedPostgres:
    """One data folder served by a PostgreSQL of our own: database and superuser are both named farebox.

    Used from one event loop, on a thread that lives as long as the server should. start() and
    stop() may each be called again; both raise only EmbeddedPostgresError.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Path | None = None,
        log: FilteringBoundLogger | None = None,
        host: Host | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        in_use_wait_s: float = IN_USE_WAIT_S,
        leftover_wait_s: float = LEFTOVER_WAIT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """`binaries` is a bin folder to use instead of searching for one."""
        self._folder = DataFolder(data_dir)
        self._explicit = binaries
        self._log: FilteringBoundLogger = log if log is not None else structlog.get_logger()
        self._host = host or Host.here()
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._in_use_wait_s = in_use_wait_s
        self._leftover_wait_s = leftover_wait_s
        self._connections_max = connections_max
        self._programs: Programs | None = None
        self._socket: Path | None = None
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._restarts = 0

    @property
    def dsn(self) -> str:
        """A URL for asyncpg and libpq; the same for as long as this object is started."""
        if self._socket is None:
            raise EmbeddedPostgresError("the embedded database is not started")
        return sockets.dsn(self._socket)

    @property
    def restarts(self) -> int:
        """How often the server came back after it had ended by itself."""
        return self._restarts

    async def start(self) -> None:
        """Bring the server up, making the cluster at the first start; returns when it takes connections.

        Raises EmbeddedPostgresError, whose text says what to do; then nothing is left running or locked.
        """
        if self._keeper is not None:
            return
        try:
            await self._take_folder()
        except OSError as error:
            raise self._unusable(error) from None
        try:
            await self._prepare()
            async with asyncio.timeout(self._start_timeout_s):
                await self._launch()
        except BaseException as error:
            await self._take_down()
            if isinstance(error, TimeoutError):
                raise EmbeddedPostgresError(
                    f"the embedded database did not come up within {self._start_timeout_s:g} s; see {self._folder.log}"
                ) from None
            if isinstance(error, OSError):
                raise self._unusable(error) from None
            raise
        self._keeper = asyncio.create_task(self._keep(), name="embedded-postgres")

    async def stop(self) -> None:
        """Shut the server down and give the folder up. Takes at most STOP_TIMEOUT_S + 2 * KILL_TIMEOUT_S."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._take_down()

    # ---- before the server

    async def _take_folder(self) -> None:
        self._folder.make()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._in_use_wait_s
        while (holder := self._folder.lock()) is not None:
            if loop.time() >= deadline:
                raise EmbeddedPostgresError(
                    f"data folder {self._folder.path} is in use by another farebox ({holder}): "
                    "stop that one, or give this one another database.data_dir"
                )
            await asyncio.sleep(_POLL_S)

    async def _prepare(self) -> None:
        binaries = await choose_binaries(self._folder, self._explicit)
        self._programs = Programs(self._host, binaries.bin_dir)
        self._programs.settle(await choose_identity(self._programs, self._host, self._folder))
        if self._folder.major() is None:
            self._log.info("making the embedded database", path=str(self._folder.pgdata), postgres=binaries.version)
            await make_cluster(self._programs, self._folder, binaries.version)
        await wait_for_leftovers(self._folder.pgdata, self._leftover_wait_s)
        await asyncio.to_thread(give, self._folder.pgdata, self._programs.identity)
        self._socket = sockets.place_socket(self._folder.path, self._host.temporary)
        self._open_socket_folder(self._socket)

    def _open_socket_folder(self, folder: Path) -> None:
        identity = self._running.identity
        if identity.bare and folder.parent != self._folder.path:
            folder.parent.chmod(0o711)
        # Under the lock and without occupants these are nobody's; a stale lock with a reused pid would block.
        for name in (sockets.SOCKET_NAME, f"{sockets.SOCKET_NAME}.lock"):
            (folder / name).unlink(missing_ok=True)
        give(folder, identity)

    # ---- the server

    @property
    def _running(self) -> Programs:
        if self._programs is None:
            raise EmbeddedPostgresError("the embedded database is not started")
        return self._programs

    async def _launch(self) -> None:
        """Start the server and wait, without limit, until it takes connections or has ended."""
        assert self._socket is not None
        await asyncio.to_thread(self._folder.bound_log)
        said_before = self._folder.log_size()
        began = asyncio.get_running_loop().time()
        output = self._folder.open_log()
        try:
            self._process = await self._running.start("postgres", *self._arguments(self._socket), output=output)
        finally:
            os.close(output)
        while not self._takes_connections(self._socket):
            if self._process.returncode is not None:
                raise EmbeddedPostgresError(
                    f"the embedded database ended while starting (exit {self._process.returncode}); "
                    f"{self._folder.log} says: {self._folder.tail(said_before)}"
                )
            await asyncio.sleep(_POLL_S)
        took = asyncio.get_running_loop().time() - began
        self._log.info("embedded database ready", socket=str(self._socket), start_s=round(took, 3))

    def _arguments(self, socket_folder: Path) -> list[str]:
        # What must hold whatever postgresql.conf says.
        settings = {
            "listen_addresses": "",
            "port": str(sockets.PORT),
            "unix_socket_directories": str(socket_folder),
            "unix_socket_permissions": "0700",
            "fsync": "on",
            "logging_collector": "off",
            "log_destination": "stderr",
            # Details and statements quote rows; the log is for the server's own state.
            "log_error_verbosity": "terse",
            "log_min_error_statement": "panic",
        }
        if self._connections_max > CONNECTIONS_MAX:
            settings["max_connections"] = str(self._connections_max)
        return ["-D", str(self._folder.pgdata), *(p for k, v in settings.items() for p in ("-c", f"{k}={v}"))]

    def _takes_connections(self, socket_folder: Path) -> bool:
        # The socket first: while it answers, postmaster.pid is of the server that holds it.
        if not postmaster.accepts(socket_folder):
            return False
        found = postmaster.read_postmaster_file(self._folder.pgdata)
        return found is not None and found.ready

    async def _keep(self) -> None:
        """Start the server again whenever it ends by itself."""
        loop = asyncio.get_running_loop()
        delay_s = RESTART_DELAY_S
        while True:
            began = loop.time()
            code = await self._until_ended()
            delay_s = RESTART_DELAY_S if loop.time() - began > STEADY_S else delay_s
            self._log.warning("embedded database ended by itself", exit=code, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_DELAY_S_MAX)
            try:
                await self._relaunch()
            except Exception as error:
                # Whatever it was: a supervisor that ends leaves nobody to try again.
                self._log.error("embedded database does not start", error=type(error).__name__, reason=str(error))
            else:
                self._restarts += 1

    async def _until_ended(self) -> int | None:
        process = self._process
        while process is not None and process.returncode is None:
            try:
                async with asyncio.timeout(LOG_CHECK_S):
                    await process.wait()
            except TimeoutError:
                await asyncio.to_thread(self._folder.bound_log)
        return process.returncode if process is not None else None

    async def _relaunch(self) -> None:
        assert self._socket is not None
        await wait_for_leftovers(self._folder.pgdata, self._leftover_wait_s)
        sockets.make_again(self._socket, self._folder.path)
        self._open_socket_folder(self._socket)
        await self._launch()

    # ---- after the server

    async def _take_down(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await self._end(process)
        if self._socket is not None:
            sockets.discard(self._socket, self._folder.path)
            self._socket = None
        self._folder.unlock()

    async def _end(self, process: Process) -> None:
        # A guard that is killed cannot kill: it takes a second SIGQUIT for that.
        last = signal.SIGKILL if self._host.watch == "signal" else signal.SIGQUIT
        steps = ((signal.SIGINT, self._stop_timeout_s), (signal.SIGQUIT, KILL_TIMEOUT_S), (last, KILL_TIMEOUT_S))
        for number, patience_s in steps:
            if process.returncode is not None:
                return
            try:
                # The handle, not a number: it refuses once the child was reaped.
                process.send_signal(number)
                async with asyncio.timeout(patience_s):
                    await process.wait()
            except ProcessLookupError:
                await process.wait()
            except TimeoutError:
                self._log.warning("embedded database is slow to stop", after=number.name)

    def _unusable(self, error: OSError) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"data folder {self._folder.path} cannot be used: {error.strerror} ({error.filename}). "
            "Make it writable for this user, or give farebox another database.data_dir"
        )


async def running_dsn(data_dir: Path) -> str | None:
    """For commands beside a running farebox: the DSN of the database that serves `data_dir`, or None.

    Raises EmbeddedPostgresError when the folder is another user's.
    """
    return await asyncio.to_thread(postmaster.serving_dsn, data_dir)


__all__ = ["EmbeddedPostgres", "Host", "running_dsn"]
