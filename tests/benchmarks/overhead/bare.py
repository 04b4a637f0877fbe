"""The yardstick: `python bare.py PORT UPSTREAM`, the plainest reverse proxy one would write with aiohttp.

It knows no keys, counts nothing and writes nothing down.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

_HOP_BY_HOP = frozenset(
    ("connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
_SESSION = web.AppKey("session", ClientSession)


def _kept(headers: object) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}  # type: ignore[attr-defined]


async def forward(request: web.Request) -> web.StreamResponse:
    session, body = request.app[_SESSION], await request.read()
    url = sys.argv[2] + request.path_qs
    async with session.request(request.method, url, headers=_kept(request.headers), data=body) as answer:
        if answer.content_type != "text/event-stream":
            return web.Response(status=answer.status, headers=_kept(answer.headers), body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


async def with_session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=600)) as app[_SESSION]:
        yield


if __name__ == "__main__":
    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(with_session)
    app.router.add_route("*", "/{path:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, backlog=4096)
