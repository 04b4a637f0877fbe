"""How a connection to a provider comes about: names, addresses, certificates, proxies; and what is sent to whom."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from farebox.cli import main
from farebox.config import Provider
from farebox.errors import FareboxError
from farebox.upstream import Unusable, Upstream, UpstreamError
from farebox.upstream.opening import ADDRESSES_S, TLS_BUFFER_BYTES, Addresses, Opener
from support.app import config_of, running, settings_of
from support.clock import Leaps
from support.provider import FakeProvider, plain
from support.tls import OPENSSL, Authority
from support.tunnel import Tunnel

OK = plain(b'{"ok":true}')
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl command to make certificates with")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


class Names:
    """A resolver: every name has `addresses` (host, port; port 0 is the one asked for)."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        self.addresses = addresses or (("127.0.0.1", 0),)
        self.asked: list[tuple[str, int]] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, host: str, port: int) -> Addresses:
        self.asked.append((host, port))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (to, at or port)) for to, at in self.addresses]


@asynccontextmanager
async def client(
    base_url: str, names: Names | None = None, environ: dict[str, str] | None = None, **facts: Any
) -> AsyncIterator[Upstream]:
    provider = Provider(name="p", dialect="openai", base_url=base_url, **facts)
    upstream = Upstream(provider, Opener(provider, environ=environ or {}, resolve=names or Names()))
    async with asyncio.timeout(200):
        try:
            yield upstream
        finally:
            await upstream.close()


async def ask(upstream: Upstream, body: bytes = b"{}", fields: list[tuple[bytes, bytes]] | None = None) -> bytes:
    start = upstream.start("POST", upstream.url("/chat", versioned=True), fields or [])
    answer = await upstream.send("POST", start, body)
    read = b""
    while piece := await answer.read():
        read += piece
    return read


async def refused(upstream: Upstream) -> str:
    """The kind of failure of a call of which provably nothing was sent."""
    with pytest.raises(UpstreamError) as failure:
        await ask(upstream)
    assert not failure.value.sent
    return failure.value.kind


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens, and nobody will."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# -- names and addresses -------------------------------------------------------------------------


async def test_a_name_is_asked_once_for_calls_that_come_together() -> None:
    """However many connections are opened at once; one of them leaving takes the answer from nobody."""
    names = Names()
    async with FakeProvider(OK) as provider, client(f"http://api.test:{provider.port}", names) as upstream:
        names.gate.clear()
        calls = [asyncio.create_task(ask(upstream)) for _ in range(5)]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.sleep(0)
        names.gate.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError) and answers[1:] == [b'{"ok":true}'] * 4
        assert names.asked == [("api.test", provider.port)]
        assert provider.requests[0].header("host") == f"api.test:{provider.port}"


async def test_addresses_are_believed_for_their_time_only() -> None:
    """A new connection uses what is known, and asks again when that has grown old."""
    names = Names()
    leaps = Leaps()
    once = plain(b"{}", headers=[("Connection", "close")])
    async with FakeProvider(once) as provider, client(f"http://api.test:{provider.port}", names) as upstream:
        for later, asked in ((0.0, 1), (ADDRESSES_S - 1, 1), (2.0, 2), (0.0, 2)):
            await leaps.by(later)
            await ask(upstream)
            assert len(names.asked) == asked
        assert len({request.connection for request in provider.requests}) == 4


async def test_addresses_that_can_not_be_reached_are_asked_for_again(closed_port: int) -> None:
    """A provider that moved is found by the next call, not after half a minute."""
    names = Names(("127.0.0.1", closed_port))
    async with FakeProvider(OK) as provider, client("http://api.test", names) as upstream:
        assert await refused(upstream) == "connect"
        names.addresses = (("127.0.0.1", provider.port),)
        assert await ask(upstream) == b'{"ok":true}'


