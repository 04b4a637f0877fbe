"""`farebox models`: what is stored, shown; and providers asked now, beside a running farebox or without one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import speech
from support.app import running, settings_of
from support.cli import Cli, commands
from support.live import eventually
from support.provider import FakeProvider, plain

KEY = "sk-up-0123456789abcdef"
PRICES = {"gpt-5": {"input_usd_per_mtok": "1.250", "output_usd_per_mtok": 10}}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """Commands, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    yield from commands(capsys)


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    """A provider with two models."""
    async with FakeProvider(plain(speech.models("gpt-5", "org/tiny"))) as provider:
        yield provider


def settings(cli: Cli, database: str, folder: Path, fake: FakeProvider, **more: Any) -> dict[str, Any]:
    """A config with that provider and one that nobody listens at; every command is given it."""
    providers = {
        "up": {"dialect": "openai", "base_url": fake.base_url, "api_key": KEY, "prices": PRICES},
        "away": {"dialect": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": KEY},
    }
    routes = [{"match": {"model": "gpt-*"}, "to": ["up"]}, {"match": {}, "to": ["away"]}]
    made = settings_of(database, folder / "data", providers, routes, **more)
    cli.configured(folder / "farebox.yaml", made)
    return made


@pytest.mark.parametrize("words", [("models",), ("models", "list"), ("models", "refresh")], ids=" ".join)
def test_the_command_explains_itself(cli: Cli, words: tuple[str, ...]) -> None:
    """--help describes it on standard output and exits 0."""
    ran = cli(*words, "--help")
    assert (ran.code, ran.errors) == (0, "")
    assert ran.output.startswith(f"usage: farebox {' '.join(words)}")


async def test_providers_are_asked_and_their_models_shown(
    cli: Cli, database: str, tmp_path: Path, fake: FakeProvider
) -> None:
    """`refresh` says what came of each provider, `list` what is there: context, prices, source, age, whether routed."""
    settings(cli, database, tmp_path, fake)
    assert await cli.json("models", "list") == []
    ran = await cli.aside("models", "refresh")
    assert (ran.code, ran.errors) == (0, "")
    assert [line.split() for line in ran.output.splitlines()] == [
        ["provider", "models", "error"],
        ["up", "2", "-"],
        ["away", "-", "connect"],
    ]
    rows = await cli.json("models", "list")
    assert [(row["id"], row["provider"], row["routed"], row["source"]) for row in rows] == [
        ("gpt-5", "up", True, "provider"),
        ("org/tiny", "up", False, "provider"),
    ]
    assert (rows[0]["input_usd_per_mtok"], rows[0]["output_usd_per_mtok"]) == ("1.25", "10")
    assert (rows[1]["input_usd_per_mtok"], rows[1]["context_length"]) == (None, None)
    assert all(0 <= row["age_s"] < 600 for row in rows)
    ran = await cli.aside("models", "list")
    assert ran.output.splitlines()[1].split()[:3] == ["gpt-5", "up", "yes"]
    assert "away: the last attempt failed (connect); it never gave a list" in ran.errors
    table = list(csv.DictReader(io.StringIO((await cli.aside("models", "list", "--format", "csv")).output)))
    assert [(row["id"], row["input_usd_per_mtok"], row["routed"]) for row in table] == [
        ("gpt-5", "1.25", "True"),
        ("org/tiny", "", "False"),
    ]


async def test_what_is_shown_can_be_narrowed(cli: Cli, database: str, tmp_path: Path, fake: FakeProvider) -> None:
    """By provider, by a glob of the id, and to what one key would be given."""
    settings(cli, database, tmp_path, fake)
    await cli.aside("models", "refresh", "--provider", "up")
    await cli.json("keys", "create", "all")
    await cli.json("keys", "create", "gpts", "--model", "gpt-*")
    await cli.json("keys", "create", "none", "--model", "claude-*")
    await cli.json("keys", "create", "ended")
    await cli.json("keys", "revoke", "ended")

    async def ids(*words: str) -> list[str]:
        return [row["id"] for row in await cli.json("models", "list", *words)]

    assert await ids("--provider", "up", "--model", "*tiny") == ["org/tiny"]
    assert await ids("--provider", "away") == []
    assert await ids("--key", "all") == ["gpt-5", "org/tiny"]
    assert await ids("--key", "gpts") == ["gpt-5"]
    assert await ids("--key", "none") == []
    for words, message in (
        (("--key", "ended"), "the key 'ended' was revoked"),
        (("--key", "nobody"), "there is no key 'nobody'"),
        (("--provider", "nobody"), "there is no enabled provider 'nobody'"),
    ):
        ran = await cli.aside("models", "list", *words)
        assert ran.code == 1
        assert message in ran.errors


async def test_it_fails_when_nobody_gives_a_list(cli: Cli, database: str, tmp_path: Path, fake: FakeProvider) -> None:
    """All failed is exit 1, and the error quotes nothing of the provider's; what was there stays."""
    settings(cli, database, tmp_path, fake)
    await cli.aside("models", "refresh")
    fake.default = plain(json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), status=401)
    ran = await cli.aside("models", "refresh", "--format", "json")
    assert ran.code == 1
    assert json.loads(ran.output) == [
        {"provider": "up", "models": None, "error": "status 401"},
        {"provider": "away", "models": None, "error": "connect"},
    ]
    assert KEY not in ran.output + ran.errors
    assert len(await cli.json("models", "list")) == 2
    assert "its list of" in (await cli.aside("models", "list")).errors
    assert (await cli.aside("models", "refresh", "--provider", "nobody")).code == 1


async def test_a_running_farebox_takes_it_over(cli: Cli, database: str, tmp_path: Path, fake: FakeProvider) -> None:
    """What the command fetches is served within a poll, by a process that fetches nothing itself."""
    made = settings(cli, database, tmp_path, fake, models={"refresh_s": "off", "poll_s": 0.05})
    async with running(made) as farebox:
        assert json.loads((await farebox.call("/v1/models", method="GET")).body)["data"] == []
        assert (await cli.aside("models", "refresh", "--provider", "up")).code == 0
        await eventually(lambda: farebox.app.models.shelf["up"].offers)
        answer = await farebox.call("/v1/models", method="GET")
        models = json.loads(answer.body)["data"]
        assert [(model["id"], model["routed"]) for model in models] == [("gpt-5", True), ("org/tiny", False)]
    assert len(fake.requests) == 1


async def test_without_a_provider_the_demo_is_shown(cli: Cli, database: str, tmp_path: Path) -> None:
    """There is one model then, and nobody to ask."""
    cli.configured(tmp_path / "farebox.yaml", settings_of(database, tmp_path / "data", {}))
    (row,) = await cli.json("models", "list")
    assert (row["id"], row["provider"], row["routed"], row["age_s"]) == ("farebox-demo", "demo", True, None)
    ran = await cli.aside("models", "refresh")
    assert (ran.code, ran.output) == (0, "")
    assert "nobody to ask" in ran.errors
