"""The config is reloaded while farebox runs: whole or not at all, and no call sees two of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from farebox import logs
from farebox.config import Config, ConfigError, Provider, carry_over
from farebox.demo import DemoProvider
from farebox.errors import FareboxError
from farebox.generations import Generations
from farebox.reload import Result, Voice, Watch
from farebox.source import BUILT_IN, ConfigFile, Source, load_source
from farebox.upstream import Upstream
from support.app import ADMIN_TOKEN, Farebox, config_of, running, settings_of
from support.http import RawClient, call
from support.process import installed, until
from support.provider import FakeProvider
from support.traffic import CHAT, Held, ask, document, is_whole, request, send_document, settings, well_behaved


def provider_at(url: str, key: str = "sk-upstream-1", **more: Any) -> dict[str, Any]:
    return {"dialect": "openai", "base_url": url, "api_key": key, **more}


# -- what of a new config takes effect ---------------------------------------------------------------


def test_what_holds_from_start_to_start_is_kept_and_named() -> None:
    """Where farebox listens, its database, its journal and auth.mode keep their value; each is named, in order."""
    old = config_of({"server": {"port": 1}})
    new = config_of(
        {
            "server": {"port": 2, "host": "127.0.0.2", "workers": 3, "backlog": 9, "shutdown_timeout_s": 7},
            "database": {"data_dir": "/elsewhere"},
            "ledger": {"segment_mb": 3},
            "auth": {"mode": "open", "stale_s": 8},
            "log": {"level": "debug"},
        }
    )
    merged, waiting = carry_over(old, new)
    assert waiting == (
        "server.host",
        "server.port",
        "server.workers",
        "server.backlog",
        "database.data_dir",
        "auth.mode",
        "ledger.segment_mb",
    )
    assert merged.database == old.database and merged.ledger == old.ledger
    assert (merged.server.port, merged.server.host, merged.server.workers) == (1, "127.0.0.1", 1)
    assert (merged.server.shutdown_timeout_s, merged.auth.stale_s, merged.log.level) == (7, 8, "debug")
    assert merged.auth.mode == "virtual"


def test_a_token_that_the_running_database_needs_is_not_dropped() -> None:
    """A file that goes over to the embedded database needs no admin token; the farebox that runs on still does."""
    own = {"database": {"url": "postgresql://u:p@localhost/f"}, "server": {"admin_token": ADMIN_TOKEN}}
    merged, waiting = carry_over(config_of(own), config_of({}))
    assert waiting == ("database.url",)
    assert merged.server.admin_token == ADMIN_TOKEN


# -- when the file is read again ---------------------------------------------------------------------


class Desk:
    """A config file under watch, and what became of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.yaml"
        self.applied: list[Config] = []
        self.results: list[Result] = []
        self.looks = 0
        self.refuse: Exception | None = None

    def write(self, text: str) -> None:
        self.path.write_text(text)

    async def looked(self, number: int = 3) -> None:
        """Until the file was looked at so many times more."""
        goal = self.looks + number
        await until(lambda: self.looks >= goal, "the file is looked at")

    async def apply(self, config: Config, _: Source) -> tuple[str, ...]:
        if self.refuse is not None:
            raise self.refuse
        self.applied.append(config)
        return ("server.port",)


class CountedFile(ConfigFile):
    """A config file that tells the desk when it was looked at."""

    desk: Desk

    def look(self, like: Source) -> Source:
        try:
            return super().look(like)
        finally:
            self.desk.looks += 1


@asynccontextmanager
async def watched(folder: Path, text: str | None, poll_s: float | None = 0.005) -> AsyncIterator[tuple[Desk, Watch]]:
    desk = Desk(folder)
    if text is not None:
        desk.write(text)
    file = CountedFile(desk.path, env={"LEVEL": "error"}, optional=True)
    file.desk = desk
    watch = Watch(
        file,
        file.read().source,
        apply=desk.apply,
        done=desk.results.append,
        poll_s=lambda: poll_s,
        settle_s=0.005,
    )
    watch.start()
    try:
        yield desk, watch
    finally:
        await watch.close()


