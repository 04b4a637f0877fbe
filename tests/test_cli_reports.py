"""`farebox usage` on a ledger whose sums were computed by hand: groupings, formats, filters, exports, terminals."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from farebox.cli.tables import Column, amounts, make_table, milliseconds
from farebox.cli.usage import CALLS, SUMS
from farebox.payload import encode
from farebox.store import Store, UsageFilter
from farebox.store.reports import GROUPINGS, PAGE_ROWS, Reports
from support.app import ADMIN_TOKEN
from support.books import CI_KEY, SESSION, at, keep
from support.bulk import fill
from support.cli import Cli, commands
from support.events import event, events
from support.pgbouncer import pgbouncer

NEWEST = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str
) -> Iterator[Cli]:
    """Commands on a fresh database."""
    monkeypatch.chdir(tmp_path)
    for made in commands(capsys):
        settings = {"server": {"admin_token": ADMIN_TOKEN}, "database": {"url": database}}
        made.configured(tmp_path / "farebox.yaml", settings)
        yield made


@pytest.fixture
async def books(cli: Cli, store: Store) -> Cli:
    """Commands on the ledger of `support.books`."""
    await keep(store)
    return cli


def sums(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    """Some members of a group."""
    return tuple(row[name] for name in names)


# -- sums ----------------------------------------------------------------------------------------


async def test_sums_by_key_are_those_computed_by_hand(books: Cli) -> None:
    """Every column of a group is the sum, the count or the quantile of its calls; the correction holds, once."""
    batch, ci = await books.json("usage", "--by", "key")
    assert ci == {
        "key": "ci",
        "calls": 3,
        "input_tokens": 1800,
        "cache_read_tokens": 400,
        "cache_write_tokens": None,
        "output_tokens": 300,
        "reasoning_tokens": 50,
        "total_tokens": 2100,
        "cost_usd": "0.0100005",
        "unknown_cost": 1,
        "errors": 1,
        "tool_calls": 4,
        "duration_p50_ms": 1000.0,
        "duration_p95_ms": 2800.0,
        "ttft_p50_ms": 200.0,
        "ttft_p95_ms": 290.0,
        "first_at": "2024-11-22T10:00:00Z",
        "last_at": "2024-11-22T23:30:00Z",
    }
    assert sums(batch, "key", "calls", "input_tokens", "output_tokens", "total_tokens") == ("batch", 2, 10, 5, 15)
    assert sums(batch, "cost_usd", "unknown_cost", "errors", "reasoning_tokens") == ("0.25", 0, 1, None)
    assert sums(batch, "duration_p50_ms", "duration_p95_ms", "ttft_p50_ms") == (35.0, 48.5, None)


GROUPED: list[tuple[list[str], set[tuple[str | None, int]]]] = [
    (["--by", "team"], {("research", 3), (None, 2)}),
    (["--by", "user"], {("ann", 1), (None, 4)}),
    (["--by", "session"], {("s-1", 2), ("s-2", 1), (SESSION, 1), (None, 1)}),
    (["--by", "model"], {("gpt-5-2026", 2), ("claude-x", 1), ("gpt-4o", 1), ("=gpt", 1)}),
    (["--by", "status"], {("200", 4), ("429", 1)}),
    (["--by", "outcome"], {("complete", 3), ("upstream_cut", 1), ("upstream_error", 1)}),
    (["--by", "usage_source"], {("provider", 3), ("partial", 1), ("none", 1)}),
    (["--by", "tag:tier"], {("gold", 2), ("silver", 1), (None, 2)}),
    (["--by", "tag:nobody-has-it"], {(None, 5)}),
    (["--by", "day"], {("2024-11-23", 2), ("2024-11-22", 3)}),
    (["--by", "day", "--timezone", "Europe/Berlin"], {("2024-11-23", 3), ("2024-11-22", 2)}),
    (
        ["--by", "hour", "--since", "2024-11-22T23:00Z"],
        {(f"2024-11-2{hour}:00Z", 1) for hour in ("2T23", "3T01", "3T02")},
    ),
    (["--by", "week"], {("2024-11-18", 5)}),
    (["--by", "month"], {("2024-11", 5)}),
    (["--by", "minute", "--key", "batch"], {("2024-11-23T01:00Z", 1), ("2024-11-23T02:00Z", 1)}),
    (["--by", "tool"], {("search", 2), ("read", 1)}),
]


async def test_each_grouping_puts_each_call_where_it_belongs(books: Cli) -> None:
    """Calls are counted under their own label; what has none is under null, not left out."""
    for argv, groups in GROUPED:
        rows = await books.json("usage", *argv)
        assert {(row[argv[1]], row["calls"]) for row in rows} == groups, argv
        assert len(rows) == len(groups), argv


async def test_every_grouping_adds_up_to_the_total(books: Cli, store: Store) -> None:
    """Whatever the grouping, the groups together hold every call and every cent."""
    for by in GROUPINGS:
        if by == "tool":
            continue
        report = await Reports(store).sums(by=[by])
        assert sum(group.sums.calls for group in report.groups) == report.total.calls == 5, by
        assert sum(Decimal(group.sums.cost_usd or 0) for group in report.groups) == Decimal("0.2600005"), by
        assert report.total.cost_usd == "0.2600005", by


async def test_groupings_combine(books: Cli) -> None:
    """Several groupings, in one option or in several: the latest day first, in it the most expensive."""
    expected = [
        ("2024-11-23", "=gpt"),
        ("2024-11-23", "gpt-4o"),
        ("2024-11-22", "gpt-5-2026"),
        ("2024-11-22", "claude-x"),
    ]
    for argv in (["--by", "day,model"], ["--by", "day", "--by", "model"], ["--by", "day, model"]):
        assert [sums(row, "day", "model") for row in await books.json("usage", *argv)] == expected
    three = await books.json("usage", "--by", "key,tool,tag:tier")
    assert [sums(row, "key", "tool", "tag:tier", "calls") for row in three] == [
        ("ci", "search", "gold", 2),
        ("ci", "read", "gold", 1),
    ]


async def test_a_call_stands_under_each_of_its_tools(books: Cli) -> None:
    """By tool, `tool_calls` are that tool's own and the rest is of the calls that used it; the total has each once."""
    search, read = await books.json("usage", "--by", "tool")
    assert sums(search, "tool_calls", "total_tokens", "cost_usd") == (3, 1800, "0.0100005")
    assert sums(read, "tool_calls", "total_tokens", "cost_usd") == (1, 1200, "0.01")
    shown = await books.aside("usage", "--by", "tool")
    assert shown.output.splitlines()[-1].split()[:2] == ["total", "5"]
    assert "counts each call once" in shown.errors


