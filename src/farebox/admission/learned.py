"""What answers usually come to: the high quantile of the last outputs of each key and model.

A limit of 64,000 tokens says little about an answer; the ones before it say more. Known here only, in
one process, and lost with it: without history the start is STARTING_TOKENS, and a stream that needs
more asks for it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from uuid import UUID

from farebox.records import UsageEvent

OUTPUTS_KEPT = 128
"""Outputs kept of one key and model; an older one is forgotten."""
PAIRS_MAX = 4_096
"""Keys and models known at once; past it the one not seen for longest is forgotten and starts anew. 5 MB."""
OUTPUTS_MIN = 8
"""Fewer are no history: a first short answer says nothing about the next."""
QUANTILE = 0.95
STARTING_TOKENS = 2_048
"""What a stream without history holds of its output, or its bound if that is less."""

_Key = tuple[int | None, str | None]
"""A key's id by its number, which is hashed in no time, and a model."""


class Learned:
    """Fed with every event; asked for every stream that an `expected` budget counts. Not for several threads."""

    def __init__(self, *, pairs_max: int = PAIRS_MAX) -> None:
        self._pairs_max = pairs_max
        self._outputs: OrderedDict[_Key, deque[int]] = OrderedDict()
        self._quantiles: dict[_Key, int] = {}

    def __len__(self) -> int:
        return len(self._outputs)

    def observe(self, event: UsageEvent) -> None:
        """Learn from an event: from whole answers only, an interrupted one would have been longer."""
        if event.outcome != "complete" or event.usage_source not in ("provider", "partial"):
            return
        if event.output_tokens is not None:
            self.saw(event.key_id, event.requested_model, event.output_tokens)

    def saw(self, key_id: UUID | None, model: str | None, output_tokens: int) -> None:
        """Learn from a whole answer; `model` as the request names it."""
        if output_tokens <= 0:
            return
        key = (None if key_id is None else key_id.int, model)
        outputs = self._outputs.get(key)
        if outputs is None:
            while len(self._outputs) >= self._pairs_max:
                self._quantiles.pop(self._outputs.popitem(last=False)[0], None)
            outputs = self._outputs[key] = deque(maxlen=OUTPUTS_KEPT)
        else:
            self._outputs.move_to_end(key)
        outputs.append(output_tokens)
        if key in self._quantiles:
            del self._quantiles[key]

    def output_tokens(self, key_id: UUID | None, model: str | None) -> int | None:
        """The quantile, an output that was; None without history. `model`: as the request names it."""
        key = (None if key_id is None else key_id.int, model)
        known = self._quantiles.get(key)
        if known is not None:
            return known
        outputs = self._outputs.get(key)
        if outputs is None or len(outputs) < OUTPUTS_MIN:
            return None
        found = sorted(outputs)[math.ceil(QUANTILE * len(outputs)) - 1]
        self._quantiles[key] = found
        return found
