"""What a meter knows: `Notes` while the answer passes, `Reading` when somebody asks.

The wires (one for each API family) write into the notes; nothing here reads bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from farebox.dialects.faults import Fault
from farebox.dialects.plain import PlainUsage, plain_usage
from farebox.dialects.profile import Profile
from farebox.dialects.raw import nothing_kept, shortened
from farebox.dialects.usage import Account, is_skeleton, merge, read_usage
from farebox.dialects.values import count, mapping, text, word
from farebox.meter.tools import ToolTally
from farebox.records import Operation, ToolCall, Usage

STORED_MAX = 1000
"""Ids of stored objects taken from one answer; those of further ones are not known to be anybody's."""
USAGE_RAW_BYTES_MAX = 16 * 1024
"""Of a larger usage object only the plain members are kept, and the names of the others (`dialects.raw`)."""
CHOICES_MAX = 128
"""Choices of one answer whose usage is told apart."""

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class Reading(msgspec.Struct, kw_only=True, frozen=True):
    """What one answer told. Unreported is None; a reported zero is 0."""

    usage: Usage
    has_usage: bool
    """The provider reported input or output tokens."""
    plain: bool = False
    """It is the whole of a success; `usage` has both counts, came as a `PlainUsage`, and is all that is billed."""
    usage_raw: msgspec.Raw | PlainUsage | None = None
    """The provider's usage object, as JSON or as a type that encodes to it; later snapshots merged over
    earlier ones. Siblings that belong to it (`tool_usage`, `usage_breakdown`) stand in it as members."""
    unexplained_tokens: int | None = None
    """What is left of the provider's own total when input and output are taken away; not billed."""
    output_provisional: bool = False
    """The output count is only the one an answer starts with (Messages); what was seen may be more."""
    model: str | None = None
    service_tier: str | None = None
    response_id: str | None = None
    tool_calls: list[ToolCall] = []
    stream: bool = False
    """It was answered with an event stream, whatever was asked for."""
    first_token_at: float | None = None
    """Clock value given to the `feed` that brought the first generated content of a stream."""
    complete: bool = False
    """The answer ended properly by its own content: a terminal event, a finish reason or a usage
    frame of its own; for a JSON body that it is whole."""
    in_band_error: bool = False
    """An error reported inside an answer, whatever its status."""
    error_type: str | None = None
    error_code: str | None = None
    unparsed_events: int = 0
    output_text: str = ""
    """A sample of the generated text (with reasoning, refusals, tool names and arguments), filled
    when the output count is missing or the answer incomplete; bounded."""
    output_chars_total: int = 0
    """Characters of generated text in all, extrapolated where only a part was sampled."""
    output_bytes_total: int = 0
    """The same in bytes of UTF-8."""