async def test_hours_of_a_zone_are_told_apart_where_the_clock_goes_back(cli: Cli, store: Store) -> None:
    """02:30 comes twice in Berlin on 27 October 2024: two groups, an hour apart, each with its offset."""
    for hour in (0, 1):
        started = datetime(2024, 10, 27, hour, 30, tzinfo=UTC)
        await store.insert_events([encode(event(started_at=started))])
    rows = await cli.json("usage", "--by", "hour", "--timezone", "Europe/Berlin")
    assert [row["hour"] for row in rows] == ["2024-10-27T02:00+01:00", "2024-10-27T02:00+02:00"]
    [row] = await cli.json("usage", "--by", "hour", "--timezone", "Asia/Kolkata", "--since", "2024-10-27T01:00Z")
    assert row["hour"] == "2024-10-27T07:00+05:30"


async def test_the_largest_groups_first_and_no_more_than_asked_for(books: Cli) -> None:
    """--limit keeps the most expensive groups, says that there are more, and leaves the total whole."""
    ran = await books.aside("usage", "--by", "model", "--limit", "1")
    _, row, total = ran.output.splitlines()
    assert (row.split()[0], total.split()[:2]) == ("=gpt", ["total", "5"])
    assert "the first 1 groups" in ran.errors
    assert "more" not in (await books.aside("usage", "--by", "model", "--all")).errors


async def test_filters_narrow_rows_and_sums_alike(books: Cli) -> None:
    """Every filter leaves the same calls, listed or summed; two of them leave what both do."""
    cases = {
        ("--key", "ci"): 3,
        ("--key", str(CI_KEY)): 3,
        ("--team", "research"): 3,
        ("--user", "ann"): 1,
        ("--provider", "claude"): 1,
        ("--model", "gpt-4o"): 1,
        ("--session", SESSION): 1,
        ("--tag", "tier=gold"): 2,
        ("--tag", "tier=gold", "--tag", "x=y"): 0,
        ("--outcome", "upstream_error"): 1,
        ("--since", "2024-11-22T10:30Z", "--until", "2024-11-23T02:00Z"): 3,
        ("--key", "ci", "--session", "s-1"): 2,
        ("--project", "none"): 0,
        ("--model", "' OR 1=1 --"): 0,
    }
    for argv, number in cases.items():
        assert len(await books.json("usage", *argv)) == number, argv
        groups = await books.json("usage", "--by", "month", *argv)
        assert sum(group["calls"] for group in groups) == number, argv


