"""What one chunk of a stream costs in the meter: `python tests/benchmarks/meter_chunk.py`.

Prints nanoseconds a chunk, best of several rounds. A chunk is one frame of the size OpenAI sends
(about 320 bytes, every one with `"usage":null`). For comparison: what single searches through
such a chunk cost, and what decoding it costs. That a search for one word costs about as much as
comparing the whole chunk with its template is why the meter compares.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

import msgspec

from farebox.dialects import PROFILES
from farebox.meter import Meter
from farebox.records import Family, Operation

CHAT = (
    b'data: {"id":"chatcmpl-BwL9nTz1Y0Qdd7k3uQJz8iFqXvT2a","object":"chat.completion.chunk","created":1753114567,'
    b'"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_07871e2ad8","choices":[{"index":0,'
    b'"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"%s"}\n\n'
)
PLAIN = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1753114567,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"%s"},"finish_reason":null}],"usage":null%s}\n\n'
)
TOOL = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1753114567,"model":"m","choices":[{"index":0,'
    b'"delta":{"tool_calls":[{"index":0,"function":{"arguments":"%s"}}]},"finish_reason":null}],"usage":null}\n\n'
)
MESSAGES = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}\n\n'
)
RESPONSES = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","content_index":0,"delta":"%s","item_id":"msg_1","logprobs":[],'
    b'"obfuscation":"%s","output_index":0,"sequence_number":%d}\n\n'
)
WORDS = (b" the", b" quick", b" brown", b" fox", b" jumps", b" over", b" a", b" lazy", b" dog", b".")
ROUNDS = 40
CHUNKS = 200
"""Few enough to stay in the processor's cache, where a chunk that was just received is too."""
PASSES = 10


def chunks(frame: bytes) -> list[bytes]:
    """A stream's worth of chunks from one frame with holes."""
    holes = frame.count(b"%s") + frame.count(b"%d")
    padding = [b"aB3xK9q"[: 1 + n % 7] for n in range(CHUNKS)]
    if holes == 1:
        return [frame % WORDS[n % 10] for n in range(CHUNKS)]
    if holes == 2:
        plain = frame is PLAIN
        return [frame % (WORDS[n % 10], b"" if plain else padding[n]) for n in range(CHUNKS)]
    return [frame % (WORDS[n % 10], padding[n], n) for n in range(CHUNKS)]


def meter(operation: Operation, family: Family, *, withhold: bool, cuttable: bool) -> Meter:
    return Meter(
        operation=operation,
        family=family,
        profile=PROFILES["openai"],
        stream=True,
        withhold_usage=withhold,
        status=200,
        content_type="text/event-stream",
        content_encoding="",
        event_bytes_max=1 << 20,
        cuttable=cuttable,
    )


def cost(work: Callable[[], object], times: int) -> float:
    """Nanoseconds for one of `times` repetitions inside `work`."""
    return min(timeit.repeat(work, number=1, repeat=ROUNDS)) / times * 1e9


def feed_cost(
    operation: Operation, family: Family, pieces: list[bytes], *, withhold: bool = False, cuttable: bool = False
) -> float:
    def run() -> None:
        feed = meter(operation, family, withhold=withhold, cuttable=cuttable).feed
        for _ in range(PASSES):
            for piece in pieces:
                feed(piece, 1.0)

    return cost(run, PASSES * len(pieces))


def halves(pieces: list[bytes]) -> list[bytes]:
    """The same bytes, each frame cut in the middle: nothing ever arrives as a whole frame."""
    data = b"".join(pieces)
    step = len(data) // len(pieces)
    return [data[at : at + step] for at in range(0, len(data) - step, step)]


def main() -> None:
    chat = chunks(CHAT)
    sample = chat[0]
    print(f"chat chunk of {len(sample)} bytes")
    print(f"{feed_cost('chat', 'openai', chat):8.0f} ns  feed")
    print(f"{feed_cost('chat', 'openai', chat, withhold=True):8.0f} ns  feed, withholding")
    print(f"{feed_cost('chat', 'openai', halves(chat)):8.0f} ns  feed, every frame cut")
    print(f"{feed_cost('chat', 'openai', halves(chat), withhold=True):8.0f} ns  feed, every frame cut, withholding")
    print(f"{feed_cost('chat', 'openai', chunks(PLAIN)):8.0f} ns  feed, without padding")
    print(f"{feed_cost('chat', 'openai', chunks(TOOL)):8.0f} ns  feed, tool call arguments")
    print(f"{feed_cost('messages', 'anthropic', chunks(MESSAGES)):8.0f} ns  feed, messages")
    print(f"{feed_cost('responses', 'openai', chunks(RESPONSES)):8.0f} ns  feed, responses")
    print("of a stream that may have to be cut")
    print(f"{feed_cost('chat', 'openai', chat, cuttable=True):8.0f} ns  feed")
    print(f"{feed_cost('chat', 'openai', halves(chat), cuttable=True):8.0f} ns  feed, every frame cut")
    print(f"{feed_cost('chat', 'openai', chunks(TOOL), cuttable=True):8.0f} ns  feed, tool call arguments")
    print(f"{feed_cost('messages', 'anthropic', chunks(MESSAGES), cuttable=True):8.0f} ns  feed, messages")
    print(f"{feed_cost('responses', 'openai', chunks(RESPONSES), cuttable=True):8.0f} ns  feed, responses")
    print("for comparison")
    searches: dict[str, Callable[[], object]] = {
        "b'\"usage\":{' in chunk": lambda: b'"usage":{' in sample,
        "msgspec.json.decode(chunk)": lambda: msgspec.json.decode(sample[6:]),
        "nothing": lambda: None,
    }
    for name, work in searches.items():
        print(f"{min(timeit.repeat(work, number=CHUNKS, repeat=ROUNDS)) / CHUNKS * 1e9:8.0f} ns  {name}")


if __name__ == "__main__":
    main()
