"""Which budgets a call answers to, and whose counter it moves."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from farebox.budgets.applying import CALLERS_MAX, SUBJECT_CHARS_MAX, Definitions
from farebox.records import Budget, Caller

KEY = UUID(int=7)


def budget(name: str, scope: Any, **fields: Any) -> Budget:
    return Budget(id=uuid4(), name=name, source="api", scope=scope, limit_usd=None, **fields)


def caller(**fields: Any) -> Caller:
    plain: dict[str, Any] = {"kind": "virtual", "key_id": KEY, "key_name": "ci", "team": "research", "user": "ann"}
    return Caller(**(plain | fields))


def found(definitions: Definitions, who: Caller, model: str | None = "gpt-4o", session: str | None = None) -> Any:
    return [(one.budget.name, one.subject) for one in definitions.applying(who, model, session)]


def test_each_scope_counts_by_its_own_value() -> None:
    """Every scope applies with its subject; who has no value for one is left alone by it."""
    scopes = ("global", "team", "project", "user", "key", "session", "model")
    definitions = Definitions(budget("b-" + scope, scope) for scope in scopes)
    assert found(definitions, caller(), session="s1") == [
        ("b-key", str(KEY)),
        ("b-user", "ann"),
        ("b-team", "research"),
        ("b-global", "all"),
        ("b-session", f"{KEY}/s1"),
        ("b-model", "gpt-4o"),
    ]


def test_only_narrows() -> None:
    """A budget with globs applies to matching values only; a key is matched by its name and counted by its id."""
    definitions = Definitions(
        [
            budget("teams", "team", only=("res*",)),
            budget("others", "team", only=("sales",)),
            budget("keys", "key", only=("c?",)),
            budget("gpt", "model", only=("gpt-*",)),
            budget("sessions", "session", only=("night-*",)),
        ]
    )
    assert found(definitions, caller()) == [("keys", str(KEY)), ("teams", "research"), ("gpt", "gpt-4o")]
    assert found(definitions, caller(key_name="x", team="sales"), "claude-3", "night-1") == [
        ("others", "sales"),
        ("sessions", f"{KEY}/night-1"),
    ]


def test_a_session_is_its_keys_own_and_without_one_the_key_is_it() -> None:
    """Two keys that claim one session have a counter each, and no claim leads past the session budget."""
    definitions = Definitions([budget("b", "session")])
    other = caller(key_id=UUID(int=8))
    assert found(definitions, caller(), session="s") != found(definitions, other, session="s")
    assert found(definitions, caller()) == [("b", str(KEY))]


def test_a_model_that_cannot_be_read_could_be_any() -> None:
    """Where no model is known every budget by model applies, whatever it is narrowed to."""
    definitions = Definitions([budget("all", "model"), budget("gpt", "model", only=("gpt-*",))])
    assert found(definitions, caller(), None) == [("all", "unknown"), ("gpt", "unknown")]


def test_a_keys_own_budget_is_nobody_elses() -> None:
    """Budgets and rates of one key apply to it alone, rates first."""
    definitions = Definitions(
        [
            budget("money", "key", key_id=KEY),
            budget("rpm", "key", key_id=KEY, purpose="rate"),
        ]
    )
    assert found(definitions, caller()) == [("rpm", str(KEY)), ("money", str(KEY))]
    assert found(definitions, caller(key_id=UUID(int=8))) == []


def test_callers_without_a_key_have_a_counter() -> None:
    """A key budget counts a passed-through credential by its name, and all anonymous callers together."""
    definitions = Definitions([budget("b", "key")])
    assert found(definitions, Caller(kind="passthrough", key_name="credential-1")) == [("b", "credential-1")]
    assert found(definitions, Caller(kind="open")) == [("b", "open")]


def test_a_caller_without_budgets_is_answered_with_nothing() -> None:
    """No budget, no work: the answer is the empty tuple itself."""
    assert Definitions().applying(caller(), "m", "s") == ()
    assert Definitions([budget("b", "key", key_id=KEY)]).applying(caller(key_id=UUID(int=9)), "m", "s") == ()


def test_the_answer_for_a_caller_is_remembered_within_bounds() -> None:
    """The same caller gets the same tuple again, and no number of callers makes the memory larger than its bound."""
    definitions = Definitions([budget("b", "user")])
    assert definitions.applying(caller(), "m", None) is definitions.applying(caller(), "n", None)
    for number in range(CALLERS_MAX + 10):
        definitions.applying(caller(user=str(number)), "m", None)
    assert len(definitions._known) <= CALLERS_MAX


def test_a_long_subject_is_cut_and_stays_apart_from_others() -> None:
    """Whatever a client calls its session, its counter's name is bounded, and two names are two counters."""
    definitions = Definitions([budget("b", "session")])
    subjects = {found(definitions, caller(), session="s" * 5000 + end)[0][1] for end in ("a", "b")}
    assert len(subjects) == 2
    assert all(len(subject) <= SUBJECT_CHARS_MAX for subject in subjects)
