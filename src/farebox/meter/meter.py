"""One answer as it passes: bytes in, bytes to forward out, at the end a `Reading`."""

from __future__ import annotations

from farebox.codings import Decoder
from farebox.dialects.plain import PlainUsage
from farebox.dialects.profile import Profile
from farebox.dialects.usage import Account
from farebox.meter import plain
from farebox.meter.body import BodyMeter
from farebox.meter.chat import ChatWire
from farebox.meter.embeddings import EmbeddingsWire
from farebox.meter.messages import MessagesWire
from farebox.meter.plain import Plain
from farebox.meter.reading import Notes, Reading
from farebox.meter.responses import ResponsesWire
from farebox.meter.sample import NO_TEXT, Text
from farebox.meter.stream import StreamMeter
from farebox.meter.template import Template
from farebox.meter.terminals import Tokens, watch
from farebox.meter.wire import Wire
from farebox.records import Family, Operation

OPENING_BYTES_MAX = 4 * 1024
"""Blank lines a body may open with before its kind is decided by the content type alone."""
DECODED_BYTES_MAX = 4 * 1024 * 1024
"""What one chunk of a compressed answer may unpack to; an answer with more is passed on unread."""

_BOM = b"\xef\xbb\xbf"


class Meter:
    """Reads one provider answer while it is forwarded.

    Hand every piece of the body to `feed` and send what it returns; at the end of the body send
    what `eof` returns. `finish` may be asked at any time and any number of times. Nothing here
    raises for what a provider sends, and no byte is changed: `feed` returns the same object,
    unless `withhold_usage` asks to take out the usage-only frame farebox itself caused. A
    compressed answer is read from a decoded copy and passes whole.

    `cuttable`: the stream may have to be ended by farebox (`cut`), so it is watched for that, and its
    text is counted (`output_bytes`). `choices` is how many answers were asked for.

    `now` is a reading of a monotonic clock, in seconds. Memory: one event of
    `event_bytes_max`, or a body of `body.BODY_BYTES_MAX`, and a sample of the text; of a `cuttable`
    Responses stream also its output so far, up to `responses_terminal.OUTPUT_BYTES_MAX`.
    """

    def __init__(
        self,
        *,
        operation: Operation,
        family: Family,
        profile: Profile,
        stream: bool,
        withhold_usage: bool,
        status: int,
        content_type: str,
        content_encoding: str,
        event_bytes_max: int,
        cuttable: bool = False,
        choices: int = 1,
    ) -> None:
        self._decoder = _decoder_of(content_encoding) if content_encoding else None
        self._operation = operation
        self._family = family
        self._profile = profile
        self._stream_asked = stream
        self._withhold = withhold_usage and self._decoder is None
        self._watch = watch(operation, family, choices) if cuttable else None
        self._status = status
        self._content_type = content_type
        self._event_bytes_max = event_bytes_max
        self._opening = b""
        """The first bytes, as long as they do not tell what kind of body it is."""
        self._opening_sent = 0
        self._stream: StreamMeter | None = None
        self._body: BodyMeter | None = None
        self._plain: Plain | None = None
        """A whole answer of the ordinary kind; then there are no notes."""
        self._notes: Notes | None = None
        self._ended = False
        self.terminal = False
        """The event that ends the answer was fed; for a JSON body: it ended and could be read."""

    @property
    def output_bytes(self) -> int:
        """Bytes of generated text so far (text, reasoning, tool calls); only counted in a `cuttable` stream."""
        return self._stream.output_bytes if self._stream is not None else 0

    @property
    def generating(self) -> bool:
        """Whether a `cuttable` stream is still being written: not when only its usage and its end are missing, which
        cost nothing and are worth waiting for."""
        return self._stream is None or self._stream.generating

    @property
    def cuttable(self) -> bool:
        """Whether `cut` may still give frames: it is, or may become, an uncompressed stream that can be followed."""
        if self._watch is None or self._decoder is not None or self._body is not None or self._ended:
            return False
        return self._stream is None or self._stream.cuttable

    def cut(self, usage: Tokens | None) -> bytes | None:
        """The frames that end the stream here as its dialect ends one at the output limit. Feed nothing after them.

        None while the stream stands inside a frame, or before its first event: feed on and ask again, as long
        as `cuttable`. Empty when the stream has ended by itself. `usage`, the input and output tokens so far,
        only where the client is to see them: it asked for the usage frame, or the dialect always has one
        (Messages, Responses).
        """
        if self._stream is None or self._decoder is not None or self._ended:
            return None
        return self._stream.cut(usage)

    @property
    def stored_id(self) -> str | None:
        """The answer's own id, as soon as it is known."""
        if self._plain is not None:
            return self._plain[0].response_id
        return self._notes.response_id if self._notes is not None else None

    @property
    def stored(self) -> dict[str, str]:
        """Ids of what the provider stored along with the answer so far, and what each is."""
        if self._plain is not None:
            return self._plain[1]
        return self._notes.stored if self._notes is not None else {}

    @property
    def expected(self) -> Template | None:
        """What the next chunk most likely repeats. One that does need not be fed: it goes on as it is, and the text in
        it to `keep`. None where all have to be fed."""
        stream = self._stream
        if stream is None or self._decoder is not None or stream.watch is not None:
            return None
        return stream.template

    def keep(self, text: bytes) -> None:
        """Note the text, as escaped in JSON, of chunks that repeated what was `expected`."""
        if self._stream is not None:
            self._stream.keep(text)

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Read `chunk`, which arrived at `now`; returns what to forward at once (maybe nothing)."""
        stream = self._stream
        if stream is None or self._decoder is not None:
            return self._route(chunk, now)
        # As `stream.feed` does, but nearly every chunk of a stream is one: a call less is 0.1 µs of its 0.9.
        if stream.template is not None and (text := stream.template.text(chunk)) is not None:
            stream.keep(text)
            if stream.watch is not None:
                stream.watch.covered(text, chunk)
            return chunk
        out = stream.feed(chunk, now)
        self.terminal = stream.terminal
        return out

    def feed_frame(self, chunk: bytes, now: float) -> bytes:
        """Read `chunk` only up to the first place where `cut` gives frames; what to forward of that.

        For a stream that is to be cut and whose chunks end anywhere. Where it is `generating` and `cut` gives
        frames afterwards, the rest of `chunk` may not have been read; else all of it was.
        """
        out: list[bytes] = []
        position = 0
        while position < len(chunk):
            end = chunk.find(b"\n", position) + 1 or len(chunk)
            out.append(self.feed(chunk[position:end], now))
            position = end
            if self.generating and self.cut(None) is not None:
                break
        return b"".join(out)

    def eof(self) -> bytes:
        """The provider's body ended, or broke off: returns what was still held back."""
        if self._ended:
            return b""
        self._ended = True
        if self._body is not None:
            self._read_body(self._body)
        if self._stream is None:
            return self._opening[self._opening_sent :]
        held = self._stream.eof()
        self.terminal = self._stream.terminal
        return held if self._decoder is None else b""

    def finish(self) -> Reading:
        """What the answer has told so far."""
        if self._plain is not None:
            return self._plain[0]
        notes, stream = self._noted(), self._stream
        account, raw = notes.account()
        usage = account.usage
        complete = notes.complete and notes.fault is None
        text = self._text(account, complete)
        unparsed = notes.unparsed + (self._decoder is not None and self._decoder.broken)
        return Reading(
            usage=usage,
            has_usage=usage.input_tokens is not None or usage.output_tokens is not None,
            plain=complete and isinstance(raw, PlainUsage) and not (notes.provisional or unparsed),
            usage_raw=raw,
            unexplained_tokens=account.unexplained or None,
            output_provisional=notes.provisional,
            model=notes.model,
            service_tier=notes.service_tier,
            response_id=notes.response_id,
            tool_calls=notes.tools.calls(),
            stream=stream is not None or self._is_empty_stream,
            first_token_at=stream.first_token_at if stream is not None else None,
            complete=complete,
            in_band_error=notes.fault is not None and self._status < 400,
            error_type=notes.fault.type if notes.fault is not None else None,
            error_code=notes.fault.code if notes.fault is not None else None,
            unparsed_events=unparsed,
            output_text=text.sample,
            output_chars_total=text.chars_total,
            output_bytes_total=text.bytes_total,
        )

    def _noted(self) -> Notes:
        """The notes, made when there is something to note: a whole answer of the ordinary kind needs none."""
        if self._notes is None:
            self._notes = Notes(self._operation, self._profile)
        return self._notes

    def _read_body(self, body: BodyMeter) -> None:
        document = body.whole
        if document is not None and self._status < 400 and (self._decoder is None or not self._decoder.broken):
            self._plain = plain.read(self._operation, document, self._profile)
        if self._plain is None:
            self._read_any_body(body)
        else:
            self.terminal = True

    def _read_any_body(self, body: BodyMeter) -> None:
        """Read a document that may hold anything."""
        notes = self._noted()
        body.read(_wire_of(self._operation, self._family), notes, self._status)
        self.terminal = notes.whole_body or notes.terminal

    @property
    def _is_empty_stream(self) -> bool:
        """Announced as an event stream, and nothing in it that would tell otherwise."""
        return self._body is None and _media_type(self._content_type) == "text/event-stream"

    def _text(self, account: Account, complete: bool) -> Text:
        """The generated text, decoded only where tokens will have to be estimated from it."""
        if account.usage.output_tokens is not None and complete and not self._noted().provisional:
            return NO_TEXT
        try:
            if self._stream is not None:
                return self._stream.text()
            if self._body is not None and self._status < 400:
                return self._body.text(_wire_of(self._operation, self._family))
            return NO_TEXT
        except Exception:
            return NO_TEXT

    def _route(self, chunk: bytes, now: float) -> bytes:
        """The slower way: a body whose kind is not known yet, a document, or a compressed answer."""
        data = self._decoder.feed(chunk) if self._decoder is not None else chunk
        if self._stream is None and self._body is None:
            data = self._opening + data
            if not self._begin(data):
                return self._await_kind(chunk, data)
            # What went on already is blank where a frame may have to be withheld, and is not needed.
            data, self._opening = data[self._opening_sent :] if self._withhold else data, b""
        if self._body is not None:
            self._body.feed(data)
            return data if self._withhold else chunk
        assert self._stream is not None
        out = self._stream.feed(data, now)
        self.terminal = self._stream.terminal
        return out if self._withhold else chunk

    def _await_kind(self, chunk: bytes, opening: bytes) -> bytes:
        """Keep the opening; all of it goes on, or its blank part where a frame may have to be withheld."""
        self._opening = opening
        if not self._withhold:
            self._opening_sent = len(opening)
            return chunk
        sent, self._opening_sent = self._opening_sent, len(opening) - len(opening.lstrip())
        return opening[sent : self._opening_sent]

    def _begin(self, data: bytes) -> bool:
        """Decide what kind of body this is once its first bytes are there; whether that is decided."""
        kind = _kind_of(data, self._content_type, self._stream_asked)
        if kind is None:
            return False
        if kind:
            self._stream = StreamMeter(
                _wire_of(self._operation, self._family),
                self._noted(),
                withhold=self._withhold,
                event_bytes_max=self._event_bytes_max,
                watch=self._watch,
            )
        else:
            self._body = BodyMeter()
        return True


