"""The most that a request can use, in tokens, or why nobody can say: decided before it is sent.

What the model reads. No tokenizer in use makes more tokens of a text than it has bytes of UTF-8: the
byte-level ones start from bytes and merge, SentencePiece falls back to bytes where it knows no
better, WordPiece to characters. The JSON text of a string is never shorter than the string. So the
body's own bytes bound all text in it, wherever it stands, and the names and braces around each turn
(28 bytes at least) pay for what a template puts there (16 tokens at most in the public ones). Added
are: what normalising may gain (`growth`), what a template says by itself (TEMPLATE_TOKENS), and twice
the bytes of what is JSON in the body and is written out anew for the model, tools, schemas and calls:
indented, escaped or as TypeScript, it may be longer than what came (RENDERED_TIMES).

What the model writes is in `outputs`. What no bytes speak of (pictures, hosted tools, stored context)
is in `contents` and below: then `reason` says so and the numbers are a guess.

Only to be asked for calls that a budget counts: it skims the body twice.
"""

from __future__ import annotations

import re

import msgspec

from farebox.bounds import contents, outputs
from farebox.bounds.contents import Contents, holds, opens, size
from farebox.bounds.growth import growth_of
from farebox.bounds.ordinary import Ordinary
from farebox.bounds.outputs import OBJECT, TOKENS_MAX, Members
from farebox.bounds.plain import RENDERED_TIMES
from farebox.jsontext import decode_members
from farebox.records import Operation
from farebox.request import RequestFacts
from farebox.tokens import BYTES_PER_TOKEN, Tokens, is_own

TEMPLATE_TOKENS = 1024
"""What a chat template may add to every request by itself: system prompts that local models bring (Command A and
Mistral Small have some 500 tokens), dates, roles, the start of the answer. In recorded calls: 380."""
TOOLS_TOKENS = 1024
"""The same for a request with tools: how to call them (Claude's 804 at most, Command A's 700)."""
LEAN_TEMPLATE_TOKENS = 256
"""TEMPLATE_TOKENS for the models of makers who add next to nothing: OpenAI (20, and 100 to call tools in parallel),
Anthropic and Google."""
UNBOUND_GUESS = 4096
"""The largest `input_guess` for a request that is not only text."""
PROMPT_TOKENS = 32
"""What is put around each text to embed or complete: start and end marks, an instruction by `input_type`."""

_NONE = msgspec.Raw()
_STORED = "context stored at the provider"
_FALLBACK = "other models the provider may choose"
_EXTENSION = "an option of the provider's own"
_REASONS: dict[str, str] = {
    "previous_response_id": "previous_response_id",
    "conversation": "a stored conversation",
    **dict.fromkeys(("cached_content", "cachedContent", "data_sources", "context_id"), _STORED),
    **dict.fromkeys(("models", "route", "fallbacks", "preset"), _FALLBACK),
    **dict.fromkeys(
        ("web_search_options", "plugins", "search_parameters", "web_search", "enable_search"), "a web search"
    ),
    "mcp_servers": contents.HOSTED_TOOL,
    "container": "a container",
    "chat_template": "a chat template of the request's own",
    "prompt_embeds": "embedded prompts",
    "extra_body": _EXTENSION,
    "google": _EXTENSION,
    "audio": "an audio answer",
}
"""Members that stand for what nobody can count; null, false and empty ones stand for nothing."""
_EMPTY = frozenset((b"null", b"false", b"[]", b"{}", b'""'))
_TRUE_REASONS = {"background": "a background response", "deferred": "a deferred completion"}
_RENDERED = ("tools", "functions", "response_format", "text", "output_config", "output_format")
_KNOWN = frozenset(
    {
        *_REASONS,
        *_TRUE_REASONS,
        *_RENDERED,
        *(name for names in outputs.LIMITS.values() for name in names),
        *outputs.RAISING,
        *("messages", "input", "prompt", "system", "instructions", "n", "best_of", "modalities", "model", "stream"),
        *("prediction", "thinking", "reasoning", "context_management", "speed", "inference_geo"),
    }
)
_CLEARS = ("clear_tool_uses_", "clear_thinking_")
_ROUTER = re.compile(r"(^|/)auto(:|$)|model-router|@preset/|^openrouter/|/router(:|$)")
_LEAN = re.compile(r"(^|[/.])(claude|gemini)-")
_SEARCHES = re.compile(r"(^|/)sonar|(^|/)compound|-search-(preview|api)|deep-research|:online$")

