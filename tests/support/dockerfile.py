"""A Dockerfile as far as tests ask it: stages, instructions, what a build would see, and its commands replayed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

_OPTION = re.compile(r"--[\w-]+(=\S+)?\s+")


class Instruction(NamedTuple):
    """One instruction, its options apart."""

    word: str
    options: tuple[str, ...]
    text: str


class Stage(NamedTuple):
    """One FROM and what follows it."""

    base: str
    name: str | None
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.word == word]

    def one(self, word: str) -> str:
        """The text of the only instruction of that kind."""
        [instruction] = self.all(word)
        return instruction.text


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found: list[tuple[str, list[Instruction]]] = []
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        options: list[str] = []
        while (match := _OPTION.match(rest)) is not None:
            options.append(match[0].strip())
            rest = rest[match.end() :]
        if word == "FROM":
            found.append((rest, []))
        else:
            found[-1][1].append(Instruction(word, tuple(options), rest.strip()))
    made = []
    for head, instructions in found:
        base, _, name = head.partition(" AS ")
        made.append(Stage(base, name or None, tuple(instructions)))
    return made


def copied(stage: Stage) -> list[tuple[list[str], str]]:
    """What a stage copies from the build's context, and to where."""
    pairs = []
    for instruction in stage.all("COPY"):
        if not any(option.startswith("--from") for option in instruction.options):
            *sources, target = instruction.text.split()
            pairs.append((sources, target))
    return pairs


def in_context(path: Path, root: Path, ignore: str) -> bool:
    """Whether a file is sent to the build: the last pattern that matches it or a folder above it decides."""
    relative = path.relative_to(root)
    names = [str(relative), *(str(parent) for parent in relative.parents if str(parent) != ".")]
    sent = True
    for line in ignore.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.startswith("!")
        pattern = pattern.removeprefix("!").removeprefix("**/")
        if any(fnmatch(name, pattern) or (fnmatch(Path(name).name, pattern) and "/" not in pattern) for name in names):
            sent = wanted
    return sent


def health_command(stage: Stage, port: int) -> list[str]:
    """The command of HEALTHCHECK, asking at `port`, run by this Python."""
    words: list[str] = json.loads(stage.one("HEALTHCHECK").removeprefix("CMD "))
    assert words[0] == "python" and "8787" in words[-1]
    return [sys.executable, *words[1:-1], words[-1].replace("8787", str(port))]


def replay(stage: Stage, root: Path, ignore: str, folder: Path) -> None:
    """Do in `folder` what a build stage does in its image: its COPY and RUN, absolute paths below `folder`.

    Raises CalledProcessError with what a command said.
    """
    work = folder / stage.one("WORKDIR").lstrip("/")
    work.mkdir(parents=True)
    for sources, target in copied(stage):
        for source in sources:
            for file in sorted(p for p in ((root / source).rglob("*") or ()) if p.is_file()) or [root / source]:
                if in_context(file, root, ignore):
                    inner = file.relative_to(root / source) if (root / source).is_dir() else Path(source)
                    place = work / target / inner
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    for instruction in stage.all("RUN"):
        command = re.sub(r"(?<=\s)(/(?:opt|wheels)\b)", lambda match: str(folder) + match[1], instruction.text)
        subprocess.run(
            ["sh", "-c", command],
            cwd=work,
            env={**os.environ, "PATH": path},
            check=True,
            capture_output=True,
            text=True,
        )
