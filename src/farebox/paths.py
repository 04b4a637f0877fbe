"""What a request's target means: which provider it names, what it asks for, what goes upstream.

The target a client sends is data: it chooses an operation and a provider by name, never a host.
What goes upstream is the client's own bytes after a known prefix, so nothing is decoded and encoded
again; decisions are taken on a decoded, folded copy, so no spelling of a path slips past them.
Which provider answers for a model is `routing`'s business.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from urllib.parse import unquote

from farebox.errors import BadRequest, NotFound
from farebox.records import Family, Operation

TARGET_BYTES_MAX = 8192
"""Longest request target taken; a longer one gets 400."""

_OPERATIONS: dict[str, Operation] = {
    "chat/completions": "chat",
    "completions": "completions",
    "responses": "responses",
    "embeddings": "embeddings",
    "moderations": "moderations",
    "messages": "messages",
}

# Roots whose sub-paths are named in rows as templates. Anything else is `{path}`: the endpoint
# column must stay small whatever clients ask for.
_RESOURCE_WORDS = (
    "agents assistants audio batches chat chatkit completions containers conversations decisions edits "
    "embeddings evals files fine_tuning images live messages models moderations organization realtime "
    "rerank responses safety skills threads uploads vaults vector_stores videos webhook_endpoints"
)
_TEMPLATE_WORDS = (
    "alpha assignments batches beta calls cancel checkpoints clicks client_secrets comments compact "
    "complete completions content count_tokens edits events extensions file_batches files generations "
    "graders input_items input_tokens items jobs messages output_items parts pause permissions remix "
    "results resume run runs search sessions speech steps submit_tool_outputs transcriptions translations "
    "validate variations voices"
)
_RESOURCES = frozenset(_RESOURCE_WORDS.split())
_WORDS = frozenset(_TEMPLATE_WORDS.split())

# What costs nothing although farebox does not meter it. Everything else may cost money, also what is
# not known here: batches, images, audio, videos, fine-tuning, runs, evals, vector stores and containers
# (storage and sessions), realtime and chat kits (media or credentials that bypass the proxy), compaction.
_STORED_WORDS = (
    "assistants batches chat containers conversations evals files fine_tuning messages models responses "
    "skills threads uploads vector_stores videos"
)
_FREE_POST_SHAPES = (
    "assistants assistants/* batches/*/cancel chat/completions/* conversations conversations/* "
    "conversations/*/items detokenize files fine_tuning/jobs/*/cancel fine_tuning/jobs/*/pause "
    "messages/batches/*/cancel messages/count_tokens responses/*/cancel responses/input_tokens "
    "skills skills/* threads threads/* threads/*/messages threads/*/messages/* threads/*/runs/*/cancel "
    "tokenize uploads uploads/*/cancel uploads/*/complete uploads/*/parts "
    "vector_stores/*/file_batches/*/cancel"
)
_STORED = frozenset(_STORED_WORDS.split())
"""Roots whose objects may be read and deleted."""
_FREE_POSTS = frozenset(tuple(shape.split("/")) for shape in _FREE_POST_SHAPES.split())
"""Counting, storing what a later (metered) call may use, renaming, stopping. `*` is an id."""


_DEPLOYING = ("deployments", "engines")
"""What a deployment's name stands behind; `engines` is what OpenAI called it once."""
_ADMINISTRATIVE = frozenset(("organization", "organizations"))
"""OpenAI's and Anthropic's root of what administers a credential."""


