"""What must be there before a call can be served, once for an installation however many processes serve it.

The data folder, the port, the admin token, the first key. A farebox of one process does this for
itself (`app`); with several it is done before the first of them starts (`supervisor`).
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from pathlib import Path

import structlog

from farebox import keys
from farebox.config import Config
from farebox.errors import FareboxError
from farebox.store import Store

ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 (a file name)
JOURNAL_FOLDER = "journal"
METRICS_FOLDER = "metrics"
FIRST_KEY_NAME = "first"
DRAIN_S = 10.0
"""How long a stop waits for the ledger to reach Postgres; the rest is drained at the next start."""


def data_folder(config: Config) -> Path:
    """`database.data_dir`, made if need be, for nobody else to read. Raises `FareboxError`."""
    folder = Path(config.database.data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise FareboxError(f"database.data_dir {folder} can't be made: {exc.strerror}") from exc
    return folder


def admin_token(config: Config, folder: Path) -> tuple[str, Path | None]:
    """The control plane's token, and the file it is in unless the config gives it; made at the first start.

    Raises `FareboxError` for a file without one.
    """
    if config.server.admin_token:
        return config.server.admin_token, None
    path = folder / ADMIN_TOKEN_FILE
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = "fba-" + secrets.token_urlsafe(32)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token + "\n")
    if not token:
        # A full disk or a crash leaves it so, and an empty token would be said by anybody.
        raise FareboxError(f"{path} is empty. Remove it: the next start makes another token.")
    return token, path


async def prepare(config: Config, store: Store) -> str | None:
    """Bring the schema up to date and make the first key; the secret of that, if there was none."""
    for name in await store.migrate():
        structlog.get_logger().info("database migrated", migration=name)
    if config.auth.mode != "virtual" or await store.list_keys(include_revoked=True):
        return None
    secret = keys.mint_secret()
    try:
        await store.create_key(name=FIRST_KEY_NAME, secret_hash=keys.hash_secret(secret))
    except FareboxError:
        return None  # another replica was first
    return secret


def bind(config: Config) -> socket.socket:
    """The port, taken but not yet listened on. Raises `FareboxError` with what to do."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        infos = socket.getaddrinfo(host, port, family if ":" in host else 0, socket.SOCK_STREAM)
        family, kind, proto, _, address = infos[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as exc:
        hint = {
            errno.EADDRINUSE: "Is another farebox running? `farebox serve --port N` takes another port.",
            errno.EACCES: "`farebox serve --port N` takes another port.",
        }.get(exc.errno or 0, "server.host must be an address of this machine.")
        raise FareboxError(f"can't listen on {host} port {port}: {exc.strerror}. {hint}") from exc
    listener.setblocking(False)
    return listener


def base_url(config: Config, port: int) -> str:
    """Where clients on this machine point their SDK, without the `/v1`."""
    host = config.server.host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"