BAD_USE: list[tuple[tuple[str, ...], str]] = [
    (("--by", "nonsense"), "'nonsense' is not a grouping"),
    (("--by", "key; DROP TABLE x"), "is not a grouping"),
    (("--by", ""), "is not a grouping"),
    (("--by", "tag:"), "tag:NAME"),
    (("--by", "tag:" + "x" * 65), "tag:NAME"),
    (("--by", "key,key"), "each named once"),
    (("--by", "key,day,model,team"), "at most 3"),
    (("--by", "day", "--timezone", "Mars/Olympus"), "'Mars/Olympus' is not a time zone"),
    (("--timezone", "../etc/passwd"), "is not a time zone"),
    (("--all",), "--format csv"),
    (("--all", "--limit", "5", "--format", "csv"), "--limit"),
    (("--tag", "x"), "NAME=VALUE"),
    (("--outcome", "fine"), "'fine'"),
    (("--since", "99999999999d"), "is not a time"),
    (("--model", "a\x1bb"), "on one line"),
]


@pytest.mark.parametrize(("argv", "named"), BAD_USE, ids=range(len(BAD_USE)))
def test_bad_use_is_named(cli: Cli, argv: tuple[str, ...], named: str) -> None:
    """What makes no sense exits 2 with a sentence, and prints nothing."""
    ran = cli("usage", *argv)
    assert (ran.code, ran.output) == (2, "")
    assert named in ran.errors
    assert "Traceback" not in ran.errors


async def test_a_value_no_row_could_have_is_a_failure_in_words(books: Cli) -> None:
    """A time that the database cannot hold: exit 1 and a sentence."""
    ran = await books.aside("usage", "--since", "0001-01-01T00:00:00+23:59")
    assert (ran.code, ran.output) == (1, "")
    assert "none that the database could hold" in ran.errors


# -- formats -------------------------------------------------------------------------------------


async def test_csv_opens_safely_in_a_spreadsheet(books: Cli, store: Store) -> None:
    """A name that reads as a formula gets an apostrophe in CSV; JSON has it as it is; unknown is empty, not 0."""
    names = ["=1+1", "+1", "-1", "@cf/meta", "plain=name"]
    await store.insert_events([encode(event(key_name=name, model="m")) for name in names])
    rows = list(csv.DictReader(io.StringIO((await books.aside("usage", "--model", "m", "--format", "csv")).output)))
    assert {row["key_name"] for row in rows} == {"'=1+1", "'+1", "'-1", "'@cf/meta", "plain=name"}
    assert {(row["cost_usd"], row["input_tokens"], row["tags"]) for row in rows} == {("", "", "")}
    assert {row["key_name"] for row in await books.json("usage", "--model", "m")} == set(names)
    grouped = (await books.aside("usage", "--by", "model", "--format", "csv")).output
    assert {row["model"] for row in csv.DictReader(io.StringIO(grouped))} >= {"'=gpt", "gpt-5-2026"}


async def test_money_is_digits_in_every_format(books: Cli) -> None:
    """The smallest amount is written out: no exponent, no rounding, in CSV, JSON and JSON lines, rows and sums."""
    for argv in ((), ("--by", "session")):
        options = ("usage", "--session", "s-1", *argv, "--format")
        rows = list(csv.DictReader(io.StringIO((await books.aside(*options, "csv")).output)))
        listed = await books.json("usage", "--session", "s-1", *argv)
        lines = [json.loads(line) for line in (await books.aside(*options, "jsonl")).output.splitlines()]
        costs = ["0.0100005"] if argv else ["0.0000005", "0.01"]
        assert [row["cost_usd"] for row in rows] == costs
        assert [row["cost_usd"] for row in listed] == costs
        assert lines == listed


async def test_a_table_of_sums_ends_with_its_total(books: Cli) -> None:
    """The last line is the whole; numbers have their thousands apart, money as many decimals as it needs."""
    ran = await books.aside("usage", "--by", "key")
    head, batch, ci, total = ran.output.splitlines()
    assert head.split()[:7] == ["key", "calls", "input", "cached", "output", "reasoning", "tokens"]
    assert ci.split() == [
        "ci",
        "3",
        "1,800",
        "400",
        "300",
        "50",
        "2,100",
        "0.0100",
        "1",
        "1",
        *["1.00", "s", "2.80", "s", "200", "ms", "290", "ms"],
    ]
    assert batch.split()[:8] == ["batch", "2", "10", "-", "5", "-", "15", "0.2500"]
    assert total.split()[:8] == ["total", "5", "1,810", "400", "305", "50", "2,115", "0.2600"]
    assert ran.errors == ""


