"""Kinds of values that reach the network: hosts, URLs, header names and values, and the names in paths and rules."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import SplitResult, urlsplit

from farebox.config.kinds import Bad, Line, Token

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/%-]*")

OWN_HEADERS = frozenset({
    "accept-encoding", "connection", "content-encoding", "content-length", "expect", "host", "keep-alive",
    "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers that farebox sets itself or that belong to one connection; `x-farebox-*` too. Lower case."""


def is_loopback(host: str) -> bool:
    """Whether an address or host name from the config means this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True)
class Host(Line):
    """An IP address or host name, without port. Gives a str."""

    what: str = "an IP address or a host name"

    def parse(self, text: str) -> str:
        super().parse(text)
        if text.startswith("["):
            raise Bad("write the IPv6 address without brackets")
        if not _is_host(text):
            raise Bad("the port has a setting of its own" if re.fullmatch(r"[^:]+:[0-9]+", text) else "")
        return text


@dataclass(frozen=True)
class BaseUrl(Line):
    """Where a provider answers. Gives the URL without trailing slashes, so that a path can be appended.

    Never quoted in messages: a password or key in it is one of the faults.
    """

    secret: ClassVar[bool] = True
    what: str = "an http:// or https:// URL"
    chars_max: int = 2_048

    def parse(self, text: str) -> str:
        super().parse(text)
        parts = _split(text)
        if parts.scheme not in ("http", "https"):
            raise Bad("begin it with https:// or http://")
        if "@" in parts.netloc:
            raise Bad("it holds a user or password; put the credential into api_key or headers")
        if "?" in text or "#" in text:
            raise Bad("it holds a query or fragment (? or #); a query comes with each request")
        host = _host_and_port(parts)
        if not _is_host(host):
            raise Bad(
                "its host is not a valid name or address (non-ASCII names in their xn-- form)"
                if host
                else "it names no host"
            )
        if not _PATH.fullmatch(parts.path):
            raise Bad("its path holds a character that is not allowed in a URL")
        if any(step in (".", "..") for step in re.sub("%2e", ".", parts.path, flags=re.I).split("/")):
            raise Bad("its path holds a . or .. step")
        return text.rstrip("/")


@dataclass(frozen=True)
class WebhookUrl(Line):
    """Where news is posted. Gives a str. Never quoted in messages: its path or query is often the credential."""

    secret: ClassVar[bool] = True
    what: str = "an http:// or https:// URL"
    chars_max: int = 2_048

    def parse(self, text: str) -> str:
        super().parse(text)
        parts = _split(text)
        if parts.scheme not in ("http", "https"):
            raise Bad("begin it with https:// or http://")
        if "@" in parts.netloc or "#" in text:
            raise Bad("it holds a user, a password or a fragment (#)")
        if not _is_host(_host_and_port(parts)):
            raise Bad("its host is not a valid name or address (non-ASCII names in their xn-- form)")
        if not text.isascii():
            raise Bad("it holds a character outside ASCII; write it as %XX")
        return text


@dataclass(frozen=True)
class WebhookSecret(Token):
    """What signs news. Gives a str. `whsec_` promises base64 (standardwebhooks.com), which is checked here."""

    def parse(self, text: str) -> str:
        super().parse(text)
        if text.startswith("whsec_"):
            try:
                base64.b64decode(text.removeprefix("whsec_"), validate=True)
            except binascii.Error:
                raise Bad("what follows whsec_ is not base64, so a receiver would read another key") from None
        return text


@dataclass(frozen=True)
class DatabaseUrl(Line):
    """`embedded`, or a PostgreSQL URL, which usually holds a password. Gives a str."""

    secret: ClassVar[bool] = True
    what: str = "embedded, or a URL like postgresql://USER:PASSWORD@HOST:5432/DATABASE"

    def parse(self, text: str) -> str:
        super().parse(text)
        if text != "embedded" and not re.match(r"postgres(ql)?://.", text):
            raise Bad
        return text


@dataclass(frozen=True)
class ProviderName(Line):
    """A provider's name, which stands in paths (`/p/NAME/…`), rows and rules. Gives a str."""

    what: str = "a name of lower-case letters, digits, - and _ that begins with a letter or digit"
    chars_max: int = 64

    def parse(self, text: str) -> str:
        super().parse(text)
        if not _PROVIDER_NAME.fullmatch(text):
            raise Bad
        return text


@dataclass(frozen=True)
class HeaderName(Line):
    """A header that may be added to requests. Gives the name as written."""

    what: str = "a header name that may be added"
    chars_max: int = 256

    def parse(self, text: str) -> str:
        super().parse(text)
        if not _HEADER_NAME.fullmatch(text):
            raise Bad("a header name has letters, digits and -, no space and no colon")
        if text.lower() in OWN_HEADERS or text.lower().startswith("x-farebox-"):
            raise Bad("farebox sets this one itself")
        return text


@dataclass(frozen=True)
class HeaderValue(Line):
    """The value of an added header, which is often a credential. Gives a str."""

    secret: ClassVar[bool] = True
    what: str = "a header value of visible ASCII characters and spaces"

    def parse(self, text: str) -> str:
        super().parse(text)
        if not text.isascii():
            raise Bad("it holds a character outside ASCII")
        if text != text.strip():
            raise Bad("it begins or ends with a space")
        return text


def _split(text: str) -> SplitResult:
    if " " in text or "\\" in text:
        raise Bad("it holds a space or a backslash")
    try:
        return urlsplit(text)
    except ValueError:
        raise Bad("its host is not valid") from None


def _host_and_port(parts: SplitResult) -> str:
    try:
        if parts.port == 0 or parts.netloc.endswith(":"):
            raise Bad("its port is empty or 0")
        return parts.hostname or ""
    except ValueError as error:
        if isinstance(error, Bad):
            raise
        raise Bad("its port is not a number from 1 to 65535") from None


def _is_host(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        # All digits and dots but no address: a mistyped one, never a name.
        return bool(_HOST_NAME.fullmatch(text)) and not re.fullmatch(r"[0-9.]+", text)
