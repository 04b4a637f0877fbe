"""What a farebox key looks like, and which credentials a request carries where. Pure: `keys` knows whose they are.

A key's secret is shown once and kept as a SHA-256 (the secret has 190 random bits, so nothing slower
is needed).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BODY_CHARS = 32
_CHECK_CHARS = 6
PREFIX = "fb-"

CREDENTIAL_HEADERS = ("x-farebox-key", "authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Where a credential is looked for, in this order; the first valid one wins."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request carries to say who calls. Secret, so it is never printed."""

    given: tuple[str, ...] = field(default=(), repr=False)
    """All of them, in order of precedence."""
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    """The hashes of those that can be farebox keys, in the same order."""
    own_header: bool = False
    """One stands in x-farebox-key, the header for nothing else."""


def mint_secret() -> str:
    """A new key: `fb-`, 32 random characters, 6 of checksum (so that most rubbish needs no look-up)."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_BODY_CHARS))
    return PREFIX + body + _checksum(body)


def hash_secret(secret: str) -> bytes:
    """What the store keeps of a key: 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def well_formed(secret: str) -> bool:
    """Whether `secret` can be a farebox key."""
    if len(secret) != len(PREFIX) + _BODY_CHARS + _CHECK_CHARS or not secret.startswith(PREFIX):
        return False
    body = secret[len(PREFIX) : -_CHECK_CHARS]
    return secret.isascii() and _checksum(body) == secret[-_CHECK_CHARS:]


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    out = ""
    for _ in range(_CHECK_CHARS):
        value, digit = divmod(value, len(_ALPHABET))
        out += _ALPHABET[digit]
    return out


_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_BODY_CHARS + _CHECK_CHARS}}}")
_MARK = PREFIX.encode()


def misplaced(headers: Iterable[tuple[bytes, bytes]], target: str, *, passthrough: bool) -> str | None:
    """Where a farebox key stands that would go to the provider, or into a row, from there; None if nowhere.

    `passthrough`: the credential headers go up as well, all but x-farebox-key.
    """
    if holds_key(target):
        return "URL"
    for name, value in headers:
        if _MARK in value and holds_key(value.decode("latin-1")):
            header = name.decode("latin-1").lower()
            if header not in CREDENTIAL_HEADERS or (passthrough and header != "x-farebox-key"):
                return header
    return None


def holds_key(text: str) -> bool:
    """Whether a farebox key stands anywhere in `text`."""
    return PREFIX in text and any(well_formed(found[0]) for found in _KEY.finditer(text))


def credentials(headers: Mapping[str, str]) -> Credentials:
    """The credentials a request carries. `headers` is case-insensitive, or its names are in lower case."""
    found = []
    for name in CREDENTIAL_HEADERS:
        value = headers.get(name)
        if not value:
            continue
        if name == "authorization":
            scheme, _, value = value.partition(" ")
            if scheme.lower() != "bearer":
                continue
        if value := value.strip():
            found.append(value)
    return Credentials(
        tuple(found),
        tuple(hash_secret(secret) for secret in found if well_formed(secret)),
        bool(headers.get("x-farebox-key")),
    )