async def test_a_changed_file_is_put_in_force_once(tmp_path: Path) -> None:
    """A change is found by the poll and applied once; the same content written again does nothing."""
    async with watched(tmp_path, "log: {level: info}") as (desk, _):
        await desk.looked()
        desk.write("log: {level: info}")
        await desk.looked()
        assert not desk.results
        desk.write("log: {level: warning}")
        await until(lambda: bool(desk.results), "the change is taken")
        await desk.looked()
        assert [config.log.level for config in desk.applied] == ["warning"]
        assert desk.results == ["ok"]


async def test_a_fault_is_said_with_its_place_and_changes_nothing(tmp_path: Path) -> None:
    """Each fault is logged as file:line:col: path: what, once; the next sound version is taken."""
    with capture_logs() as said:
        async with watched(tmp_path, "log: {level: info}") as (desk, _):
            desk.write("log:\n  level: loud\nserver: {prot: 1}\n")
            await until(lambda: desk.results == ["failed"], "the fault is found")
            await desk.looked()
            assert desk.results == ["failed"] and not desk.applied
            desk.write("log: {level: error}")
            await until(lambda: desk.results == ["failed", "ok"], "the mended file is taken")
    faults = [line["fault"] for line in said if "fault" in line]
    assert any(fault.startswith(f"{desk.path}:2:10: log.level: ") for fault in faults)
    assert any(fault.startswith(f"{desk.path}:3:10: server.prot: ") for fault in faults)
    assert len(faults) == 2


async def test_what_waits_for_the_next_start_is_said_in_one_warning(tmp_path: Path) -> None:
    """The settings that a reload could not change are named together."""
    with capture_logs() as said:
        async with watched(tmp_path, "") as (desk, _):
            desk.write("server: {port: 9}")
            await until(lambda: bool(desk.results), "the change is taken")
    [line] = [line for line in said if line["log_level"] == "warning"]
    assert line["event"] == "these settings take effect at the next start" and line["settings"] == "server.port"


@pytest.mark.parametrize("half", ["", "  \n"])
async def test_a_file_that_is_empty_or_gone_waits(tmp_path: Path, half: str) -> None:
    """An editor that empties or removes the file before it writes it does not bring the defaults into force."""
    with capture_logs() as said:
        async with watched(tmp_path, "log: {level: info}") as (desk, _):
            desk.write(half)
            await desk.looked(5)
            desk.path.unlink()
            await desk.looked(5)
            assert not desk.results
            desk.write("log: {level: error}")
            await until(lambda: desk.results == ["ok"], "the new file is taken")
    assert len([line for line in said if "gone or empty" in line["event"]]) == 1


async def test_a_file_that_is_being_written_waits_until_it_stays_the_same(tmp_path: Path) -> None:
    """What differs between two looks is not read; what is read is the last of it."""

    class Writing(ConfigFile):
        pieces = ["log: {level: error}\n", "log: {level: error}\nmetering: {", "log: {level: error}\nmetering: {}\n"]
        reads = 0

        def look(self, like: Source) -> Source:
            text = self.pieces.pop(0) if len(self.pieces) > 1 else self.pieces[0]
            path.write_text(text)
            return super().look(like)

    path = tmp_path / "config.yaml"
    path.write_text("")
    results: list[Result] = []
    applied: list[Source] = []

    async def apply(_: Config, source: Source) -> tuple[str, ...]:
        applied.append(source)
        return ()

    file = Writing(path, env={})
    watch = Watch(file, file.read().source, apply=apply, done=results.append, poll_s=lambda: 0.005, settle_s=0.001)
    watch.start()
    await until(lambda: bool(results), "the file is taken")
    await watch.close()
    assert results == ["ok"]
    assert [source.text for source in applied] == ["log: {level: error}\nmetering: {}\n"]