class Notes:
    """What has been learned of one answer so far."""

    def __init__(self, operation: Operation, profile: Profile) -> None:
        self.operation = operation
        self.profile = profile
        self.model: str | None = None
        self.service_tier: str | None = None
        self.response_id: str | None = None
        self.stored: dict[str, str] = {}
        """Ids of what the provider stored along with the answer, and what it is (`item`, `container` ...)."""
        self.tools = ToolTally()
        self.fault: Fault | None = None
        self.units: dict[str, int | float] = {}
        """Billed units counted from the answer's items rather than read from its usage."""
        self.items = 0
        """Finished output items seen (Responses)."""
        self.terminal = False
        self.finished = False
        self.whole_body = False
        self.content = False
        """Generated content was seen."""
        self.provisional = False
        self.unparsed = 0
        self._head: tuple[Any, Any] = (None, None)
        self._usage: dict[str, Any] | None = None
        self._fallback: dict[str, Any] | None = None
        self._siblings: dict[str, Any] = {}
        self._own_frame = False
        self._by_choice: dict[int, dict[str, Any]] = {}
        self._last_choice = 0
        self._restarted = False

    def head(self, model: Any, tier: Any, response_id: Any) -> None:
        """Note who answered. The last model named wins, the first id stays."""
        if self._head != (model, tier):
            self._head = (model, tier)
            self.model = text(model) or self.model
            self.service_tier = text(tier) or self.service_tier
        if self.response_id is None:
            self.response_id = text(response_id)

    def add_stored(self, kind: str, id: Any) -> None:
        """Note the id of something that the provider stored."""
        if isinstance(id, str) and id and len(self.stored) < STORED_MAX:
            self.stored[id] = kind

    def add_usage(self, usage: Any) -> bool:
        """Note a usage object that speaks for the whole answer so far; whether it is one."""
        if not isinstance(usage, dict) or not usage:
            return False
        self._usage = merge(self._usage or {}, usage)
        self.service_tier = text(usage.get("service_tier")) or self.service_tier
        return True

    def add_choice_usage(self, index: int, usage: Any) -> None:
        """Note a usage object on a chunk with the one choice `index`.

        Most servers count the whole answer there; vLLM and SGLang count that choice alone. Which
        it was shows when several choices took turns: `_merged` decides.
        """
        if not isinstance(usage, dict) or not usage:
            return
        before = count(mapping(self._usage).get("completion_tokens"))
        now = count(usage.get("completion_tokens"))
        if index != self._last_choice and before is not None and now is not None and now < before:
            self._restarted = True
        self._last_choice = index
        if index in self._by_choice or len(self._by_choice) < CHOICES_MAX:
            self._by_choice[index] = merge(self._by_choice.get(index, {}), usage)
        self._own_frame = False
        self.add_usage(usage)

    def add_own_frame(self, usage: Any) -> None:
        """Note a usage object in a frame of its own: the last word on the whole answer."""
        self._own_frame = self.add_usage(usage) or self._own_frame

    def add_fallback(self, usage: dict[str, Any]) -> None:
        """Note counts that stand in if no usage object comes."""
        self._fallback = usage

    def add_sibling(self, name: str, value: Any) -> None:
        """Note something outside the usage object that belongs to the bill."""
        if isinstance(value, dict) and value:
            self._siblings[name] = value

    def count_unit(self, name: str) -> None:
        """Count one billed unit of the answer's items."""
        self.units[name] = self.units.get(name, 0) + 1

    def report(self, fault: Fault | None) -> bool:
        """Note an error; the first one stays. Whether there was one."""
        if fault is not None and self.fault is None:
            self.fault = fault
        return fault is not None

    @property
    def complete(self) -> bool:
        return self.terminal or self.finished or self._own_frame or self.whole_body

    def account(self) -> tuple[Account, msgspec.Raw | PlainUsage | None]:
        """The usage on one scale and the object it came from."""
        raw = self._merged()
        if raw is None or (is_skeleton(raw) and self.content and self._by_choice and not self._own_frame):
            # Zeros attached to chunks that carry text are placeholders, not a report.
            account, raw = Account(Usage()), None
        elif (
            not self._siblings
            and not self.units
            and (plain := plain_usage(raw, operation=self.operation, profile=self.profile, model=self.model))
        ):
            return Account(plain[0]), plain[1]
        else:
            account = read_usage(raw, operation=self.operation, profile=self.profile, model=self.model)
        usage = account.usage
        searches = mapping(mapping(self._siblings.get("tool_usage")).get("web_search")).get("num_requests")
        usage.units = {**self.units, **usage.units}
        if count(searches) is not None:
            usage.units["web_searches"] = count(searches) or 0
        usage.units = {name: value for name, value in usage.units.items() if value}
        return account, encoded_usage(raw, self._siblings)

    def _merged(self) -> dict[str, Any] | None:
        if self._usage is None or self._own_frame or len(self._by_choice) < 2:
            return self._usage or self._fallback
        if not (self._restarted or self.profile.usage_per_choice):
            return self._usage
        counts = [count(usage.get("completion_tokens")) or 0 for usage in self._by_choice.values()]
        output = sum(counts)
        merged = {**self._usage, "completion_tokens": output}
        prompt = count(merged.get("prompt_tokens"))
        if prompt is not None and count(merged.get("total_tokens")) is not None:
            merged["total_tokens"] = prompt + output
        return merged


def encoded_usage(raw: Mapping[str, Any] | None, siblings: Mapping[str, Any]) -> msgspec.Raw | None:
    """The usage object as it is stored, with what belongs to it: bounded, and without sentences."""
    if raw is None and not siblings:
        return None
    try:
        kept = _wordless({**(raw or {}), **siblings})
        data = _ENCODER.encode(kept)
        if len(data) > USAGE_RAW_BYTES_MAX:
            data = _ENCODER.encode(shortened(kept))
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        data = _ENCODER.encode(nothing_kept())
    return msgspec.Raw(data)


def _wordless(value: Any) -> Any:
    """`value` without its sentences: what a provider writes into a usage object is stored, and could quote a prompt."""
    if isinstance(value, dict):
        return {name: _wordless(member) for name, member in value.items() if word(name) is not None}
    if isinstance(value, list):
        return [_wordless(item) for item in value]
    return word(value) if isinstance(value, str) else value
