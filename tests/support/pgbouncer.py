"""A real PgBouncer in transaction mode in front of a test server; tests skip where it is not installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

_WAIT_S = 20.0
_CONFIG = """
[databases]
* = host=127.0.0.1 port={port} user=farebox
[pgbouncer]
listen_port = 6543
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {server_connections}
max_client_conn = 100
"""


@asynccontextmanager
async def pgbouncer(dsn: str, *, server_connections: int) -> AsyncIterator[str]:
    """A URL that leads to the database of `dsn` over so many server connections, shared by all clients."""
    program = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    parts = urlsplit(dsn)
    place = {name: values[0] for name, values in parse_qs(parts.query).items()}
    folder = Path(tempfile.mkdtemp(prefix="farebox-test-bouncer-", dir="/tmp"))
    try:
        async with _relay(f"{place['host']}/.s.PGSQL.{place.get('port', '5432')}") as port:
            (folder / "users").write_text('"farebox" ""\n')
            config = folder / "pgbouncer.ini"
            config.write_text(_CONFIG.format(port=port, folder=folder, server_connections=server_connections))
            process = await asyncio.create_subprocess_exec(
                program, "-q", str(config), cwd="/", stderr=asyncio.subprocess.PIPE, **_not_root(folder)
            )
            try:
                through = f"postgresql://farebox@{parts.path}?host={quote(str(folder), safe='')}&port=6543"
                await _until_it_serves(through, process)
                yield through
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _not_root(folder: Path) -> dict[str, Any]:
    """PgBouncer refuses to be root: then it is nobody, and owns its folder."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@asynccontextmanager
async def _relay(socket: str) -> AsyncIterator[int]:
    """A loopback port that leads to a Unix socket which only we may open."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(socket)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _until_it_serves(dsn: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_WAIT_S):
        while True:
            try:
                connection = await asyncpg.connect(dsn, statement_cache_size=0)
            except (OSError, asyncpg.PostgresError):
                assert process.returncode is None, "pgbouncer ended at once"
                await asyncio.sleep(0.02)
            else:
                await connection.close()
                return
