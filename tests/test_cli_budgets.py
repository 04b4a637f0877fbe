"""`farebox budgets` and `farebox integrity` as people and scripts use them: tables, JSON, exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from farebox.keylimits import KeyLimits, parse_budgets
from farebox.store import BudgetStore, Keys, Store
from support.app import ADMIN_TOKEN
from support.cli import Cli, commands
from support.spending import Spender

HELP = [
    ("keys", "limit"),
    ("budgets",),
    *(("budgets", verb) for verb in ("list", "show", "set", "delete")),
    ("integrity",),
]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str
) -> Iterator[Cli]:
    """Commands on a database of their own."""
    monkeypatch.chdir(tmp_path)
    for made in commands(capsys):
        section = {"url": database, "data_dir": str(tmp_path / "data")}
        made.configured(tmp_path / "farebox.yaml", {"server": {"admin_token": ADMIN_TOKEN}, "database": section})
        yield made


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_every_verb_explains_itself(cli: Cli, words: tuple[str, ...]) -> None:
    """--help describes the command on standard output and exits 0."""
    ran = cli(*words, "--help")
    assert (ran.code, ran.errors) == (0, "")
    assert ran.output.startswith(f"usage: farebox {' '.join(words)}")


async def test_a_budget_is_set_shown_and_deleted(cli: Cli) -> None:
    """set makes a budget with its defaults and later changes only what is named; delete ends it."""
    made = await cli.json("budgets", "set", "team-month", "--scope", "team", "--limit-usd", "100.10")
    assert {name: made[name] for name in ("scope", "limit_usd", "window", "timezone", "admission", "source")} == {
        "scope": "team",
        "limit_usd": "100.10",
        "window": "month",
        "timezone": "UTC",
        "admission": "expected",
        "source": "api",
    }
    options = ["--limit-usd", "120", "--limit-tokens", "1_000", "--admission", "strict", "--wait-s", "0"]
    changed = await cli.json("budgets", "set", "team-month", *options, "--threshold", "0.9", "--clamp", "true")
    expected = {"limit_usd": "120", "limit_tokens": 1000, "admission": "strict", "wait_s": 0.0, "clamp": True}
    assert changed == {**made, **expected, "thresholds": ["0.9"]}
    fewer = await cli.json("budgets", "set", changed["id"], "--limit-usd", "none", "--threshold", "none")
    assert fewer == {**changed, "limit_usd": None, "thresholds": []}
    narrowed = await cli.json("budgets", "set", "team-month", "--only", "a*", "--only", "b", "--timezone", "Asia/Tokyo")
    assert (narrowed["only"], narrowed["timezone"]) == (["a*", "b"], "Asia/Tokyo")
    shown = await cli.json("budgets", "show", "team-month")
    [row] = shown.pop("data")
    assert shown == narrowed
    assert (row["limit"], row["spent"], row["remaining"], row["unit"]) == (1000, 0, 1000, "tokens")
    deleted = await cli.aside("budgets", "delete", "team-month")
    assert (deleted.code, deleted.output) == (0, "")
    assert await cli.json("budgets", "list") == []
    gone = await cli.aside("budgets", "show", "team-month")
    assert (gone.code, gone.errors) == (1, "farebox: there is no budget 'team-month'\n")


async def test_a_definition_is_shown_as_it_is_set(cli: Cli) -> None:
    """The table has each value as `set` takes it: parts of a second too, words for yes and no, lists with commas."""
    await cli.aside("budgets", "set", "b", "--scope", "team", "--limit-usd", "1", "--wait-s", "0.5", "--only", "a*")
    ran = await cli.aside("budgets", "show", "b")
    shown = dict(line.split(maxsplit=1) for line in ran.output.partition("\n\n")[0].splitlines())
    values = {name: shown[name].strip() for name in ("wait_s", "clamp", "thresholds", "only", "limit_tokens")}
    assert values == {"wait_s": "0.5", "clamp": "false", "thresholds": "0.5, 0.8, 1", "only": "a*", "limit_tokens": "-"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--scope", "team"], "farebox: --limit-usd is missing; a budget needs it, limit_tokens, or both.\n"),
        (["--limit-usd", "1"], "farebox: --scope is missing; it has no default.\n"),
        ([], "nothing to set was given"),
        (["--scope", "team", "--limit-usd", "NaN"], "--limit-usd 'NaN' is not an amount"),
        (["--scope", "team", "--limit-usd", "-1"], "argument --limit-usd: expected one argument|is not an amount"),
        (["--scope", "team", "--limit-usd", "1e400"], "is not an amount"),
        (["--scope", "team", "--limit-tokens", "1.5"], "is not a whole number"),
        (["--scope", "team", "--limit-usd", "1", "--timezone", "Mars/Base"], "is not a time zone"),
        (["--scope", "team", "--limit-usd", "1", "--threshold", "0"], "--threshold"),
        (["--scope", "team", "--limit-usd", "1", "--wait-s", "-0.1"], "wait"),
        (["--scope", "global", "--limit-usd", "1", "--only", "a"], "no effect with scope global"),
        (["--scope", "galaxy", "--limit-usd", "1"], "invalid choice"),
        (["--scope", "team", "--limit-usd", "1", "--window", "minute"], "invalid choice"),
    ],
)
async def test_what_can_be_no_budget_is_bad_use(cli: Cli, words: list[str], why: str) -> None:
    """A definition that can't be exits 2 with the option at fault, and makes nothing."""
    ran = await cli.aside("budgets", "set", "b", *words)
    assert (ran.code, ran.output) == (2, "")
    assert any(part in ran.errors for part in why.split("|")), ran.errors
    assert await cli.json("budgets", "list") == []


