"""Config texts and their outcome, for the tests that read them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from farebox.config import Config, ConfigError, load

OPENAI = 'openai: {dialect: openai, base_url: "https://api.openai.com/v1", api_key: sk-1}'
CLAUDE = 'claude: {dialect: anthropic, base_url: "https://api.anthropic.com", api_key: sk-2}'
LOCAL = 'local: {dialect: vllm, base_url: "http://localhost:8000/v1"}'
KEYS = {
    "FAREBOX_ADMIN_TOKEN": "admin-token",
    "FAREBOX_METRICS_TOKEN": "metrics-token",
    "FAREBOX_WEBHOOK_SECRET": "webhook-secret",
    "FAREBOX_WEBHOOK_URL": "https://hooks.example.com/farebox",
    "OPENAI_API_KEY": "sk-openai",
    "ANTHROPIC_API_KEY": "sk-anthropic",
}


def read(text: str, env: Mapping[str, str] = {}, files: Mapping[str, str] = {}) -> Config:
    """The config of `text`, with these variables and files."""

    def file(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return load(text, filename="config.yaml", env=env, read_file=file)


def faults(text: str, env: Mapping[str, str] = {}, files: Mapping[str, str] = {}) -> list[str]:
    """Every fault of `text`, each as `line:col: path: message`."""
    with pytest.raises(ConfigError) as caught:
        read(text, env, files)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.faults), "a fault is one line"
    assert all(line.startswith("config.yaml:") for line in lines)
    return [line.removeprefix("config.yaml:") for line in lines]


def fault(text: str, env: Mapping[str, str] = {}, files: Mapping[str, str] = {}) -> str:
    """The only fault of `text`."""
    (only,) = faults(text, env, files)
    return only


def providers(*entries: str) -> str:
    """A providers section of these lines."""
    return "providers:\n" + "".join(f"  {entry}\n" for entry in entries)
