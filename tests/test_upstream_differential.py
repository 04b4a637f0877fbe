"""farebox's client beside aiohttp's, which it had before: what a caller gets of the same bytes of a provider."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from support.twins import Got, Said, ours, theirs
from support.utterances import utterances

Run = Callable[[Said], None]


@dataclass(frozen=True)
class Difference:
    """Something farebox does otherwise on purpose, and an example of it."""

    reason: str
    applies: Callable[[Said, Got, Got], bool]
    example: Said


def _said(raw: bytes, *more: bytes, ending: str = "end", method: str = "POST") -> Said:
    return Said((raw, *more), ending, method)  # type: ignore[arg-type]


ACCEPTED = {
    "a body after an answer to HEAD": Difference(
        "There is none, so what follows the head is not this answer's: farebox takes the head. aiohttp "
        "does so only if they come later, and else takes nothing.",
        lambda said, us, them: said.method == "HEAD" and us.end == "whole" and them == Got("broken_answer"),
        _said(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", method="HEAD"),
    ),
    "after HEAD the connection is not used again": Difference(
        "A provider that does send a body after all would have it taken for the next answer.",
        lambda said, us, them: said.method == "HEAD" and them.reused and us == replace(them, reused=False),
        _said(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", method="HEAD", ending="open"),
    ),
    "a trailer ends the connection": Difference(
        "`Connection: close` after the body is meant as it is before it; aiohttp does not look there.",
        lambda said, us, them: them.reused and us == replace(them, reused=False) and b"connection:" in said.raw.lower(),
        _said(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nConnection: close\r\n\r\n", ending="open"),
    ),
    "blank lines after an answer": Difference(
        "Where they come with it both skip them. What comes later nobody asked for: farebox drops the connection.",
        lambda said, us, them: them.reused and us == replace(them, reused=False) and said.raw.endswith((b"\r", b"\n")),
        _said(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"\r\n", ending="open"),
    ),
    "chunks that end in nonsense": Difference(
        "It is a break. aiohttp, where the line end of a chunk comes in one piece with the nonsense, waits for ever.",
        lambda said, us, them: us.end == "broken" and them.end == "waiting" and us == replace(them, end="broken"),
        _said(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx", b"\r\nzz\r\n"),
    ),
    "an unknown interim answer with a body": Difference(
        "It has none; what follows its head is an answer or a body, as one likes. farebox refuses it, as both do with "
        "100 to 103; aiohttp takes the body for one and waits for another answer.",
        lambda said, us, them: (
            us == Got("broken_answer") and re.search(rb"(?i)http/\S+\s+1\d\d\s", said.raw) is not None
        ),
        _said(b"HTTP/1.1 199 Hm\r\nContent-Length: 1\r\n\r\nx", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ),
}


def difference(said: Said, us: Got, them: Got) -> str | None:
    """Which of the accepted differences this is; None: there is none. A difference that is not accepted fails."""
    if us == them:
        return None
    for name, accepted in ACCEPTED.items():
        if accepted.applies(said, us, them):
            return name
    raise AssertionError(f"{said.method} {said.pieces} {said.ending}\n  farebox: {us}\n  aiohttp: {them}")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for all examples: to make one takes longer than most of them."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def compare(loop: asyncio.AbstractEventLoop, said: Said) -> None:
    """The promises about one utterance, below."""

    async def both() -> tuple[Got, Got, Got, Got]:
        at_once = replace(said, pieces=(said.raw,))
        return await ours(said), await ours(said, "pipe"), await ours(at_once), await theirs(said)

    us, piped, at_once, them = loop.run_until_complete(both())
    difference(said, us, them)
    # Whoever pipes gets the same as who reads ...
    assert piped == us or (us.end == piped.end == "broken" and piped.body.startswith(us.body))
    # ... and no cut changes it, but that a fault that comes together with the head spoils the head as well, and
    # that bytes that come after the end cost the connection.
    spoilt = at_once == Got("broken_answer") and us.end in ("whole", "broken")
    assert us == at_once or (not us.reused and (spoilt or us == replace(at_once, reused=False)))


SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def test_a_caller_gets_what_aiohttp_gave(loop: asyncio.AbstractEventLoop) -> None:
    """Status, fields, body, its end or break, and whether the connection is used again; but for what is `ACCEPTED`."""

    @settings(SETTINGS, max_examples=150)
    @given(utterances())
    def check(said: Said) -> None:
        compare(loop, said)

    check()


@pytest.mark.long
def test_a_caller_gets_what_aiohttp_gave_whatever_is_said(loop: asyncio.AbstractEventLoop) -> None:
    """The same, for many more utterances: the same ones each time, or others by another `FUZZ_SEED`."""

    @seed(int(os.environ.get("FUZZ_SEED", "0")))
    @settings(SETTINGS, max_examples=8_000)
    @given(utterances())
    def check(said: Said) -> None:
        compare(loop, said)

    check()


@pytest.mark.parametrize("name", ACCEPTED)
def test_each_accepted_difference_is_one(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """What the list says is so: an entry that does not differ any more is to be taken out."""

    async def both() -> tuple[Got, Got]:
        said = ACCEPTED[name].example
        return await ours(said), await theirs(said)

    assert difference(ACCEPTED[name].example, *loop.run_until_complete(both())) == name


@pytest.mark.parametrize("value", [b"\x0bchunked", b"chunked\x0c", b"\x1cchunked"])
def test_only_blanks_may_stand_around_a_coding(loop: asyncio.AbstractEventLoop, value: bytes) -> None:
    """The parser sees no chunks there: who took it for `chunked` would take the chunks' framing for the body."""
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n" % value
    for ending in ("end", "open"):
        assert loop.run_until_complete(ours(_said(raw, ending=ending))) == Got("broken_answer")
