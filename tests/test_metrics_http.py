"""`GET /metrics` of a running farebox: it moves as the rows do, and shows no secret."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from farebox.metrics.families import REASONS
from farebox.records import UsageRow
from support.answers import DONE, chunk, finish, frame, usage, usage_frame
from support.app import ADMIN_TOKEN, Farebox, running, settings_of
from support.http import Answer
from support.provider import FakeProvider, Received, Wire, plain, stream
from support.scrape import Exposition, complaints, promtool

CHAT = "/v1/chat/completions"
PROVIDER_KEY = "sk-provider-0123456789abcdef"
METRICS_TOKEN = "scrape-me-0123456789"
DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
JSON = json.dumps({"model": "m-1", "choices": [{"finish_reason": "stop"}], "usage": usage(7, 5, **DETAILS)}).encode()
UNPRICED = JSON.replace(b'"m-1"', b'"odd-1"')
STREAM = [frame(chunk()), frame(chunk()), frame(finish()), usage_frame(), DONE]
TOOL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": '{"a":1}'}}
TOOL_STREAM = [
    frame(chunk(None, choices=[{"index": 0, "delta": {"tool_calls": [TOOL]}, "finish_reason": None}])),
    frame(finish("tool_calls")),
    usage_frame(),
    DONE,
]
IN_BAND = [frame(chunk()), frame({"error": {"message": "busy", "type": "server_error", "code": "overloaded"}})]
ERROR = b'{"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limited"}}'


@asynccontextmanager
async def farebox(database: str, folder: Path, **sections: Any) -> AsyncIterator[tuple[Farebox, FakeProvider]]:
    """A farebox with the provider `up`, whose models m-* have a price, and `down`, where nobody listens."""
    async with FakeProvider() as provider:
        async with FakeProvider() as gone:
            pass  # its port is free again
        providers = {
            "up": {
                "dialect": "openai",
                "base_url": provider.base_url,
                "api_key": PROVIDER_KEY,
                "prices": {"m-*": {"input_usd_per_mtok": 2, "cache_read_usd_per_mtok": 1, "output_usd_per_mtok": 8}},
            },
            "down": {"dialect": "openai", "base_url": gone.base_url, "api_key": PROVIDER_KEY},
        }
        async with running(settings_of(database, folder, providers, **sections)) as served:
            yield served, provider


async def scrape(served: Farebox, **more: Any) -> Answer:
    return await served.call("/metrics", method="GET", key=None, **more)


async def seen(served: Farebox) -> Exposition:
    answer = await scrape(served)
    assert answer.status == 200
    return Exposition(answer.body)


def asking(model: str = "m-1", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "A secret prompt"}], **more}


async def traffic(served: Farebox, provider: FakeProvider) -> None:
    """Calls that end in every way: answers, streams, a tool call, errors, breaks, a client that leaves."""

    async def endless(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(frame(chunk()))
        await wire.hung_up()

    provider.then(plain(JSON), plain(UNPRICED), stream(STREAM), stream(TOOL_STREAM), stream(IN_BAND))
    provider.then(stream(STREAM[:1], cut="close"), stream([*STREAM[:2], b"data: {nonsense\n\n", *STREAM[2:]]))
    provider.then(plain(ERROR, status=429), plain(ERROR, status=400), plain(ERROR, status=503))
    other = await served.with_key("team-b")
    assert (await served.call(CHAT, asking())).status == 200
    assert (await other.call(CHAT, asking("odd-1"))).status == 200
    for _ in range(5):
        assert (await served.call(CHAT, asking(stream=True))).status == 200
    for status in (429, 400, 503):
        assert (await other.call(CHAT, asking("no-such-model"))).status == status
    assert (await served.call("/p/down/chat/completions", asking())).status == 502
    provider.then(endless)
    async with served.client() as client:
        body = json.dumps(asking(stream=True)).encode()
        await client.send("POST", CHAT, {"Authorization": f"Bearer {served.key}"}, body)
        await client.head()
        await client.chunk()
        client.abort()
    provider.then(plain(b'{"data": []}'))
    assert (await served.call("/v1/files", method="GET")).status == 200
    await served.idle()


def sums(rows: Iterable[UsageRow], column: str, *by: str) -> dict[tuple[str, ...], float]:
    """Sums of a column by others, as labels have them; without those that are 0."""
    found: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        labels = tuple("none" if getattr(row, name) is None else str(getattr(row, name)) for name in by)
        found[labels] += 1 if column == "*" else getattr(row, column) or 0  # type: ignore[assignment]
    return {labels: float(value) for labels, value in found.items() if value}


async def test_metrics_move_as_the_rows_do(database: str, tmp_path: Path) -> None:
    """After calls that end in every way, each counter is the sum of the rows."""
    async with farebox(database, tmp_path) as (served, provider):
        await traffic(served, provider)
        rows = await served.rows(13)
        now = await seen(served)

    assert len(rows) == 13
    assert {row.outcome for row in rows} == {"complete", "upstream_error", "upstream_cut", "client_gone"}
    requests = now.by("farebox_requests_total", "provider", "endpoint", "key", "status", "outcome")
    assert requests == sums(rows, "*", "provider", "endpoint", "key_name", "status", "outcome")

    tokens = now.by("farebox_tokens_total", "key", "type")
    for key in ("first", "team-b"):
        mine = [row for row in rows if row.key_name == key]
        assert sum(value for (name, _), value in tokens.items() if name == key) == sum(
            r.total_tokens or 0 for r in mine
        )
        assert tokens[key, "cache_read"] == sum(r.cache_read_tokens or 0 for r in mine) > 0
        assert tokens[key, "reasoning"] == sum(r.reasoning_tokens or 0 for r in mine) > 0

    cost = sum((row.cost_usd or Decimal(0) for row in rows), Decimal(0))
    assert cost > 0
    assert now.sum("farebox_cost_usd_total") == pytest.approx(float(cost))
    guessed = [row for row in rows if row.usage_source in ("partial", "estimate")]
    assert now.by("farebox_unattested_cost_usd_total", "source") == pytest.approx(
        sums(guessed, "cost_usd", "usage_source")
    )
    unpriced = [row for row in rows if row.usage_source != "none" and row.cost_usd is None]
    assert now.sum("farebox_unpriced_requests_total") == len(unpriced) > 0
    assert now.sum("farebox_unpriced_requests_total", model="odd-1") == 1
    assert now.by("farebox_usage_source_total", "source") == sums(rows, "*", "usage_source")
    assert now.by("farebox_tool_calls_total", "tool") == {("get_weather",): 1}
    assert now.by("farebox_unparsed_events_total", "provider") == {("up",): 1}
    assert now.by("farebox_upstream_errors_total", "provider", "kind") == {
        ("up", "in_band"): 1,
        ("up", "cut"): 1,
        ("up", "429"): 1,
        ("up", "4xx"): 1,
        ("up", "5xx"): 1,
        ("down", "connect"): 1,
    }
    for name, column in (
        ("farebox_request_duration_seconds", "duration_ms"),
        ("farebox_time_to_first_token_seconds", "ttft_ms"),
        ("farebox_overhead_seconds", "overhead_ms"),
    ):
        values = [getattr(row, column) for row in rows if getattr(row, column) is not None]
        assert values and now.sum(f"{name}_count") == len(values)
        assert now.sum(f"{name}_sum") == pytest.approx(sum(values) / 1000)
    paced = [r for r in rows if r.stream and r.outcome == "complete" and r.ttft_ms and (r.output_tokens or 0) > 1]
    assert now.sum("farebox_time_per_output_token_seconds_count") == len(paced) > 0
    assert "no-such-model" not in now.label_values("model")
    assert now.value("farebox_ledger_lost_events_total") == 0


async def test_no_secret_and_no_prompt_is_shown(database: str, tmp_path: Path) -> None:
    """No key of farebox, of a provider or of the control plane, and nothing of what was said."""
    async with farebox(database, tmp_path, metrics={"token": METRICS_TOKEN}) as (served, provider):
        await traffic(served, provider)
        other = await served.with_key("team-c")
        provider.then(plain(JSON.replace(b"m-1", f"m-{other.key}".encode())))
        await other.call(CHAT, asking())
        answer = await scrape(served, headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    text = answer.body.decode()
    assert 'key="team-c"' in text
    for secret in (served.key, other.key, PROVIDER_KEY, ADMIN_TOKEN, METRICS_TOKEN, "secret prompt"):
        assert secret not in text


async def test_every_refusal_is_counted_once(database: str, tmp_path: Path) -> None:
    """Whoever refuses (the proxy, the control plane, the parser of requests) and for whatever reason."""
    async with farebox(database, tmp_path) as (served, provider):
        narrow = await served.with_key("narrow", models=["m-*"])
        refusals = [
            (await served.call(CHAT, asking(), key="fb-nonsense"), "invalid_api_key"),
            (await served.call(CHAT, asking(), key=None), "invalid_api_key"),
            (await narrow.call(CHAT, asking("gpt")), "model_not_found"),
            (await served.call(CHAT, b"{}", headers={"Content-Encoding": "odd"}), "unsupported_encoding"),
            (await served.call("/v2/nothing", asking()), "not_found"),
            (await served.call("/p/down/chat/completions", asking()), "upstream_unreachable"),
            (await served.call("/farebox/api/keys", method="GET"), "invalid_api_key"),
            (await served.call("/metrics", method="DELETE"), "method_not_allowed"),
            (await served.call("/v1/models", method="GET", headers={"X": "x" * 40_000}), "headers_too_large"),
        ]
        provider.then(plain(ERROR, status=400))
        await served.call(CHAT, asking())  # the provider's refusal, not farebox's
        now = await seen(served)
    assert all(answer.status >= 400 for answer, _ in refusals)
    assert {code for _, code in refusals} <= set(REASONS)
    counted = {reason: count for (reason,), count in now.by("farebox_refusals_total", "reason").items()}
    assert counted == Counter(code for _, code in refusals)


async def test_calls_in_flight_are_shown_while_they_are(database: str, tmp_path: Path) -> None:
    """Two open streams are two; when they are over there is none."""
    go_on = asyncio.Event()

    async def slow(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(STREAM[0])
        await go_on.wait()
        for part in STREAM[1:]:
            await wire.chunk(part)
        await wire.end()

    async with farebox(database, tmp_path) as (served, provider):
        provider.then(slow, slow)
        calls = [asyncio.create_task(served.call(CHAT, asking(stream=True))) for _ in range(2)]
        async with asyncio.timeout(10):
            while len(provider.requests) < 2:
                await asyncio.sleep(0.005)
        assert (await seen(served)).value("farebox_in_flight_requests") == 2
        go_on.set()
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200, 200]
        await served.idle()
        assert (await seen(served)).value("farebox_in_flight_requests") == 0


async def test_the_backlog_is_shown_while_the_ledger_waits(database: str, tmp_path: Path) -> None:
    """An event that waits in the journal is in the gauge, and gone from it once it is a row."""
    async with farebox(database, tmp_path, ledger={"drain_interval_ms": 60_000}) as (served, provider):
        provider.then(plain(JSON))
        await served.call(CHAT, asking())
        await served.idle()
        assert (await seen(served)).value("farebox_ledger_backlog_events") == 1
        await served.rows(1)
        now = await seen(served)
    assert now.value("farebox_ledger_backlog_events") == 0
    assert now.value("farebox_ledger_oldest_event_seconds") == 0


async def test_a_restart_counts_from_nought(database: str, tmp_path: Path) -> None:
    """Counters begin again with the process; the rows stay."""
    async with farebox(database, tmp_path) as (served, provider):
        provider.then(plain(JSON))
        await served.call(CHAT, asking())
        assert (await seen(served)).sum("farebox_requests_total") == 1
    async with farebox(database, tmp_path) as (served, _):
        assert (await seen(served)).sum("farebox_requests_total") == 0
        assert len(await served.rows()) == 1


async def test_a_token_keeps_strangers_out(database: str, tmp_path: Path) -> None:
    """With metrics.token only who says it may read; neither a key nor the admin token does."""
    async with farebox(database, tmp_path, metrics={"token": METRICS_TOKEN}) as (served, _):
        refused = [await scrape(served), await served.call("/metrics", method="GET")]
        refused += [
            await scrape(served, headers={"Authorization": said})
            for said in (f"Bearer {ADMIN_TOKEN}", f"Basic {METRICS_TOKEN}", f"Bearer {METRICS_TOKEN}x", "Bearer é")
        ]
        let_in = await scrape(served, headers={"Authorization": f"bearer {METRICS_TOKEN}"})
    assert [answer.status for answer in refused] == [401] * 6
    assert all(answer.header("www-authenticate") == "Bearer" for answer in refused)
    assert let_in.status == 200


async def test_a_page_from_elsewhere_can_not_read_along(database: str, tmp_path: Path) -> None:
    """On loopback, without a token, a name that somebody let point to this machine is refused; with one it counts."""
    said = {"Authorization": f"Bearer {METRICS_TOKEN}"}
    async with farebox(database, tmp_path / "bare") as (served, _):
        led_here = await scrape(served, headers={"Host": f"elsewhere.example:{served.port}"})
        at_home = [await scrape(served, headers={"Host": host}) for host in ("localhost", "127.0.0.1:1", "[::1]:9")]
    async with farebox(database, tmp_path / "token", metrics={"token": METRICS_TOKEN}) as (served, _):
        known = await scrape(served, headers={"Host": "elsewhere.example", **said})
    async with farebox(database, tmp_path / "open", server={"host": "0.0.0.0"}) as (served, _):
        reachable = await scrape(served, headers={"Host": "elsewhere.example"})
    assert led_here.status == 403
    assert [answer.status for answer in (*at_home, known, reachable)] == [200] * 5


async def test_the_answer_is_what_prometheus_expects(database: str, tmp_path: Path) -> None:
    """The text format with its type, compressed for who asks, bare for HEAD, and for GET only."""
    async with farebox(database, tmp_path) as (served, _):
        bare = await scrape(served)
        small = await scrape(served, headers={"Accept-Encoding": "br, gzip;q=0.5"})
        declined = await scrape(served, headers={"Accept-Encoding": "gzip;q=0"})
        head = await served.call("/metrics", method="HEAD", key=None)
        queried = await served.call("/metrics?name=x", method="GET", key=None)
        posted = await served.call("/metrics", b"x", key=None)
        many = await asyncio.gather(*[scrape(served) for _ in range(10)])
    assert bare.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    assert bare.body.endswith(b"\n") and bare.header("content-encoding") is None
    assert small.header("content-encoding") == "gzip" and len(small.body) < len(bare.body)
    assert gzip.decompress(small.body).startswith(b"# HELP farebox_")
    assert declined.header("content-encoding") is None
    assert (head.status, head.body) == (200, b"") and int(head.header("content-length") or 0) > 1_000
    assert (queried.status, posted.status) == (200, 405)
    assert all(answer.status == 200 and answer.clean for answer in many)


@pytest.mark.skipif(promtool() is None, reason="promtool (Debian's package prometheus) is not installed")
async def test_promtool_has_nothing_against_a_farebox_in_use(database: str, tmp_path: Path) -> None:
    """What Prometheus would scrape after all sorts of calls passes its linter."""
    async with farebox(database, tmp_path) as (served, provider):
        await traffic(served, provider)
        assert complaints((await scrape(served)).body) == ""
