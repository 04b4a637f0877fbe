"""Which stored object a request's path names, or which collection of them.

Decided on a decoded copy of the path, in which the first segment that names a collection counts,
wherever it stands: behind `/p/PROVIDER` lie `openai/files/ID` and the like. So a path of an unknown
API whose words happen to be these is treated as theirs; the other way round would let a prefix hide an
object. Whose the object is, is for `registry`; which provider is asked, for `routing`.
"""

from __future__ import annotations

from dataclasses import dataclass

from farebox.paths import Target, segments

_COLLECTIONS: dict[str, str] = {
    "agents": "agent",
    "agents/automations": "automation",
    "agents/environments": "environment",
    "agents/environments/templates": "environment_template",
    "agents/sessions": "session",
    "assistants": "assistant",
    "audio/voice_consents": "voice_consent",
    "audio/voices": "voice",
    "batch/jobs": "batch",
    "batches": "batch",
    "cachedcontents": "cached_content",
    "chat/completions": "chat_completion",
    "chatkit/sessions": "chatkit_session",
    "chatkit/threads": "thread",
    "containers": "container",
    "conversations": "conversation",
    "dreams": "dream",
    "environments": "environment",
    "evals": "eval",
    "files": "file",
    "fine-tunes": "fine_tuning_job",
    "fine_tunes": "fine_tuning_job",
    "fine_tuning/checkpoints": "model",
    "fine_tuning/jobs": "fine_tuning_job",
    "fine_tunings": "fine_tuning_job",
    "libraries": "library",
    "live/sessions": "live_session",
    "memory_stores": "memory_store",
    "messages/batches": "message_batch",
    "realtime/calls": "realtime_call",
    "responses": "response",
    "safety/alerts": "safety_alert",
    "safety/cases": "safety_case",
    "sessions": "session",
    "skills": "skill",
    "threads": "thread",
    "threads/runs": "run",
    "tunnels": "tunnel",
    "uploads": "upload",
    "user_profiles": "user_profile",
    "vaults": "vault",
    "vector_stores": "vector_store",
    "videos": "video",
    "videos/characters": "character",
    "videos/edits": "video",
    "videos/extensions": "video",
    "webhook_endpoints": "webhook_endpoint",
}
"""Paths of collections (OpenAI's, Azure's, Anthropic's, Mistral's, Together's) and what one of their objects is.

A longer path outranks a shorter one: `threads/runs` starts a run, `threads/ID` is a thread.
"""
_NO_OBJECTS = frozenset(("responses/compact", "responses/input_tokens"))
"""Calls beside stored objects: what follows is a word, not an id."""
_NAMING = frozenset(("accounts", "deployments", "endpoints", "engines", "locations", "projects", "publishers"))
"""What follows one of these is a name that an operator chose, whatever it says."""
_ROOTS = frozenset(path.partition("/")[0] for path in _COLLECTIONS)
_REFERRING = _ROOTS | {"images", "moderations", "completions", "embeddings"}
_NAMING_IN_FORMS = frozenset(("containers", "images", "videos"))
_UPLOADING = frozenset(("audio", "files", "uploads"))
_DEPTH_MAX = 3
_METERED = frozenset(("/chat/completions", "/completions", "/embeddings", "/messages", "/moderations", "/responses"))


@dataclass(frozen=True, slots=True)
class Place:
    """A collection (`id` is None), an object of it, or something below that object."""

    kind: str
    """What an object of the collection is: `file`, `response`, `batch` ..."""
    id: str | None = None
    below: tuple[str, ...] = ()
    """What follows the id, decoded: a child belongs to whom the object belongs to."""


def place_of(method: str, target: Target) -> Place | None:
    """What `target` names; None where that is no stored object.

    Models are listed and read freely (`/v1/models` is farebox's own answer), but a fine-tuned one is
    changed or deleted by its owner only.
    """
    path = target.suffix.partition("?")[0]
    if target.metered and path in _METERED:
        return None
    parts = segments(path)
    if target.metered:
        # What a metered path ends with is the operation: in `agents/completions` it is no agent's id.
        del parts[-2 if target.operation == "chat" else -1 :]
    words = [part.lower() for part in parts]
    at = 0
    while at < len(parts):
        word = words[at]
        if word in _NAMING:
            at += 2
            continue
        if word == "models" and len(parts) > at + 1:
            return None if method in ("GET", "HEAD", "POST") else Place("model", "/".join(parts[at + 1 :]))
        if word in _ROOTS:
            for depth in range(_DEPTH_MAX, 0, -1):
                name = "/".join(words[at : at + depth])
                if name in _NO_OBJECTS:
                    return None
                if name in _COLLECTIONS:
                    rest = parts[at + depth :]
                    return Place(_COLLECTIONS[name], rest[0] if rest else None, tuple(rest[1:]))
        at += 1
    return None


def may_refer(target: Target, *, form: bool = False) -> bool:
    """Whether a JSON body, or a `form`, sent to an unmetered `target` may name objects: it belongs to a known API.

    What lies elsewhere may use the same words for things of its own. Files, parts and sound go up as they are, but
    a container's file may be another one's copy.
    """
    words = [part.lower() for part in segments(target.suffix.partition("?")[0])]
    known = next((word for word in words if word in _REFERRING), None)
    return known in _NAMING_IN_FORMS if form else known is not None and known not in _UPLOADING
