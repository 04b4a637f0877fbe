"""The clients of the benchmark: reads a plan, a JSON object, and prints what came out. One thread, epoll (Linux).

Connections are kept alive and work in a closed loop: the next call begins when the answer is whole. Keys of the plan:

    port, connections, seconds   how many clients, for how long calls are begun
    calls                        or: how many calls altogether (then `seconds` only bounds it)
    spread_s                     the first calls begin evenly over this time (0: at once)
    body                         a chat request, sent as it is
    keys                         bearer tokens, taken in turn
    path                         else /v1/chat/completions; `body` null makes it a GET
    gap_s                        pause of a client between an answer and its next call

What comes out: calls, failed, seconds, events, and `latency`, `first_token`, `event` as {p50, p99, max} in µs. An
answer that is not 200 or does not end as it says is `failed`. Whatever begins within the time is waited for.
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
from collections.abc import Sequence
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_READ_BYTES = 65536
"""More would have `recv` map fresh memory for each call."""
_STAMP_BYTES = 18
_ACCEPT_S = 0.3
"""After the connections are made, before the first call: a server takes them up meanwhile. To take up 1,000 at once
lasts some 60 ms in Python, which is no part of any call."""
_PATIENCE_S = 30.0
_OK = b"HTTP/1.1 200 "


def share(values: Sequence[float], portion: float) -> float:
    """A quantile, by the nearest rank; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(portion * len(values)))] if values else 0.0


class Client:
    """One connection: what it still has to send, and what has come of its answer."""

    __slots__ = ("answer", "began", "need", "out", "sock", "streams", "tail", "token_seen")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out: memoryview | bytes = b""
        self.began = 0
        self.answer = b""
        """What has come, until the head is whole."""
        self.need = 0
        """Bytes of the answer still to come; -1: no head yet; -2: until its last chunk."""
        self.tail = b""
        self.token_seen = False