async def test_a_file_that_is_taken_in_is_watched_too(tmp_path: Path) -> None:
    """A credential in a ${file:...} that is rotated takes effect as a change of the config does."""
    secret = tmp_path / "key"
    secret.write_text("sk-first-key-1\n")
    config = f'providers: {{p: {{dialect: openai, base_url: "http://127.0.0.1:1/v1", api_key: "${{file:{secret}}}"}}}}'
    async with watched(tmp_path, config) as (desk, _):
        await desk.looked()
        assert not desk.results
        secret.write_text("sk-second-key-2\n")
        await until(lambda: bool(desk.results), "the change is taken")
        key = desk.applied[0].providers["p"].api_key
        assert key is not None and key.reveal() == "sk-second-key-2"
        secret.unlink()
        await until(lambda: desk.results == ["ok", "failed"], "the fault is found")


async def test_a_hangup_reads_the_file_whatever_it_holds(tmp_path: Path) -> None:
    """Asked for, the file is read without a change and without a poll; gone, it is a fault and not the defaults."""
    async with watched(tmp_path, "log: {level: info}", poll_s=None) as (desk, watch):
        watch.ask()
        await until(lambda: desk.results == ["ok"], "the file is read")
        desk.path.unlink()
        watch.ask()
        await until(lambda: desk.results == ["ok", "failed"], "the file is missed")
        assert len(desk.applied) == 1


async def test_what_can_not_be_put_in_force_is_a_failure_and_the_next_is_tried(tmp_path: Path) -> None:
    """A config that loads and yet can't be applied is logged by class, counted, and not the end of the watch."""
    with capture_logs() as said:
        async with watched(tmp_path, "log: {level: info}") as (desk, watch):
            desk.refuse = FareboxError("its certificate is not there")
            watch.ask()
            await until(lambda: desk.results == ["failed"], "it fails")
            desk.refuse = None
            watch.ask()
            await until(lambda: desk.results == ["failed", "ok"], "it is taken")
    assert [line["reason"] for line in said if line["log_level"] == "error"] == ["its certificate is not there"]


async def test_a_config_that_appears_is_taken(tmp_path: Path) -> None:
    """Who starts without a file and then makes one need not start again."""
    async with watched(tmp_path, None) as (desk, _):
        await desk.looked()
        assert not desk.results
        desk.write("log: {level: error}")
        await until(lambda: desk.results == ["ok"], "the new file is taken")


