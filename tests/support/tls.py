"""Certificates made on the spot by the `openssl` command, and servers that show them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

OPENSSL = shutil.which("openssl")
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """Signs certificates. `pem` is the file that whoever trusts it names."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._number = 0
        self.pem = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl(
            "req", "-x509", *_KEY, "-keyout", self._key, "-out", self.pem, "-days", "2", "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def server(self, names: str, *, days: int = 2) -> ssl.SSLContext:
        """A server whose certificate is for `names` (`DNS:api.test,IP:127.0.0.1`); expired, if `days` is negative."""
        self._number += 1
        stem = self._folder / f"{self.pem.stem}-{self._number}"
        key, wish, pem, more = (stem.with_suffix(suffix) for suffix in (".key", ".csr", ".pem", ".ext"))
        # Python 3.13 and later want to be told whose key signed.
        more.write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        _openssl("req", *_KEY, "-keyout", key, "-out", wish, "-subj", "/CN=server")
        _openssl(
            "x509", "-req", "-in", wish, "-CA", self.pem, "-CAkey", self._key, "-CAcreateserial", "-out", pem,
            "-days", str(days), "-extfile", more,
        )  # fmt: skip
        return _context(pem, key)

    def itself(self) -> ssl.SSLContext:
        """A server that shows a certificate it signed itself."""
        return _context(self.pem, self._key)


def _context(pem: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
