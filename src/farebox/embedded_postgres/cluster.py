"""What happens before the server starts: which programs, as whom, making the cluster, waiting for leftovers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from farebox.embedded_postgres import postmaster
from farebox.embedded_postgres.binaries import Binaries, find_binaries
from farebox.embedded_postgres.errors import EmbeddedPostgresError
from farebox.embedded_postgres.folder import DataFolder, give
from farebox.embedded_postgres.identity import Identity
from farebox.embedded_postgres.programs import Host, Programs

INITDB_TIMEOUT_S = 120.0
"""For each of the two steps of making a cluster; mostly the disk's time."""
PROBE_TIMEOUT_S = 20.0
"""For trying one way to run PostgreSQL."""
_POLL_S = 0.1


async def choose_binaries(folder: DataFolder, explicit: Path | None) -> Binaries:
    """Programs that fit the folder's cluster. Raises EmbeddedPostgresError when its version is another one."""
    major = folder.major()
    binaries = await asyncio.to_thread(find_binaries, explicit, major=major)
    if major is not None and binaries.version != major:
        raise EmbeddedPostgresError(
            f"data folder {folder.pgdata} was made by PostgreSQL {major}, but the programs found "
            f"({binaries.bin_dir}) are PostgreSQL {binaries.version}: install PostgreSQL {major} beside them, "
            "or upgrade the folder with pg_upgrade, or give farebox another database.data_dir"
        )
    return binaries


async def choose_identity(programs: Programs, host: Host, folder: DataFolder) -> Identity:
    """The first way to run PostgreSQL that works here. Raises EmbeddedPostgresError, listing them, if none does."""
    reasons = []
    for text in host.identities_for(folder.owner()):
        identity = Identity.parse(text)
        if text == "plain":
            return identity
        folder.open_door(identity)
        reason = await programs.try_identity(identity, folder.path, PROBE_TIMEOUT_S)
        if reason is None:
            return identity
        reasons.append(f"{text.partition(':')[0]}: {reason}")
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root, and no other way works here: run farebox as an ordinary user, or keep it "
        "and database.data_dir where every user may pass (not below a home of mode 0700), "
        f"or set database.url. Tried {'; '.join(reasons)}"
    )


async def make_cluster(programs: Programs, folder: DataFolder, major: int) -> None:
    """initdb and CREATE DATABASE under a passing name, then a rename: a crash leaves no half cluster."""
    fresh = await asyncio.to_thread(folder.fresh)
    give(fresh, programs.identity)
    # The builtin provider sorts alike on every system; not every C library has a C.UTF-8 of its own.
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []
    await programs.finish(
        *("initdb", "-D", str(fresh), "-U", "farebox", "--encoding=UTF8", "--locale=C", *locale),
        *("--auth-local=trust", "--auth-host=reject", "--data-checksums", "--no-instructions"),
        timeout_s=INITDB_TIMEOUT_S,
    )
    folder.configure(fresh)
    await programs.finish(
        *("postgres", "--single", "-D", str(fresh), "-c", "exit_on_error=on", "template1"),
        text="CREATE DATABASE farebox;\n",
        timeout_s=INITDB_TIMEOUT_S,
    )
    folder.adopt(fresh)


async def wait_for_leftovers(pgdata: Path, wait_s: float) -> None:
    """Wait until nothing of an earlier server is at work in the cluster, then unblock a stale postmaster.pid.

    Raises EmbeddedPostgresError after `wait_s`: then somebody else's server runs there.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while pids := await asyncio.to_thread(postmaster.occupants, pgdata):
        if loop.time() >= deadline:
            raise EmbeddedPostgresError(
                f"a PostgreSQL server (process {pids[0]}) that is not this farebox's runs on {pgdata}: "
                f"stop it (kill -INT {pids[0]}), or give farebox another database.data_dir"
            )
        await asyncio.sleep(_POLL_S)
    postmaster.disown_stale_pid(pgdata)