@dataclass(frozen=True, slots=True)
class Target:
    """One request target, understood.

    operation   what is asked; `other` passes unmetered
    family      the API family whose error shapes and usage fields apply
    provider    the provider named by `/p/PROVIDER/...`, else None: the routes choose
    suffix      what is appended to the provider's base URL, query included, as the client spelt it.
                For `/v1/...` targets it starts after `/v1`
    versioned   the suffix followed a `/v1` that belongs to the provider's API
    endpoint    template for rows: ids are `{id}`, deployments `{deployment}`, unknown paths `{path}`
    """

    operation: Operation
    family: Family
    provider: str | None
    suffix: str
    versioned: bool
    endpoint: str
    administrative: bool
    """`/organization/...`: administers the credential, so it is never forwarded where keys share one."""
    billable: bool
    """It may cost money. Where it is not `metered` too, that money passes unseen: closed to keys with a budget."""
    metered: bool = field(init=False)
    """What it uses is counted."""
    deployment: str | None = field(init=False)
    """The deployment that an Azure path names, decoded: that answers, whatever model the body speaks of."""

    def __post_init__(self) -> None:
        # Asked again and again for each call, and a target is remembered with its head.
        object.__setattr__(self, "metered", self.operation != "other")
        object.__setattr__(self, "deployment", _deployment(self.suffix.partition("?")[0]))

    @property
    def path(self) -> str:
        """What was asked, as the client spelt it, without the query."""
        prefix = "/v1" if self.provider is None else f"/p/{self.provider}"
        return prefix + self.suffix.partition("?")[0]


def _deployment(path: str) -> str | None:
    if "%" not in path and not any(word in path.lower() for word in _DEPLOYING):
        return None
    parts = segments(path)
    return next((name for word, name in itertools.pairwise(parts) if word.lower() in _DEPLOYING), None)


def parse(method: str, raw: str) -> Target:
    """Understand the request target `raw` (as on the request line).

    Raises `BadRequest` for a target that is not a plain absolute path or that tries to climb,
    `NotFound` for a path farebox does not serve.
    """
    raw = _origin_form(raw)
    path = raw.partition("?")[0]
    folded = _fold(path)
    if folded[:1] == ["v1"] and path.startswith("/v1/"):
        return _target(method, folded[1:], None, raw[3:], versioned=True)
    if len(folded) >= 2 and folded[0] == "p" and path.startswith("/p/"):
        name, slash, rest = raw[3:].partition("/")
        if name and slash and name.partition("?")[0] == name and name == unquote(name):
            inner = folded[2:]
            if inner[:1] == ["v1"]:
                inner = inner[1:]
            return _target(method, inner, name, "/" + rest, versioned=False)
    raise NotFound(
        "farebox serves nothing here. Point the SDK's base_url at http://HOST:PORT/v1 "
        "(Anthropic: http://HOST:PORT), or at http://HOST:PORT/p/PROVIDER for one provider."
    )


def asked_model(method: str, target: Target) -> str | None:
    """The model whose entry a request wants, "" for the whole list, None for a request that is about something else.

    Of the routed paths only: below `/p/PROVIDER` it is that provider's own list. An id may hold slashes,
    encoded or not. Other methods change something at the provider (a fine-tuned model is deleted so).
    """
    if method not in ("GET", "HEAD") or target.provider is not None:
        return None
    path = unquote(target.suffix.partition("?")[0]).strip("/")
    root, _, id = path.partition("/")
    return id if root.partition(";")[0].lower() == "models" else None


def family_of(raw: str) -> Family:
    """The family whose error shape suits a target that may not even parse."""
    return "anthropic" if "/messages" in raw.partition("?")[0] else "openai"


