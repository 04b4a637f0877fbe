"""Token counts of farebox's own: for a request or an answer whose provider reports no usage.

The counts are tiktoken's, offline: the rank files of `cl100k_base` and `o200k_base` are part of the
package (see data/README.md) and are checked before use. For OpenAI's text models the text is
counted as they count it; for every other model family the same count is a rough estimate (some
charge a fifth of it, some more than it). What is no text gets a constant. Rows say that they are estimates.

Nothing in here may take long or fail on what people send: special-token text such as
`<|endoftext|>` is ordinary text, unbroken runs are cut (tiktoken's time and stack grow with their
length), and past COUNTED_BYTES_MAX a text is judged by samples. Counting releases the interpreter,
so `off_loop` says when a caller on an event loop should use a thread.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import tiktoken

from farebox.errors import FareboxError
from farebox.prompt import Kind, Prompt, read_prompt
from farebox.records import Operation

EncodingName = Literal["cl100k_base", "o200k_base"]

COUNTED_BYTES_MAX = 2_000_000
"""Text counted whole (UTF-8 bytes, of one request or answer): half a second at worst. More is extrapolated."""

SAMPLE_CHARS = 100_000
"""Length of each of the three samples (head, middle, tail) a longer text is judged by."""

RUN_CHARS_MAX = 1000
"""Longest run without, or of only, white space that is encoded in one piece; a longer one is cut into such
pieces. A cut adds a token at most."""

SLICE_CHARS = 16_384
"""A longer text is counted in slices of about so much, a millisecond each: cutting and encoding hold the
interpreter, and a megabyte at once would hold up the event loop for 70 ms, in whichever thread it is counted."""

INLINE_BYTES_MAX = 32 * 1024
"""Text that may be counted on an event loop: a millisecond of prose, seven of anything."""

BYTES_PER_TOKEN = 4
"""The rate for text that cannot be read or counted."""

MESSAGE_TOKENS = 3
"""What OpenAI's chat template puts around a turn, besides its role and text (OpenAI cookbook, on counting tokens)."""
NAME_TOKENS = 1
PRIMING_TOKENS = 3
"""What primes the answer, once a request."""
ANTHROPIC_TOOL_TOKENS = 346
"""What Anthropic puts before the tools of a request (its documentation, tool use with `tool_choice: auto`)."""

OTHER_TOKENS: dict[Kind, int] = {"image": 765, "audio": 500, "video": 2000, "file": 2000}
"""Guesses for blocks that are not text. Image: 1024 x 1024 in OpenAI's high detail (85 + 4 x 170). Audio: about
a minute at 10 tokens a second, less the short clips that are common. File: a few pages."""


class RankFileError(FareboxError):
    """A rank file of the package is missing or is not the published one."""


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of a text; `extrapolated` when part of it was judged by size instead of counted."""

    tokens: int
    extrapolated: bool = False


@dataclass(frozen=True, slots=True)
class InputEstimate:
    """Tokens of a request, and how well they are known.

    encoding        what the text was counted by
    extrapolated    part of the text was judged by size
    non_text_parts  images, audio, files: each stands in `tokens` at a constant
    """

    tokens: int
    encoding: EncodingName
    extrapolated: bool = False
    non_text_parts: int = 0


@dataclass(frozen=True, slots=True)
class _Ranks:
    """What makes an encoding: its file in the package, that file's SHA-256, and how text is cut before merging.

    Hashes and patterns are those tiktoken publishes; special tokens are left out, because what looks
    like one in a prompt is text.
    """

    file: str
    sha256: str
    pattern: str


_RANKS: dict[EncodingName, _Ranks] = {
    "cl100k_base": _Ranks(
        "cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    ),
    "o200k_base": _Ranks(
        "o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}

_CL100K = re.compile(r"gpt-3\.5|gpt-35|gpt-4(?![.o])|text-embedding-|(?:text-)?(?:davinci|curie|babbage|ada)(?:-|$)")
_OPENAI = re.compile(rf"gpt-|chatgpt-|o[1-9](?:-|$)|codex-|{_CL100K.pattern}")
_BOUNDARY = re.compile(r"(?<=[a-z]) (?=[A-Za-z])|(?<=\n)(?=[A-Za-z])")
"""A blank between words and the beginning of a line: no token goes over either."""
_ORDINARY_OR_RUN = re.compile(rf"(?:\S{{1,{RUN_CHARS_MAX}}}+(?!\S)|\s{{1,{RUN_CHARS_MAX}}}+(?!\s))++|(\S++|\s++)")


def encoding_for(model: str | None) -> EncodingName:
    """The encoding that comes nearest to a model's own.

    `cl100k_base` for GPT-3.5, GPT-4 (not 4o, 4.1, 4.5), OpenAI's embeddings and older text models;
    `o200k_base` for everything newer and for every other maker. Prefixes such as `openai/` and `ft:`
    are passed over.
    """
    name = (model or "").lower().rpartition("/")[2].removeprefix("ft:")
    return "cl100k_base" if _CL100K.match(name) else "o200k_base"


def is_own(model: str | None) -> bool:
    """Whether `encoding_for(model)` is the tokenizer that the model's maker publishes for it: OpenAI's text models."""
    return _OPENAI.match((model or "").lower().rpartition("/")[2].removeprefix("ft:")) is not None


def packaged(file: str) -> bytes:
    """A file of the package's data folder."""
    return resources.files("farebox").joinpath("data", file).read_bytes()


