"""The default database: PostgreSQL itself, as a child process of farebox.

`EmbeddedPostgres` serves one data folder, `running_dsn` finds the one that another process serves,
`find_binaries` says with which programs. The schema and every query are `store`'s.

How it holds together:

- Private. One Unix socket in a folder of mode 0700, no TCP (`sockets`).
- No orphan. Every program is started through `launch`, which ties its life to farebox's.
- Whole or absent. A cluster is made under a passing name and renamed when complete (`folder`).
- One owner. A locked file says whose the folder is; leftovers of a killed server are waited for,
  never signalled (`postmaster`): signals go only to the child whose handle we hold.
- Back again. A server that ends without being asked to is started anew (`server`).
- Root, too. PostgreSQL refuses root, so `identity` finds another way to run it.
"""

from farebox.embedded_postgres.binaries import Binaries, find_binaries
from farebox.embedded_postgres.errors import EmbeddedPostgresError
from farebox.embedded_postgres.server import EmbeddedPostgres, Host, running_dsn

__all__ = ["Binaries", "EmbeddedPostgres", "EmbeddedPostgresError", "Host", "find_binaries", "running_dsn"]
