"""Metrics of several worker processes: one exposition, the same bounds, nothing lost when one is killed."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from farebox.config import Metrics as Settings
from farebox.errors import FareboxError
from farebox.metrics import open_storage, prepare
from support.counting import CountingWorker
from support.events import event
from support.scrape import Exposition, Waiting, World, shown, worker

READER = 63
"""The slot of the test's own process, which only reads."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with prepare(tmp_path / "metrics"):
        yield tmp_path / "metrics"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(stack: ExitStack, folder: Path, slots: range, **bounds: int) -> list[CountingWorker]:
    workers = [CountingWorker(folder, slot, **bounds) for slot in slots]
    for one in workers:
        stack.callback(one.close)
        one.ready()
    return workers


def test_one_exposition_tells_the_sum_of_all_workers(folder: Path, stack: ExitStack) -> None:
    """Three processes count the same series at the same time; whoever is asked tells all of it."""
    workers = start(stack, folder, range(3))
    for one in workers:
        one.tell(2_000, model="gpt-{}", input_tokens=3, cost_usd=Decimal("0.25"), duration_ms=20.0)
        one.tell(500, model="gpt-1", input_tokens=3, duration_ms=20.0)
    assert [(one.done(), one.done()) for one in workers] == [(2_000, 2_500)] * 3
    seen = shown(worker(folder, READER))
    assert seen.sum("farebox_requests_total") == 7_500
    assert seen.sum("farebox_requests_total", model="gpt-1") == 3 * 501
    assert seen.sum("farebox_tokens_total", type="input") == 22_500
    assert seen.sum("farebox_cost_usd_total") == 1_500
    assert seen.sum("farebox_request_duration_seconds_bucket", model="gpt-1", le="0.1") == 3 * 501
    assert seen.sum("farebox_request_duration_seconds_sum") == pytest.approx(150)


def test_a_killed_worker_takes_nothing_with_it(folder: Path, stack: ExitStack) -> None:
    """After kill -9 in the middle of work no counter is lower than before, and its replacement goes on in its place."""
    victim, other = start(stack, folder, range(2))
    reader = worker(folder, READER)
    victim.tell(1_000, model="gpt")
    other.tell(1_000, model="gpt")
    assert victim.done() == other.done() == 1_000
    before = shown(reader)
    victim.tell(1_000_000, model="gpt-{}")  # far from done when the kill comes
    victim.kill()
    after = shown(reader)
    assert_none_lower(before, after)
    assert before.sum("farebox_requests_total", model="gpt") == 2_000

    [replacement] = start(stack, folder, range(1))
    replaced = shown(reader)
    assert_none_lower(after, replaced)
    replacement.tell(10, model="gpt")
    replacement.done()
    assert shown(reader).sum("farebox_requests_total", model="gpt") == 2_010
    assert shown(reader).sum("farebox_requests_total") == after.sum("farebox_requests_total") + 10


def test_the_bounds_hold_for_all_workers_together(folder: Path, stack: ExitStack) -> None:
    """Each worker meets other names, and what is shown is still within the bounds of one."""
    bounds = {"label_values_max": 40, "series_max": 3_000}
    workers = start(stack, folder, range(4), **bounds)
    for slot, one in enumerate(workers):
        names = {"model": f"w{slot}-m{{}}", "key_name": f"w{slot}-k{{}}", "endpoint": f"/w{slot}/{{}}"}
        one.tell(2_000, **names, output_tokens=1, duration_ms=1.0)
    assert [one.done() for one in workers] == [2_000] * 4
    seen = shown(worker(folder, READER, **bounds))
    assert len(seen.samples) <= 3_000
    for label in ("model", "key", "endpoint"):
        assert 0 < len(seen.label_values(label) - {"other", "none"}) <= 40
    assert seen.sum("farebox_requests_total") == 8_000
    assert seen.sum("farebox_tokens_total") == 8_000
    assert seen.sum("farebox_request_duration_seconds_count") == 8_000


