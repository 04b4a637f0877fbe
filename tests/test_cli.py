"""The `farebox` command as people and scripts use it: exit codes, which output has what, every verb."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from farebox.cli.common import command
from farebox.config import load
from farebox.embedded_postgres import running_dsn
from farebox.payload import encode
from farebox.store import Store
from support.app import ADMIN_TOKEN
from support.cli import Cli, commands
from support.events import STARTED, event, events
from support.http import call
from support.postgres import quick_disk
from support.process import StartFailed, installed

HELP: list[tuple[str, ...]] = [
    ("serve",),
    ("check",),
    ("init",),
    ("migrate",),
    ("keys",),
    *(("keys", verb) for verb in ("create", "list", "show", "rotate", "revoke")),
    ("usage",),
    ("sessions",),
    ("tokens",),
    ("top",),
]
CHAT = b'{"model":"farebox-demo","messages":[{"role":"user","content":"Hello!"}]}'


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """Commands, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    yield from commands(capsys)


@pytest.fixture
def stored(cli: Cli, database: str, tmp_path: Path) -> Cli:
    """Commands on an external database."""
    database_section = {"url": database, "data_dir": str(tmp_path / "data")}
    cli.configured(tmp_path / "farebox.yaml", {"server": {"admin_token": ADMIN_TOKEN}, "database": database_section})
    return cli


# -- help and bad use ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_every_command_explains_itself(cli: Cli, words: tuple[str, ...]) -> None:
    """--help describes the command on standard output, with its --config, and exits 0."""
    ran = cli(*words, "--help")
    assert (ran.code, ran.errors) == (0, "")
    assert ran.output.startswith(f"usage: farebox {' '.join(words)}")
    if words not in (("init",), ("keys",)):
        assert "--config PATH" in ran.output


def test_the_command_itself_lists_its_commands(cli: Cli) -> None:
    """`farebox --help` names every command; --version its version."""
    ran = cli("--help")
    assert ran.code == 0
    for words in HELP:
        assert f"\n    {words[0]} " in ran.output
    assert re.fullmatch(r"farebox \d+\.\d+\.\d+\n", cli("--version").output)


BAD_USE: list[tuple[tuple[str, ...], str]] = [
    ((), "COMMAND"),
    (("frobnicate",), "'frobnicate'"),
    (("keys",), "VERB"),
    (("keys", "create"), "name"),
    (("keys", "list", "--format", "yaml"), "'yaml'"),
    (("keys", "create", "x", "--expires-at", "soon"), "'soon' is not a time"),
    (("keys", "create", "x", "--tag", "novalue"), "'novalue' is not NAME=VALUE"),
    (("keys", "create", ""), "'' is not 1 to 200 characters"),
    (("keys", "create", "x" * 201), "1 to 200 characters"),
    (("keys", "create", "a\nb"), "on one line"),
    (("keys", "create", "\udcff"), "on one line"),
    (("keys", "create", "x", "--team", "\x1b[31m"), "on one line"),
    (("usage", "--since", "yesterday"), "'yesterday' is not a time"),
    (("usage", "--limit", "0"), "--limit"),
    (("usage", "--limit", "many"), "'many'"),
    (("serve", "--port", "99999"), "--port"),
    (("serve", "--workers"), "--workers"),
]


@pytest.mark.parametrize(("argv", "named"), BAD_USE, ids=range(len(BAD_USE)))
def test_bad_use_exits_2_before_anything_is_touched(
    cli: Cli, tmp_path: Path, argv: tuple[str, ...], named: str
) -> None:
    """Bad arguments are named on standard error, and no database is started for them."""
    ran = cli(*argv)
    assert (ran.code, ran.output) == (2, "")
    assert named in ran.errors
    assert "Traceback" not in ran.errors
    assert list(tmp_path.iterdir()) == []


# -- check and init ------------------------------------------------------------------------------


def test_check_without_a_config_is_fine(cli: Cli) -> None:
    """With no config.yaml the built-in defaults hold, and check says that the demo provider will answer."""
    ran = cli("check")
    assert (ran.code, ran.errors) == (0, "")
    assert ran.output == "ok: built-in defaults\nproviders: none enabled: the built-in demo provider will answer\n"