def loopback_name(host: str) -> bool:
    """Whether a Host header names this machine by loopback: what a page from elsewhere can't make a browser say."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower().rstrip(".")
    return (
        name in ("localhost", "::1")
        or name.endswith(".localhost")
        or (name.startswith("127.") and name.replace(".", "").isdigit())
    )


def _origin_form(raw: str) -> str:
    if len(raw) > TARGET_BYTES_MAX:
        raise BadRequest(f"The request target is longer than {TARGET_BYTES_MAX} bytes.")
    if not raw.startswith("/"):
        # Absolute form (`POST http://host/path`): only forward proxies are asked like this. The
        # host it names is ignored, as Host is: providers' hosts come from the configuration.
        scheme, found, rest = raw.partition("://")
        if not found or scheme.lower() not in ("http", "https"):
            raise BadRequest("The request target is not a path.")
        slash = rest.find("/")
        raw = rest[slash:] if slash >= 0 else "/"
    if raw.startswith("//") or "\\" in raw or "#" in raw:
        raise BadRequest("The request target is not a plain path.")
    if any(c <= " " or c == "\x7f" for c in raw):
        raise BadRequest("The request target has a space or a control character.")
    return raw


def _fold(path: str) -> list[str]:
    """Segments of `path`, decoded and lower-cased."""
    return [segment.lower() for segment in segments(path)]


def segments(path: str) -> list[str]:
    """Segments of `path`, decoded, empty ones dropped. Raises `BadRequest` for climbing ones and odd encodings."""
    if "%" in path:
        for _ in range(3):  # `%252e` is `%2e` to a server that decodes twice
            decoded = unquote(path)
            if decoded == path:
                break
            path = decoded
        if "%" in path and unquote(path) != path:
            raise BadRequest("The request target is encoded too many times.")
        if any(c < " " or c == "\x7f" for c in path):
            raise BadRequest("The request target encodes a control character.")
    # `;` starts a path parameter on some servers: `/v1/organization;x/usage`, `/v1/..;/`.
    parts = [s.partition(";")[0] for s in path.replace("\\", "/").split("/") if s]
    if "." in parts or ".." in parts:
        raise BadRequest("The request target has a '.' or '..' segment.")
    return parts


def _target(method: str, inner: list[str], provider: str | None, suffix: str, *, versioned: bool) -> Target:
    operation = _operation(method, inner)
    family: Family = "anthropic" if operation == "messages" or inner[:1] == ["messages"] else "openai"
    endpoint = _endpoint(inner, operation, azure=provider is not None)
    billable = operation != "other" or not _is_free(method, inner)
    return Target(
        operation, family, provider, suffix, versioned, endpoint, not _ADMINISTRATIVE.isdisjoint(inner), billable
    )


def _operation(method: str, inner: list[str]) -> Operation:
    if method != "POST" or not inner:
        return "other"
    # Azure and others put the deployment before the operation, so the end of the path decides;
    # `/threads/{id}/messages` and `/files/{id}/...` are stored objects, not calls.
    if inner[-2:] == ["chat", "completions"]:
        return "chat"
    operation = _OPERATIONS.get(inner[-1], "other")
    if operation == "messages" and "threads" in inner:
        return "other"
    if operation == "responses" and len(inner) >= 2 and inner[-2] in ("chat", "threads"):
        return "other"
    return operation


def _is_free(method: str, inner: list[str]) -> bool:
    """Whether a call that is not metered is known to cost nothing. Azure says `openai` or `openai/v1` first."""
    while inner[:1] in (["openai"], ["v1"]):
        inner = inner[1:]
    if method in ("GET", "HEAD", "DELETE"):
        return bool(inner) and inner[0] in _STORED
    # An id is no word of the API: `threads/runs` starts a run, `threads/{id}` renames a thread.
    shape = tuple(s if i == 0 or s in _WORDS or not s else "*" for i, s in enumerate(inner))
    return method == "POST" and shape in _FREE_POSTS


def _endpoint(inner: list[str], operation: Operation, *, azure: bool) -> str:
    if operation != "other":
        name = next(k for k, v in _OPERATIONS.items() if v == operation)
        deployed = azure and "deployments" in inner
        return f"/openai/deployments/{{deployment}}/{name}" if deployed else f"/v1/{name}"
    if not inner or inner[0] not in _RESOURCES or len(inner) > 7:
        return "{path}"
    return "/v1/" + "/".join(s if i == 0 or s in _WORDS else "{id}" for i, s in enumerate(inner))