def test_a_source_gives_the_config_again_when_its_files_are_gone(tmp_path: Path) -> None:
    """A worker that is started later has the very config of its siblings."""
    (tmp_path / "key").write_text("sk-first-key-1")
    path = tmp_path / "c.yaml"
    text = f'providers: {{p: {{dialect: openai, base_url: "http://x/v1", api_key: "${{file:{tmp_path / "key"}}}"}}}}'
    path.write_text(text)
    reading = ConfigFile(path, env={}, port=7, workers=3).read()
    path.unlink()
    (tmp_path / "key").unlink()
    assert load_source(reading.source, {}, port=7, workers=3) == reading.config
    with pytest.raises(ConfigError, match="No such file"):
        load_source(Source("c", text), {})


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """A config that comes through a pipe is not asked for again: that would wait for a writer who is gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    known = Source(str(pipe), "log: {}")
    assert ConfigFile(pipe, env={}).look(known) == known


def test_no_file_is_the_defaults_unless_it_was_named(tmp_path: Path) -> None:
    """Without a file the built-in defaults hold; a file that was asked for must be there."""
    reading = ConfigFile(tmp_path / "none", env={}, optional=True).read()
    assert isinstance(reading.config, Config) and reading.source.filename == BUILT_IN
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        raise ConfigFile(tmp_path / "none", env={}).read().config  # type: ignore[misc]


def test_credentials_of_the_old_config_and_the_new_stay_out_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """After a reload both keys are masked: calls with the old one may still be under way."""
    voice = Voice(worker=3)
    for key in ("plainword-one-1", "plainword-two-2"):
        voice.follow(config_of({"providers": {"p": provider_at("http://x/v1", key)}, "log": {"format": "json"}}))
    logs.structlog.get_logger().error("said plainword-one-1 and plainword-two-2")
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "said *** and ***" and line["worker"] == 3


# -- what a reload does to calls ---------------------------------------------------------------------


@asynccontextmanager
async def two_providers(
    database: str, folder: Path, script: Callable[..., Any] = well_behaved
) -> AsyncIterator[tuple[FakeProvider, FakeProvider, Farebox, Callable[..., Config]]]:
    """A farebox before provider `a`, and a maker of configs: `config("b", …)` sends everything to `b`."""
    async with FakeProvider(script) as a, FakeProvider(script) as b:
        urls = {"a": a.base_url, "b": b.base_url}

        def config(*names: str, **sections: Any) -> Config:
            providers = {name: provider_at(urls[name], f"sk-key-of-{name}") for name in names}
            return config_of(settings_of(database, folder, providers, **sections))

        async with running(settings_of(database, folder, {"a": provider_at(a.base_url, "sk-key-of-a")})) as farebox:
            yield a, b, farebox, config


async def test_each_call_is_served_by_one_config_whole(database: str, tmp_path: Path) -> None:
    """Under traffic that never stops, provider, credential, answer headers and row of each call are of one config."""
    async with two_providers(database, tmp_path) as (a, b, farebox, config):
        plain = config("b", server={"response_headers": False})
        first = farebox.app.config
        stopping = False
        answers: dict[str, bool] = {}

        async def client(name: int) -> None:
            number = 0
            while not stopping:
                number += 1
                model = f"m-{name}-{number}"
                answer = await ask(farebox.port, farebox.key, model, stream=number % 2 == 0)
                assert is_whole(answer, stream=number % 2 == 0), answer
                answers[model] = answer.header("x-farebox-request-id") is not None

        clients = [asyncio.create_task(client(n)) for n in range(8)]
        for new in (plain, first) * 10:
            goal = len(answers) + 8
            await until(lambda goal=goal: len(answers) >= goal, "calls are answered")  # type: ignore[misc]
            assert await farebox.app.reload(new) == ()
        stopping = True
        await asyncio.gather(*clients)
        asked = {name: [json.loads(r.body)["model"] for r in p.requests] for name, p in (("a", a), ("b", b))}
        assert min(map(len, asked.values())) > 8
        assert sorted(asked["a"] + asked["b"]) == sorted(answers)
        for name, provider in (("a", a), ("b", b)):
            assert {r.header("authorization") for r in provider.requests} == {f"Bearer sk-key-of-{name}"}
            assert {answers[model] for model in asked[name]} == {name == "a"}
        rows = await farebox.rows(len(answers))
        assert {row.requested_model: row.provider for row in rows} == {
            model: name for name, models in asked.items() for model in models
        }
        assert {row.outcome for row in rows} == {"complete"}


async def test_a_stream_goes_on_although_its_provider_was_removed(database: str, tmp_path: Path) -> None:
    """A call under way keeps the client it began with; that is closed when the call is over, not before."""
    held = Held()
    async with two_providers(database, tmp_path, held) as (a, b, farebox, config):
        old = farebox.app.proxy._snapshot.upstreams["a"]
        under_way = asyncio.create_task(ask(farebox.port, farebox.key, "long", stream=True))
        await until(lambda: len(a.requests) == 1, "the call is under way")
        await farebox.app.reload(config("b"))
        held.of("short").set()
        assert is_whole(await ask(farebox.port, farebox.key, "short", stream=True), stream=True)
        assert len(b.requests) == 1 and not old.closed
        held.of("long").set()
        assert is_whole(await under_way, stream=True)
        await until(lambda: old.closed, "the old client is closed")
        rows = {row.requested_model: (row.provider, row.outcome) for row in await farebox.rows(2)}
        assert rows == {"long": ("a", "complete"), "short": ("b", "complete")}


async def test_a_provider_that_stays_keeps_its_connections(database: str, tmp_path: Path) -> None:
    """A reload that does not concern a provider does not make it connect anew; one that changes its key does."""

    async def answer(_: object, wire: Any) -> None:
        await send_document(wire, document("m", 1))

    async with two_providers(database, tmp_path, answer) as (a, _, farebox, config):
        await ask(farebox.port, farebox.key, "m", stream=False)
        for _ in range(3):
            await farebox.app.reload(config("a", "b", server={"response_headers": False}))
            await farebox.app.reload(config("a", limits={"body_mb_max": 1}))
            await ask(farebox.port, farebox.key, "m", stream=False)
        assert {received.connection for received in a.requests} == {1}
        changed = settings_of(database, tmp_path, {"a": provider_at(a.base_url, "sk-another-key")})
        await farebox.app.reload(config_of(changed))
        await ask(farebox.port, farebox.key, "m", stream=False)
        assert a.requests[-1].connection == 2
        assert a.requests[-1].header("authorization") == "Bearer sk-another-key"


async def test_a_file_of_certificates_is_read_again_with_every_config() -> None:
    """The client of a provider with a `tls_ca_file` is another one after a reload; one without keeps its own."""
    made: list[str] = []

    class Client(Upstream):
        def __init__(self, provider: Provider) -> None:
            super().__init__(replace(provider, tls_ca_file=None))
            self.provider = provider
            made.append(provider.name)

    def config() -> Config:
        plain = provider_at("https://localhost:1/v1")
        return config_of({"providers": {"plain": plain, "private": {**plain, "tls_ca_file": "/somewhere/ca.pem"}}})

    generations = Generations(lambda: DemoProvider(len), Client)
    try:
        await generations.make(config())
        await generations.make(config())
    finally:
        await generations.close()
    assert made == ["plain", "private", "private"]


async def test_the_demo_provider_ends_and_does_not_come_back(database: str, tmp_path: Path) -> None:
    """With the first provider the demo ends, when its last call is over; a config without any is not taken then."""
    async with FakeProvider(well_behaved) as provider, running(settings_of(database, tmp_path, {})) as farebox:
        none = farebox.app.config
        assert farebox.app.demo
        real = config_of(settings_of(database, tmp_path, {"p": provider_at(provider.base_url)}))
        async with RawClient(farebox.port) as client:
            body = json.dumps(request("farebox-demo", stream=True)).encode()
            await client.send("POST", CHAT, [("Authorization", f"Bearer {farebox.key}")], body)
            head = await client.head()
            await farebox.app.reload(real)
            assert not farebox.app.demo and head.status == 200
            pieces = b""
            while piece := await client.chunk():
                pieces += piece
            assert pieces.endswith(b"data: [DONE]\n\n")
        await ask(farebox.port, farebox.key, "m-1", stream=False)
        assert len(provider.requests) == 1
        demo_port = int(none.providers["demo"].base_url.rsplit(":", 1)[1].split("/")[0])

        async def ended() -> bool:
            try:
                await call(demo_port, "/v1/models", method="GET")
            except (ConnectionError, asyncio.IncompleteReadError):
                return True
            return False

        async with asyncio.timeout(10):
            while not await ended():
                await asyncio.sleep(0.01)
        with pytest.raises(FareboxError, match="no provider would be left"):
            await farebox.app.reload(config_of(settings_of(database, tmp_path, {})))
        assert not farebox.app.demo
        await ask(farebox.port, farebox.key, "m-1", stream=False)
        assert len(provider.requests) == 2


async def test_a_client_that_can_not_be_made_changes_nothing(database: str, tmp_path: Path) -> None:
    """A certificate file that is missing is found out before anything is swapped."""
    async with two_providers(database, tmp_path) as (a, _, farebox, _config):
        before = farebox.app.config
        bad = {
            "a": provider_at(a.base_url, "sk-other", response_timeout_s=3),
            "c": provider_at("https://127.0.0.1:1", tls_ca_file=str(tmp_path / "none.pem")),
        }
        with pytest.raises(FareboxError, match=r"providers\.c\.tls_ca_file: .*none\.pem can't be used: No such file"):
            await farebox.app.reload(config_of(settings_of(database, tmp_path, bad)))
        assert farebox.app.config is before
        assert is_whole(await ask(farebox.port, farebox.key, "m-1", stream=False), stream=False)
        assert a.requests[-1].header("authorization") == "Bearer sk-key-of-a"


async def test_bounds_and_tokens_follow_the_config(database: str, tmp_path: Path) -> None:
    """Limits, the control plane's token and header bounds hold for the next request or connection."""
    async with two_providers(database, tmp_path) as (_, _b, farebox, config):
        assert (await call(farebox.port, "/farebox/api/keys", method="GET", key=ADMIN_TOKEN)).status == 200
        new = config(
            "a",
            limits={"body_mb_max": 1},
            server={"admin_token": "another-admin-token-1", "header_bytes_max": 1024},
        )
        await farebox.app.reload(new)
        assert (await call(farebox.port, "/farebox/api/keys", method="GET", key=ADMIN_TOKEN)).status == 401
        answer = await call(farebox.port, "/farebox/api/keys", method="GET", key="another-admin-token-1")
        assert answer.status == 200
        large = request("m-1", stream=False) | {"user": "x" * (1 << 20)}
        assert (await farebox.call(CHAT, large)).status == 413
        assert (await call(farebox.port, "/healthz", method="GET", headers={"x-long": "y" * 2000})).status == 431