async def test_the_configs_budgets_are_not_changed_here(cli: Cli, store: Store) -> None:
    """A budget of the config refuses a change and its end with exit 1, and says whose it is."""
    await BudgetStore(store).sync_config([{"name": "everyone", "scope": "global", "limit_usd": Decimal(5)}])
    for words in (("set", "everyone", "--limit-usd", "9"), ("delete", "everyone")):
        ran = await cli.aside("budgets", *words)
        assert (ran.code, ran.output) == (1, "")
        assert "config" in ran.errors
    [row] = await cli.json("budgets", "list")
    assert (row["limit_usd"], row["source"]) == ("5", "config")


async def test_a_table_of_what_stands_in_budgets(cli: Cli, store: Store) -> None:
    """`budgets list` has a line for each counter: limit, spent, held and left, keys by their names."""
    spender, limits = Spender(store), KeyLimits(budgets=parse_budgets(["1025/month"]))
    record = await Keys(store).create({"name": "ci", "secret_hash": bytes(32)}, limits, "t")
    [own] = await BudgetStore(store).key_budgets(record.id)
    await spender.spend(own.id, str(record.id), "3.5")
    await spender.hold(own.id, str(record.id), "0.25")
    await cli.aside("budgets", "set", "all-day", "--scope", "global", "--limit-tokens", "1000000", "--window", "day")
    ran = await cli.aside("budgets", "list")
    assert ran.code == 0, ran
    heading, everyone, key = (line.split() for line in ran.output.splitlines())
    assert heading == ["NAME", "SCOPE", "SUBJECT", "WINDOW", "LIMIT", "SPENT", "HELD", "LEFT", "RESETS"]
    amounts = ["1,000,000", "tok", "0", "tok", "0", "tok", "1,000,000", "tok"]
    assert everyone[:-2] == ["all-day", "global", "all", "day", *amounts]
    assert key[:-2] == ["key:ci:month", "key", "ci", "month", "$1,025.00", "$3.50", "$0.25", "$1,021.25"]
    [row] = await cli.json("budgets", "list", "--scope", "key", "--subject", "ci")
    assert (row["subject"], row["spent_usd"]) == (str(record.id), "3.5")
    csv = (await cli.aside("budgets", "list", "--format", "csv", "--source", "key")).output.splitlines()
    assert csv[0].startswith("name,id,source,scope,subject") and csv[1].startswith("key:ci:month,") and len(csv) == 2


async def test_long_amounts_leave_room_for_names(cli: Cli) -> None:
    """The table rounds to six places, and nothing is rounded to 0; JSON stays exact."""
    long = {"tiny": "0.00000000000000000001", "long": "123456789.12345650000000000001"}
    for name, limit in long.items():
        await cli.aside("budgets", "set", name, "--scope", "team", "--limit-usd", limit)
    ran = await cli.aside("budgets", "list")
    assert [line.split()[4] for line in ran.output.splitlines()[1:]] == ["$123,456,789.123457", "<$0.000001"]
    exact = {row["name"]: row["limit_usd"] for row in await cli.json("budgets", "list")}
    assert exact == long


async def test_no_budgets_are_said_aside(cli: Cli) -> None:
    """Where there is none, the output is empty and the hint is on standard error."""
    ran = await cli.aside("budgets", "list")
    assert (ran.code, ran.output) == (0, "")
    assert "farebox budgets set" in ran.errors