def test_check_reads_the_config_of_the_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./config.yaml is the default; check names the providers, and warns of one without its credential."""
    monkeypatch.delenv("SOME_KEY", raising=False)
    (tmp_path / "config.yaml").write_text(
        'providers:\n  local: {dialect: vllm, base_url: "http://localhost:8000/v1"}\n'
        '  other: {dialect: openai, base_url: "https://example.com/v1", api_key: "${SOME_KEY}"}\n'
    )
    ran = cli("check")
    assert (ran.code, ran.output) == (0, "ok: config.yaml\nproviders: local\n")
    assert ran.errors.startswith("warning: providers.other is disabled")
    assert "SOME_KEY" in ran.errors


def test_check_prints_every_fault_at_its_place(cli: Cli, tmp_path: Path) -> None:
    """All faults at once, one line each: file:line:col: path: what is wrong; exit 2."""
    (tmp_path / "bad.yaml").write_text("servr: {}\nlog: {level: loud}\nlimits:\n  body_mb_max: many\n")
    ran = cli("check", "--config", "bad.yaml")
    assert (ran.code, ran.output) == (2, "")
    places = [line.split(": ")[:2] for line in ran.errors.splitlines()]
    assert places == [
        ["bad.yaml:1:1", "servr"],
        ["bad.yaml:2:14", "log.level"],
        ["bad.yaml:4:16", "limits.body_mb_max"],
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"\xff\xfe\x00", "not UTF-8"), (b"a: [1", "bad.yaml:1:"), (b"[]", "bad.yaml:1:1")],
    ids=["missing", "not text", "not YAML", "not a mapping"],
)
def test_a_config_that_cannot_be_read_is_a_fault(cli: Cli, tmp_path: Path, content: bytes | None, words: str) -> None:
    """A config that is missing, not text, not YAML or not a mapping: a located fault, exit 2."""
    if content is not None:
        (tmp_path / "bad.yaml").write_bytes(content)
    ran = cli("check", "--config", "bad.yaml")
    assert (ran.code, ran.output) == (2, "")
    assert words in ran.errors
    assert ran.errors.startswith("bad.yaml:1:")


@pytest.mark.parametrize("argv", [words for words in HELP if words not in (("init",), ("keys",))], ids=" ".join)
def test_every_command_refuses_a_bad_config(cli: Cli, tmp_path: Path, argv: tuple[str, ...]) -> None:
    """Whatever the command, a bad config is exit 2 with its faults, and nothing is started."""
    (tmp_path / "bad.yaml").write_text("servr: {}\n")
    name = ("k",) if argv[0] == "keys" and argv[1] != "list" else ()
    ran = cli(*argv, *name, "--config", "bad.yaml")
    assert (ran.code, ran.output) == (2, "")
    assert ran.errors == "bad.yaml:1:1: servr: unknown setting; did you mean server?\n"
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_init_writes_a_config_that_loads(cli: Cli, tmp_path: Path) -> None:
    """`farebox init` writes ./config.yaml, which check accepts, and says what to do next."""
    ran = cli("init")
    assert (ran.code, ran.errors) == (0, "")
    assert "config.yaml" in ran.output and "farebox check" in ran.output and "farebox serve" in ran.output
    config = load((tmp_path / "config.yaml").read_text(), filename="config.yaml", env={}, read_file=lambda _: "")
    assert config.providers == {}
    assert cli("check").code == 0


def test_init_takes_another_place(cli: Cli, tmp_path: Path) -> None:
    """`farebox init PATH`, or `--config PATH`, writes there, and the commands it names read that file."""
    ran = cli("init", "mine.yaml")
    assert ran.code == 0
    assert "serve --config mine.yaml" in ran.output
    assert (tmp_path / "mine.yaml").exists()
    assert "serve --config other.yaml" in cli("init", "--config", "other.yaml").output
    assert (tmp_path / "other.yaml").read_text() == (tmp_path / "mine.yaml").read_text()
    assert cli("init", "a.yaml", "--config", "b.yaml").code == 2


def test_init_never_overwrites(cli: Cli, tmp_path: Path) -> None:
    """A config that is there already stays as it is: exit 1."""
    (tmp_path / "config.yaml").write_text("# mine\n")
    ran = cli("init")
    assert (ran.code, ran.output) == (1, "")
    assert "exists already" in ran.errors
    assert (tmp_path / "config.yaml").read_text() == "# mine\n"


def test_init_into_nowhere_says_so(cli: Cli) -> None:
    """A folder that is not there is a failure in one line."""
    ran = cli("init", "no/such/config.yaml")
    assert (ran.code, ran.output) == (1, "")
    assert ran.errors == "farebox: no/such/config.yaml can't be written: No such file or directory\n"


# -- an external database ------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("migrate",), ("keys", "list"), ("usage",), ("serve", "--port", "0")], ids=" ".join)
def test_a_database_that_is_away_is_one_line(cli: Cli, tmp_path: Path, argv: tuple[str, ...]) -> None:
    """No connection: exit 1 and a sentence that says where it was looked for, never the password."""
    database = {"url": "postgresql://me:top-secret-pw@127.0.0.1:1/books", "connect_timeout_s": 0.3}
    cli.configured(tmp_path / "c.yaml", {"server": {"admin_token": ADMIN_TOKEN}, "database": database})
    ran = cli(*argv)
    assert (ran.code, ran.output) == (1, "")
    assert ran.errors.startswith("farebox: no connection to the database at 127.0.0.1:1/books")
    assert ran.errors.count("\n") == 1
    assert "top-secret-pw" not in ran.errors


async def test_migrate_prepares_an_empty_database(cli: Cli, postgres: Any, tmp_path: Path) -> None:
    """`farebox migrate` makes the schema and says which; a second run changes nothing and says the same."""
    async with postgres.database(migrated=False) as dsn:
        cli.configured(tmp_path / "c.yaml", {"server": {"admin_token": ADMIN_TOKEN}, "database": {"url": dsn}})
        first, second = await cli.aside("migrate"), await cli.aside("migrate")
        store = Store(dsn)
        await store.open()
        version = await store.schema_version()
        await store.close()
    assert (first.code, first.output) == (0, f"the schema is up to date ({version})\n")
    assert second == first


async def test_a_key_is_made_and_its_secret_shown_once(stored: Cli) -> None:
    """`keys create` prints the secret alone on standard output; no later command shows it."""
    made = await stored.aside("keys", "create", "ci", "--team", "research")
    assert made.code == 0
    assert re.fullmatch(r"fb-[0-9A-Za-z]{38}\n", made.output)
    assert "'ci'" in made.errors and "shown this once" in made.errors
    secret = made.output.strip()
    for argv in (("list",), ("list", "--all"), ("show", "ci"), ("revoke", "ci")):
        for format in ("table", "json"):
            ran = await stored.aside("keys", *argv, "--format", format)
            assert ran.code == 0
            assert "ci" in ran.output
            assert secret not in ran.output + ran.errors
            assert "secret_hash" not in ran.output


async def test_a_keys_fields_as_json(stored: Cli) -> None:
    """Every option of `keys create` is a field of the key; --format json prints one document, the secret in it."""
    options = ["--team", "t", "--project", "p", "--user", "u", "--model", "gpt-*", "--model", "o3", "--provider", "a"]
    options += ["--tag", "tier=cheap", "--tag", "empty=", "--expires-at", "2031-05-01", "--allow-shared-objects"]
    options += ["--budget", "25.50/month", "--budget", "100_000tok/day", "--rpm", "60", "--max-parallel", "4"]
    made = await stored.json("keys", "create", "full", *options)
    assert re.fullmatch(r"fb-[0-9A-Za-z]{38}", made.pop("key"))
    shown = await stored.json("keys", "show", "full")
    assert shown == made
    assert {**shown, "id": "", "created_at": "", "changed_at": ""} == {
        "id": "",
        "name": "full",
        "team": "t",
        "project": "p",
        "user": "u",
        "models": ["gpt-*", "o3"],
        "providers": ["a"],
        "tags": {"tier": "cheap", "empty": ""},
        "allow_shared_objects": True,
        "expires_at": "2031-05-01T00:00:00Z",
        "created_at": "",
        "changed_at": "",
        "revoked_at": None,
        "budgets": [
            {"limit_usd": None, "limit_tokens": 100_000, "window": "day"},
            {"limit_usd": "25.50", "limit_tokens": None, "window": "month"},
        ],
        "rpm": 60,
        "tpm": None,
        "max_parallel": 4,
    }
    assert await stored.json("keys", "show", made["id"]) == shown
    assert await stored.json("keys", "list") == [shown]


async def test_a_table_of_keys(stored: Cli) -> None:
    """`keys list` is a table with a line for each key; revoked ones only with --all; an empty list is said aside."""
    empty = await stored.aside("keys", "list")
    assert (empty.code, empty.output) == (0, "")
    assert "farebox keys create" in empty.errors
    for name in ("b[bold]", "a"):
        await stored.aside("keys", "create", name)
    await stored.aside("keys", "revoke", "a")
    listed = (await stored.aside("keys", "list")).output.splitlines()
    assert listed[0].split() == [
        *("name", "id", "team", "project", "user", "budgets", "rates", "created_at", "expires_at")
    ]
    assert [line.split()[0] for line in listed[1:]] == ["b[bold]"]
    everything = (await stored.aside("keys", "list", "--all")).output.splitlines()
    assert everything[0].split()[-1] == "revoked_at"
    assert [line.split()[0] for line in everything[1:]] == ["a", "b[bold]"]


async def test_a_name_is_used_once(stored: Cli) -> None:
    """A second key of the same name is refused with exit 1, until the first is revoked."""
    await stored.aside("keys", "create", "ci")
    again = await stored.aside("keys", "create", "ci")
    assert (again.code, again.output) == (1, "")
    assert "'ci' is in use already" in again.errors
    await stored.aside("keys", "revoke", "ci")
    assert (await stored.aside("keys", "create", "ci")).code == 0


async def test_a_key_gets_another_secret(stored: Cli) -> None:
    """`keys rotate` prints a new secret; the key stays the same; a revoked key can't be rotated."""
    first = await stored.json("keys", "create", "ci")
    second = await stored.json("keys", "rotate", "ci")
    assert second["id"] == first["id"]
    assert second["key"] != first["key"]
    await stored.aside("keys", "revoke", first["id"])
    refused = await stored.aside("keys", "rotate", "ci")
    assert (refused.code, refused.output) == (1, "")
    assert refused.errors == "farebox: the key 'ci' was revoked: it can't be given a new secret\n"


