"""`farebox top`: the numbers of this moment, their frame, and a terminal that is given back as it was."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import termios
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from farebox.cli.top import frame
from farebox.cli.watching import BACKLOG, IN_FLIGHT, GroupSeen, Seen, Watch, gauges_in, scraping
from farebox.payload import encode
from farebox.store import Store, UsageFilter
from farebox.store.reports import Reports, Sums
from support.app import ADMIN_TOKEN, running, settings_of
from support.cli import Cli, commands
from support.events import event
from support.provider import FakeProvider, Received, Wire, plain

NOW = datetime(2026, 11, 22, 0, 30, tzinfo=UTC)


class Clock:
    """Both clocks of a watch, moved by hand."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.passed_s)

    def monotonic(self) -> float:
        return self.passed_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def no_gauges() -> Mapping[str, float]:
    return {}


def watch_of(store: Store, clock: Clock, gauges: Any = no_gauges, **more: Any) -> Watch:
    """A watch on `store` by the test's clock."""
    facts: dict[str, Any] = {"where": UsageFilter(), "by": "model", "zone": "UTC", **more}
    return Watch(Reports(store), gauges, now=clock.now, monotonic=clock.monotonic, **facts)


async def ended(store: Store, ago_s: float, *, took_s: float = 0.0, **facts: Any) -> None:
    """A call that ended so long before NOW, 10 + 5 tokens, 0.01 USD."""
    at = NOW - timedelta(seconds=ago_s)
    usual: dict[str, Any] = {"model": "m", "input_tokens": 10, "output_tokens": 5, "cost_usd": Decimal("0.01")}
    times = {"started_at": at - timedelta(seconds=took_s), "finished_at": at, "duration_ms": took_s * 1000}
    await store.insert_events([encode(event(**{**usual, **times, **facts}))])


# -- numbers -------------------------------------------------------------------------------------


async def test_minute_hour_and_today(store: Store, clock: Clock) -> None:
    """A call counts for the minute it ended in, for the hour and the day it began in; the day is the zone's."""
    await ended(store, 5)
    await ended(store, 30, took_s=300)
    await ended(store, 90, outcome="upstream_error", cost_usd=None)
    await ended(store, 2400)  # 23:50 UTC the day before
    await ended(store, 2 * 3600)  # 22:30
    await ended(store, 20, took_s=3000, model="slow")  # began 50 minutes ago: not looked for
    seen = await watch_of(store, clock).look()
    assert seen.minute is not None and seen.hour is not None and seen.today is not None
    assert (seen.minute.calls, seen.minute.total_tokens, seen.minute.cost_usd) == (2, 30, "0.02")
    assert (seen.hour.calls, seen.hour.cost_usd, seen.hour.unknown_cost, seen.hour.errors) == (5, "0.04", 1, 1)
    assert (seen.today.calls, seen.today.cost_usd) == (3, "0.02")
    berlin = await watch_of(store, clock, zone="Europe/Berlin").look()
    assert berlin.today is not None and berlin.today.calls == 5, "there it is half past one, and began at 23:00 UTC"
    assert (seen.in_flight, seen.backlog, seen.fault) == (None, None, None)


async def test_rows_of_the_table(store: Store, clock: Clock) -> None:
    """A row for each model, the most expensive of the hour first, its minute beside it; other rows on request."""
    await ended(store, 5, model="cheap", key_name="a")
    await ended(store, 600, model="dear", cost_usd=Decimal(3), key_name="b")
    await ended(store, 10, model="dear", cost_usd=Decimal(1), key_name="a")
    watch = watch_of(store, clock)
    rows = (await watch.look()).groups
    assert [(row.label, row.minute.calls, row.hour.calls, row.hour.cost_usd) for row in rows] == [
        ("dear", 1, 2, "4"),
        ("cheap", 1, 1, "0.01"),
    ]
    watch.group_by("key")
    seen = await watch.look()
    assert seen.by == "key"
    assert [(row.label, row.hour.calls) for row in seen.groups] == [("b", 1), ("a", 2)]
    only = await watch_of(store, clock, where=UsageFilter(key_name="a")).look()
    assert {row.label for row in only.groups} == {"dear", "cheap"}
    assert only.hour is not None and only.hour.calls == 2


