"""Request targets: what is understood, what is refused, and that no spelling moves the host or hides a path."""

from __future__ import annotations

import pytest

from farebox.errors import BadRequest, NotFound
from farebox.paths import parse


@pytest.mark.parametrize(
    ("target", "operation", "family", "endpoint"),
    [
        ("/v1/chat/completions", "chat", "openai", "/v1/chat/completions"),
        ("/v1/completions", "completions", "openai", "/v1/completions"),
        ("/v1/responses?beta=true", "responses", "openai", "/v1/responses"),
        ("/v1/embeddings", "embeddings", "openai", "/v1/embeddings"),
        ("/v1/moderations", "moderations", "openai", "/v1/moderations"),
        ("/v1/messages?beta=true", "messages", "anthropic", "/v1/messages"),
        ("/v1/chat/completions/", "chat", "openai", "/v1/chat/completions"),
        ("/v1/%63hat/completions", "chat", "openai", "/v1/chat/completions"),
        ("/v1/messages/count_tokens", "other", "anthropic", "/v1/messages/count_tokens"),
        ("/v1/responses/input_tokens", "other", "openai", "/v1/responses/input_tokens"),
        ("/v1/threads/thread_1/messages", "other", "openai", "/v1/threads/{id}/messages"),
        ("/v1/responses/resp_1/cancel", "other", "openai", "/v1/responses/{id}/cancel"),
        ("/v1/fine_tuning/jobs/ft-1/events", "other", "openai", "/v1/fine_tuning/jobs/{id}/events"),
        ("/v1/something/else", "other", "openai", "{path}"),
    ],
)
def test_post_targets_are_named_by_what_they_ask(target: str, operation: str, family: str, endpoint: str) -> None:
    """A POST target is known by its decoded path, and rows name it by a template without ids."""
    found = parse("POST", target)
    assert (found.operation, found.family, found.endpoint) == (operation, family, endpoint)
    assert found.provider is None
    assert found.versioned
    assert "/v1" + found.suffix == target


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"])
def test_only_post_creates_charges(method: str) -> None:
    """The same path read with another method is not a metered call."""
    assert parse(method, "/v1/chat/completions").operation == "other"


def test_a_named_provider_keeps_the_rest_of_the_target_as_spelt() -> None:
    """What follows /p/PROVIDER goes up byte for byte, query and escapes included."""
    found = parse("POST", "/p/azure/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21&x=%2F")
    assert found.provider == "azure"
    assert found.suffix == "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21&x=%2F"
    assert not found.versioned
    assert found.operation == "chat"
    assert found.endpoint == "/openai/deployments/{deployment}/chat/completions"


def test_a_router_path_below_a_named_provider_is_metered() -> None:
    """Providers put models and versions before the operation: the end of the path decides."""
    found = parse("POST", "/p/hf/hf-inference/models/mistralai/M/v1/chat/completions")
    assert (found.operation, found.endpoint) == ("chat", "/v1/chat/completions")


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example/v1/chat/completions",
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/%252e%252e/admin",
        "/v1/%25252525252e/x",
        "/v1/..;x/admin",
        "/v1/a%2f..%2fb",
        "/v1/..%5cadmin",
        "/v1/files\\..\\x",
        "/v1/x%00y",
        "/v1/x%0d%0ahost:evil",
        "/v1/#fragment",
        "@evil.example/v1/chat/completions",
        "evil.example:443",
        "ftp://evil/v1/chat/completions",
        "/v1/" + "a" * 9000,
    ],
)
def test_targets_that_try_to_go_elsewhere_are_refused(target: str) -> None:
    """Climbing, doubly encoded, protocol-relative and control characters get 400, however they are spelt."""
    with pytest.raises(BadRequest):
        parse("POST", target)


@pytest.mark.parametrize(
    "target", ["/", "/v1", "/v2/chat/completions", "/V1/models", "/p", "/p/", "/p/x", "/%76%31/models", "/p/x%2f/y"]
)
def test_paths_that_farebox_does_not_serve_are_not_found(target: str) -> None:
    """Anything outside /v1/ and /p/PROVIDER/ is not forwarded anywhere."""
    with pytest.raises(NotFound, match="base_url"):
        parse("GET", target)


def test_the_host_of_an_absolute_target_is_ignored() -> None:
    """An absolute-form target keeps its path; the host it names plays no part."""
    found = parse("POST", "http://evil.example/v1/embeddings?a=b")
    assert (found.suffix, found.provider) == ("/embeddings?a=b", None)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/organization/costs",
        "/v1/%6frganization/costs",
        "/v1//organization/costs",
        "/v1/Organization/costs",
        "/v1/organization;x/costs",
        "/v1/organization%2fcosts",
        "/p/openai/organization/admin_api_keys",
        "/p/openai/v1/organization/users",
    ],
)
def test_administrative_paths_are_recognised_in_every_spelling(target: str) -> None:
    """/organization is seen through escapes, doubled slashes, case and path parameters."""
    assert parse("GET", target).administrative
