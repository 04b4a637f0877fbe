"""The settings of what farebox shows of itself: the list of models, the metrics, the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from farebox.config.kinds import Choice, Number, NumberOrOff, Token, Whole, setting

_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models that GET /v1/models lists."""

    refresh_s: float | None = field(
        default=float(_DAY_S),
        metadata=setting(
            NumberOrOff(0, 30 * _DAY_S),
            "How old a provider's list may be before it is asked again, in the background, with its own credential; "
            "once for all workers and replicas. off or 0: only by `farebox models refresh`. Never in auth.mode "
            "passthrough, where GET /v1/models is the provider's answer.",
        ),
    )
    retry_s: float = field(
        default=900.0,
        metadata=setting(
            Number(1, _DAY_S), "How long after a failure a provider is asked again. Its last good list stays meanwhile."
        ),
    )
    poll_s: float = field(
        default=10.0,
        metadata=setting(
            Number(0.05, 3_600), "How often a process looks for lists that are due, or that another one fetched."
        ),
    )
    timeout_s: float = field(
        default=30.0,
        metadata=setting(Number(0.1, 600), "Time for one provider's list, all its pages. After it: a failure."),
    )
    list_mb_max: int = field(
        default=8,
        metadata=setting(Whole(1, 256), "Size of one provider's list, all its pages. A larger one is a failure."),
    )
    models_max: int = field(
        default=5_000,
        metadata=setting(Whole(1, 50_000), "Models kept of one provider. The rest of a longer list is left out."),
    )


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """GET /metrics."""

    token: str | None = field(
        default=None,
        repr=False,
        metadata=setting(
            Token(),
            "Bearer token that /metrics asks for. Left out, it asks for none: whoever reaches the port can read the "
            "names of keys and models, and what they cost. On a loopback address that is who asks for a loopback name.",
            '"${FAREBOX_METRICS_TOKEN}"',
        ),
    )
    label_values_max: int = field(
        default=200,
        metadata=setting(
            Whole(1, 100_000),
            "Values of one label that have series of their own: models, keys, tools ... The rest is counted as other.",
            at_start=True,
        ),
    )
    series_max: int = field(
        default=20_000,
        metadata=setting(
            Whole(1_000, 2_000_000),
            "Samples in one answer of /metrics, all workers together. At it, what has no series yet is counted as "
            "other. Each takes 8 bytes a worker, and some 100 in the answer.",
            at_start=True,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is logged; never prompts, never secrets."""

    level: Literal["debug", "info", "warning", "error"] = field(
        default="info",
        metadata=setting(Choice(("debug", "info", "warning", "error")), "The least important lines to show."),
    )
    format: Literal["auto", "console", "json"] = field(
        default="auto",
        metadata=setting(
            Choice(("auto", "console", "json")), "auto is console on a terminal and JSON lines elsewhere."
        ),
    )