async def test_connections_are_spread_over_the_addresses() -> None:
    """One after the other is tried first, so that none of a provider's machines gets all the calls."""
    once = plain(b"{}", headers=[("Connection", "close")])
    async with FakeProvider(once) as a, FakeProvider(once) as b, FakeProvider(once) as c:
        names = Names(*(("127.0.0.1", one.port) for one in (a, b, c)))
        async with client("http://api.test", names) as upstream:
            for _ in range(6):
                await ask(upstream)
        assert [len(one.requests) for one in (a, b, c)] == [2, 2, 2]


async def test_a_resolver_that_fails_costs_nothing_that_is_known(closed_port: int) -> None:
    """The last addresses are used while there are no newer ones, until they can't be reached either."""
    names = Names()
    leaps = Leaps()
    once = plain(b"{}", headers=[("Connection", "close")])
    async with FakeProvider(once) as provider, client(f"http://api.test:{provider.port}", names) as upstream:
        await ask(upstream)
        names.failure = socket.gaierror(-3, "x")
        await leaps.by(ADDRESSES_S + 1)
        assert await ask(upstream) == b"{}" and len(names.asked) == 2
        names.failure = None
        names.addresses = (("127.0.0.1", closed_port),)
        await leaps.by(ADDRESSES_S + 1)
        assert await refused(upstream) == "connect"
        names.failure = socket.gaierror(-3, "x")
        assert await refused(upstream) == "dns"


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "x"), socket.gaierror(-2, "x"), UnicodeError("x")])
async def test_a_name_that_is_none_is_a_failure_of_its_own(failure: Exception) -> None:
    """`dns`; the next call asks again."""
    names = Names()
    names.failure = failure
    async with FakeProvider(OK) as provider, client(f"http://api.test:{provider.port}", names) as upstream:
        assert await refused(upstream) == "dns"
        names.failure = None
        assert await ask(upstream) == b'{"ok":true}'


async def test_the_next_address_is_tried_where_one_refuses_or_is_silent(closed_port: int) -> None:
    """Happy eyeballs: a call succeeds as long as one of the addresses answers."""
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        full = []
        for _ in range(4):  # its queue is full then: a further connection is not answered at all
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(silent.getsockname())
            full.append(sock)
        async with FakeProvider(OK) as provider:
            names = Names(silent.getsockname(), ("127.0.0.1", closed_port), ("127.0.0.1", provider.port))
            async with client("http://api.test", names) as upstream:
                assert await ask(upstream) == b'{"ok":true}'
            names = Names(silent.getsockname())
            async with client("http://api.test", names, connect_timeout_s=0.1) as upstream:
                assert await refused(upstream) == "connect_timeout"
        for sock in full:
            sock.close()


# -- TLS -----------------------------------------------------------------------------------------


@needs_openssl
async def test_a_certificate_of_a_trusted_authority_is_taken(authority: Authority) -> None:
    """For its name or its address; HTTP/1.1 is agreed on, and large bodies pass whole in both directions."""
    large = os.urandom(1 << 20)
    tls = authority.server("DNS:api.test,IP:127.0.0.1")
    for host in ("api.test", "api.test.", "127.0.0.1"):
        async with (
            FakeProvider(plain(large), tls=tls) as provider,
            client(f"https://{host}:{provider.port}", tls_ca_file=str(authority.pem)) as upstream,
        ):
            assert await ask(upstream, large) == large
            assert await ask(upstream, b"again") == large
            assert [request.body for request in provider.requests] == [large, b"again"]
            assert len({request.connection for request in provider.requests}) == 1


