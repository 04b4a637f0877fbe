"""The client's side: aiohttp's HTTP server in front, and answers written straight to the transport.

aiohttp parses requests (strictly: that parser is a guard) and keeps connections. Three things it does
not do as a proxy must: it decodes and re-encodes headers and adds its own, so `Reply` writes heads and
bodies as bytes; its error log and error page quote malformed input, credentials included, so
`Connection` answers those in its own words; and its request and response objects cost more than
all that is done with them here, so `Request` and `Reply` stand in their places.
"""

from __future__ import annotations

from farebox.server.connection import Connection, Server, make_server
from farebox.server.reply import HIGH_WATER_BYTES, ClientGone, Headers, Reply, field_lines, refuse, respond
from farebox.server.request import BROKEN_OFF, Handler, Request, Upload, read_body, send_continue, whole_body

__all__ = [
    "BROKEN_OFF",
    "HIGH_WATER_BYTES",
    "ClientGone",
    "Connection",
    "Handler",
    "Headers",
    "Reply",
    "Request",
    "Server",
    "Upload",
    "field_lines",
    "make_server",
    "read_body",
    "refuse",
    "respond",
    "send_continue",
    "whole_body",
]
