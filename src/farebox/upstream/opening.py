"""How a connection to a provider comes about: its name resolved, its address raced, its certificate checked.

Addresses are asked for again after `ADDRESSES_S`, and at once when none of them could be reached;
while the resolver fails, those it last named are still tried. Connections are spread over them.
Of several, the next one is tried when the first has not answered for a quarter of a second (happy
eyeballs, RFC 8305). A proxy that the environment names for the provider is used, or refused.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from asyncio import sslproto
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import aiohappyeyeballs

from farebox.config import Provider
from farebox.upstream.errors import Unusable, UpstreamError
from farebox.upstream.proxies import Via, find_proxy

ADDRESSES_S = 30.0
"""Seconds a name's addresses are believed."""
TLS_BUFFER_BYTES = 16 * 1024
"""What a TLS connection keeps to receive into: one record. asyncio's own would be 256 KiB, all of it in memory."""
_EYEBALLS_S = 0.25
_ALPN = ["http/1.1"]
_PROXY_HEAD_BYTES_MAX = 16 * 1024

Addresses = list[tuple[Any, ...]]
Resolve = Callable[[str, int], Awaitable[Addresses]]
"""(host, port) to what getaddrinfo gives for a stream. Raises OSError, UnicodeError."""


class _Secured(sslproto.SSLProtocol):
    """TLS between a socket and a protocol."""

    max_size = TLS_BUFFER_BYTES


class Opener:
    """Opens connections to one provider. Made, it raises `Unusable`: a `tls_ca_file` or a proxy it can't do with.

    environ  where a proxy may be named
    resolve  finds addresses; the system's resolver if None
    """

    def __init__(
        self, provider: Provider, *, environ: Mapping[str, str] = os.environ, resolve: Resolve | None = None
    ) -> None:
        url = urlsplit(provider.base_url)
        self._host = url.hostname or ""
        self._tls = url.scheme == "https"
        self._port = url.port or (443 if self._tls else 80)
        self.via = find_proxy(url, environ)
        self.absolute = self.via is not None and not self._tls
        """Requests go to the proxy itself: their target is the whole URL."""
        self._context: ssl.SSLContext | None = None
        self._verify = provider.tls_verify
        if provider.tls_ca_file is not None:
            self._context = _own_authorities(provider.name, provider.tls_ca_file)
        self._find = resolve
        self._addresses: Addresses = []
        self._turns = count()
        self._believed_until = 0.0
        self._asking: asyncio.Task[Addresses] | None = None

    @property
    def fields(self) -> list[bytes]:
        """Header lines that the proxy wants with each request."""
        if not self.absolute or self.via is None or self.via.authorization is None:
            return []
        return [b"Proxy-Authorization: %b" % self.via.authorization]

    async def open(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseProtocol:
        """A connected protocol. Raises `UpstreamError`: `dns`, `connect`, `tls`, `proxy`."""
        loop = asyncio.get_running_loop()
        try:
            addresses = _turned(await self._resolve(loop), next(self._turns))
        except (OSError, UnicodeError):
            raise UpstreamError("dns", sent=False) from None
        try:
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=_EYEBALLS_S, interleave=1, loop=loop
            )
        except OSError:
            self._addresses, self._believed_until = [], 0.0
            raise UpstreamError("connect", sent=False) from None
        try:
            if self.via is not None and self._tls:
                await self._tunnel(loop, sock, self.via)
            if self._tls:
                return await self._secured(loop, sock, factory())
            _, protocol = await loop.create_connection(factory, sock=sock)
        except ssl.SSLError:
            sock.close()
            raise UpstreamError("tls", sent=False) from None
        except OSError:
            sock.close()
            raise UpstreamError("connect", sent=False) from None
        except BaseException:
            sock.close()
            raise
        return protocol

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> Addresses:
        """The addresses; however many connections wait for them, they are asked for once."""
        if loop.time() < self._believed_until:
            return self._addresses
        if self._asking is None:
            self._asking = loop.create_task(self._ask(loop))
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    async def _ask(self, loop: asyncio.AbstractEventLoop) -> Addresses:
        host, port = (self._host, self._port) if self.via is None else (self.via.host, self.via.port)
        try:
            if self._find is not None:
                self._addresses = await self._find(host, port)
            else:
                self._addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            if not self._addresses:
                raise
        self._believed_until = loop.time() + ADDRESSES_S
        return self._addresses

    def _asked(self, task: asyncio.Task[Addresses]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _tunnel(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, via: Via) -> None:
        """Have the proxy connect to the provider."""
        name = f"[{self._host}]" if ":" in self._host else self._host
        place = f"{name}:{self._port}".encode("idna" if not name.isascii() else "ascii")
        head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (place, place)
        if via.authorization is not None:
            head += b"Proxy-Authorization: %b\r\n" % via.authorization
        await loop.sock_sendall(sock, head + b"\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = await loop.sock_recv(sock, 1)  # what follows the head is the provider's
            answer += piece
            if not piece or len(answer) > _PROXY_HEAD_BYTES_MAX:
                raise UpstreamError("proxy", sent=False)
        status = answer.split(b" ", 2)[1:2]
        if not status or not (len(status[0]) == 3 and status[0].startswith(b"2")):
            raise UpstreamError("proxy", sent=False)

    async def _secured(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: asyncio.BaseProtocol
    ) -> asyncio.BaseProtocol:
        """What `loop.create_connection(ssl=...)` does, with a smaller buffer. Raises SSLError, OSError."""
        context = self._tls_context()
        shaken = loop.create_future()
        name = self._host.rstrip(".")
        transport, _ = await loop.create_connection(
            lambda: _Secured(loop, protocol, context, shaken, server_hostname=name), sock=sock
        )
        try:
            await shaken
        except BaseException:
            transport.abort()
            raise
        return protocol

    def _tls_context(self) -> ssl.SSLContext:
        """Made when first needed: reading the system's authorities takes longer than all else at a start."""
        if self._context is None:
            self._context = ssl.create_default_context()
            if not self._verify:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
            self._context.set_alpn_protocols(_ALPN)
        return self._context


def _turned(addresses: Addresses, turn: int) -> Addresses:
    """The addresses with another one first at each turn, IPv4 and IPv6 each among themselves."""
    families: dict[Any, Addresses] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turned: Addresses = []
    for alike in families.values():
        first = turn % len(alike)
        turned += alike[first:] + alike[:first]
    return turned


def _own_authorities(name: str, path: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=path)
    except OSError as exc:
        # What OpenSSL says of a file that holds no certificates names no file.
        why = "it holds no certificates in PEM" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise Unusable("tls_ca_file", f"providers.{name}.tls_ca_file: {path} can't be used: {why}") from None
    context.set_alpn_protocols(_ALPN)
    return context