@pytest.mark.parametrize("verb", ["show", "rotate", "revoke"])
async def test_an_unknown_key_is_named(stored: Cli, verb: str) -> None:
    """A key that is not there: exit 1 and its name."""
    ran = await stored.aside("keys", verb, "nobody")
    assert (ran.code, ran.output, ran.errors) == (1, "", "farebox: there is no key 'nobody'\n")


# -- usage ---------------------------------------------------------------------------------------


async def put(database: str, payloads: list[bytes]) -> None:
    store = Store(database)
    await store.open()
    await store.insert_events(payloads)
    await store.close()


async def test_no_usage_yet(stored: Cli) -> None:
    """Without a call: an empty standard output (JSON: an empty list), exit 0."""
    ran = await stored.aside("usage")
    assert (ran.code, ran.output, ran.errors) == (0, "", "no calls yet\n")
    assert await stored.json("usage") == []


async def test_usage_as_a_table(stored: Cli, database: str) -> None:
    """A line for each call, newest first, numbers readable; what it sums up to goes to standard error."""
    facts = {"key_name": "ci", "status": 200, "usage_source": "provider", "requested_model": "gpt-x"}
    first = event(input_tokens=1234567, output_tokens=10, model="m-1", started_at=STARTED, **facts)
    second = event(input_tokens=1, output_tokens=2, started_at=STARTED + timedelta(seconds=1), **facts)
    await put(database, [encode(first), encode(second)])
    ran = await stored.aside("usage")
    lines = ran.output.splitlines()
    assert lines[0].split()[:6] == ["started_at", "key_name", "provider", "model", "endpoint", "status"]
    assert [line.split()[4] for line in lines[1:]] == ["gpt-x", "m-1"]
    assert "1,234,567" in lines[2]
    assert lines[1].startswith(f"{second.started_at:%Y-%m-%d %H:%M:%S}  ci ")
    assert ran.errors == "\n2 calls, 1,234,580 tokens\n"
    one = await stored.aside("usage", "--limit", "1")
    assert len(one.output.splitlines()) == 2
    assert one.errors == "\n2 calls, 1,234,580 tokens, the newest 1 shown\n"
    assert (await stored.aside("usage", "--model", "m-1")).errors == "\n1 call, 1,234,577 tokens\n"


