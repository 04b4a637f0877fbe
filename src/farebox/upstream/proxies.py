"""Which HTTP proxy the environment names for an address. Pure: the environment comes in as a mapping.

Read as curl reads it: `https_proxy` or `http_proxy` by the address's scheme, else `all_proxy`, each
in small letters before capitals (set but empty, it means none). `no_proxy` lists what is reached
directly: names with all below them, IP addresses, networks, each with or without a port; `*` is
everything. This machine's own loopback is always reached directly: a proxy's is another one.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import SplitResult, unquote, urlsplit

from farebox.upstream.errors import Unusable


@dataclass(frozen=True, slots=True)
class Via:
    """An HTTP proxy. `authorization` is the value of a Proxy-Authorization field, or None."""

    host: str
    port: int
    authorization: bytes | None


def find_proxy(url: SplitResult, environ: Mapping[str, str]) -> Via | None:
    """The proxy that `environ` names for `url`, or None. Raises `Unusable` for one farebox can't go through."""
    host = (url.hostname or "").rstrip(".")
    for name in (f"{url.scheme}_proxy", "all_proxy"):
        variable = name if name in environ else name.upper()
        named = environ.get(variable, "").strip()
        if named:
            break
    else:
        return None
    port = url.port or (443 if url.scheme == "https" else 80)
    if _is_loopback(host) or _excepted(host, port, environ.get("no_proxy", environ.get("NO_PROXY", ""))):
        return None
    via = _read(named)
    if via is None:
        # The value may hold a password: it is not repeated.
        raise Unusable(
            "proxy",
            f"{variable} names a proxy for {host} that farebox can't use: it goes through http://HOST:PORT only, "
            f"not through https:// or socks ones. Change {variable}, or put {host} into NO_PROXY.",
        )
    return via


def _read(named: str) -> Via | None:
    try:
        proxy = urlsplit(named if "://" in named else f"http://{named}")
        port = proxy.port if proxy.port is not None else 80
    except ValueError:
        return None
    if proxy.scheme != "http" or not proxy.hostname or not port:
        return None
    authorization = None
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        authorization = b"Basic " + b64encode(pair.encode("utf-8", "surrogateescape"))
    return Via(proxy.hostname, port, authorization)


def _excepted(host: str, port: int, listed: str) -> bool:
    return any(_covers(entry, host, port) for entry in re.split(r"[\s,]+", listed.lower()) if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass  # one of them is a name, or has a port
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit() and (name.endswith("]") or ":" not in name):
        return int(number) == port and _covers(name, host, port)
    name = entry.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith("." + name))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