async def test_an_empty_ledger_is_no_error(cli: Cli) -> None:
    """Without a call every form of the report is empty and exits 0."""
    for argv, output in (
        (("--by", "key"), ""),
        (("--by", "key", "--format", "json"), "[]\n"),
        (("--by", "key", "--format", "jsonl"), ""),
        (("--format", "jsonl"), ""),
        (("--all", "--format", "json"), "[]\n"),
    ):
        ran = await cli.aside("usage", *argv)
        assert (ran.code, ran.output) == (0, output), argv
    ran = await cli.aside("usage", "--by", "key", "--format", "csv")
    assert ran.output.startswith("key,calls,input_tokens") and ran.output.count("\n") == 1
    assert (await cli.aside("usage", "--all", "--format", "csv")).output.count("\n") == 1
    for argv in ((), ("--by", "key")):
        assert (await cli.aside("usage", *argv)).errors == "no calls yet\n"


async def test_options_that_leave_nothing_are_named(books: Cli) -> None:
    """Where there are calls, an empty report says that none of them match, not that there are none."""
    for argv in (("--key", "nobody"), ("--by", "day", "--model", "none")):
        ran = await books.aside("usage", *argv)
        assert (ran.code, ran.output, ran.errors) == (0, "", "no calls match these options\n"), argv
    assert (await books.aside("sessions", "--key", "nobody")).errors == "no sessions match these options\n"


# -- terminals -----------------------------------------------------------------------------------


def rendered(columns: tuple[Column, ...], rows: list[dict[str, Any]], width: int) -> tuple[list[str], list[str]]:
    """The lines of a table in a terminal so wide, and what was left out."""
    table, left_out = make_table(columns, rows, width=width)
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(table)
    return screen.getvalue().splitlines(), left_out


@pytest.mark.parametrize("columns", [CALLS, (Column("model"), *SUMS)], ids=["rows", "sums"])
async def test_a_table_fits_its_terminal(store: Store, columns: tuple[Column, ...]) -> None:
    """Whatever the width: no line is longer, no number is broken, the cost is there; the wider the more columns."""
    await keep(store)
    await store.insert_events([encode(event(model="a-model-with-quite-a-long-name/" * 3, input_tokens=123_456_789))])
    reports = Reports(store)
    rows, _ = await reports.page()
    if columns is not CALLS:
        rows = [group.as_row(["model"]) for group in (await reports.sums(by=["model"])).groups]
    before = {column.heading or column.name for column in columns}
    for width in (40, 50, 60, 70, 80, 100, 120, 140, 200, 300):
        lines, left_out = rendered(columns, rows, width)
        assert max(map(len, lines)) <= width
        assert "cost" in lines[0]
        assert set(left_out) <= before, "a wider terminal shows no less"
        before = set(left_out)
        if not {"input", "input_tokens"} & before:
            assert any("123,456,789" in line for line in lines), width
    assert before == set(), "in the widest there is room for all"


def test_names_cannot_write_on_the_screen() -> None:
    """Control characters and marks of direction stand as codes, markup as text, wide characters keep the columns."""
    rows = [{"a": "\x1b[31mred\u202e[bold]x[/bold]", "b": 1}, {"a": "日本語", "b": 22}]
    lines, _ = rendered((Column("a"), Column("b", "count")), rows, 80)
    assert lines[1].startswith("\\x1b[31mred\\x202e[bold]x[/bold]")
    assert all("\x1b" not in line and "\u202e" not in line for line in lines)
    assert [line.rstrip().rpartition(" ")[2] for line in lines[1:]] == ["1", "22"]


def test_amounts_of_one_column_have_the_same_decimals() -> None:
    """As many as the smallest needs, at most six; what is less still is said to be; unknown is a dash."""
    assert amounts(["1.005", "1234.5"]) == ["1.00", "1,234.50"]
    assert amounts(["0.02", "12", None]) == ["0.0200", "12.0000", "-"]
    assert amounts(["0.0000001", "0", "3"]) == ["<0.000001", "0.000000", "3.000000"]
    assert amounts([]) == []


def test_durations_are_short() -> None:
    """Milliseconds below a second, then seconds, then minutes; no unit ever overflows into `60.00 s`."""
    values = [None, 0.4, 999.4, 999.6, 59_994, 59_996, 125_000]
    assert [milliseconds(value) for value in values] == ["-", "0 ms", "999 ms", "1.00 s", "59.99 s", "1m00s", "2m05s"]


