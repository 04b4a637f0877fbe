"""Logging: structlog to standard error, for people or as JSON, with secrets kept out.

Three rules hold here because no call site can be trusted to keep them. Values that look like a
credential, and the credentials of the configuration, are masked in every line. Exceptions are
logged as their class and the places they passed, never their text: a library's message may quote
a header or a prompt. Other libraries' loggers are cut off or come through the same mask.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog

from farebox.errors import FareboxError

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

_CREDENTIAL = re.compile(
    r"(?i)(?P<keep>bearer\s+|x-api-key\W{1,4}|api-key\W{1,4}|[?&]key=)[^\s\"',;&]{4,}"
    r"|\b(?:fba?|sk|pk|gsk|xai|pplx|hf|ghp|r8|nvapi|csk|fw|tgp)[-_][A-Za-z0-9_\-]{8,}"
    r"|\bAIza[A-Za-z0-9_\-]{10,}"
    r"|(?P<scheme>\w+://)[^/@\s:]*:[^/@\s]+@"
)
_MASK = "***"
_FRAMES_MAX = 12
_TEXT_MAX = 2000


class Redactor:
    """Masks credentials in text: those of a known shape, and the exact ones it was told."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        exact = sorted({s for s in secrets if len(s) >= 6}, key=len, reverse=True)
        self._exact = re.compile("|".join(map(re.escape, exact))) if exact else None

    def __call__(self, text: str) -> str:
        if self._exact is not None:
            text = self._exact.sub(_MASK, text)
        return _CREDENTIAL.sub(lambda m: (m["keep"] or m["scheme"] or "") + _MASK, text)


def exception_facts(exc: BaseException) -> dict[str, Any]:
    """What may be logged of an exception: class, our own or the system's words, and the frames it passed."""
    facts: dict[str, Any] = {"error": type(exc).__qualname__}
    if isinstance(exc, FareboxError):
        facts["reason"] = str(exc)
    elif isinstance(exc, OSError) and exc.strerror:
        facts["reason"] = exc.strerror if isinstance(exc.strerror, str) else "system error"
    elif sqlstate := getattr(exc, "sqlstate", None):
        facts["sqlstate"] = sqlstate
    frames = traceback.extract_tb(exc.__traceback__)[-_FRAMES_MAX:]
    facts["at"] = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return facts


def configure(
    level: Level, format: Format, secrets: Iterable[str], stream: TextIO | None = None, *, worker: int | None = None
) -> None:
    """Set up structlog and the standard library's root logger.

    Called by the process's entry point, at the start and when the config has changed. `worker`
    stands in every line, where several processes write to one stream.
    """
    out = stream or sys.stderr
    redact = Redactor(secrets)
    number = getattr(logging, level.upper())
    console = format == "console" or (format == "auto" and out.isatty())
    renderer: Callable[..., str | bytes] = (
        structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=_no_traceback)
        if console
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _expand_exception,
            *([_name(worker)] if worker is not None else []),
            _mask(redact),
            _order,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # A line and its end in one write: workers share the stream.
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Forgiving(out))),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(max(number, logging.WARNING))
    # aiohttp's own error log quotes malformed header lines, credentials included: server.py logs
    # those errors itself, in its own words.
    for name in ("aiohttp.server", "aiohttp.web", "aiohttp.access", "aiohttp.internal"):
        library = logging.getLogger(name)
        library.handlers[:] = [logging.NullHandler()]
        library.propagate = False


def take_over_hooks() -> None:
    """Have exceptions that nobody caught logged as any other. Python's own way prints their text."""

    def report(exc: BaseException | None) -> None:
        if exc is None or isinstance(exc, (KeyboardInterrupt, SystemExit)):
            return
        structlog.get_logger().error("unhandled exception", **exception_facts(exc))

    sys.excepthook = lambda _, exc, __: report(exc)
    sys.unraisablehook = lambda unraisable: report(unraisable.exc_value)
    threading.excepthook = lambda args: report(args.exc_value)


class _Forgiving:
    """A stream that drops what can't be written: no line is worth a call, or the task that was to say it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _ToStructlog(logging.Handler):
    """Standard library records as one structlog line: no arguments of unknown content, no traceback text."""

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            facts["exc"] = record.exc_info[1]
        message = str(record.msg)[:_TEXT_MAX].splitlines()[0:1]
        structlog.get_logger().log(record.levelno, message[0] if message else "", **facts)


def _expand_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    exc = event.pop("exc", None)
    info = event.pop("exc_info", None)
    if exc is None and info:
        exc = sys.exc_info()[1] if info is True else info
    if isinstance(exc, tuple):
        exc = exc[1]
    if isinstance(exc, BaseException):
        event.update(exception_facts(exc))
    return event


def _mask(redact: Redactor) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return cut(value)
        if isinstance(value, dict):
            return {clean(k): clean(v) for k, v in value.items()}
        if isinstance(value, (list, tuple, set)):
            return [clean(v) for v in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return cut(str(value))

    def cut(text: str) -> str:
        # Masked before it is cut to length: half a credential would not be recognised.
        return redact(text[: 2 * _TEXT_MAX])[:_TEXT_MAX]

    def process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in event.items():
            event[name] = clean(value)
        return event

    return process


def _name(worker: int) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    def process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("worker", worker)
        return event

    return process


def _order(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """When, how bad and what, before the details."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return {**first, **event}


def _no_traceback(*_: object) -> None:
    """Console renderer's hook: exceptions were turned into facts before it is reached."""