# Members of a request to OpenAI's models that are read by `prompt` or put nothing before the model. With any
# other one the tokens of the texts are no bound.
_COUNTED_NAMES = (
    "model messages input prompt suffix system instructions tools functions response_format text tool_choice "
    "function_call parallel_tool_calls stream stream_options temperature top_p n best_of max_tokens "
    "max_completion_tokens max_output_tokens stop seed presence_penalty frequency_penalty logit_bias logprobs "
    "top_logprobs user safety_identifier prompt_cache_key prompt_cache_retention service_tier store metadata "
    "reasoning_effort verbosity truncation include dimensions encoding_format echo max_tool_calls"
)
_COUNTED = frozenset(_COUNTED_NAMES.split())


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The most a request can use. With a `reason` there is no such thing, and the numbers are a guess.

    reason          a noun phrase for messages: what in the request has no bound
    input_expected  what the input is more likely to be; the bound itself until `refine` has counted
    input_guess     what it usually is, for limits on which no money hangs: its bytes by 4
    choices         answers that `output_tokens` is for, over all prompts
    served          how the request asks to be served beside its tier, as prices name it: speed, region
    """

    input_tokens: int
    output_tokens: int
    reason: str | None = None
    input_expected: int
    input_guess: int
    choices: int = 1
    served: tuple[tuple[str, str], ...] = ()


def bound_of(
    operation: Operation,
    body: bytes,
    facts: RequestFacts,
    *,
    max_output: int | None,
    assumed_max_output: int,
    reasons_beside: bool = False,
    ordinary: Ordinary | None = None,
) -> Bound:
    """The bound of a request by its bytes. Never raises.

    `ordinary`: what `ordinary.read` says of `body`; with it the same bound costs a third.
    `body` is decoded (no content-encoding), `facts` are its. `max_output`: the most the model can write, where a
    price list says; `assumed_max_output` where it does not. `reasons_beside`: the provider does not count reasoning
    against the request's limit, which therefore comes on top of all that the model can write.
    """
    if operation == "moderations":
        return Bound(input_tokens=0, output_tokens=0, input_expected=0, input_guess=0)
    unlimited = max_output if max_output is not None and max_output > 0 else assumed_max_output
    if ordinary is not None:
        bound = _ordinary(body, ordinary, facts.model, unlimited, reasons_beside=reasons_beside)
        if bound is not None:
            return bound
    members = decode_members(body, OBJECT)
    if operation == "other" or members is None:
        why = "a path farebox does not meter" if operation == "other" else "a body farebox cannot read"
        return _bound(body, len(body) + TEMPLATE_TOKENS, unlimited, why, 1, ())
    seen = Contents()
    prompts = _look(operation, members, facts.model, seen)
    choices = outputs.choices_of(operation, members)
    reason = seen.reason or (outputs.CHOICES if choices is None else None)
    written = 0
    if operation != "embeddings":
        limit = outputs.limit_of(operation, members, unlimited) + (unlimited if reasons_beside else 0)
        written = limit * (choices or 1) * prompts
    read = _input(operation, body, members, seen, prompts, facts.model)
    return _bound(body, read, written, reason, (choices or 1) * prompts, _served(members))


def refine(operation: Operation, body: bytes, bound: Bound, model: str | None, tokens: Tokens) -> Bound:
    """`bound` with a closer input, by counting: to be asked when the bytes' bound was too dear.

    For the models whose tokenizer is known the count, and what templates add, becomes the bound. For the others
    it becomes `input_expected`, half as much again as OpenAI's tokenizer makes of it. Takes as long as
    `tokens` takes: `tokens.off_loop` says when it belongs in a thread. Never raises.
    """
    members = decode_members(body, OBJECT)
    if bound.reason is not None or members is None or operation in ("moderations", "other"):
        return bound
    ids = outputs.token_ids(members.get(_listed(operation), _NONE))
    if ids is not None:
        return bound
    estimate = tokens.estimate_input(operation, model, body)
    if estimate.extrapolated or estimate.non_text_parts:
        return bound
    rendered = [bytes(members[name]).decode("utf-8", "replace") for name in _RENDERED if name in members]
    again = tokens.count_all(rendered, estimate.encoding)
    if again.extrapolated:
        return bound
    prompts = operation in ("completions", "embeddings")
    count = estimate.tokens + again.tokens + (PROMPT_TOKENS * bound.choices if prompts else LEAN_TEMPLATE_TOKENS)
    exact = is_own(model) and members.keys() <= _COUNTED and b'"encrypted_content"' not in body
    if exact and b'"reasoning' not in body.replace(b'"reasoning_effort"', b""):
        least = min(bound.input_tokens, count)
        return msgspec.structs.replace(bound, input_tokens=least, input_expected=least, input_guess=least)
    expected = min(bound.input_tokens, count + count // 2)
    return msgspec.structs.replace(bound, input_expected=expected, input_guess=min(expected, count))


def _ordinary(
    body: bytes, request: Ordinary, model: str | None, unlimited: int, *, reasons_beside: bool
) -> Bound | None:
    """The bound of an ordinary request; None where what stands for a limit is odd."""
    limit = unlimited if request.limit is None else request.limit
    if not 0 < limit <= TOKENS_MAX:
        return None
    if reasons_beside:
        limit += unlimited
    reason, template = kind_of_model(model)
    return _bound(body, request.size + template, limit * request.choices, reason, request.choices, ())


def _look(operation: Operation, members: Members, model: str | None, seen: Contents) -> int:
    """Find what has no bound; the number of prompts."""
    seen.reason = _member_reason(operation, members) or kind_of_model(model)[0]
    if operation in ("chat", "messages", "embeddings"):
        seen.turns(members.get("messages", _NONE))
    if operation in ("responses", "messages", "chat"):
        for name in ("system", "instructions"):
            seen.blocks(members.get(name, _NONE))
        for name in ("tools", "functions"):
            seen.tools(members.get(name, _NONE))
    if operation == "responses":
        seen.turns(members.get("input", _NONE), items=True)
        return 1
    if operation not in ("completions", "embeddings"):
        return 1
    name = _listed(operation)
    prompts = outputs.prompts_of(members, name)
    if prompts is None or _has_objects(members.get(name, _NONE)):
        seen.reason = seen.reason or outputs.PROMPTS
    return prompts or 1


def _listed(operation: Operation) -> str:
    return "input" if operation == "embeddings" else "prompt"


def _has_objects(raw: msgspec.Raw) -> bool:
    """An object instead of a text: how multimodal models take pictures. A list in a list can only be token ids."""
    if opens(raw, b"{"):
        return True
    if not opens(raw, b"[") or outputs.token_ids(raw) is not None:
        return False
    items = decode_members(raw, outputs.ITEMS)
    return items is None or not all(opens(item, b'"') for item in items)


def _member_reason(operation: Operation, members: Members) -> str | None:
    for name, raw in members.items():
        reason = _REASONS.get(name)
        if reason is not None:
            if size(raw) > 8 or bytes(raw) not in _EMPTY:
                return reason
        elif name in _TRUE_REASONS:
            if bytes(raw) != b"false" and holds(raw):
                return _TRUE_REASONS[name]
        elif name not in _KNOWN and name.casefold() in _KNOWN:
            return "a member in an odd spelling"  # servers written in Go take it for the one it resembles
    modalities = members.get("modalities")
    if modalities is not None and holds(modalities) and bytes(modalities).translate(None, b" \t\r\n") != b'["text"]':
        return "an answer that is not only text"
    if operation == "responses" and holds(members.get("prompt", _NONE)):
        return "a stored prompt"
    return "context management" if _compacts(members.get("context_management", _NONE)) else None


def _compacts(management: msgspec.Raw) -> bool:
    """Whether a request lets the provider do more to its context than clear old results, which only makes it smaller.

    Compacting asks a model, and is charged.
    """
    if not management or bytes(management) in _EMPTY:
        return False
    kinds = contents.kinds((decode_members(management, OBJECT) or {}).get("edits", _NONE))
    return kinds is None or not all(kind.startswith(_CLEARS) for kind in kinds)


def kind_of_model(model: str | None) -> tuple[str | None, int]:
    """Why a model has no bound, and the tokens its template may add."""
    lean = is_own(model) or _LEAN.search((model or "").lower())
    return _model_reason(model), LEAN_TEMPLATE_TOKENS if lean else TEMPLATE_TOKENS


def _model_reason(model: str | None) -> str | None:
    name = (model or "").lower()
    if _ROUTER.search(name):
        return _FALLBACK
    return "a model that searches by itself" if _SEARCHES.search(name) else None


def _input(operation: Operation, body: bytes, members: Members, seen: Contents, prompts: int, model: str | None) -> int:
    """The bound of what the model reads."""
    ids = outputs.token_ids(members.get(_listed(operation), _NONE))
    if ids is not None and operation in ("completions", "embeddings"):
        return ids + len(body) - size(members[_listed(operation)]) + growth_of(body) + prompts
    total = len(body) + growth_of(body)
    if operation in ("completions", "embeddings"):
        return total + prompts * PROMPT_TOKENS
    rendered = seen.rendered + sum(size(members[name]) for name in _RENDERED if name in members)
    tools = "tools" in members or "functions" in members
    constants = kind_of_model(model)[1] + (TOOLS_TOKENS if tools and not is_own(model) else 0)
    return total + (RENDERED_TIMES - 1) * rendered + constants


def _served(members: Members) -> tuple[tuple[str, str], ...]:
    found = ((name, contents.string(members[name]).lower()) for name in ("speed", "inference_geo") if name in members)
    return tuple((name, value) for name, value in found if value)


def _bound(
    body: bytes, read: int, written: int, reason: str | None, choices: int, served: tuple[tuple[str, str], ...]
) -> Bound:
    guess = -(-len(body) // BYTES_PER_TOKEN)
    if reason is not None:
        guess = min(guess, UNBOUND_GUESS)  # pictures and files in a body are not text
    read, written = min(read, TOKENS_MAX), min(written, TOKENS_MAX)
    return Bound(
        input_tokens=read,
        output_tokens=written,
        reason=reason,
        input_expected=read,
        input_guess=min(read, guess),
        choices=min(choices, TOKENS_MAX),
        served=served,
    )
