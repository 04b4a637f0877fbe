"""Bodies that go up unmetered, read as far as it takes to know which stored objects they name.

A small JSON body, or form where forms name objects, is read whole and goes up as it came. A larger one
streams on while it is searched for anything that could name one; then it breaks off, for padding
must not hide an id. Everything else streams as ever. Whose the objects are is `ownership`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from farebox import codings
from farebox.errors import BadRequest, BodyTooLarge
from farebox.objects.places import may_refer
from farebox.objects.references import Reference, form_references, may_name, may_name_in_form, references
from farebox.proxy.call import Call
from farebox.server import BROKEN_OFF, Upload

BODY_BYTES_MAX = 4 * 1024 * 1024
"""An unmetered body up to this size is read before it goes up. A larger one gets 413 where it may name an object."""
_TAIL_BYTES = 512
"""Kept of a piece, so that what may name an object is found across two."""


async def read_ahead(call: Call, hold: Callable[[int], None]) -> list[Reference]:
    """What the body of an unmetered call names; `hold` counts what is kept of it.

    Raises `BadRequest` where that can't be told, `BodyTooLarge`, `BadEncoding`, and what `hold` raises.
    """
    upload, headers = call.body, call.request.headers
    # Whatever else a body says it is, some provider may read it as JSON.
    form = headers.get("Content-Type", "").strip().lower().startswith("multipart/")
    if not isinstance(upload, Upload):
        return []
    if not may_refer(call.target, form=form):
        return []
    encoding = ",".join(headers.getall("Content-Encoding", ())).strip().lower()
    body = await _take(call, upload, hold, encoding, may_name_in_form if form else _may_name)
    if body is None:
        return []
    decoded = codings.decode_body(body, encoding, call.snapshot.config.limits.decoded_body_mb_max << 20)
    return form_references(decoded) if form else references("other", decoded)


def _may_name(piece: bytes) -> bool:
    return may_name("other", piece)


async def _take(
    call: Call, upload: Upload, hold: Callable[[int], None], encoding: str, suspicious: Callable[[bytes], bool]
) -> bytes | None:
    """The body, which is the call's from now on; None for one that is too large, which goes on as a `Scanned`."""
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in upload:
            size += len(piece)
            hold(len(piece))
            pieces.append(piece)
            if size > BODY_BYTES_MAX:
                if call.caller.allow_shared_objects:
                    suspicious = _never
                scanned = call.body = Scanned(call, pieces, encoding, suspicious)
                scanned.look_ahead()
                return None
    except Exception:
        if upload.broken:
            raise BadRequest(BROKEN_OFF) from None
        raise
    call.body = whole = b"".join(pieces)
    return whole


def _never(_: bytes) -> bool:
    return False


class Scanned(Upload):
    """An upload too large to be read first: it goes on, and breaks off where it is `suspicious`."""

    def __init__(self, call: Call, pieces: list[bytes], encoding: str, suspicious: Callable[[bytes], bool]) -> None:
        super().__init__(call.request, call.snapshot.config.limits.client_stall_timeout_s)
        self._begun = deque(pieces)
        self._decoder = codings.Decoder(encoding)
        self._suspicious = suspicious
        self._tail = b""

    def look_ahead(self) -> None:
        """Look at what has come so far. Raises `BodyTooLarge`: then nothing of it has gone up."""
        for piece in self._begun:
            self._look(piece)

    async def __anext__(self) -> bytes:
        if self._begun:
            return self._begun.popleft()
        piece = await super().__anext__()
        self._look(piece)
        return piece

    def _look(self, piece: bytes) -> None:
        """Raises `BodyTooLarge`. The upload is short of its end then: whatever has gone up of it is no request."""
        if self._suspicious is _never:
            return
        window = self._tail + self._decoder.feed(piece)
        self._tail = window[-_TAIL_BYTES:]
        if self._decoder.broken or self._suspicious(window):
            self.broken = True
            self.refusal = BodyTooLarge(
                f"This body may name stored objects, and only {BODY_BYTES_MAX} bytes of one are read to see whose."
            )
            raise self.refusal
