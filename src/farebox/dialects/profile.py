"""What is known of one provider's way of speaking: a `Profile` is plain data, its table is `profiles`.

Profiles decide only what a body cannot tell by itself. Where the numbers of a usage object
settle a question (is reasoning inside the output?), the readers beside this module ask the
numbers first, so that an unknown provider behind the plain `openai` profile is still read right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from farebox.records import Family

StreamOptions = Literal["inject", "skip", "learn"]
"""Whether `stream_options.include_usage` may be added to a stream that lacks it.

inject  add it
skip    never add it: the provider rejects it, or always sends usage
learn   add it; on a 400 or 422 that names stream_options, resend the original once and remember
"""

Reasoning = Literal["auto", "included", "additive"]
"""Whether reasoning tokens are inside the reported output.

auto      decided by the self-check with `total_tokens`; inside when that cannot tell
included  always inside, whatever the total says
additive  always beside it, whatever the total says
"""

AuthHeader = Literal["bearer", "x-api-key", "api-key", "none"]
"""How the provider expects its credential: `authorization: Bearer`, `x-api-key`, `api-key`, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One provider's deviations from the wire family it speaks. `name` is what a config calls `dialect`."""

    name: str
    family: Family = "openai"
    """The API family of the provider's native path; an exchange's own path overrides it."""
    stream_options: StreamOptions = "inject"
    reasoning: Reasoning = "auto"
    auth_header: AuthHeader = "bearer"
    hides_thinking: bool = False
    """Tokens in `total_tokens` that neither input nor output explains are thinking: they count as output."""
    usage_per_choice: bool = False
    """A usage object on a chunk with choices counts that chunk's choice alone, not the whole answer."""
