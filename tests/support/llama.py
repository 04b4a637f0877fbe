"""A real llama.cpp server over half a megabyte of random weights: true tokenizer, sampler and HTTP, nonsense for text.

The model is made here, so that nothing has to be downloaded. The server is the `xllamacpp` wheel in
a process of its own (this file, run as a program), which ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MODEL = "tiny"
SLOT_TOKENS = 8192
"""Prompt and answer together may have so many tokens."""

_WIDTH, _LAYERS, _HEADS, _HIDDEN = 64, 2, 4, 128
_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
_WORDS = ("▁", "the", "▁the", "▁a", "▁of", "er", "in", "▁hello", "▁world")
_UP = re.compile(r"listening on (http://127\.0\.0\.1:\d+)\n")


def write_model(path: Path) -> None:
    """A llama of two layers with a byte-fallback SentencePiece vocabulary; the same bytes each time."""
    import gguf
    import numpy as np

    control, byte, normal = gguf.TokenType.CONTROL, gguf.TokenType.BYTE, gguf.TokenType.NORMAL
    vocabulary = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", control), ("</s>", control)]
    vocabulary += [(f"<0x{n:02X}>", byte) for n in range(256)]
    vocabulary += [(word, normal) for word in _WORDS] + [(chr(n), normal) for n in range(33, 127)]
    scores = [-float(place) if kind == normal else 0.0 for place, (_, kind) in enumerate(vocabulary)]

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(4 * SLOT_TOKENS)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([word.encode() for word, _ in vocabulary])
    writer.add_token_scores(scores)
    writer.add_token_types([int(kind) for _, kind in vocabulary])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(_TEMPLATE)

    chance = np.random.default_rng(0)

    def noise(name: str, *shape: int) -> None:
        writer.add_tensor(name, (chance.standard_normal(shape) * 0.05).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(_WIDTH, np.float32))

    noise("token_embd.weight", len(vocabulary), _WIDTH)
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        ones(f"{block}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            noise(f"{block}.{part}.weight", _WIDTH, _WIDTH)
        noise(f"{block}.ffn_gate.weight", _HIDDEN, _WIDTH)
        noise(f"{block}.ffn_up.weight", _HIDDEN, _WIDTH)
        noise(f"{block}.ffn_down.weight", _WIDTH, _HIDDEN)
    ones("output_norm.weight")
    noise("output.weight", len(vocabulary), _WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextlib.contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """A running server with one slot, on a free port: its origin. `folder` takes the model."""
    model = folder / "tiny.gguf"
    write_model(model)
    process = subprocess.Popen(
        [sys.executable, __file__, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := _UP.search(line):
                yield found[1]
                break
        else:
            raise AssertionError(f"llama.cpp ended with {process.wait()} before it was up")
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def serve(model: str) -> None:
    """Serve until standard input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = SLOT_TOKENS
    params.n_parallel = 1
    params.warmup = False
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1])
