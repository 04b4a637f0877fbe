"""What of a new config may take the place of the one in force: everything but what holds from a start to the next.

Which settings those are, they say themselves (`at_start`): where farebox listens, its database, its
journal. They keep their value, and are named, so that nobody takes them for changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from farebox.config.kinds import Section, Setting
from farebox.config.reader import settings_of
from farebox.config.schema import Config


def carry_over(running: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """`new` as it can be put in force beside `running`, and the settings that wait for the next start.

    The names are dotted (`server.port`), in the order of the schema.
    """
    sections: dict[str, Any] = {}
    waiting: list[str] = []
    for section, name, about in _settings():
        old, wanted = getattr(running, section), getattr(new, section)
        if about.at_start and getattr(old, name) != getattr(wanted, name):
            waiting.append(f"{section}.{name}")
            sections[section] = replace(sections.get(section, wanted), **{name: getattr(old, name)})
    merged = replace(new, **sections)
    if merged.server.admin_token is None and not merged.database.embedded:
        # The file now asks for the embedded database, which needs none; this one still does.
        merged = replace(merged, server=replace(merged.server, admin_token=running.server.admin_token))
    return merged, tuple(waiting)


def _settings() -> Iterator[tuple[str, str, Setting]]:
    """Every setting of a plain section: the section's name, its own, and what it says of itself."""
    for section, (_, about) in settings_of(Config).items():
        if isinstance(about.kind, Section):
            for name, (_, inner) in settings_of(about.kind.cls).items():
                yield section, name, replace(inner, at_start=about.at_start or inner.at_start)