async def test_watching_is_little_work_for_the_database(store: Store, clock: Clock) -> None:
    """The minute is asked for at each look, the hour every five seconds, today every fifteen."""
    watch = watch_of(store, clock)
    await watch.look()
    await ended(store, 1)

    async def calls() -> list[int]:
        seen = await watch.look()
        assert seen.minute is not None and seen.hour is not None and seen.today is not None
        return [seen.minute.calls, seen.hour.calls, seen.today.calls]

    clock.passed_s = 4.9
    assert await calls() == [1, 0, 0]
    clock.passed_s = 5.1
    assert await calls() == [1, 1, 0]
    clock.passed_s = 15.1
    assert await calls() == [1, 1, 1]


async def test_a_slow_answer_is_asked_for_less_often(store: Store, clock: Clock) -> None:
    """What took a second is asked anew after twenty, however short the interval."""
    asked = 0

    async def slow() -> Mapping[str, float]:
        nonlocal asked
        asked += 1
        clock.passed_s += 1.0
        return {IN_FLIGHT: float(asked)}

    watch = watch_of(store, clock, slow)
    for passed_s, expected in ((0.0, 1), (20.9, 1), (21.1, 2)):
        clock.passed_s = passed_s
        assert (await watch.look()).in_flight == expected


async def test_a_database_that_is_away_is_said(database: str, clock: Clock) -> None:
    """Without a database there is a sentence instead of numbers, and the gauges all the same."""

    async def gauges() -> Mapping[str, float]:
        return {IN_FLIGHT: 3.0}

    store = Store(database)
    await store.open()
    watch = watch_of(store, clock, gauges)
    await store.close()
    seen = await watch.look()
    assert seen.fault is not None
    assert (seen.in_flight, seen.minute, seen.groups) == (3, None, [])
    assert seen.fault in rendered(seen, 100)


# -- gauges --------------------------------------------------------------------------------------


def test_gauges_are_summed_over_their_labels() -> None:
    """Of the exposition only the two gauges are read, with labels or without; names that begin alike are others."""
    text = (
        f"# HELP {IN_FLIGHT} Requests.\n# TYPE {IN_FLIGHT} gauge\n"
        f'{IN_FLIGHT}{{worker="0"}} 2\n{IN_FLIGHT}{{worker="1"}} 3.0\n{IN_FLIGHT}_other 9\n{BACKLOG} 1e3\nx 1\n'
    )
    assert gauges_in(text) == {IN_FLIGHT: 5.0, BACKLOG: 1000.0}
    assert gauges_in("") == {}


async def test_requests_in_flight_are_a_running_fareboxs(database: str, tmp_path: Path) -> None:
    """A call that is not answered yet is in flight; with the metrics' token; nobody there is no fault."""
    answering = asyncio.Event()

    async def waits(request: Received, wire: Wire) -> None:
        await answering.wait()
        await plain(b'{"choices":[]}')(request, wire)

    async with FakeProvider(waits) as provider:
        up = {"dialect": "openai", "base_url": provider.base_url}
        settings = settings_of(database, tmp_path, {"up": up}, metrics={"token": "metrics-token-0123456789"})
        async with running(settings) as farebox:
            url = f"http://127.0.0.1:{farebox.port}/metrics"
            scrape = scraping(url, "metrics-token-0123456789")
            assert (await scrape())[IN_FLIGHT] == 0
            body = {"model": "m", "messages": []}
            calls = [asyncio.create_task(farebox.call("/v1/chat/completions", body)) for _ in range(2)]
            async with asyncio.timeout(10):
                while (await scrape())[IN_FLIGHT] != 2:
                    await asyncio.sleep(0.02)
            answering.set()
            await asyncio.gather(*calls)
            assert await scraping(url, "wrong")() == {}
    assert await scrape() == {}, "nobody listens any more"


