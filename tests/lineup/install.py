"""Makes each SDK's environment beside its script: `.venv` from requirements.txt, `node_modules` from package.json.

An environment is made anew when what it is made of has changed, else left as it is. One that can't
be made leaves a note saying why, which its tests show as they skip. Nothing is compiled and no
package runs a script of its own: wheels only, and npm with --ignore-scripts.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
INSTALL_S_MAX = 300
"""Longest one installation may take; one that takes longer counts as failed."""


@dataclass(frozen=True)
class Environment:
    """One SDK's folder."""

    name: str

    @property
    def folder(self) -> Path:
        return HERE / self.name

    @property
    def is_node(self) -> bool:
        return (self.folder / "package.json").exists()

    @property
    def target(self) -> Path:
        """Where its packages are installed."""
        return self.folder / ("node_modules" if self.is_node else ".venv")

    @property
    def command(self) -> list[str]:
        """What runs its script."""
        if self.is_node:
            return ["node", str(self.folder / "talk.mjs")]
        return [str(self.target / "bin" / "python"), str(self.folder / "talk.py")]

    @property
    def wanted(self) -> str:
        """What the stamp says when the environment is up to date."""
        source = self.folder / ("package.json" if self.is_node else "requirements.txt")
        runtime = "" if self.is_node else sys.version
        return hashlib.sha256(source.read_bytes() + runtime.encode()).hexdigest()

    def missing(self) -> str | None:
        """Why its tests can't run; None where they can."""
        if _read(self.target / ".stamp") == self.wanted:
            return None
        return _read(self.target / ".fault") or f"{self.name} is not installed: `make test-sdks` does that"

    def install(self) -> str | None:
        """Make it, unless it is there; why it could not be made."""
        if self.missing() is None:
            return None
        shutil.rmtree(self.target, ignore_errors=True)
        fault = next(filter(None, map(self._run, self._steps())), None)
        self.target.mkdir(exist_ok=True)
        (self.target / (".fault" if fault else ".stamp")).write_text(fault or self.wanted)
        return fault

    def _steps(self) -> list[list[str]]:
        if self.is_node:
            quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
            return [["npm", "install", "--ignore-scripts", *quiet]]
        pip = [str(self.target / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        return [
            [sys.executable, "-m", "venv", str(self.target)],
            [*pip, "--only-binary=:all:", "-r", str(self.folder / "requirements.txt")],
        ]

    def _run(self, command: list[str]) -> str | None:
        """The fault of one step, in one line; None when it went well."""
        if shutil.which(command[0]) is None:
            return f"{self.name} can't be installed here: there is no {command[0]}"
        try:
            done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=INSTALL_S_MAX)
        except subprocess.TimeoutExpired:
            return f"{self.name} can't be installed here: {command[0]} took longer than {INSTALL_S_MAX} s"
        if done.returncode == 0:
            return None
        # Both say what is wrong last, but for npm's words on where its log is.
        said = [line for line in done.stderr.splitlines() if line.strip() and "log" not in line]
        return f"{self.name} can't be installed here: {said[-1] if said else f'exit {done.returncode}'}"


ENVIRONMENTS = tuple(Environment(name) for name in ("langchain", "pydantic_ai", "openai_node", "vercel"))


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def main() -> None:
    """Make all of them, and say of each whether it is there."""
    faults = [environment.install() for environment in ENVIRONMENTS]
    for environment, fault in zip(ENVIRONMENTS, faults, strict=True):
        print(fault or f"{environment.name} is installed")
    print(f"SDK line-up: {faults.count(None)} of {len(faults)} environments")


if __name__ == "__main__":
    main()
