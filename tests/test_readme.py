"""What the README shows is true: commands parse, the config loads, the row is the demo's, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import aiohttp
import pytest

from farebox import tokens
from farebox.cli import parser
from farebox.config import load
from farebox.demo import DemoProvider

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every `farebox …` line of the console blocks, without its prompt and comment."""
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    found = [re.search(r"\.venv/bin/farebox ([^)#]*)", line) for line in lines]
    return [match[1].strip() for match in found if match]


@pytest.mark.parametrize("line", commands())
def test_its_commands_are_understood(line: str) -> None:
    """Every farebox command in it has options that exist and values that are accepted."""
    assert callable(parser().parse_args(shlex.split(line)).run)


def test_its_make_targets_exist() -> None:
    """Every `make …` it names is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (run|test[\w-]*|dashboard|lint|format|clean)\b", README))
    assert {"run", "test"} <= named <= targets


def test_its_config_loads() -> None:
    """The YAML it shows is a config without a fault."""
    configs = []
    for text in blocks("yaml"):
        env = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "value")
        configs.append(load(text, filename="README.md", env=env, read_file=lambda _: ""))
    assert [set(config.providers) for config in configs] == [
        {"openai", "claude", "local"},
        {"local", "contract"},
        set(),
    ]


async def test_its_example_row_is_the_demos() -> None:
    """The counts of the row it shows are those of the printed curl line."""
    counter = tokens.Tokens()
    demo = DemoProvider(lambda text: counter.count(text, "o200k_base"))
    url = await demo.start()
    request = {"messages": [{"role": "user", "content": "Hello!"}]}
    async with aiohttp.ClientSession() as session, session.post(url + "/chat/completions", json=request) as answer:
        usage = (await answer.json())["usage"]
    await demo.close()
    row = re.search(r"^\S+ \S+ +first +demo .* complete +(\d+) +(\d+) ", README, re.MULTILINE)
    assert row is not None
    assert (int(row[1]), int(row[2])) == (usage["prompt_tokens"], usage["completion_tokens"])


def test_its_links_lead_somewhere() -> None:
    """Every relative link is a file of the repository."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
