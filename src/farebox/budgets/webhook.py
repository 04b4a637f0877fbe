"""One signed POST: what an alert says, how it is signed, and what counts as delivered.

Signed as Standard Webhooks says (standardwebhooks.com), so receivers can use a library: the headers
`webhook-id`, `webhook-timestamp` (seconds since 1970) and `webhook-signature`, which is `v1,` and the
base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY`. The key is the secret's bytes; of a secret that
begins with `whsec_` it is the base64 after that. To verify: compute the same over the raw body, compare in
constant time, and refuse a timestamp more than five minutes off, which keeps a recorded POST from being
played again. The id stays the same from try to try: who has seen it has the news already.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from datetime import datetime
from uuid import UUID

import aiohttp
import msgspec

from farebox.config.metering import Alerts as Settings
from farebox.store.alerts import Alert

_PREFIX = "whsec_"
_CONNECTIONS_MAX = 4


def signature(secret: str, id: UUID, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    digest = hmac.new(_key(secret), f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _key(secret: str) -> bytes:
    if secret.startswith(_PREFIX):
        try:
            return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            pass  # somebody's own secret that happens to begin so
    return secret.encode()


def body_of(alert: Alert) -> bytes:
    """What is posted: JSON, amounts as exact decimals in strings, instants in RFC 3339."""
    return msgspec.json.encode(
        {
            "type": "budget.threshold",
            "timestamp": alert.raised_at,
            "data": {
                "budget": alert.name,
                "scope": alert.scope,
                "subject": alert.who,
                "window": alert.window,
                "window_start": alert.window_start,
                "resets_at": alert.resets_at,
                "threshold": alert.threshold,
                "limit_usd": alert.limit_usd,
                "spent_usd": alert.spent_usd,
                "reserved_usd": alert.reserved_usd,
                "limit_tokens": alert.limit_tokens,
                "spent_tokens": alert.spent_tokens,
                "reserved_tokens": alert.reserved_tokens,
            },
        }
    )


def webhook_of(settings: Settings) -> Webhook | None:
    """The webhook of a config, if it has one."""
    if settings.webhook_url is None or settings.webhook_secret is None:
        return None
    return Webhook(settings.webhook_url, settings.webhook_secret, settings.timeout_s)


class Webhook:
    """Posts to one address. Follows no redirect: a body and its signature are for nobody else.

    The environment's proxy settings are left alone, cookies are not kept, and an answer's body is not read.
    """

    def __init__(self, url: str, secret: str, timeout_s: float) -> None:
        self._url = url
        self._secret = secret
        self.timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def post(self, alert: Alert, now: datetime) -> str | None:
        """None when it is delivered, with any status of 200 to 299; else a word or two on why it is not."""
        body, timestamp = body_of(alert), int(now.timestamp())
        headers = {
            "content-type": "application/json",
            "user-agent": "farebox",
            "webhook-id": str(alert.id),
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secret, alert.id, timestamp, body),
        }
        try:
            async with asyncio.timeout(self.timeout_s):
                async with self._open().post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                    return None if 200 <= answer.status < 300 else f"status {answer.status}"
        except TimeoutError:
            return "no answer in time"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Their texts quote the URL, which may be a secret.
            return type(error).__name__

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS_MAX, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session
