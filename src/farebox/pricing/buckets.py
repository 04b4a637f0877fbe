"""Splits what a call used into buckets that do not overlap, each with a price of its own.

Input is uncached text, cache reads, cache writes by lifetime, audio, images; output is text,
reasoning, audio, images. Counts a provider got wrong never make a bucket negative: a part is at
most its whole. Where it is not reported how parts overlap (is the cached part audio?), the split is
the dearer plausible one.
"""

from __future__ import annotations

from typing import Protocol

MILLION, THOUSAND = 6, 3

TOKENS: frozenset[str] = frozenset(
    {
        *("input", "cache_read", "cache_write", "cache_write_1h", "cache_write_unknown"),
        *("output", "reasoning", "citation"),
        *("input_audio", "cache_read_audio", "output_audio", "input_image", "cache_read_image", "output_image"),
        *("input_video", "output_video"),
    }
)
"""Buckets counted in tokens, priced per million. `cache_write_1h`: for an hour or more; `_unknown`: nobody says."""

PER: dict[str, int] = {
    **dict.fromkeys(TOKENS, MILLION),
    "characters": MILLION,
    **dict.fromkeys(("requests", "web_searches", "file_searches", "pages", "annotated_pages", "messages"), THOUSAND),
    **dict.fromkeys(("x_searches", "sources", "images"), THOUSAND),
}
"""Every other bucket with a price, and per how many (a power of ten). Audio by time is per hour: `HOURS`."""

HOURS: tuple[str, ...] = ("input_audio_hours", "audio_hours")
"""Buckets priced per hour and reported in seconds, the more particular one first."""

UNITS: dict[str, str] = {
    "web_searches": "web_searches",
    "file_searches": "file_searches",
    "x_searches": "x_searches",
    "sources": "sources",
    "citation_tokens": "citation",
    "images": "images",
    "pages": "pages",
    "characters": "characters",
}
"""The bucket of each unit that a usage event may count (`seconds` apart, which are priced per hour)."""


class Counts(Protocol):
    """The counts of a `UsageEvent` or a `Usage`; None is unreported."""

    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    cache_write_1h_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    audio_input_tokens: int | None
    audio_output_tokens: int | None


def split(counts: Counts, image_in: int = 0, image_out: int = 0) -> dict[str, int]:
    """Tokens by bucket, none negative; they sum to input + output. `image_*`: the image tokens inside them.

    Cache writes of unknown lifetime are in `cache_write_unknown`.
    """
    total = max(0, counts.input_tokens or 0)
    read = _part(counts.cache_read_tokens, total)
    write = _part(counts.cache_write_tokens, total - read)
    hour = _part(counts.cache_write_1h_tokens, write)
    audio = _part(counts.audio_input_tokens, total)
    image = _part(image_in, total - audio)
    # What is cached is text as long as there is text: cached audio, where it has a price, is the cheaper reading.
    overlap = max(0, read + write + audio + image - total)
    read_audio = min(overlap, audio, read)
    read_image = min(overlap - read_audio, image, read - read_audio)
    write -= overlap - read_audio - read_image
    hour = min(hour, write)
    found = {
        "cache_read": read - read_audio - read_image,
        "cache_read_audio": read_audio,
        "cache_read_image": read_image,
        "cache_write_1h": hour,
        ("cache_write_unknown" if counts.cache_write_1h_tokens is None else "cache_write"): write - hour,
        "input_audio": audio - read_audio,
        "input_image": image - read_image,
    }
    found["input"] = total - sum(found.values())
    return found | _output(counts, image_out)


def _output(counts: Counts, image_out: int) -> dict[str, int]:
    total = max(0, counts.output_tokens or 0)
    audio = _part(counts.audio_output_tokens, total)
    image = _part(image_out, total - audio)
    reasoning = _part(counts.reasoning_tokens, total - audio - image)
    return {
        "output": total - audio - image - reasoning,
        "reasoning": reasoning,
        "output_audio": audio,
        "output_image": image,
    }


def _part(count: int | None, whole: int) -> int:
    """A count that is inside `whole`: not below 0, not above it."""
    return max(0, min(count or 0, whole))