def test_workers_put_the_same_series_at_the_same_place(folder: Path) -> None:
    """No label values stand twice in an exposition, however workers take turns in making series."""
    workers = [worker(folder, slot) for slot in range(3)]
    for number in range(300):
        for turn in range(3):
            workers[(number + turn) % 3].observe(event(model=f"m{(number * 7 + turn) % 100}", status=200))
    texts = [one.exposition() for one in workers]
    assert texts[0] == texts[1] == texts[2]
    samples = Exposition(texts[0]).samples
    assert len({(s.name, *sorted(s.labels.items())) for s in samples}) == len(samples)
    assert Exposition(texts[0]).sum("farebox_requests_total") == 900


def test_a_name_that_another_worker_knows_is_known(folder: Path) -> None:
    """A failed call for a model that only another worker has seen answered is counted under its name."""
    first, second = worker(folder, 0), worker(folder, 1)
    first.observe(event(model="gpt", status=200))
    second.observe(event(requested_model="gpt", status=500, outcome="upstream_error"))
    assert shown(first).sum("farebox_requests_total", model="gpt") == 2


def test_whoever_is_asked_tells_the_same_to_the_last_digit(folder: Path) -> None:
    """Amounts add up to the same whatever order a worker has the others in: a counter never goes down by a digit."""
    workers = [worker(folder, slot) for slot in range(4)]
    for one, cost in zip(workers, ("0.1", "0.2", "0.3", "0.7"), strict=True):
        one.observe(event(model="gpt", status=200, cost_usd=Decimal(cost), duration_ms=float(cost) * 1000))
    told = {
        (seen.sum("farebox_cost_usd_total"), seen.sum("farebox_request_duration_seconds_sum"))
        for seen in map(shown, workers)
    }
    assert told == {(1.3, 1.3)}


def test_a_sum_beyond_all_bounds_is_shown_as_such(folder: Path) -> None:
    """Two workers' amounts that no float holds together do not end the scrape."""
    workers = [worker(folder, slot) for slot in range(2)]
    for one in workers:
        one.observe(event(model="gpt", status=200, cost_usd=Decimal("1.5e308")))
    assert shown(workers[0]).sum("farebox_cost_usd_total") == float("inf")


def test_gauges_are_of_the_workers_that_are(folder: Path) -> None:
    """Backlogs add up, of ages the oldest counts, and a replacement does not inherit what its predecessor held."""
    worlds = [World(), World()]
    worlds[0].in_flight, worlds[0].backlog, worlds[0].lost = 4, Waiting(10, 3.0), 1
    worlds[1].in_flight, worlds[1].backlog, worlds[1].lost = 2, Waiting(1, 60.0), 1
    workers = [worker(folder, slot, world=world) for slot, world in enumerate(worlds)]
    workers[0].look()
    seen = shown(workers[1])
    assert seen.value("farebox_in_flight_requests") == 6
    assert seen.value("farebox_ledger_backlog_events") == 11
    assert seen.value("farebox_ledger_oldest_event_seconds") == 60
    assert seen.value("farebox_ledger_lost_events_total") == 2
    worlds[1] = World()
    replacement = worker(folder, 1, world=worlds[1])
    assert shown(workers[0]).value("farebox_in_flight_requests") == 4
    worlds[1].lost = 5
    seen = shown(replacement)
    assert seen.value("farebox_ledger_oldest_event_seconds") == 3
    assert seen.value("farebox_ledger_lost_events_total") == 7
    assert seen.value("farebox_build_info", version="1.2.3") == 1


def test_one_worker_at_a_time_makes_a_series(folder: Path) -> None:
    """Who makes one waits for who is making one, lest two take the same place; counting what there is does not wait."""
    one = worker(folder, 0)
    one.observe(event(model="gpt", status=200))
    making = threading.Thread(target=one.observe, args=(event(model="gpt-2", status=200),))
    with (folder / "series").open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        one.observe(event(model="gpt", status=200))
        making.start()
        making.join(0.1)
        assert making.is_alive()
        assert shown(worker(folder, READER)).by("farebox_requests_total", "model") == {("gpt",): 2}
    making.join(60)
    assert shown(one).by("farebox_requests_total", "model") == {("gpt",): 2, ("gpt-2",): 1}


