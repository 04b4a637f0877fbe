"""What a provider may say: well-formed answers, odd ones, hostile ones and nonsense, for hypothesis to draw."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from support.twins import Said, cut

_ODDS = 14
"""In a wild answer, one choice out of so many is an odd one."""

_VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0")
_ODD_VERSIONS = ("HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP/3.7", "http/1.1", "HTTP/1", "HTTP/11", "SMTP/1.1", "ICY", "")
_STATUSES = (
    "200 OK",
    "200 OK",
    "200",
    "201 Made",
    "206 Part",
    "307 Go",
    "400 Bad",
    "429 Slow down",
    "500 Oops",
    "999 X",
)
_ODD_STATUSES = (
    "200 ", "299 Odd", "204 No Content", "304 Same", "100 Continue", "101 Switching", "103 Hints", "199 Y", "099 Less",
    "000 Nothing", "20 Short", "2000 Long", "-20 Neg", "+200 Sign", "2 00 OK", "200\tTab", "200 a\x01b", "200 caf\xe9",
    "20x OK", " 200 OK",
)  # fmt: skip
_INTERIM = ("100 Continue", "103 Hints", "199 Hm", "102 Wait")
_NAMES = (
    "X-A", "x-a", "Content-Type", "Content-Encoding", "X-Request-Id", "Set-Cookie", "Link", "Server", "Trailer",
    "Keep-Alive", "TE", "Proxy-Connection", "X-Farebox-Y", "Retry-After",
)  # fmt: skip
_ODD_NAMES = ("", "X A", "X\x00", "X-\xe9", "(X)", "X-A ", "\tX", " X", "X\x7f", "@", "Upgrade", "n" * 300)
_VALUES = ("1", "", "a b", "caf\xe9", "text/event-stream", "gzip", "identity", "a,b", "v" * 300)
_ODD_VALUES = (
    " a ", "\ta\t", "a\x00b", "a\rb", "a\nb", "\x01", "a\x7f", "1\r\n 2", "1\r\n\t2", "1\n 2", "1\r\n\r2", "\r", "\n",
    "h2c", "websocket",
)  # fmt: skip
_COLONS, _ODD_COLONS = (": ",), (":", " : ", ":  \t", "", " ")
_LINE_ENDS, _ODD_LINE_ENDS = ("\r\n",), ("\n", "\r", "\r\r\n", "\n\r\n", "")
_CONNECTIONS = ("close", "keep-alive", "x-a", "x-a, close", "CLOSE")
_ODD_CONNECTIONS = ("Keep-Alive, close", "upgrade", "Upgrade, keep-alive", "close\r\nConnection: keep-alive", ",", "")
_ODD_LENGTHS = (
    "{more}", "{less}", "+{n}", "-{n}", "0x{n:x}", "{n},{n}", "{n} ", " {n}\t", "0{n}", "", "x", "9" * 25, "{n}\r\n ",
    "{n} {n}", "1_0", "\xd9\xa5", "{n}\r\nContent-Length: {n}", "{n}\r\nContent-Length: {more}",
    "{n}\r\nTransfer-Encoding: chunked",
)  # fmt: skip
_CODINGS = ("chunked", "chunked", "Chunked")
_ODD_CODINGS = (
    " chunked ", "gzip, chunked", "gzip", "chunked, gzip", "identity", "chunked, chunked", "chunked;a=b", ",chunked",
    "xchunked", "chunked,", "\x0bchunked", "chunked\r\nTransfer-Encoding: chunked", "identity, chunked", "",
    "chunked\r\nContent-Length: 5",
)  # fmt: skip
_BODIES = (
    b"",
    b"x",
    b"hello",
    b"data: {}\n\n",
    b"0\r\n\r\n",
    b"\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\0\xff" * 20,
    b"y" * 300,
)
_SIZES = ("{n:x}", "{n:x}", "{n:X}", "0{n:x}")
_ODD_SIZES = (
    "000000000{n:x}", "{n:x} ", " {n:x}", "{n:x}\t", "+{n:x}", "-{n:x}", "0x{n:x}", "{more:x}", "{less:x}", "", "zz",
    "f" * 16, "f" * 17, "7fffffffffffffff", "{n:x}_",
)  # fmt: skip
_EXTENSIONS, _ODD_EXTENSIONS = (
    ("", "", "", ";a", ";a=b"),
    ('; a = "b"', ";", ';a="x\r\ny"', ";a\x00", ";a\nb", ";" + "e" * 300),
)
_LASTS, _ODD_LASTS = (b"0\r\n",), (b"00\r\n", b"0;a=b\r\n", b"0\n", b"", b"0 \r\n", b"-0\r\n", b"\r\n0\r\n")
_TRAILERS = (b"", b"", b"X-T: 1\r\n")
_ODD_TRAILERS = (
    b"X-T: 1\n", b"Content-Length: 5\r\n", b"X\x00: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"nonsense\r\n",
    b"X-T: " + b"t" * 300 + b"\r\n", b"X-T: 1\r\n 2\r\n", b"Connection: close\r\n",
)  # fmt: skip
_ENDS, _ODD_ENDS = (b"\r\n",), (b"\n", b"", b"\r", b"\r\r\n")
_AFTER = (b"",)
_ODD_AFTER = (
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"x",
    b"\0",
    b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
    b"HTTP/1.1 100 Go\r\n\r\n",
)


class _Speaker:
    """Draws the parts of one answer; a `wild` one is odd here and there."""

    def __init__(self, draw: st.DrawFn, *, wild: bool) -> None:
        self._draw = draw
        self._wild = wild

    def pick(self, good: tuple[Any, ...], odd: tuple[Any, ...] = ()) -> Any:
        if odd and self._wild and self._draw(st.integers(1, _ODDS)) == _ODDS:
            good = odd
        return good[0] if len(good) == 1 else self._draw(st.sampled_from(good))

    def answer(self, *, interim: bool = False) -> bytes:
        """A head, and what the head says of a body."""
        status = self.pick(_INTERIM) if interim else self.pick(_STATUSES, _ODD_STATUSES)
        line = f"{self.pick(_VERSIONS, _ODD_VERSIONS)} {status}{self.pick(_LINE_ENDS, _ODD_LINE_ENDS)}"
        before, after = (self.fields() for _ in range(2))
        framing, body = ("", b"") if interim else self.framed()
        end = self.pick(_ENDS, _ODD_ENDS)
        return (line + before + framing + after).encode("latin-1") + end + body

    def fields(self) -> str:
        """Header lines that say nothing of the body."""
        lines = ""
        for _ in range(self.pick((0, 0, 1, 2))):
            lines += self.pick(_NAMES, _ODD_NAMES) + self.pick(_COLONS, _ODD_COLONS)
            lines += self.pick(_VALUES, _ODD_VALUES) + self.pick(_LINE_ENDS, _ODD_LINE_ENDS)
        if self.pick((False,) * 5 + (True,)):
            lines += f"Connection: {self.pick(_CONNECTIONS, _ODD_CONNECTIONS)}\r\n"
        return lines

    def framed(self) -> tuple[str, bytes]:
        """The line that tells the body's size, and the body."""
        how = self.pick(("length", "length", "chunks", "chunks", "close"))
        body: bytes = self.pick(_BODIES)
        if how == "length":
            value = self.pick(("{n}",), _ODD_LENGTHS).format(n=len(body), more=len(body) + 3, less=len(body) // 2)
            return f"Content-Length: {value}\r\n", body
        if how == "chunks":
            return f"Transfer-Encoding: {self.pick(_CODINGS, _ODD_CODINGS)}\r\n", self.chunks()
        return "", body

    def chunks(self) -> bytes:
        out = b""
        for _ in range(self.pick((0, 1, 2, 3))):
            body = self.pick(_BODIES[1:])
            size = self.pick(_SIZES, _ODD_SIZES).format(n=len(body), more=len(body) + 1, less=len(body) - 1)
            out += (size + self.pick(_EXTENSIONS, _ODD_EXTENSIONS)).encode()
            out += self.pick(_ENDS, _ODD_ENDS) + body + self.pick(_ENDS, _ODD_ENDS)
        return bytes(
            out + self.pick(_LASTS, _ODD_LASTS) + self.pick(_TRAILERS, _ODD_TRAILERS) + self.pick(_ENDS, _ODD_ENDS)
        )

    def damaged(self, raw: bytes) -> bytes:
        """One byte more, one less, another one; or the rest is missing."""
        at = self._draw(st.integers(0, len(raw)))
        byte = self._draw(st.sampled_from([b"\r", b"\n", b"\0", b" ", b"\t", b":", b",", b"0", b"\x7f", b"\xff", b"H"]))
        return self._draw(
            st.sampled_from(
                [raw[:at] + byte + raw[at:], raw[:at] + raw[at + 1 :], raw[:at] + byte + raw[at + 1 :], raw[:at]]
            )
        )


@st.composite
def utterances(draw: st.DrawFn) -> Said:
    """An answer, where it is cut, and how the connection goes on."""
    speaker = _Speaker(draw, wild=draw(st.booleans()))
    raw = b"".join(speaker.answer(interim=True) for _ in range(speaker.pick((0, 0, 0, 0, 1, 2))))
    raw += speaker.answer() + speaker.pick(_AFTER, _ODD_AFTER)
    for _ in range(speaker.pick((0, 0, 0, 1))):
        raw = speaker.damaged(raw)
    places = (
        range(len(raw)) if speaker.pick((False,) * 9 + (True,)) else draw(st.lists(st.integers(0, 2000), max_size=4))
    )
    return Said(cut(raw, places), speaker.pick(("open", "end", "reset")), speaker.pick(("POST",) * 6 + ("GET", "HEAD")))