# -- exports -------------------------------------------------------------------------------------


async def test_an_export_has_every_row_once(cli: Cli, database: str) -> None:
    """--all, and a --limit of several pages, in each format: every row once, the newest first."""
    number = 2 * PAGE_ROWS + 345
    await fill(database, number, NEWEST)
    lines = (await cli.aside("usage", "--all", "--format", "jsonl")).output.splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["id"] for row in rows}) == len(rows) == number
    assert [row["started_at"] for row in rows] == sorted((row["started_at"] for row in rows), reverse=True)
    assert await cli.json("usage", "--all") == rows
    table = list(csv.DictReader(io.StringIO((await cli.aside("usage", "--all", "--format", "csv")).output)))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    limited = await cli.json("usage", "--limit", str(PAGE_ROWS + 1))
    assert limited == rows[: PAGE_ROWS + 1]
    exactly = await cli.json("usage", "--limit", str(PAGE_ROWS))
    assert exactly == rows[:PAGE_ROWS]


async def test_rows_that_come_during_an_export_do_not_disturb_it(store: Store, database: str) -> None:
    """What was there at the beginning is exported once each, also while newer calls and corrections come in."""
    number = 3 * PAGE_ROWS
    await fill(database, number, NEWEST)
    seen: list[Any] = []
    async for rows in Reports(store).pages():
        seen += [row["id"] for row in rows]
        await store.insert_events(events(20, started_at=NEWEST + timedelta(hours=1)))
    assert len(set(seen)) == len(seen) == number


async def test_an_export_goes_through_a_pooler(cli: Cli, database: str, tmp_path: Path) -> None:
    """Through PgBouncer in transaction mode, with one server connection, an export is whole and sums are right."""
    await fill(database, PAGE_ROWS + 50, NEWEST)
    async with pgbouncer(database, server_connections=1) as dsn:
        settings = {"server": {"admin_token": ADMIN_TOKEN}, "database": {"url": dsn}}
        cli.configured(tmp_path / "pooled.yaml", settings)
        ran = await cli.aside("usage", "--all", "--format", "csv")
        assert (ran.code, ran.output.count("\n")) == (0, PAGE_ROWS + 51)
        assert sum(row["calls"] for row in await cli.json("usage", "--by", "key")) == PAGE_ROWS + 50


def exported(config: Path, target: Path, stderr: int | None = None) -> tuple[int, int]:
    """Run `farebox usage --all --format csv > target`: its exit code and its peak memory in KB."""
    argv = [sys.executable, "-m", "farebox", "usage", "--all", "--format", "csv", "--config", str(config)]
    with target.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=stderr)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_maxrss // (1024 if sys.platform == "darwin" else 1)


@pytest.mark.long
async def test_an_export_takes_the_same_memory_however_long(cli: Cli, database: str, tmp_path: Path) -> None:
    """200,000 rows are exported whole, in less than 16 MB more than 2,000 rows take."""
    assert cli.config is not None
    target = tmp_path / "usage.csv"
    await fill(database, 2_000, NEWEST)
    code, few_kb = await asyncio.to_thread(exported, cli.config, target)
    assert code == 0
    await fill(database, 198_000, NEWEST - timedelta(days=1))
    code, many_kb = await asyncio.to_thread(exported, cli.config, target)
    assert code == 0
    with target.open(newline="") as file:
        assert len({row["id"] for row in csv.DictReader(file)}) == 200_000
    assert many_kb - few_kb < 16 * 1024


async def test_progress_is_for_people(cli: Cli, database: str, tmp_path: Path) -> None:
    """With a terminal on standard error an export shows how far it is; the file has the rows alone."""
    assert cli.config is not None
    await fill(database, 30, NEWEST)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    target = tmp_path / "usage.csv"
    code, _ = await asyncio.to_thread(exported, cli.config, target, theirs)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert code == 0
    assert "30/30" in shown
    assert target.read_text().count("\n") == 31


async def test_spend_is_the_total(books: Cli, store: Store) -> None:
    """The quick totals are those of the report."""
    reports = Reports(store)
    for where in (UsageFilter(), UsageFilter(key_name="ci"), UsageFilter(key_name="nobody")):
        quick, full = await reports.spend(where), (await reports.sums(where)).total
        for name in ("calls", "total_tokens", "cost_usd", "unknown_cost", "errors"):
            assert getattr(quick, name) == getattr(full, name), name
    assert at(22, 10) == (await reports.sums()).total.first_at