@needs_openssl
@pytest.mark.parametrize("case", ["another's", "expired", "another name", "no name", "self-signed", "system's only"])
async def test_any_other_certificate_is_refused(authority: Authority, tmp_path: Path, case: str) -> None:
    """`tls`, and nothing of the request went up; with `tls_verify: false` it does."""
    tls = {
        "another's": lambda: Authority(tmp_path, "other").server("DNS:api.test"),
        "expired": lambda: authority.server("DNS:api.test", days=-1),
        "another name": lambda: authority.server("DNS:www.api.test"),
        "no name": lambda: authority.server("IP:127.0.0.1"),
        "self-signed": lambda: Authority(tmp_path, "api.test").itself(),
        "system's only": lambda: authority.server("DNS:api.test"),
    }[case]()
    file = None if case == "system's only" else str(authority.pem)
    async with FakeProvider(OK, tls=tls) as provider:
        url = f"https://api.test:{provider.port}"
        async with client(url, tls_ca_file=file) as upstream:
            assert await refused(upstream) == "tls"
        assert provider.requests == []
        async with client(url, tls_verify=False) as upstream:
            assert await ask(upstream) == b'{"ok":true}'


async def test_who_does_not_speak_tls_gets_nothing() -> None:
    """Another protocol, a connection closed or silent in the handshake: the request stays here."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if says is None:
            await asyncio.sleep(5)
        else:
            writer.write(says)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for says, kind in ((b"HTTP/1.1 400 Bad\r\n\r\n", "tls"), (b"", "connect"), (None, "connect_timeout")):
        async with client(url, connect_timeout_s=0.2 if says is None else 10) as upstream:
            assert await refused(upstream) == kind
    server.close()


@needs_openssl
async def test_a_tls_connection_keeps_a_small_buffer(authority: Authority) -> None:
    """Of the quarter of a megabyte that asyncio would keep for each, one record's worth is left."""
    tls = authority.server("DNS:api.test")
    made: list[Any] = []
    loop = asyncio.get_running_loop()
    create = loop.create_connection

    async def create_connection(factory: Any, **more: Any) -> Any:
        transport, protocol = await create(factory, **more)
        made.append(protocol)
        return transport, protocol

    loop.create_connection = create_connection  # type: ignore[method-assign]
    async with (
        FakeProvider(plain(b"x" * 300_000), tls=tls) as provider,
        client(f"https://api.test:{provider.port}", tls_ca_file=str(authority.pem)) as upstream,
    ):
        await ask(upstream)
        assert [len(protocol.get_buffer(-1)) for protocol in made] == [TLS_BUFFER_BYTES]


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_of_authorities_that_is_none_is_told_by_its_name(tmp_path: Path, content: bytes | None) -> None:
    """Which provider, which file and what is wrong with it."""
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Unusable, match=r"providers\.p\.tls_ca_file: .*authorities\.pem can't be used: \w") as refusal:
        Opener(Provider(name="p", dialect="openai", base_url="https://api.test", tls_ca_file=str(path)))
    assert refusal.value.kind == "tls_ca_file"


# -- proxies -------------------------------------------------------------------------------------


@needs_openssl
async def test_a_tls_provider_is_reached_through_a_tunnel(authority: Authority) -> None:
    """CONNECT with the proxy's credential; the provider sees a plain request, and its certificate is checked."""
    tls = authority.server("DNS:api.test")
    names = Names()
    async with FakeProvider(OK, tls=tls) as provider, Tunnel(provider.port) as tunnel:
        environ = {"HTTPS_PROXY": f"http://us%40er:pass@proxy.test:{tunnel.port}"}
        async with client("https://api.test/v1", names, environ, tls_ca_file=str(authority.pem)) as upstream:
            assert upstream.proxy == f"proxy.test:{tunnel.port}"
            for _ in range(2):
                assert await ask(upstream) == b'{"ok":true}'
        async with client("https://else.test/v1", names, environ, tls_ca_file=str(authority.pem)) as upstream:
            assert await refused(upstream) == "tls"
    assert names.asked == [("proxy.test", tunnel.port)] * 2
    first, second = tunnel.asked
    credential = b64encode(b"us@er:pass")
    assert first.split(b"\r\n") == [
        b"CONNECT api.test:443 HTTP/1.1",
        b"Host: api.test:443",
        b"Proxy-Authorization: Basic " + credential,
        b"",
        b"",
    ]
    assert second.startswith(b"CONNECT else.test:443 ")
    for request in provider.requests:
        assert (request.target, request.header("host")) == ("/v1/chat", "api.test")
        assert request.header("proxy-authorization") is None
    assert len(provider.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad\r\n\r\n",
        b"HTTP/1.1 2000 Odd\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 Cut\r\n",
        b"HTTP/1.1 200 Endless\r\n" + b"X: y\r\n" * 10_000,
        b"",
    ],
)
async def test_a_proxy_that_does_not_connect_is_a_failure_of_its_own(answer: bytes) -> None:
    """`proxy`, and nothing of the request was sent, least of all to the proxy."""
    async with Tunnel(0, answer) as tunnel:
        environ = {"ALL_PROXY": f"127.0.0.1:{tunnel.port}"}
        async with client("https://api.test", Names(), environ, api_key=None) as upstream:
            assert await refused(upstream) == "proxy"
        assert [head.split(b"\r\n")[0] for head in tunnel.asked] == [b"CONNECT api.test:443 HTTP/1.1"]