def test_a_half_written_series_does_no_harm(folder: Path) -> None:
    """A worker that died while it wrote a name into the log leaves half a line; the next one writes over it."""
    first = worker(folder, 0)
    first.observe(event(model="gpt", status=200))
    with (folder / "series").open("ab") as log:
        log.write(b'["farebox_requests_total",')
    second = worker(folder, 1)
    second.observe(event(model="gpt", status=200))
    second.observe(event(model="gpt-2", status=200))
    first.observe(event(model="gpt-2", status=200))
    for one in (first, second):
        assert shown(one).by("farebox_requests_total", "model") == {("gpt",): 2, ("gpt-2",): 2}


def test_a_file_of_another_release_is_passed_over(folder: Path) -> None:
    """During an upgrade workers of two releases share the folder: what one does not know, it neither shows nor uses."""
    worker(folder, 0)
    size = (folder / "series").read_bytes().count(b"\n")
    end = max(int(line.split(b",")[1]) for line in (folder / "series").read_bytes().splitlines()) + 50
    with (folder / "series").open("ab") as log:
        log.write(b'["farebox_news_total",%d,3,["a"]]\n' % end)
        log.write(b'["farebox_requests_total",%d,1,["too","few"]]\n' % (end + 3))
    of = worker(folder, 1)
    of.observe(event(model="gpt", status=200))
    lines = (folder / "series").read_bytes().splitlines()[size + 2 :]
    assert lines and min(int(line.split(b",")[1]) for line in lines) >= end + 4
    assert shown(of).by("farebox_requests_total", "model") == {("gpt",): 1}


def test_a_new_life_counts_from_nought(tmp_path: Path) -> None:
    """Emptying the folder at the start lets every counter begin at 0 again; other files in it stay."""
    with prepare(tmp_path):
        one = worker(tmp_path, 0)
        one.observe(event(model="gpt", status=200))
        (tmp_path / "notes.txt").write_text("mine")
    with prepare(tmp_path):
        assert shown(worker(tmp_path, 0)).sum("farebox_requests_total") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_fareboxes_do_not_share_a_folder(folder: Path) -> None:
    """A second one is told so at its start, and the first one's figures stay as they are."""
    one = worker(folder, 0)
    one.observe(event(model="gpt", status=200))
    with pytest.raises(FareboxError, match=r"another farebox keeps its metrics in .*data_dir"), prepare(folder):
        pass
    assert shown(worker(folder, 1)).sum("farebox_requests_total") == 1


def test_a_folder_that_takes_no_values_is_a_clear_error(tmp_path: Path) -> None:
    """A worker that finds no place for its values says which folder it is and why, and leaves no descriptor open."""
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(FareboxError, match=r"metrics can't be kept in .*nowhere: No such file"):
        open_storage(Settings(), tmp_path / "nowhere", 0)
    (tmp_path / "new-values-0").mkdir()
    with pytest.raises(FareboxError, match=r"metrics can't be kept in .*: Is a directory"):
        open_storage(Settings(), tmp_path, 0)
    assert len(os.listdir("/dev/fd")) == before


def test_the_files_are_nobody_elses_business(folder: Path) -> None:
    """Names of keys and models stand in them: only the owner may read them."""
    worker(folder, 0)
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


async def test_a_worker_that_stops_lets_go_of_its_files(folder: Path) -> None:
    """Closing unmaps and closes; counting afterwards is an error that reaches nobody, and others go on."""
    first, second = worker(folder, 0), worker(folder, 1)
    first.observe(event(model="gpt", status=200))
    await first.close()
    first.observe(event(model="gpt", status=200))
    assert shown(second).sum("farebox_requests_total") == 1


def assert_none_lower(before: Exposition, after: Exposition) -> None:
    """No counter, bucket or sum went down."""
    now = {(s.name, *sorted(s.labels.items())): s.value for s in after.samples}
    for s in before.samples:
        if s.name.endswith(("_total", "_bucket", "_sum", "_count")):
            assert now[(s.name, *sorted(s.labels.items()))] >= s.value
