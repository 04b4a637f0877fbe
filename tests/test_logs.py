"""Logging keeps secrets out, whatever a call site or a library passes in."""

from __future__ import annotations

import errno
import io
import json
import logging

import pytest
import structlog

from farebox import logs
from farebox.errors import FareboxError

SECRETS = [
    "fb-0123456789abcdefghijABCDEFGHIJ0123456789",
    "sk-proj-abcdefgh12345678",
    "sk-ant-api03-abcdefgh12345678",
    "gsk_abcdefghijklmnop1234",
    "planted-config-secret",
]


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    logs.configure("debug", "json", ["planted-config-secret"], stream)
    return stream


@pytest.mark.parametrize("secret", SECRETS)
def test_credentials_are_masked_wherever_they_stand_in_an_event(out: io.StringIO, secret: str) -> None:
    """A credential is masked in the message, in values, in nested data and in names."""
    structlog.get_logger().info(
        f"got {secret}",
        header=f"Bearer {secret}",
        deep={"a": [secret, {secret: 1}]},
        url=f"https://u:{secret}@h/x?key={secret}",
    )
    assert secret not in out.getvalue()
    assert "***" in out.getvalue()


def test_an_exception_is_logged_without_its_text(out: io.StringIO) -> None:
    """A library's message may quote a prompt: only the class and the places it passed are written."""
    try:
        raise ValueError("the prompt: my deepest secret")
    except ValueError as exc:
        structlog.get_logger().error("call failed", exc_info=exc)
        logging.getLogger("some.library").exception("library failed")
    text = out.getvalue()
    assert "deepest" not in text
    assert "ValueError" in text
    assert "test_logs.py:" in text


def test_words_written_for_people_are_kept(out: io.StringIO) -> None:
    """farebox's own errors and the system's say what to do, so their words are logged."""
    assert logs.exception_facts(FareboxError("set database.url"))["reason"] == "set database.url"
    assert logs.exception_facts(OSError(28, "No space left on device"))["reason"] == "No space left on device"
    assert out.getvalue() == ""


def test_library_records_pass_without_their_arguments(out: io.StringIO) -> None:
    """A library's record keeps its template and loses what was filled in."""
    logging.getLogger("asyncio").error("Task exception was never retrieved: %r", {"authorization": "hunter2hunter2"})
    line = json.loads(out.getvalue())
    assert "hunter2" not in out.getvalue()
    assert line["logger"] == "asyncio"


def test_the_server_library_does_not_log_for_itself(out: io.StringIO) -> None:
    """aiohttp's own error log would quote malformed headers: it is cut off."""
    logging.getLogger("aiohttp.server").error("bad header planted-config-secret")
    assert out.getvalue() == ""


class FullDisk(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_line_that_cannot_be_written_is_dropped(format: logs.Format) -> None:
    """No call fails and no task of farebox ends because its log's disk is full or its reader gone."""
    logs.configure("info", format, [], FullDisk())
    structlog.get_logger().info("said")
    logging.getLogger("aiohttp.client").error("said")
