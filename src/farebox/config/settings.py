"""The settings of farebox itself: server, database, auth, ledger, limits.

With `metering`, `budgets`, `providers`, `prices`, `views` and `schema` this is the one home of every
setting: name, type, default, bounds and meaning. The reader, the checks and the example file are driven
by these dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from farebox.config.kinds import Choice, Flag, Line, Number, NumberOrOff, Token, Whole, setting
from farebox.config.web import DatabaseUrl, Host

_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where clients connect."""

    host: str = field(
        default="127.0.0.1",
        metadata=setting(
            Host(),
            "Address to listen on: 127.0.0.1 is this machine only, 0.0.0.0 all of IPv4, :: all of IPv6.",
            at_start=True,
        ),
    )
    port: int = field(
        default=8787,
        metadata=setting(Whole(0, 65_535), "TCP port. 0 takes a free one, which is printed at start.", at_start=True),
    )
    workers: int = field(
        default=1,
        metadata=setting(
            Whole(1, 64),
            "Processes that serve the port together, at best one for each core; with more than one, a further process "
            "watches over them. Each has what stands under limits, pool_size_max and journal_max_mb for itself.",
            at_start=True,
        ),
    )
    admin_token: str | None = field(
        default=None,
        repr=False,
        metadata=setting(
            Token(),
            "Bearer token of the control plane, /farebox/api. Left out, farebox makes one at the first start and "
            "keeps it in data_dir/admin-token. It must be set when the database is not the embedded one.",
            '"${FAREBOX_ADMIN_TOKEN}"',
        ),
    )
    response_headers: bool = field(
        default=True,
        metadata=setting(
            Flag(), "Add x-farebox-request-id, the id of the usage row, and x-farebox-budget-remaining-usd to answers."
        ),
    )
    shutdown_timeout_s: float = field(
        default=30.0,
        metadata=setting(
            Number(0, 3_600),
            "How long open calls may go on after SIGTERM. Those still open then are cut and recorded as farebox_cut.",
        ),
    )
    keepalive_timeout_s: float = field(
        default=75.0,
        metadata=setting(
            Number(0.1, 3_600), "A client connection that is idle, or sends no whole head, for this long is closed."
        ),
    )
    header_bytes_max: int = field(
        default=32_768,
        metadata=setting(
            Whole(1_024, 1_048_576),
            "Bytes of the request line, and of each header. A request with a longer one gets 431.",
        ),
    )
    headers_max: int = field(
        default=128,
        metadata=setting(Whole(8, 10_000), "Number of a request's headers. A request with more gets 400."),
    )
    backlog: int = field(
        default=1_024,
        metadata=setting(
            Whole(1, 65_535),
            "Connections the system queues until farebox takes them. Past it the system lets new ones wait and "
            "retry, or refuses them.",
            at_start=True,
        ),
    )
    reload_poll_s: float | None = field(
        default=2.0,
        metadata=setting(
            NumberOrOff(0.05, 3_600),
            "How often this file, and those it takes in with ${file:PATH}, are looked at for a change, which then "
            "takes effect at once and whole, while calls under way keep what they began with. A file with a fault "
            "changes nothing; the log says where it is. off: only on SIGHUP, which always does it.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Database:
    """Where keys and usage rows are kept."""

    url: str = field(
        default="embedded",
        repr=False,
        metadata=setting(
            DatabaseUrl(),
            "embedded starts a PostgreSQL of farebox's own in data_dir. Or a URL of PostgreSQL 14 or newer, "
            "postgresql://USER:PASSWORD@HOST:5432/DATABASE, best as ${DATABASE_URL} or ${file:PATH}.",
        ),
    )
    data_dir: str = field(
        default="./farebox-data",
        metadata=setting(
            Line("a path"),
            "Folder of the embedded database, the journal and the admin token. A relative path counts from the "
            "folder farebox is started in.",
        ),
    )
    pool_size_max: int = field(
        default=8,
        metadata=setting(
            Whole(1, 1_000),
            "Connections to PostgreSQL. With all of them busy, work waits for one. Reports take half of them at most. "
            "Budgets have up to four of their own beside them.",
        ),
    )
    connect_timeout_s: float = field(
        default=10.0,
        metadata=setting(
            Number(0.1, 300), "An attempt to connect ends after this; it is made again for as long as farebox runs."
        ),
    )
    statement_timeout_s: float = field(
        default=30.0,
        metadata=setting(
            Number(0.1, 3_600), "A statement that runs longer is cancelled. Usage rows wait in the journal meanwhile."
        ),
    )

    @property
    def embedded(self) -> bool:
        """Whether farebox runs PostgreSQL itself."""
        return self.url == "embedded"


@dataclass(frozen=True, kw_only=True)
class Auth:
    """Who may call."""

    mode: Literal["virtual", "passthrough", "open"] = field(
        default="virtual",
        metadata=setting(
            Choice(("virtual", "passthrough", "open")),
            "virtual: clients use farebox keys (fb-...), providers get the api_key below. passthrough: the client's "
            "own provider credential goes up, only to a provider marked passthrough: true and never to a second "
            "one. open: no keys at all; farebox then listens on a loopback address only.",
            at_start=True,
        ),
    )
    key_cache_size: int = field(
        default=10_000,
        metadata=setting(
            Whole(16, 1_000_000), "Keys held in memory. Past it the one unused for longest is read again when it comes."
        ),
    )
    key_poll_s: float = field(
        default=2.0,
        metadata=setting(
            Number(0.05, 4),
            "How often changed keys are looked up. A revoked key is refused everywhere after at most this, plus the "
            "time of one query.",
        ),
    )
    stale_s: float = field(
        default=3_600.0,
        metadata=setting(
            Number(0, 30 * _DAY_S),
            "How long keys in memory stay good while the database is away. After it they are refused with 503.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The journal on disk that holds usage until the database has it."""

    fsync_ms: float | None = field(
        default=20.0,
        metadata=setting(
            NumberOrOff(0, 1_000),
            "The journal is forced to disk at most this long after a write: what a power loss can cost. 0 forces "
            "every record before going on, off leaves it to the system. A crash of farebox alone loses nothing.",
        ),
    )
    segment_mb: int = field(
        default=16,
        metadata=setting(Whole(1, 1_024), "Size of one journal file. When it is full the next one is made."),
    )
    journal_max_mb: int = field(
        default=1_024,
        metadata=setting(
            Whole(2, 1_048_576),
            "Size of the whole journal, which grows while the database is away. At it: metering.on_ledger_failure.",
        ),
    )
    drain_batch_rows_max: int = field(
        default=500,
        metadata=setting(Whole(1, 10_000), "Rows written to the database at once; the rest goes with the next batch."),
    )
    drain_interval_ms: float = field(
        default=100.0,
        metadata=setting(Number(1, 60_000), "How long finished calls are gathered before they are written."),
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on memory."""

    body_mb_max: int = field(
        default=64,
        metadata=setting(
            Whole(1, 4_096),
            "A metered request's body, as sent. A larger one gets 413. Uploads pass unmetered, without bound.",
        ),
    )
    decoded_body_mb_max: int = field(
        default=64,
        metadata=setting(Whole(1, 4_096), "The same body once decompressed. A larger one gets 413."),
    )
    bodies_in_flight_mb_max: int = field(
        default=1_024,
        metadata=setting(Whole(1, 1_048_576), "All bodies held at once. A call that would pass it gets 503."),
    )
    event_bytes_max: int = field(
        default=1_048_576,
        metadata=setting(
            Whole(4_096, 67_108_864),
            "The longest stream event that is parsed. A longer one passes to the client unparsed, and is counted.",
        ),
    )
    client_stall_timeout_s: float = field(
        default=300.0,
        metadata=setting(
            Number(1, _DAY_S), "A client that takes or sends no byte for this long while one is due is dropped."
        ),
    )
    requests_in_flight_max: int = field(
        default=10_000,
        metadata=setting(Whole(1, 1_000_000), "Calls open at once. One more gets 503 with retry-after."),
    )
    connections_max: int = field(
        default=20_000,
        metadata=setting(Whole(1, 1_000_000), "Client connections open at once. One more is closed as it comes."),
    )