def _kind_of(data: bytes, content_type: str, stream_asked: bool) -> bool | None:
    """True for an event stream, False for a document, None while only blank space is there.

    The bytes outrank the header: an event stream never starts with a bracket, a JSON document
    always does, and servers do answer either with the other's content type.
    """
    start = data.removeprefix(_BOM).lstrip()
    if start[:1] in (b"{", b"["):
        return False
    if start.startswith((b"data:", b"event:", b"id:", b"retry:", b":")):
        return True
    if len(start) < 6 and len(data) < OPENING_BYTES_MAX:
        return None
    media_type = _media_type(content_type)
    if media_type in ("text/event-stream", "application/json"):
        return media_type == "text/event-stream"
    return stream_asked and bool(start) and not start.startswith(b"<")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _decoder_of(content_encoding: str) -> Decoder | None:
    """None where nothing has to be undone."""
    decoder = Decoder(content_encoding, feed_bytes_max=DECODED_BYTES_MAX)
    return None if decoder.identity else decoder


def _wire_of(operation: Operation, family: Family) -> Wire:
    if operation == "messages" or (operation == "other" and family == "anthropic"):
        return MessagesWire()
    if operation == "responses":
        return ResponsesWire()
    if operation in ("embeddings", "moderations"):
        return EmbeddingsWire()
    return ChatWire()
