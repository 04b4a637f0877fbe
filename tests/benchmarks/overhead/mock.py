"""The provider of the benchmark: `python mock.py PORT`. One thread, epoll, as little work as Python can do (Linux).

Any POST is a chat call; the model's name says how it is answered:

    whole               a JSON answer of 1.1 kB, at once
    unpriced            the same without usage: farebox counts the tokens itself
    stream-N-MS         N events, one each MS milliseconds, alone; usage in the last if it was asked for

Request bodies are counted, not kept. Each event carries `@t` and 16 hex digits: CLOCK_MONOTONIC in nanoseconds, read
just before its `send`, so that a client on this machine can say how long the event was on its way.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
import select
import socket
import sys
import time

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_STREAM = re.compile(rb'"model": ?"stream-(\d+)-(\d+)"')
_ASKS_USAGE = re.compile(rb'"include_usage": ?true')
_HEAD_MAX = 65536
_READ_BYTES = 65536
"""More would have `recv` map fresh memory for each call."""

_COMMON = (
    b"date: Sun, 22 Nov 2026 04:00:00 GMT\r\nserver: mock\r\nx-request-id: req_0f2d5c7b9a684e31\r\n"
    b"openai-processing-ms: 412\r\nopenai-version: 2020-10-01\r\nx-ratelimit-limit-requests: 10000\r\n"
    b"x-ratelimit-limit-tokens: 2000000\r\nx-ratelimit-remaining-requests: 9999\r\n"
    b"x-ratelimit-remaining-tokens: 1999900\r\nx-ratelimit-reset-requests: 6ms\r\nx-ratelimit-reset-tokens: 3ms\r\n"
)
_WORDS = "A proxy that counts must not be felt: it reads along beside the stream, and the answer goes on as it came. "
_USAGE = {
    "prompt_tokens": 97,
    "completion_tokens": 118,
    "total_tokens": 215,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def whole_answer(*, usage: bool) -> bytes:
    """Head and body of an answer that does not stream."""
    message = {"role": "assistant", "content": _WORDS * 6, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1795320000, "model": "whole"}
    body = _compact({**answer, "choices": [choice], **({"usage": _USAGE} if usage else {}), "service_tier": "default"})
    head = b"HTTP/1.1 200 OK\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (_COMMON, len(body)) + body


_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1795320000,"model":"stream",'
    b'"service_tier":"default","system_fingerprint":"fp_bench","choices":['
)
_DELTA = _EVENT + b'{"index":0,"delta":{"content":" @t%016x"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
_LAST = _EVENT + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n'
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n" + _COMMON + b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_DELTA_FRAME = b"%x\r\n%s\r\n" % (len(_DELTA % 0), _DELTA)
_ENDING = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_PLAIN_END = _framed(_LAST) + _ENDING
_USAGE_END = _framed(_LAST) + _framed(_EVENT + b'],"usage":' + _compact(_USAGE) + b"}\n\n") + _ENDING
_WHOLE, _UNPRICED = whole_answer(usage=True), whole_answer(usage=False)


class Connection:
    """One proxy's connection: what of a request is still to come, what of an answer is still to go."""

    __slots__ = ("asks_usage", "gap_s", "head", "left", "out", "sock", "to_send")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        """The request so far: its head and the beginning of its body, which has the model in it."""
        self.left = 0
        """Bytes of the body still to come; -1 where it is chunked."""
        self.out = b""
        self.to_send = 0
        self.gap_s = 0.0
        self.asks_usage = False


class Mock:
    """Serves until it is ended."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Connection]] = []
        self._numbers = itertools.count()
        self._seen = b""
        """The last request that came in one piece and was answered whole: the next is mostly the same."""

    def serve(self) -> None:
        """For ever."""
        listening = self._listener.fileno()
        while True:
            if self._due:
                # epoll's own timeout is in whole milliseconds; events that are to come alone must not wait for it.
                wait_s = self._due[0][0] - time.monotonic()
                if wait_s > 0:
                    select.select([self._epoll], [], [], wait_s)
                ready = self._epoll.poll(0)
                self._send_due()
            else:
                ready = self._epoll.poll()
            for number, events in ready:
                if number == listening:
                    self._accept()
                elif (connection := self._connections.get(number)) is not None:
                    if events & select.EPOLLOUT:
                        self._send(connection, b"")
                    if events & ~select.EPOLLOUT:
                        self._read(connection)

    def _accept(self) -> None:
        try:
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[sock.fileno()] = Connection(sock)
                self._epoll.register(sock.fileno(), select.EPOLLIN)
        except BlockingIOError:
            pass

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
        elif data == self._seen and not connection.left and not connection.head:
            self._send(connection, _WHOLE)
        elif connection.left:
            self._more_body(connection, data)
        else:
            self._more_head(connection, data)

    def _more_head(self, connection: Connection, data: bytes) -> None:
        head = connection.head = connection.head + data if connection.head else data
        end = head.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(head, 0, end + 2)
        if length is not None:
            connection.left = int(length[1]) - (len(head) - end - 4)
            if connection.left > 0:
                return
        elif _CHUNKED.search(head, 0, end + 2) and not head.endswith(b"0\r\n\r\n"):
            connection.left = -1
            return
        self._answer(connection)

    def _more_body(self, connection: Connection, data: bytes) -> None:
        if len(connection.head) < _HEAD_MAX:
            connection.head += data[:_HEAD_MAX]
        if connection.left < 0:
            if data.endswith(b"0\r\n\r\n"):
                self._answer(connection)
            return
        connection.left -= len(data)
        if connection.left <= 0:
            self._answer(connection)

    def _answer(self, connection: Connection) -> None:
        request, connection.head, connection.left = connection.head, b"", 0
        if (streamed := _STREAM.search(request)) is None:
            if b'"unpriced"' in request:
                self._send(connection, _UNPRICED)
            else:
                self._seen = request if len(request) < _READ_BYTES else b""
                self._send(connection, _WHOLE)
            return
        connection.to_send = int(streamed[1])
        connection.gap_s = int(streamed[2]) / 1000
        connection.asks_usage = _ASKS_USAGE.search(request) is not None
        self._send(connection, _STREAM_HEAD + _DELTA_FRAME % time.monotonic_ns())
        connection.to_send -= 1
        # The first gap differs from stream to stream: those that began together do not tick together.
        number = next(self._numbers)
        share = number * 0.6180339887 % 1
        heapq.heappush(self._due, (time.monotonic() + connection.gap_s * share, number, connection))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, number, connection = self._due[0]
            if connection.to_send > 0:
                connection.to_send -= 1
                heapq.heapreplace(self._due, (due + connection.gap_s, number, connection))
                self._send(connection, _DELTA_FRAME % time.monotonic_ns())
            else:
                heapq.heappop(self._due)
                if connection.to_send == 0:
                    self._send(connection, _USAGE_END if connection.asks_usage else _PLAIN_END)

    def _send(self, connection: Connection, data: bytes) -> None:
        waiting = connection.out
        data = waiting + data if waiting else data
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if sent == len(data) and not waiting:
            return
        connection.out = data[sent:]
        if bool(connection.out) != bool(waiting):
            flags = select.EPOLLIN | (select.EPOLLOUT if connection.out else 0)
            self._epoll.modify(connection.sock.fileno(), flags)

    def _close(self, connection: Connection) -> None:
        connection.to_send = -1
        if self._connections.pop(connection.sock.fileno(), None) is not None:
            connection.sock.close()


if __name__ == "__main__":
    Mock(int(sys.argv[1])).serve()
