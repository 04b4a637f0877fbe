"""farebox's client beside aiohttp's, which it had before: what a caller gets of the same bytes of a provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

ACCEPTED = {
    "a body that breaks": Difference(
        "Both break the client's answer. farebox passes on what came before; aiohttp forgets what was not yet read.",
        lambda said, us, them: (
            us.end == them.end == "broken" and replace(us, body=b"") == replace(them, body=b"")
            and us.body.startswith(them.body)
        ),
        _said(CHUNKED + b"5\r\nhello\r\n", b"3\r\nabc\r\nnonsense"),
    ),
    "a body after an answer to HEAD": Difference(
        "There is none, so nobody's bytes follow the head: farebox takes the head and drops the connection. aiohttp "
        "takes nothing if they come together with it, and the same as farebox if they come later.",
        lambda said, us, them: (
            said.method == "HEAD" and (us.end, us.reused) == ("whole", False) and them.end == "broken_answer"
        ),
        _said(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", method="HEAD"),
    ),
    "an interim answer with a body": Difference(
        "It has none; what follows its head is another answer, or a body, as one likes. farebox refuses it, aiohttp "
        "skips so many bytes and waits on.",
        lambda said, us, them: us == Got("broken_answer") and _interim_with_length(said.raw),
        _said(b"HTTP/1.1 103 Hints\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ),
}  # fmt: skip


def _interim_with_length(raw: bytes) -> bool:
    return any(
        head.lstrip().split(b" ", 1)[1:2] and head.lstrip().split(b" ", 1)[1].lstrip().startswith(b"1")
        and (b"content-length:" in head.lower() or b"transfer-encoding" in head.lower())
        for head in (raw[at:] for at in range(len(raw)) if raw[at : at + 5].lower() == b"http/")
    )  # fmt: skip


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
    # ... and no cut changes it, but that a fault that comes together with the head spoils the head as well.
    assert at_once == us or (at_once == Got("broken_answer") and us.end in ("whole", "broken") and not us.reused)


SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def test_a_caller_gets_what_aiohttp_gave(loop: asyncio.AbstractEventLoop) -> None:
    """Status, fields, body, its end or break, and whether the connection is used again; but for what is `ACCEPTED`."""

    @settings(SETTINGS, max_examples=250)
    @given(utterances())
    def check(said: Said) -> None:
        compare(loop, said)

    check()


@pytest.mark.long
def test_a_caller_gets_what_aiohttp_gave_whatever_is_said(loop: asyncio.AbstractEventLoop) -> None:
    """The same, for many more utterances, and others each time."""

    @settings(SETTINGS, max_examples=15_000, derandomize=False)
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
