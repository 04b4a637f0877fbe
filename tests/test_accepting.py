"""A crowd of new connections, and what becomes of those that are open."""

from __future__ import annotations

import asyncio
import socket

from farebox.accepting import AT_ONCE_MAX, accept


async def test_a_crowd_is_taken_in_bit_by_bit() -> None:
    """However many connections wait, the event loop has its turns between a few of them; all are taken in the end."""
    loop = asyncio.get_running_loop()
    made = 0

    class Counted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal made
            made += 1

    listener = socket.create_server(("127.0.0.1", 0))
    crowd = 5 * AT_ONCE_MAX
    server = await accept(listener, Counted, backlog=2 * crowd)
    clients = [socket.create_connection(listener.getsockname(), timeout=10) for _ in range(crowd)]
    try:
        most = before = 0
        end = loop.time() + 10
        while made < crowd and loop.time() < end:
            await asyncio.sleep(0)
            most, before = max(most, made - before), made
        assert made == crowd
        assert 0 < most <= AT_ONCE_MAX
    finally:
        for client in clients:
            client.close()
        server.close()
        await server.wait_closed()
