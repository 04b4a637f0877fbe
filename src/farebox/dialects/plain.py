"""The usage objects that nearly every answer has, as types: decoded and read in one step.

An object fits only if it has no member beside those named here and every count is a plain one; what
it reports is then what `usage.read_usage` would say, without asking for every spelling there is. Each
`read` still says None where the numbers themselves leave a question open (a total that does not add
up, a part larger than its whole): such an object, like one that does not fit, is `usage`'s to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from farebox.dialects.profile import Profile
from farebox.dialects.usage import hides_thinking
from farebox.dialects.values import TOKENS_MAX, word
from farebox.records import Operation, Usage

Count = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
_Maybe = Count | None | UnsetType
"""Null is not the same as missing for who reads the object again; for the count it is."""


class PlainUsage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One usage object as a provider sent it; encoded again it is the same JSON value."""

    def read(self, profile: Profile, model: str | None) -> Usage | None:
        """What it reports on the common scale; None where that takes more than a look."""
        raise NotImplementedError

    @property
    def tier(self) -> str | None:
        """The service tier it names, if any."""
        return None

    @property
    def place(self) -> str | None:
        """Where the answer was made (`inference_geo`), if it says so."""
        return None


class _Inside(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    cached_tokens: _Maybe = UNSET
    cache_write_tokens: _Maybe = UNSET
    audio_tokens: _Maybe = UNSET
    text_tokens: _Maybe = UNSET


class _Outside(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    reasoning_tokens: _Maybe = UNSET
    audio_tokens: _Maybe = UNSET
    text_tokens: _Maybe = UNSET
    accepted_prediction_tokens: _Maybe = UNSET
    rejected_prediction_tokens: _Maybe = UNSET


class ChatUsage(PlainUsage):
    """Of chat completions and completions."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: _Inside | UnsetType | None = UNSET
    completion_tokens_details: _Outside | UnsetType | None = UNSET
    service_tier: str | UnsetType | None = UNSET

    def read(self, profile: Profile, model: str | None) -> Usage | None:
        if isinstance(self.service_tier, str) and word(self.service_tier) is None:
            return None
        return _of_openai(
            self.prompt_tokens,
            self.completion_tokens,
            self.total_tokens,
            self.prompt_tokens_details,
            self.completion_tokens_details,
            profile,
        )

    @property
    def tier(self) -> str | None:
        return self.service_tier or None


class ResponsesUsage(PlainUsage):
    """Of OpenAI's Responses."""

    input_tokens: Count
    output_tokens: Count
    total_tokens: Count
    input_tokens_details: _Inside | UnsetType | None = UNSET
    output_tokens_details: _Outside | UnsetType | None = UNSET

    def read(self, profile: Profile, model: str | None) -> Usage | None:
        return _of_openai(
            self.input_tokens,
            self.output_tokens,
            self.total_tokens,
            self.input_tokens_details,
            self.output_tokens_details,
            profile,
        )


class EmbeddingsUsage(PlainUsage):
    """Of embeddings, whose output is nothing."""

    prompt_tokens: Count
    total_tokens: Count

    def read(self, profile: Profile, model: str | None) -> Usage | None:
        if hides_thinking(profile, model):
            return None
        return Usage(input_tokens=self.prompt_tokens, output_tokens=0)


class _Creation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ephemeral_5m_input_tokens: Count
    ephemeral_1h_input_tokens: Count


class MessagesUsage(PlainUsage):
    """Of Anthropic's Messages: three disjoint counts of input."""

    input_tokens: Count
    output_tokens: Count
    cache_creation_input_tokens: _Maybe = UNSET
    cache_read_input_tokens: _Maybe = UNSET
    cache_creation: _Creation | UnsetType | None = UNSET
    service_tier: str | UnsetType | None = UNSET
    inference_geo: str | UnsetType | None = UNSET

    def read(self, profile: Profile, model: str | None) -> Usage | None:
        for said in (self.service_tier, self.inference_geo):
            if isinstance(said, str) and word(said) is None:
                return None
        read, write = _known(self.cache_read_input_tokens), _known(self.cache_creation_input_tokens)
        lifetimes, hour = self.cache_creation, None
        if lifetimes is not None and lifetimes is not UNSET:
            hour = lifetimes.ephemeral_1h_input_tokens
            if write is None:
                write = lifetimes.ephemeral_5m_input_tokens + hour
        return Usage(
            input_tokens=self.input_tokens + (read or 0) + (write or 0),
            cache_read_tokens=read,
            cache_write_tokens=write,
            cache_write_1h_tokens=hour,
            output_tokens=self.output_tokens,
        )

    @property
    def tier(self) -> str | None:
        return self.service_tier or None

    @property
    def place(self) -> str | None:
        return self.inference_geo or None


_KINDS: Mapping[Operation, type[PlainUsage]] = {
    "chat": ChatUsage,
    "completions": ChatUsage,
    "responses": ResponsesUsage,
    "messages": MessagesUsage,
}


def plain_usage(
    raw: Mapping[str, Any], *, operation: Operation, profile: Profile, model: str | None
) -> tuple[Usage, PlainUsage] | None:
    """What `usage.read_usage` would say of a decoded object that is a plain one, and the object as its type."""
    kind = _KINDS.get(operation)
    try:
        said = msgspec.convert(raw, kind) if kind is not None else None
    except (msgspec.ValidationError, OverflowError, UnicodeEncodeError):
        # The last for half a surrogate pair, which the lenient decoder lets through and msgspec can't complain of.
        return None
    usage = said.read(profile, model) if said is not None else None
    return None if said is None or usage is None else (usage, said)


def _of_openai(
    input: int,
    output: int,
    total: int,
    inside: _Inside | UnsetType | None,
    outside: _Outside | UnsetType | None,
    profile: Profile,
) -> Usage | None:
    if total != input + output:
        return None
    read = write = audio_in = reasoning = audio_out = None
    if inside is not None and inside is not UNSET:
        # Written out: five calls would cost as much as all the rest of this.
        if (told := inside.cached_tokens) is not UNSET:
            read = told
        if (told := inside.cache_write_tokens) is not UNSET:
            write = told
        if (told := inside.audio_tokens) is not UNSET:
            audio_in = told
        if (read or 0) + (write or 0) > input:
            return None
    if outside is not None and outside is not UNSET:
        if (told := outside.reasoning_tokens) is not UNSET:
            reasoning = told
        if (told := outside.audio_tokens) is not UNSET:
            audio_out = told
        if reasoning and (reasoning > output or profile.reasoning == "additive"):
            return None
    return Usage(
        input_tokens=input,
        cache_read_tokens=read,
        cache_write_tokens=write,
        output_tokens=output,
        reasoning_tokens=reasoning,
        audio_input_tokens=audio_in,
        audio_output_tokens=audio_out,
    )


def _known(value: int | UnsetType | None) -> int | None:
    return None if value is UNSET else value
