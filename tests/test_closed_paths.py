"""Which unmetered paths a key with a budget may use: what is known to cost nothing, and nothing else."""

from __future__ import annotations

import pytest

from farebox.paths import parse

FREE = (
    *("GET /v1/models", "HEAD /v1/models/gpt-4o", "DELETE /v1/models/ft:gpt-4o:acme", "POST /v1/files"),
    *("GET /v1/files/file-1/content", "DELETE /v1/files/file-1", "GET /v1/responses/resp_1?stream=true"),
    *("POST /v1/responses/resp_1/cancel", "DELETE /v1/responses/resp_1", "POST /v1/responses/input_tokens"),
    *("GET /v1/responses/resp_1/input_items", "POST /v1/messages/count_tokens", "GET /v1/batches/batch_1"),
    *("POST /v1/batches/batch_1/cancel", "POST /v1/messages/batches/msgbatch_1/cancel", "POST /v1/conversations"),
    *("POST /v1/conversations/conv_1/items", "GET /v1/chat/completions", "POST /v1/chat/completions/chatcmpl-1"),
    *("POST /v1/uploads", "POST /v1/uploads/upload_1/parts", "POST /v1/threads", "POST /v1/threads/thread_1/messages"),
    *("POST /v1/threads/thread_1/runs/run_1/cancel", "GET /v1/threads/thread_1/runs/run_1", "GET /v1/evals/eval_1"),
    *("POST /v1/fine_tuning/jobs/ft-1/cancel", "GET /v1/fine_tuning/jobs", "POST /v1/assistants/asst_1"),
    *("GET /p/azure/openai/files?api-version=1", "POST /p/azure/openai/v1/files", "POST /p/local/tokenize"),
    *("GET /v1/videos/video_1/content", "DELETE /v1/vector_stores/vs_1", "POST /v1/FILES/", "POST /v1//files"),
)
CLOSED = (
    *("POST /v1/batches", "POST /v1/messages/batches", "POST /v1/images/generations", "POST /v1/images/edits"),
    *("POST /v1/audio/speech", "POST /v1/audio/transcriptions", "POST /v1/videos", "POST /v1/videos/video_1/remix"),
    *("POST /v1/fine_tuning/jobs", "POST /v1/fine_tuning/jobs/ft-1/resume", "POST /v1/fine_tuning/alpha/graders/run"),
    *("POST /v1/realtime/client_secrets", "POST /v1/realtime/calls", "GET /v1/realtime", "GET /v1/live/sessions"),
    *("POST /v1/threads/runs", "POST /v1/threads/thread_1/runs", "POST /v1/threads/t/runs/r/submit_tool_outputs"),
    *("POST /v1/evals", "POST /v1/evals/eval_1/runs", "POST /v1/vector_stores", "POST /v1/vector_stores/vs_1/files"),
    *("POST /v1/vector_stores/vs_1/file_batches", "POST /v1/vector_stores/vs_1/search", "POST /v1/containers"),
    *("POST /v1/responses/compact", "POST /v1/responses/resp_1", "POST /v1/decisions", "POST /v1/rerank"),
    *("POST /v1/agents/sessions", "POST /v1/chatkit/sessions", "POST /v1/anything", "GET /v1/anything", "GET /v1/"),
    *("PUT /v1/files/file-1", "PATCH /v1/models/m", "POST /v1/%62atches", "POST /v1/BATCHES", "POST /v1//batches/"),
    *("POST /v1/batches;x=/cancel", "POST /v1/responses/%63ompact", "POST /v1/responses/;x/cancel"),
    *("POST /p/gemini/v1beta/models/gemini-2.5-pro:generateContent", "POST /p/azure/openai/v1/batches"),
    *("POST /p/azure/openai/deployments/d/images/generations?api-version=1", "POST /p/local/files/run"),
)


@pytest.mark.parametrize("asked", FREE)
def test_what_is_known_to_be_free_stays_open(asked: str) -> None:
    """Reading, deleting, storing, counting and stopping cost nothing, so no budget closes them."""
    method, target = asked.split(" ")
    found = parse(method, target)
    assert not found.metered
    assert not found.billable


@pytest.mark.parametrize("asked", CLOSED)
def test_what_may_cost_money_counts_as_billable(asked: str) -> None:
    """What could spend past the meter is billable however it is spelt, and so is whatever nobody knows."""
    method, target = asked.split(" ")
    found = parse(method, target)
    assert not found.metered
    assert found.billable


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/messages", "/p/azure/openai/responses"])
def test_a_metered_call_is_billable(target: str) -> None:
    """Calls that farebox meters cost money too; the meter sees it."""
    assert parse("POST", target).billable


def test_a_target_tells_its_path_without_the_query() -> None:
    """A refusal names the path as the client spelt it; a query may hold what is not to be read."""
    assert parse("POST", "/v1/Batches?x=1").path == "/v1/Batches"
    assert parse("POST", "/p/azure/openai/batches?api-version=1").path == "/p/azure/openai/batches"