# -- the frame -----------------------------------------------------------------------------------


def seen_of(groups: int, **more: Any) -> Seen:
    """A look with so many rows."""
    sums = Sums(
        calls=1234, total_tokens=56_789_012, cost_usd="12.345", unknown_cost=2, errors=3, duration_p50_ms=1500.0
    )
    rows = [GroupSeen(f"modèle-{n}\x1b[2J", Sums(calls=7), sums) for n in range(groups)]
    facts: dict[str, Any] = {"in_flight": 4, "backlog": 17, "minute": sums, "hour": sums, "today": sums}
    return Seen(at=NOW, by="model", groups=rows, **{**facts, **more})


def rendered(seen: Seen, width: int, rows_max: int = 20, *, help: bool = False) -> str:
    """The frame as text."""
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(frame(seen, width=width, rows_max=rows_max, help=help))
    return screen.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_a_frame_fits_its_terminal(width: int) -> None:
    """No line is wider than the terminal or wraps, no more rows than fit, and no name writes on the screen."""
    assert len(rendered(seen_of(30, in_flight=None), width, 5, help=True).splitlines()) == 3 + 1 + 1 + 1 + 5 + 1 + 2
    text = rendered(seen_of(30), width, 5, help=True)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 3 + 1 + 1 + 5 + 1 + 2
    assert "and 25 more" in text
    assert "\x1b" not in text


def test_a_frame_says_what_matters() -> None:
    """In flight, rates, spend and what is unpriced, quantiles; what waits for the database only if something does."""
    text = rendered(seen_of(1), 160)
    for words in ("in flight 4", "calls/min 1,234", "tokens/min 56,789,012", "12.34 (2 unpriced)", "p50 1.50 s"):
        assert words in text, words
    assert "waiting for the database 17" in text
    assert "waiting" not in rendered(seen_of(1, backlog=0), 160)
    unknown = rendered(Seen(at=NOW, by="key", in_flight=None, backlog=None, minute=None, hour=None, today=None), 100)
    assert "in flight -" in unknown and "today -" in unknown
    assert "no calls in the last hour" in unknown
    assert "in flight: no numbers from a running farebox" in unknown
    assert "no numbers" not in text


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str
) -> Iterator[Cli]:
    """Commands on a fresh database; the server is one that is not there."""
    monkeypatch.chdir(tmp_path)
    for made in commands(capsys):
        server = {"admin_token": ADMIN_TOKEN, "port": 9}
        made.configured(tmp_path / "farebox.yaml", {"server": server, "database": {"url": database}})
        yield made


async def test_one_look_without_a_terminal(cli: Cli, store: Store) -> None:
    """In a pipe it prints one frame and ends; as JSON the same numbers; without a server and calls too."""
    ran = await cli.aside("top")
    assert (ran.code, ran.errors) == (0, "")
    assert "in flight -" in ran.output and "no calls in the last hour" in ran.output
    now = datetime.now(UTC)
    await store.insert_events([encode(event(started_at=now, finished_at=now, model="m", cost_usd=Decimal("0.5")))])
    assert "0.50" in (await cli.aside("top", "--by", "key", "--once")).output
    seen = await cli.json("top")
    assert (seen["in_flight"], seen["minute"]["calls"], seen["hour"]["cost_usd"]) == (None, 1, "0.5")
    assert [row["label"] for row in seen["groups"]] == ["m"]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--interval", "0"), "--interval"),
        (("--interval", "nan"), "--interval"),
        (("--by", "tool"), "'tool'"),
        (("--timezone", "Mars"), "'Mars' is not a time zone"),
        (("--since", "1h"), "--since"),
    ],
)
def test_bad_use_is_named(cli: Cli, argv: tuple[str, ...], named: str) -> None:
    """What makes no sense exits 2 before anything is shown."""
    ran = cli("top", *argv)
    assert (ran.code, ran.output) == (2, "")
    assert named in ran.errors


