"""The route that is kept with a head is the one that would be chosen anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from farebox import routing
from farebox.errors import Refusal
from farebox.heads import RequestHead, read_head
from farebox.proxy.call import Call
from farebox.proxy.routes import route_of
from farebox.records import Caller
from farebox.request import RequestFacts
from support.config import CLAUDE, LOCAL, OPENAI, providers, read

RULES = """
routes:
  - {match: {model: "claude-*"}, to: [claude]}
  - {match: {model: [gpt-*, o1], tags: {tier: cheap}}, to: [local, openai], retry_sent: true}
  - {match: {model: gpt-*}, to: [openai, local]}
"""
CONFIG = read(providers(OPENAI, CLAUDE, LOCAL) + RULES)
CALLERS = [
    Caller(kind="virtual"),
    Caller(kind="virtual", key_name="another"),
    Caller(kind="virtual", models=("gpt-*",)),
    Caller(kind="virtual", providers=("local",)),
    Caller(kind="virtual", tags={"tier": "cheap"}),
]
HEADS = [
    read_head("POST", "/v1/chat/completions", (1, 1), (), "virtual"),
    read_head("POST", "/v1/chat/completions", (1, 1), ((b"x-farebox-tags", b"tier=cheap"),), "virtual"),
    read_head("POST", "/p/local/v1/chat/completions", (1, 1), (), "virtual"),
]


def call(head: RequestHead, caller: Caller, model: str | None, homes: frozenset[str]) -> Call:
    return cast(
        Call,
        SimpleNamespace(
            head=head,
            caller=caller,
            target=head.target,
            identity=head.identity,
            facts=RequestFacts(model=model) if model is not None else None,
            claim=SimpleNamespace(homes=homes) if homes else None,
            snapshot=SimpleNamespace(config=CONFIG),
        ),
    )


def outcome(choose: Any, *args: object) -> object:
    try:
        return choose(*args)
    except Refusal as refusal:
        return type(refusal), refusal.message


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(HEADS),
            st.sampled_from(CALLERS),
            st.sampled_from(["gpt-4o", "o1", "claude-x", "other", None]),
            st.sampled_from([frozenset[str](), frozenset(("openai",))]),
        ),
        max_size=10,
    )
)
def test_calls_are_routed_as_if_each_were_the_first(
    calls: list[tuple[RequestHead, Caller, str | None, frozenset[str]]],
) -> None:
    """No order of callers, models, tags and stored objects lets one call have the route of another."""
    for head, caller, model, homes in calls:
        expected = outcome(routing.choose, CONFIG, caller, head.target, model, head.identity.tags, homes)
        assert outcome(route_of, call(head, caller, model, homes)) == expected