async def test_usage_as_csv_and_json_has_every_column(stored: Cli, database: str) -> None:
    """CSV has a header and plain values that any program reads back; JSON the same rows; nothing else is printed."""
    tools = [{"name": 'f, "g"', "count": 2, "argument_bytes": 3}]
    await put(
        database,
        [
            encode(
                event(
                    input_tokens=1234567,
                    tags={"a": "ä,b"},
                    usage_raw={"prompt_tokens": 1234567},
                    tool_calls=tools,
                    ttft_ms=12.5,
                    key_name="=1+1",
                )
            )
        ],
    )
    ran = await stored.aside("usage", "--format", "csv")
    assert (ran.code, ran.errors) == (0, "")
    (row,) = csv.DictReader(io.StringIO(ran.output))
    assert (row["input_tokens"], row["ttft_ms"], row["status"]) == ("1234567", "12.5", "")
    assert json.loads(row["tags"]) == {"a": "ä,b"}
    assert json.loads(row["usage_raw"]) == {"prompt_tokens": 1234567}
    assert json.loads(row["tool_calls"]) == tools
    assert row["started_at"] == STARTED.isoformat()
    (same,) = await stored.json("usage")
    assert set(same) == set(row)
    assert (same["id"], same["usage_raw"], same["tags"]) == (row["id"], {"prompt_tokens": 1234567}, {"a": "ä,b"})