class Screen:
    """`farebox top` on a terminal of its own."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int) -> None:
        self.process = process
        self.terminal = terminal
        self.shown = ""

    async def shows(self, text: str) -> None:
        """Until the terminal was shown `text`; what came before is forgotten."""
        async with asyncio.timeout(30):
            while text not in self.shown:
                await asyncio.sleep(0.02)
                if not self.look():
                    assert self.process.returncode is None, self.shown
        self.shown = self.shown.partition(text)[2]

    def look(self) -> bool:
        """Take in what is on the terminal; whether there was anything new."""
        try:
            self.shown += os.read(self.terminal, 65536).decode(errors="replace")  # it may end within a character
        except BlockingIOError:
            return False
        return True

    async def ended(self) -> int:
        """Its exit code. The terminal is read meanwhile, as a person does: what nobody reads blocks who writes."""
        deadline = asyncio.get_running_loop().time() + 30
        while self.process.returncode is None:
            assert asyncio.get_running_loop().time() < deadline, f"it goes on, and shows: {self.shown[-4000:]!r}"
            self.look()
            await asyncio.sleep(0.02)
        while self.look():
            pass
        return self.process.returncode


@asynccontextmanager
async def screen(config: Path) -> AsyncIterator[Screen]:
    """A running `farebox top`; at the end it must have given the terminal back as it was."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    before = termios.tcgetattr(theirs)
    os.set_blocking(ours, False)
    argv = [sys.executable, "-m", "farebox", "top", "--interval", "0.2", "--config", str(config)]
    environ = {**os.environ, "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
    )
    try:
        top = Screen(process, ours)
        yield top
        assert await top.ended() == 0, top.shown
        assert termios.tcgetattr(theirs) == before
        assert "Traceback" not in top.shown
        assert "\x1b[?1049l" in top.shown, "the screen that was there before is shown again"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("end", ["q", "SIGINT", "SIGTERM"])
async def test_a_live_view_gives_the_terminal_back(cli: Cli, store: Store, end: str) -> None:
    """On a terminal it renews itself and follows keys; q, Ctrl-C and SIGTERM end it with 0, the terminal as it was."""
    assert cli.config is not None
    now = datetime.now(UTC)
    await store.insert_events([encode(event(started_at=now, finished_at=now, model="a-model", key_name="a-key"))])
    async with screen(cli.config) as top:
        await top.shows("a-model")
        os.write(top.terminal, b"k")
        await top.shows("a-key")
        if end == "q":
            os.write(top.terminal, b"q")
        else:
            top.process.send_signal(signal.Signals[end])


@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM"])
async def test_a_live_view_that_waits_for_the_database_can_be_left(
    cli: Cli, store: Store, database: str, tmp_path: Path, end: str
) -> None:
    """Who tells it to end while a question is not answered need not wait for the answer."""
    patient = {"url": database, "statement_timeout_s": 600}
    cli.configured(tmp_path / "patient.yaml", {"server": {"admin_token": ADMIN_TOKEN, "port": 9}, "database": patient})
    assert cli.config is not None
    now = datetime.now(UTC)
    await store.insert_events([encode(event(started_at=now, finished_at=now, model="a-model"))])
    async with screen(cli.config) as top:
        await top.shows("a-model")
        async with store.connection() as holder, holder.transaction():
            await holder.execute("LOCK TABLE farebox.usage_entries IN ACCESS EXCLUSIVE MODE")
            while not await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.02)
            top.process.send_signal(signal.Signals[end])
            assert await top.ended() == 0, top.shown