class Load:
    """Runs the calls once."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._requests = itertools.cycle([_request(plan, key) for key in plan.get("keys") or [None]])
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._starts: list[tuple[float, int, Client]] = []
        self._calls_left = plan.get("calls") or sys.maxsize
        self._ends = 0.0
        self._open = 0
        self._usual = 0
        """Size of the last answer that came in one piece: one as long, of this mock, is whole too."""
        self.calls = self.failed = self.events = 0
        self.latency: list[float] = []
        self.first_token: list[float] = []
        self.event: list[float] = []
        self.first_fault = ""

    def run(self) -> dict[str, Any]:
        """What came out, as the module says."""
        plan = self._plan
        clients = [self._dial() for _ in range(plan["connections"])]
        if len(clients) > 1:
            time.sleep(_ACCEPT_S)
        began = time.monotonic()
        self._ends = began + plan["seconds"]
        for number, client in enumerate(clients):
            self._starts.append((began + plan.get("spread_s", 0) * number / len(clients), number, client))
        heapq.heapify(self._starts)
        while (self._open or self._starts) and time.monotonic() < self._ends + _PATIENCE_S:
            self._turn()
        seconds = time.monotonic() - began
        return {
            "calls": self.calls,
            "failed": self.failed + self._open,
            "first_fault": self.first_fault,
            "seconds": seconds,
            "events": self.events,
            "latency": _shares(self.latency),
            "first_token": _shares(self.first_token),
            "event": _shares(self.event),
        }

    def _turn(self) -> None:
        if self._starts:
            now = time.monotonic()
            while self._starts and self._starts[0][0] <= now:
                self._begin(heapq.heappop(self._starts)[2])
            if self._starts:
                select.select([self._epoll], [], [], max(0.0, self._starts[0][0] - now))
            ready = self._epoll.poll(0)
        else:
            ready = self._epoll.poll(0.5)
        for number, events in ready:
            client = self._clients[number]
            if events & select.EPOLLOUT:
                self._send(client)
            if events & ~select.EPOLLOUT:
                self._read(client)

    def _dial(self) -> Client:
        sock = socket.create_connection(("127.0.0.1", self._plan["port"]))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = self._clients[sock.fileno()] = Client(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return client

    def _begin(self, client: Client) -> None:
        if self._calls_left <= 0 or time.monotonic() >= self._ends:
            return
        self._calls_left -= 1
        self._open += 1
        client.need, client.answer, client.tail, client.token_seen = -1, b"", b"", False
        client.out = next(self._requests)
        client.began = time.monotonic_ns()
        self._send(client, armed=False)

    def _send(self, client: Client, *, armed: bool = True) -> None:
        try:
            sent = client.sock.send(client.out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost(client)
            return
        if sent == len(client.out) and not armed:
            client.out = b""
            return
        client.out = memoryview(client.out)[sent:]
        if bool(client.out) != armed:
            flags = select.EPOLLIN | (select.EPOLLOUT if client.out else 0)
            self._epoll.modify(client.sock.fileno(), flags)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic_ns()
        if not data:
            self._lost(client)
        elif client.need == -1:
            self._head(client, data, now)
        elif client.need == -2:
            self._stream(client, data, now)
        else:
            client.need -= len(data)
            if client.need <= 0:
                self._whole(client, now, fine=client.answer.startswith(_OK) and not client.need)

    def _head(self, client: Client, data: bytes, now: int) -> None:
        if len(data) == self._usual and not client.answer and data.startswith(_OK):
            client.need = 0
            self._whole(client, now, fine=True)
            return
        answer = client.answer = client.answer + data if client.answer else data
        end = answer.find(b"\r\n\r\n")
        if end < 0:
            return
        if (length := _LENGTH.search(answer, 0, end + 2)) is None:
            client.need = -2
            self._stream(client, answer[end + 2 :], now)
            return
        client.need = int(length[1]) - (len(answer) - end - 4)
        if client.need <= 0:
            self._usual = len(data) if answer is data and not client.need else 0
            self._whole(client, now, fine=answer.startswith(_OK) and not client.need)

    def _stream(self, client: Client, data: bytes, now: int) -> None:
        """Count the stamped events of `data`; a stamp that is cut waits for its rest."""
        data = client.tail + data if client.tail else data
        at = data.find(b"@t")
        cut = len(data)
        while at >= 0:
            if at + _STAMP_BYTES > len(data):
                cut = at
                break
            if not client.token_seen:
                client.token_seen = True
                self.first_token.append((now - client.began) / 1000)
            self.events += 1
            self.event.append((now - int(data[at + 2 : at + _STAMP_BYTES], 16)) / 1000)
            at = data.find(b"@t", at + _STAMP_BYTES)
        if data.endswith(b"\r\n0\r\n\r\n"):
            self._whole(client, now, fine=client.answer.startswith(_OK))
            return
        client.tail = data[min(cut, max(0, len(data) - 6)) :]  # what a cut stamp or the last chunk may begin with

    def _whole(self, client: Client, now: int, *, fine: bool) -> None:
        self._open -= 1
        if fine:
            self.calls += 1
            self.latency.append((now - client.began) / 1000)
        else:
            self.failed += 1
            self.first_fault = self.first_fault or client.answer[:400].decode("latin-1")
        gap_s = self._plan.get("gap_s", 0)
        if gap_s:
            heapq.heappush(self._starts, (time.monotonic() + gap_s, client.sock.fileno(), client))
        else:
            self._begin(client)

    def _lost(self, client: Client) -> None:
        """The connection ended. In the middle of a call that is a failure, and the client goes on with another."""
        del self._clients[client.sock.fileno()]
        client.sock.close()
        if client.began and client.need:
            self._open -= 1
            self.failed += 1
            self.first_fault = self.first_fault or "the connection was closed"
            if self.failed < 100:
                self._begin(self._dial())


def _shares(values: list[float]) -> dict[str, float]:
    return {"p50": share(values, 0.5), "p99": share(values, 0.99), "max": max(values, default=0.0)}


def _request(plan: dict[str, Any], key: str | None) -> bytes:
    body = None if plan.get("body") is None else plan["body"].encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {plan.get('path', '/v1/chat/completions')} HTTP/1.1",
        f"Host: 127.0.0.1:{plan['port']}",
        "Accept: application/json",
        "Accept-Encoding: gzip, deflate",
        "User-Agent: OpenAI/Python 2.8.0",
    ]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


if __name__ == "__main__":
    print(json.dumps(Load(json.loads(sys.stdin.read())).run()))
