"""llm-katan's echo server: a small real FastAPI server that speaks several providers' dialects, each in its own way.

It runs in a process of its own, which ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

MODEL = "katan-model"
KEYS = {
    "openai": "llm-katan-openai-key",
    "anthropic": "llm-katan-anthropic-key",
    "azure_openai": "llm-katan-azure-key",
}
"""The keys it insists on, each in the header of its dialect."""

_PROGRAM = (
    "import os, sys, threading\n"
    "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n"
    "from llm_katan.cli import main\n"
    "main()"
)
_UP = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")


@contextlib.contextmanager
def katan_server(folder: Path, *options: str) -> Iterator[str]:
    """A running server on a free port: its origin. `options` are its command line's; `folder` takes its statistics."""
    command = ["--model", MODEL, "--backend", "echo", "--host", "127.0.0.1", "--port", "0", "--disable-dashboard"]
    command += ["--providers", ",".join(KEYS), "--validate-keys", "--stats-file", str(folder / "stats.json"), *options]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := _UP.search(line):
                # It goes on talking: somebody has to listen, or it stands still when the pipe is full.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield found[1]
                break
        else:
            raise AssertionError(f"llm-katan ended with {process.wait()} before it was up:\n{''.join(said)}")
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
