"""Names and words that several parts of the dashboard use: metrics, what an empty panel says, colours."""

from __future__ import annotations

REQUESTS = "farebox_requests_total"
TOKENS = "farebox_tokens_total"
COST = "farebox_cost_usd_total"
TTFT = "farebox_time_to_first_token_seconds"
DURATION = "farebox_request_duration_seconds"
PER_TOKEN = "farebox_time_per_output_token_seconds"  # noqa: S105 (a metric)
OVERHEAD = "farebox_overhead_seconds"

QUIET = "No calls in this range"
NO_SERIES = "Nothing yet"
EXACT = "Exact figures: `farebox usage`."
NARROWED = "Not narrowed by key."

OUTCOMES = {
    "complete": "green",
    "client_gone": "light-blue",
    "upstream_error": "red",
    "upstream_cut": "orange",
    "budget_cut": "purple",
    "farebox_cut": "dark-red",
    "reported": "gray",
}
TYPES = {
    "input": "blue",
    "cache_read": "green",
    "cache_write": "light-green",
    "output": "orange",
    "reasoning": "purple",
}
SOURCES = {"provider": "green", "partial": "yellow", "estimate": "orange", "hold": "red", "none": "gray"}
QUANTILES = {"p50": "green", "p90": "yellow", "p99": "red"}
