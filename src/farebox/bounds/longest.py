"""The longest answers of well-known models, where neither the request nor the price list bounds one.

As their makers document them; price lists rarely say. Only families whose maximum is published and does
not change are here, the first line that fits counts. A model that is not here may fill its context
window.
"""

from __future__ import annotations

import re

_LONGEST: tuple[tuple[str, int], ...] = (
    (r"gpt-3\.5-turbo", 4_096),
    (r"gpt-4-(turbo|1106|0125|vision)", 4_096),
    (r"gpt-4o-2024-05-13", 4_096),
    (r"(chat)?gpt-4o", 16_384),
    (r"gpt-4\.1", 32_768),
    (r"gpt-4\.5", 16_384),
    (r"gpt-5(\.\d)?-chat", 16_384),
    (r"gpt-5(\.\d)?-pro", 272_000),
    (r"gpt-5", 128_000),
    (r"o1-preview", 32_768),
    (r"o1-mini", 65_536),
    (r"o[134](-|$)", 100_000),
    (r"gemini-1\.5", 8_192),
    (r"gemini-2\.0-flash(?!-thinking)", 8_192),
    (r"gemini-2\.5", 65_536),
)
_LINES = tuple((re.compile(pattern), tokens) for pattern, tokens in _LONGEST)


def longest_output(model: str | None, *, listed: int | None, window: int | None) -> int | None:
    """Tokens of the longest answer a model gives; None where nobody says.

    `listed`: its maximum by the price list, which outranks what is known here. `window`: its context window.
    """
    if listed is not None and listed > 0:
        return listed
    name = (model or "").lower().rpartition("/")[2].removeprefix("ft:")
    known = next((tokens for line, tokens in _LINES if line.match(name)), None)
    return known if known is not None else window