async def test_a_plain_provider_is_asked_through_the_proxy() -> None:
    """The target is the whole address, the Host field the provider's; the client's own credential for proxies stays."""
    async with FakeProvider(OK) as proxy:
        environ = {"HTTP_PROXY": f"http://me:secret@127.0.0.1:{proxy.port}"}
        async with client("http://api.test:8080/v1", Names(), environ) as upstream:
            raw = ((b"Proxy-Authorization", b"Basic Y2xpZW50"), (b"X-Kept", b"1"))
            fields = upstream.fields(raw, credentials=False, identity=False)
            assert await ask(upstream, fields=fields) == b'{"ok":true}'
    request = proxy.requests[0]
    assert request.target == "http://api.test:8080/v1/chat"
    assert request.header("host") == "api.test:8080" and request.header("x-kept") == "1"
    assert request.header("proxy-authorization") == "Basic " + b64encode(b"me:secret").decode()


async def test_no_proxy_leads_around_it(closed_port: int) -> None:
    """What NO_PROXY lists is asked directly, in the plain form."""
    async with FakeProvider(OK) as provider:
        environ = {"HTTP_PROXY": f"http://127.0.0.1:{closed_port}", "NO_PROXY": ".test"}
        async with client(f"http://api.test:{provider.port}", Names(), environ) as upstream:
            assert upstream.proxy == "" and await ask(upstream) == b'{"ok":true}'
        assert provider.requests[0].target == "/chat"


async def test_a_proxy_that_can_not_be_used_is_refused_at_the_start_and_at_a_reload(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """farebox does not start with it, nor take a config that needs it: what is in force goes on. `check` warns."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:geheim@proxy.test:1080")
    monkeypatch.setenv("NO_PROXY", "direct.test")

    def providers(port: int, host: str) -> dict[str, Any]:
        local = {"dialect": "openai", "base_url": f"http://127.0.0.1:{port}/v1"}
        return {"local": local, "far": {"dialect": "openai", "base_url": f"https://{host}/v1", "api_key": "sk-far-1"}}

    sentence = r"HTTPS_PROXY names a proxy for api\.test .* put api\.test into NO_PROXY"
    bad, good = (settings_of(database, tmp_path, providers(1, host)) for host in ("api.test", "direct.test"))
    with pytest.raises(FareboxError, match=sentence) as refusal:
        async with running(bad):
            pass
    assert "geheim" not in str(refusal.value)
    async with running(good) as farebox:
        before = farebox.app.config
        with pytest.raises(FareboxError, match=sentence):
            await farebox.app.reload(config_of(bad))
        assert farebox.app.config is before
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(bad))
    assert main(["check", "--config", str(path)]) == 0
    assert "warning: HTTPS_PROXY names a proxy for api.test" in capsys.readouterr().err