async def test_changes_name_who_made_them(cli: Cli, store: Store) -> None:
    """A change from the command line stands in the audit with the user who started it."""
    await cli.aside("budgets", "set", "b", "--scope", "global", "--limit-usd", "1")
    [row] = await BudgetStore(store).audit()
    assert row.actor.startswith("cli: ") and len(row.actor) > len("cli: ")


async def test_a_key_is_made_with_its_limits(cli: Cli) -> None:
    """`keys create --budget ... --rpm ...`: the limits are shown by list and show, and a bad one makes no key."""
    await cli.aside("keys", "create", "ci", "--budget", "25/month", "--budget", "5tok/day", "--rpm", "9", "--tpm", "99")
    heading, line = (await cli.aside("keys", "list")).output.splitlines()
    assert "5tok/day, 25/month" in line and "rpm 9, tpm 99" in line and "budgets" in heading
    shown = (await cli.aside("keys", "show", "ci")).output
    assert "5tok/day, 25/month" in shown
    for bad in (["--budget", "25/minute"], ["--budget", "NaN"], ["--rpm", "0"], ["--max-parallel", "x"]):
        ran = await cli.aside("keys", "create", "other", *bad)
        assert (ran.code, ran.output) == (2, ""), ran
    assert [key["name"] for key in await cli.json("keys", "list")] == ["ci"]


@pytest.mark.parametrize(
    ("words", "begins", "ends"),
    [
        (["--budget", "25/months"], "--budget: window 'months' is not one of", "did you mean month?"),
        (["--budget", "5eur/day"], "--budget: '5eur/day' is not AMOUNT/WINDOW, as 25/month", "total)."),
        (["--rpm", "0"], "--rpm '0' is not a whole number from 1", "to 1,000,000,000."),
        (["--max-parallel", "none"], "--max-parallel 'none' is not a whole number", "000."),
    ],
)
async def test_what_can_be_no_limit_of_a_key_is_bad_use(cli: Cli, words: list[str], begins: str, ends: str) -> None:
    """A limit that can't be exits 2 with its option and what it may be."""
    ran = await cli.aside("keys", "create", "k", *words)
    assert (ran.code, ran.output) == (2, "")
    assert ran.errors.startswith(f"farebox: {begins}") and ran.errors.endswith(f"{ends}\n"), ran.errors


async def test_a_keys_limits_are_changed(cli: Cli) -> None:
    """`keys limit` changes what is given and leaves the rest; none ends a limit; nothing given is bad use."""
    await cli.aside("keys", "create", "ci", "--budget", "25/month", "--rpm", "9")
    changed = await cli.json("keys", "limit", "ci", "--budget", "30/month", "--budget", "2/day", "--tpm", "100")
    assert [(budget["window"], budget["limit_usd"]) for budget in changed["budgets"]] == [("day", "2"), ("month", "30")]
    assert (changed["rpm"], changed["tpm"]) == (9, 100)
    ended = await cli.json("keys", "limit", "ci", "--budget", "none", "--rpm", "none")
    assert (ended["budgets"], ended["rpm"], ended["tpm"]) == ([], None, 100)
    assert await cli.json("keys", "show", "ci") == ended
    assert (await cli.aside("keys", "limit", "ci")).code == 2
    await cli.aside("keys", "limit", "ci", "--budget", "1/day")
    refused = await cli.aside("budgets", "set", "key:ci:day", "--limit-usd", "9")
    assert refused.code == 1 and "farebox keys limit" in refused.errors
    await cli.aside("keys", "revoke", "ci")
    assert (await cli.aside("keys", "limit", "ci", "--rpm", "1")).code == 1


async def test_the_books_are_checked(cli: Cli, store: Store) -> None:
    """`farebox integrity` exits 0 with every invariant ok, and 1 where a counter is not what its rows say."""
    await cli.aside("budgets", "set", "b", "--scope", "team", "--limit-usd", "10")
    [budget] = await BudgetStore(store).list_budgets()
    await Spender(store).spend(budget.id, "research", "1")
    ran = await cli.aside("integrity")
    assert ran.code == 0 and " ok " in ran.output and "violated" not in ran.output, ran
    async with store.connection() as connection:
        await connection.execute("UPDATE farebox.budget_window SET spent_usd = 2")
    ran = await cli.aside("integrity")
    assert ran.code == 1 and "violated" in ran.output
    assert any(line.split()[:2] == ["b", "research"] for line in ran.output.splitlines() if line)
    told = await cli.aside("integrity", "--format", "json")
    assert told.code == 1 and '"status": "violated"' in told.output
