"""Asks one provider for its list of models, with its own credential, within bounds.

Connections, credentials, TLS and the hygiene of headers are `upstream`'s; what to ask and how to read
the answer is `asking`'s. A failure is told in a word of farebox's own: an error body may quote the
credential, so none is read.
"""

from __future__ import annotations

import asyncio

from farebox import codings
from farebox.config import Models, Provider
from farebox.errors import Refusal
from farebox.models.asking import Unreadable, ask, read
from farebox.records import Model
from farebox.upstream import Answer, NeverSent, Unusable, Upstream, UpstreamError

_PAGES_MAX = 50
"""Pages of one list; a provider that goes on is cut there, as at models_max."""


class FetchError(Exception):
    """No list. `kind` is a word or two: `status 401`, `timeout`, `too_large`, `unreadable`, or an `UpstreamError`'s."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


async def fetch(provider: Provider, settings: Models) -> list[Model]:
    """The models `provider` lists, at most `settings.models_max`. Raises `FetchError`."""
    try:
        upstream = Upstream(provider)
    except Unusable as exc:
        raise FetchError(exc.kind) from None
    try:
        async with asyncio.timeout(settings.timeout_s):
            return await _pages(upstream, settings)
    except TimeoutError:
        raise FetchError("timeout") from None
    except UpstreamError as failure:
        raise FetchError(failure.kind) from None
    finally:
        await upstream.close()


async def _pages(upstream: Upstream, settings: Models) -> list[Model]:
    found: dict[str, Model] = {}
    left = settings.list_mb_max << 20
    after: str | None = None
    for _ in range(_PAGES_MAX):
        body = await _page(upstream, after, left)
        left -= len(body)
        try:
            # In a thread: a list comes while calls are served, and megabytes of it take longer than they may wait.
            page = await asyncio.to_thread(read, upstream.provider, body, settings.models_max)
        except Unreadable:
            raise FetchError("unreadable") from None
        found |= {model.id: model for model in page.models}
        if page.after is None or page.after == after or len(found) >= settings.models_max:
            break
        after = page.after
    return list(found.values())[: settings.models_max]


async def _page(upstream: Upstream, after: str | None, bytes_max: int) -> bytes:
    """One answer's body, decoded."""
    wanted = ask(upstream.provider, after)
    fields = upstream.fields((), credentials=False, identity=True)
    given = {name.lower() for name, _ in fields}  # the config may ask for another version
    asked = [(name.encode(), value.encode()) for name, value in wanted.headers.items()]
    fields += [field for field in asked if field[0].lower() not in given]
    url = upstream.url(wanted.suffix, versioned=wanted.versioned)
    try:
        answer = await upstream.send("GET", upstream.start("GET", url, fields), None)
    except NeverSent:
        raise asyncio.CancelledError from None  # Python 3.11's `timeout` knows no kinds of it
    try:
        if answer.head.status != 200:
            raise FetchError(f"status {answer.head.status}")
        body = await _body(answer, bytes_max)
    finally:
        answer.close()
    try:
        body = codings.decode_body(body, answer.head.content_encoding, bytes_max)
    except Refusal as refusal:
        raise FetchError("too_large" if refusal.status == 413 else "unreadable") from None
    if upstream.quotes_credential(body):
        raise FetchError("quotes the credential")  # what is listed is stored and shown
    return body


async def _body(answer: Answer, bytes_max: int) -> bytes:
    pieces: list[bytes] = []
    while piece := await answer.read():
        bytes_max -= len(piece)
        if bytes_max < 0:
            raise FetchError("too_large")
        pieces.append(piece)
    return b"".join(pieces)