async def test_usage_is_filtered(stored: Cli, database: str) -> None:
    """--key, --provider, --model, --since and --until narrow it; `7d` means so long ago."""
    now = datetime.now(UTC)
    await put(
        database,
        [
            encode(event(key_name="a", provider="x", started_at=now - timedelta(days=3))),
            encode(event(key_name="b", provider="y", model="m", started_at=now - timedelta(hours=3))),
        ],
    )

    async def keys(*argv: str) -> list[str]:
        return [row["key_name"] for row in await stored.json("usage", *argv)]

    assert await keys() == ["b", "a"]
    assert await keys("--key", "a") == ["a"]
    assert await keys("--provider", "y") == ["b"]
    assert await keys("--model", "m") == ["b"]
    assert await keys("--since", "24h") == ["b"]
    assert await keys("--until", "24h") == ["a"]
    assert await keys("--since", "7d", "--until", "90m") == ["b", "a"]
    assert await keys("--since", (now - timedelta(hours=4)).isoformat()) == ["b"]
    assert await keys("--key", "nobody") == []


async def test_a_reader_that_has_had_enough(database: str, tmp_path: Path) -> None:
    """`farebox usage | head -1` ends quietly, whatever the format and however much is left to say."""
    await put(database, events(60, usage_raw={"padding": "x" * 200}))
    settings = {"server": {"admin_token": ADMIN_TOKEN}, "database": {"url": database}}
    async with installed(tmp_path, settings) as farebox:
        for format in ("table", "csv", "json"):
            ran = await farebox.run_into_nothing("usage", "--limit", "50", "--format", format)
            assert ran.code == 0, format
            # The sums of a table go to standard error, which is still read.
            assert ran.errors in ("", "\n60 calls, unknown tokens, the newest 50 shown\n"), format


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_an_export_that_finds_no_room_is_a_failure(database: str, tmp_path: Path) -> None:
    """On a full disk a report exits 1 and says why in one line."""
    await put(database, events(60))
    settings = {"server": {"admin_token": ADMIN_TOKEN}, "database": {"url": database}}
    async with installed(tmp_path, settings) as farebox:
        for options in (("--all", "--format", "csv"), ("--by", "day")):
            ran = await farebox.run_into_a_full_disk("usage", *options)
            assert (ran.code, ran.errors) == (1, "farebox: the output can't be written: No space left on device\n")


# -- serve, and commands beside it ---------------------------------------------------------------