# -- a process of its own ----------------------------------------------------------------------------


async def test_a_running_farebox_follows_its_file_and_the_hangup(database: str, tmp_path: Path) -> None:
    """A change is taken by itself, a fault is logged with its place and counted, SIGHUP reloads and does not stop."""
    async with FakeProvider(well_behaved) as one, FakeProvider(well_behaved) as two:
        config = settings(str(tmp_path / "data"), one.base_url, database=database)
        config["server"]["reload_poll_s"] = 0.05
        async with installed(tmp_path, config) as farebox:
            process = await farebox.start()
            assert is_whole(await ask(process.port, farebox.key, "m-1", stream=True), stream=True)
            farebox.write(settings(str(tmp_path / "data"), two.base_url, database=database))  # polls no more
            farebox.config.write_text(json.dumps(farebox.settings | {"server": config["server"] | {"port": 1}}))
            await process.says("config reloaded")
            await process.says("these settings take effect at the next start")
            assert is_whole(await ask(process.port, farebox.key, "m-2", stream=True), stream=True)
            assert [json.loads(r.body)["model"] for r in two.requests] == ["m-2"]
            farebox.config.write_text('log:\n  level: "loud"\n')
            await process.says("the config has a fault")
            [fault] = process.log("the config has a fault")
            assert fault["fault"].startswith(f"{farebox.config}:2:10: log.level: ")
            assert is_whole(await ask(process.port, farebox.key, "m-3", stream=True), stream=True)
            farebox.write(config)
            process.signal(signal.SIGHUP)
            await until(lambda: len(process.log("config reloaded")) >= 2, "the hangup reloads")
            assert is_whole(await ask(process.port, farebox.key, "m-4", stream=True), stream=True)
            assert len(one.requests) == 2 and process.running
            metrics = (await call(process.port, "/metrics", method="GET")).body.decode()
            assert 'farebox_config_reloads_total{result="failed"} 1' in metrics
            assert await process.stop() == 0


async def test_a_terminal_that_is_closed_ends_farebox_and_one_that_is_there_does_not(
    database: str, tmp_path: Path
) -> None:
    """SIGHUP with the terminal there reloads; once the terminal is gone it stops farebox in order."""
    async with FakeProvider(well_behaved) as one:
        config = settings(str(tmp_path / "data"), one.base_url, database=database)
        async with installed(tmp_path, config) as farebox:
            screen, terminal = os.openpty()
            try:
                process = await farebox.spawn(stdin=terminal)
                await process.up()
                process.signal(signal.SIGHUP)
                await process.says("config reloaded")
            finally:
                os.close(terminal)
                os.close(screen)
            process.signal(signal.SIGHUP)
            assert await process.wait() == 0
            assert process.log("the terminal is gone") and process.log("stopped")