class Tokens:
    """Counts tokens. One for a process, shared by its threads: an encoding is loaded once, when first needed.

    Loading takes about 0.1 s (`cl100k_base`) or 0.3 s (`o200k_base`) and 40 MB or 75 MB for good.
    """

    def __init__(self, read: Callable[[str], bytes] = packaged) -> None:
        """`read` gives the bytes of a rank file by name."""
        self._read = read
        self._loading = threading.Lock()
        self._loaded: dict[EncodingName, tiktoken.Encoding] = {}
        self._faults: dict[EncodingName, RankFileError] = {}

    def load(self, encoding: EncodingName) -> tiktoken.Encoding:
        """The encoding, loaded now if it was not. Raises RankFileError, and again each time, if that fails."""
        loaded = self._loaded.get(encoding)
        if loaded is not None:
            return loaded
        with self._loading:
            if encoding in self._faults:
                raise self._faults[encoding]
            if encoding not in self._loaded:
                try:
                    self._loaded[encoding] = _build(encoding, self._read)
                except RankFileError as fault:
                    self._faults[encoding] = fault
                    raise
            return self._loaded[encoding]

    def off_loop(self, size: int, model: str | None) -> bool:
        """Whether counting `size` bytes for `model` is too long for an event loop."""
        return size > INLINE_BYTES_MAX or encoding_for(model) not in self._loaded

    def count(self, text: str, encoding: EncodingName) -> int:
        """Tokens of one text."""
        return self.count_all((text,), encoding).tokens

    def count_all(self, texts: Iterable[str], encoding: EncodingName) -> Count:
        """Tokens of texts that stand apart, such as the messages of a chat. Never raises.

        Exact up to COUNTED_BYTES_MAX altogether; a longer whole is extrapolated from samples, and
        if the encoding cannot be loaded all of it from its size.
        """
        texts = tuple(texts)
        size = sum(map(_utf8_bytes, texts))
        try:
            encode = self.load(encoding).encode_ordinary
        except RankFileError:
            return Count(_by_size(size), extrapolated=True)
        if size <= COUNTED_BYTES_MAX:
            return Count(sum(len(encode(piece)) for text in texts for piece in _pieces(text)))
        samples = _samples("".join(texts))
        sampled = sum(len(encode(piece)) for sample in samples for piece in _pieces(sample))
        return Count(round(sampled * size / sum(map(_utf8_bytes, samples))), extrapolated=True)

    def estimate_input(self, operation: Operation, model: str | None, body: bytes) -> InputEstimate:
        """Tokens of a request body (decoded, UTF-8). Never raises.

        Text as `count_all` has it; token arrays exactly; tools and schemas by their JSON; what chat
        templates add by OpenAI's constants (and Anthropic's for its tools); blocks that are not text at OTHER_TOKENS.
        """
        encoding = encoding_for(model)
        prompt = read_prompt(operation, body)
        counted = self.count_all(prompt.texts, encoding)
        tokens = counted.tokens + prompt.token_ids + _by_size(prompt.unread_bytes) + _overhead(operation, prompt)
        return InputEstimate(
            tokens=tokens + sum(OTHER_TOKENS[kind] * number for kind, number in prompt.others.items()),
            encoding=encoding,
            extrapolated=counted.extrapolated or prompt.unread_bytes > 0,
            non_text_parts=sum(prompt.others.values()),
        )

    def estimate_output(self, model: str | None, sample: str, chars: int | None = None) -> Count:
        """Tokens of an answer from its text, or from a sample of it when it had `chars` characters in all."""
        counted = self.count_all((sample,), encoding_for(model))
        if not sample or chars is None or chars <= len(sample):
            return counted
        return Count(round(counted.tokens * chars / len(sample)), extrapolated=True)


def _build(encoding: EncodingName, read: Callable[[str], bytes]) -> tiktoken.Encoding:
    ranks = _RANKS[encoding]
    try:
        data = read(ranks.file)
    except OSError as error:
        raise RankFileError(f"The rank file {ranks.file} of the package cannot be read: reinstall farebox.") from error
    if hashlib.sha256(data).hexdigest() != ranks.sha256:
        raise RankFileError(f"The rank file {ranks.file} of the package is damaged: reinstall farebox.")
    return tiktoken.Encoding(encoding, pat_str=ranks.pattern, mergeable_ranks=dict(_parse(data)), special_tokens={})


def _parse(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Lines of `BASE64 RANK`."""
    for line in data.splitlines():
        token, _, rank = line.partition(b" ")
        yield binascii.a2b_base64(token), int(rank)


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces that are safe to encode: itself, unless it is long or has long runs."""
    for part in slices(text, SLICE_CHARS):
        for found in _ORDINARY_OR_RUN.finditer(part):
            run = found[1]
            if run is None:
                yield found[0]
            else:
                yield from (run[cut : cut + RUN_CHARS_MAX] for cut in range(0, len(run), RUN_CHARS_MAX))


def slices(text: str, chars: int) -> Iterator[str]:
    """`text` in slices of `chars` or a little more, cut only where both encodings cut anyway."""
    at = 0
    while len(text) - at > chars and (cut := _BOUNDARY.search(text, at + chars)) is not None:
        yield text[at : cut.start()]
        at = cut.start()
    yield text[at:] if at else text


def _samples(text: str) -> tuple[str, str, str]:
    """Head, middle and tail of a text longer than three samples."""
    middle = (len(text) - SAMPLE_CHARS) // 2
    return text[:SAMPLE_CHARS], text[middle : middle + SAMPLE_CHARS], text[-SAMPLE_CHARS:]


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _by_size(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)


def _overhead(operation: Operation, prompt: Prompt) -> int:
    """What a chat template adds; nothing where there are no turns."""
    if not prompt.messages:
        return 0
    tools = ANTHROPIC_TOOL_TOKENS if prompt.tools and operation == "messages" else 0
    return prompt.messages * MESSAGE_TOKENS + prompt.names * NAME_TOKENS + PRIMING_TOKENS + tools
