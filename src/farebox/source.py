"""A config as it was read: the text of the file, and of the files that it takes in with `${file:PATH}`.

Kept as one value, so that a worker that is started later is given the very config its siblings have,
whatever became of the file meanwhile, and so that a change of any of these files can be seen without
reading the config anew. The environment is not part of it: a process keeps the one it was started with.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from farebox.config import Config, ConfigError, Fault, load, with_address

BUILT_IN = "built-in defaults"
_CHARS_MAX = 1 << 20
"""No more of a file is read; config and credentials have lower bounds of their own."""


class Source(msgspec.Struct, frozen=True):
    """What was read. `text` is None where there is no readable file; so is the text of one in `files`."""

    filename: str
    text: str | None
    files: dict[str, str | None] = {}


@dataclass(frozen=True)
class Reading:
    """A source and what came of it."""

    source: Source
    config: Config | ConfigError


class ConfigFile:
    """The config file of one process. `optional`: without it the defaults hold.

    `host`, `port` and `workers` stand in for the file's, as the command line asks. Methods read files.
    """

    def __init__(
        self,
        path: Path,
        *,
        env: Mapping[str, str],
        optional: bool = False,
        host: str | None = None,
        port: int | None = None,
        workers: int | None = None,
    ) -> None:
        self._path = path
        self._env = env
        self._optional = optional
        self._address = (host, port, workers)

    def read(self) -> Reading:
        """The config the file holds now, or its faults."""
        try:
            name, text = str(self._path), read_file(str(self._path))
            self._optional = False  # from now on it is a fault when it is not there
        except FileNotFoundError as exc:
            if not self._optional:
                return self._unreadable(exc)
            name, text = BUILT_IN, ""
        except (OSError, ValueError) as exc:
            return self._unreadable(exc)
        files: dict[str, str | None] = {}

        def note(path: str) -> str:
            files[path] = None
            content = files[path] = read_file(path)
            return content

        config: Config | ConfigError
        try:
            config = with_address(load(text, filename=name, env=self._env, read_file=note), *self._address)
        except ConfigError as faults:
            config = faults
        return Reading(Source(name, text, files), config)

    def look(self, like: Source) -> Source:
        """The same files as they are now, without making a config of them."""
        text = _text(str(self._path), like.text)
        if text is None and like.filename == BUILT_IN:
            return like
        return Source(str(self._path), text, {path: _text(path, known) for path, known in like.files.items()})

    def _unreadable(self, exc: Exception) -> Reading:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        fault = Fault(str(self._path), 1, 1, "--config", f"can't be read: {reason}")
        return Reading(Source(str(self._path), None), ConfigError([fault]))


def load_source(
    source: Source,
    env: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
) -> Config:
    """The config of a source that was read elsewhere; no file is touched. Raises `ConfigError`."""

    def kept(path: str) -> str:
        text = source.files.get(path)
        if text is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return text

    config = load(source.text or "", filename=source.filename, env=env, read_file=kept)
    return with_address(config, host, port, workers)


def read_file(path: str) -> str:
    """The text of a file. Raises OSError, or ValueError where it is not UTF-8."""
    with open(path, encoding="utf-8") as file:
        return file.read(_CHARS_MAX)


def _text(path: str, known: str | None) -> str | None:
    try:
        # A pipe can be read once only, and waits for whoever writes into it.
        return read_file(path) if stat.S_ISREG(os.stat(path).st_mode) else known
    except (OSError, ValueError):
        return None
