"""Another program with its function calls counted: `python counted.py FILE PROGRAM ARGUMENT...`.

PROGRAM is a module (farebox), or a path that ends in `.py` (bare.py). SIGUSR1 begins to count, on the main
thread only, where the event loop runs; SIGUSR2 ends it. FILE then holds what `Calls.written` says. A count of calls is
the same on a busy machine and an idle one, and nearly the same each time: what is left of timers shows in the decimals.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

COUNTING = {"counting": True}
_MOST = 400


class Calls:
    """Counts calls while it is on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._python: Counter[CodeType] = Counter()
        self._builtin = 0

    def begin(self, *_: object) -> None:
        """Forget what was counted, and count."""
        self._python.clear()
        self._builtin = 0
        self._write(COUNTING)
        sys.setprofile(self._called)

    def end(self, *_: object) -> None:
        """Count no more, and write down what was counted."""
        sys.setprofile(None)
        self._write(self.written())

    def written(self) -> dict[str, object]:
        """Calls of Python functions and of built-in ones, and of which functions there were most."""
        most = [[f"{code.co_qualname} {Path(code.co_filename).name}", n] for code, n in self._python.most_common(_MOST)]
        return {"python": self._python.total(), "builtin": self._builtin, "most": most}

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self._python[frame.f_code] += 1
        elif event == "c_call":
            self._builtin += 1

    def _write(self, what: object) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(what))
        os.replace(new, self._file)


def main() -> None:
    calls = Calls(Path(sys.argv[1]))
    signal.signal(signal.SIGUSR1, calls.begin)
    signal.signal(signal.SIGUSR2, calls.end)
    program, sys.argv = sys.argv[2], sys.argv[2:]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