@pytest.mark.long
async def test_revocation_takes_hold_in_a_running_farebox(database: str, tmp_path: Path) -> None:
    """A key made by the command works at once; revoked by it, a running farebox refuses it within 5 seconds."""
    settings = {"server": {"port": 0, "admin_token": ADMIN_TOKEN}, "database": {"url": database}}
    settings["database"]["data_dir"] = str(tmp_path / "data")
    async with installed(tmp_path, settings) as farebox:
        process = await farebox.start()
        assert "admin token" not in process.output, "it is the config's, not a file's"
        for end in ("rotate", "revoke"):
            made = json.loads((await farebox.run("keys", "create", f"to-{end}", "--format", "json")).output)
            assert (await call(process.port, "/v1/models", key=made["key"], method="GET")).status == 200
            assert (await farebox.run("keys", end, f"to-{end}")).code == 0
            async with asyncio.timeout(5):
                while (await call(process.port, "/v1/models", key=made["key"], method="GET")).status != 401:
                    await asyncio.sleep(0.1)
        assert await process.stop() == 0, process.output


@pytest.mark.long
async def test_commands_join_a_running_embedded_database(tmp_path: Path) -> None:
    """Beside a running farebox commands use its database; without one they start it and stop it again.

    Where there is none they make one, and say where.
    """
    with tempfile.TemporaryDirectory(prefix="farebox-test-cli-", dir=quick_disk()) as data:
        await beside_and_without_a_server(tmp_path, Path(data))


async def beside_and_without_a_server(tmp_path: Path, data: Path) -> None:
    async with installed(tmp_path, {"server": {"port": 0}, "database": {"data_dir": str(data)}}) as farebox:
        process = await farebox.start()
        assert re.search(r"admin token +in \S*admin-token", process.output)
        assert stat.S_IMODE((data / "admin-token").stat().st_mode) == 0o600
        made = json.loads((await farebox.run("keys", "create", "beside", "--format", "json")).output)
        answer = await call(process.port, "/v1/chat/completions", CHAT, key=made["key"])
        assert answer.status == 200
        async with asyncio.timeout(10):
            while not (rows := json.loads((await farebox.run("usage", "--format", "json")).output)):
                pass
        assert [(row["key_name"], row["provider"], row["outcome"]) for row in rows] == [("beside", "demo", "complete")]
        process.signal(signal.SIGINT)
        assert await process.wait() == 0, process.output

        assert await running_dsn(data) is None
        listed = await farebox.run("keys", "list", "--format", "json")
        assert (listed.code, listed.errors) == (0, ""), "a command that works says nothing but its result"
        assert [key["name"] for key in json.loads(listed.output)] == ["beside", "first"]
        assert json.loads((await farebox.run("usage", "--format", "json")).output) == rows
        assert await running_dsn(data) is None, "the command left its database running"

        farebox.config.write_text(json.dumps({"database": {"data_dir": str(data / "elsewhere")}}))
        first, second = await farebox.run("usage"), await farebox.run("usage")
        assert (first.code, second.code) == (0, 0)
        assert f"no database in {data / 'elsewhere'}; an empty one is made\n" in first.errors
        assert second.errors == "no calls yet\n"
        farebox.config.write_text(json.dumps({"server": {"port": 0}, "database": {"data_dir": str(data)}}))

        again = await farebox.start()
        assert again.first_key is None, "the first key is shown at the first start only"
        assert "farebox keys create NAME --config" in again.output
        assert await again.stop() == 0, again.output


async def test_a_port_in_use_is_one_line(database: str, tmp_path: Path) -> None:
    """Another program on the port: exit 1, the port, and what to do; the database is not touched."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = {"server": {"port": port, "admin_token": ADMIN_TOKEN}, "database": {"url": database}}
        async with installed(tmp_path, settings) as farebox:
            with pytest.raises(StartFailed) as caught:
                await farebox.start()
    assert caught.value.code == 1
    assert caught.value.output.splitlines()[-1] == (
        f"farebox: can't listen on 127.0.0.1 port {port}: Address already in use. "
        "Is another farebox running? `farebox serve --port N` takes another port."
    )
    assert "Traceback" not in caught.value.output


# -- how farebox is called -----------------------------------------------------------------------


def test_commands_are_named_as_they_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started as .venv/bin/farebox it is called so again, unless the shell finds the same program by its name."""
    program = tmp_path / "bin dir" / "farebox"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    assert command(str(program)) == f"'{program}'"
    assert command(".venv/bin/farebox") == ".venv/bin/farebox"
    assert command("/usr/lib/python3/site-packages/farebox/__main__.py") == "farebox"
    monkeypatch.setenv("PATH", str(program.parent))
    assert command(str(program)) == "farebox"
    assert command(".venv/bin/farebox") == ".venv/bin/farebox"
