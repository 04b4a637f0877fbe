"""The example config: complete, true and in step with the schema."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from farebox.config import Config, Provider
from farebox.config.example import render
from farebox.config.reader import settings_of
from support.config import KEYS, read

ROOT = Path(__file__).parents[1]


def every_setting(cls: type = Config) -> list[str]:
    nested = [getattr(about.kind, "cls", None) for _, about in settings_of(cls).values() if hasattr(about.kind, "cls")]
    return [*settings_of(cls), *(name for inner in nested if inner for name in every_setting(inner))]


def test_the_example_file_is_the_rendered_schema() -> None:
    """config.example.yaml is exactly what `farebox.config.example.render` makes of the schema."""
    assert (ROOT / "config.example.yaml").read_text(encoding="utf-8") == render(), (
        "run: python -c 'from farebox.config.example import render; print(render(), end=\"\")' > config.example.yaml"
    )


def test_the_example_loads_and_is_the_defaults() -> None:
    """As it stands, also without any key, the example is a valid config that changes no default."""
    bare = read(render())
    assert (list(bare.providers), list(bare.disabled), bare.routes) == ([], ["openai", "claude"], ())
    config = read(render(), KEYS)
    assert dataclasses.replace(config, providers={}, routes=()) == Config()
    assert [(rule.match.model, rule.to) for rule in config.routes] == [
        (("claude-*",), ("claude",)),
        (None, ("openai",)),
    ]
    openai = config.providers["openai"]
    assert openai == Provider(name="openai", dialect="openai", base_url=openai.base_url, api_key=openai.api_key)


def test_every_setting_stands_in_the_example_and_works_when_uncommented() -> None:
    """Every field of the schema has a line with prose before it, and the lines behind `#` are valid too."""
    text = render()
    for name in every_setting():
        assert re.search(rf"^ *# .+\n *(- )?#?(- )?{name}:", text, re.MULTILINE), f"{name} is not documented"
    config = read(re.sub(r"^( *)#(?=[a-z]|- )", r"\1", text, flags=re.MULTILINE), KEYS)
    assert list(config.providers) == ["openai", "claude", "local"]
    assert config.server.admin_token == "admin-token"
    assert dict(config.providers["openai"].headers) and config.providers["openai"].tls_ca_file
    assert dict(config.routes[0].match.tags)
    [budget] = config.budgets
    assert budget.only and budget.limit_usd and budget.limit_tokens
    assert config.alerts.webhook_url and config.alerts.webhook_secret


def test_no_field_is_left_without_a_setting_by_accident() -> None:
    """A new dataclass field is either settable or one of the few that loading works out."""
    worked_out = {"disabled", "unavailable", "warnings"}
    assert {field.name for field in dataclasses.fields(Config)} - set(settings_of(Config)) == worked_out
    assert {field.name for field in dataclasses.fields(Provider)} - set(settings_of(Provider)) == {"name"}
    for _, about in settings_of(Config).values():
        cls = getattr(about.kind, "cls", None)
        if cls not in (None, Provider):
            assert {field.name for field in dataclasses.fields(cls)} == set(settings_of(cls))
