"""The control plane's budgets: what there is and what stands in it, changing it, and who changed what.

Also correcting what a call cost, which matters for one that was charged at its hold. A change of a
budget applies in the database at once; other processes' copies follow within `metering.budget_poll_s`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from farebox.admin import queries
from farebox.admin.budget_forms import read_actor, read_correction, read_definition, read_definitions
from farebox.admin.queries import PAGING
from farebox.admin.standings import as_definition, as_rows, key_names, usd
from farebox.config.budgets import SCOPES, BudgetRule
from farebox.errors import NotFound
from farebox.records import Budget
from farebox.server import Request
from farebox.store import BudgetStore, Store
from farebox.store.budgets import AuditRow, Standings

SOURCES = ("config", "api", "key")
_FILTERS = frozenset(("name", "scope", "subject", "source"))

Query = dict[str, str]
Answer = tuple[int, Any]
Body = Callable[[Request], Awaitable[bytes]]
Action = Callable[[Request, str, Query], Awaitable[Answer]]


class BudgetsApi:
    """Answers `/budgets`, `/audit` and `/usage/{id}/correction`.

    `body` reads a request's; `budgets_changed` tells this process's data plane.
    """

    def __init__(self, store: Store, body: Body, *, budgets_changed: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._budgets = BudgetStore(store)
        self._body = body
        self._budgets_changed = budgets_changed
        self.actions: Mapping[tuple[str, str], Action] = {
            ("GET", "/budgets"): self._list,
            ("PUT", "/budgets"): self._put_all,
            ("GET", "/budgets/{id}"): self._get,
            ("PUT", "/budgets/{id}"): self._put,
            ("DELETE", "/budgets/{id}"): self._delete,
            ("GET", "/audit"): self._audit,
            ("POST", "/usage/{id}/correction"): self._correct,
        }

    # -- definitions -----------------------------------------------------------------------------

    async def _list(self, _: Request, __: str, query: Query) -> Answer:
        queries.check_known(query, _FILTERS, PAGING)
        scope, source = queries.read_word(query, "scope", SCOPES), queries.read_word(query, "source", SOURCES)
        page = await self._budgets.overview(
            name=query.get("name"),
            scope=scope,
            source=source,
            subject=await self._subject(query.get("subject"), scope),
            after=queries.read_name_cursor(query),
            rows_max=queries.read_limit(query),
        )
        return 200, {"data": await self._rows(page), "next": queries.name_cursor(page.next)}

    async def _get(self, _: Request, item: str, query: Query) -> Answer:
        """One definition, with a page of its counters."""
        queries.check_known(query, PAGING)
        budget = await self._found(item)
        page = await self._budgets.overview(
            name=budget.name, after=queries.read_name_cursor(query), rows_max=queries.read_limit(query)
        )
        return 200, {
            **as_definition(budget),
            "data": await self._rows(page),
            "next": queries.name_cursor(page.next),
        }

    async def _rows(self, page: Standings) -> list[dict[str, Any]]:
        named = any(standing.budget.scope in ("key", "session") for standing in page.rows)
        names = key_names(await self._store.list_keys(include_revoked=True)) if named else {}
        return await as_rows(self._budgets, page.rows, names)

    async def _subject(self, subject: str | None, scope: str | None) -> str | None:
        """A key's counter is its id's; with `scope=key` its name is taken too."""
        if subject is None or scope != "key":
            return subject
        record = await self._store.get_key(subject)
        return str(record.id) if record is not None else subject

    # -- changing --------------------------------------------------------------------------------

    async def _put_all(self, request: Request, _: str, __: Query) -> Answer:
        """All of them, or none."""
        several, rules = read_definitions(await self._body(request))
        shown = await self._put_rules(rules, read_actor(request))
        return 200, {"data": shown} if several else shown[0]

    async def _put(self, request: Request, item: str, _: Query) -> Answer:
        rule = read_definition(await self._body(request), await self._name_of(item))
        [shown] = await self._put_rules([rule], read_actor(request))
        return 200, shown

    async def _put_rules(self, rules: list[BudgetRule], actor: str) -> list[dict[str, Any]]:
        budgets = await self._budgets.put_budgets([rule.as_fields() for rule in rules], "api", actor)
        await self._budgets_changed()
        return [as_definition(budget) for budget in budgets]

    async def _delete(self, request: Request, item: str, _: Query) -> Answer:
        budget = await self._found(item)
        deleted = await self._budgets.delete_budget(budget.name, read_actor(request))
        await self._budgets_changed()
        return 200, as_definition(deleted)

    async def _name_of(self, item: str) -> str:
        """The name that a path means: a budget's by its id, else the text itself."""
        text = unquote(item)
        budget = await self._budgets.find_budget(text)
        return budget.name if budget is not None else text

    async def _found(self, item: str) -> Budget:
        budget = await self._budgets.find_budget(unquote(item))
        if budget is None:
            raise NotFound("There is no such budget: it is addressed by its name or its id.")
        return budget

    # -- the books -------------------------------------------------------------------------------

    async def _audit(self, _: Request, __: str, query: Query) -> Answer:
        """Newest first. A correction of a usage row is under its id."""
        queries.check_known(query, frozenset(("kind", "name")), PAGING)
        limit = queries.read_limit(query)
        before = queries.read_number_cursor(query)
        rows = await self._budgets.audit(
            before=before,
            kind=queries.read_word(query, "kind", ("budget", "usage")),
            name=query.get("name"),
            rows_max=limit,
        )
        following = str(rows[-1].id) if len(rows) == limit else None
        return 200, {"data": [_change(row) for row in rows], "next": following}

    async def _correct(self, request: Request, item: str, _: Query) -> Answer:
        id = _row_id(item)
        new = read_correction(await self._body(request))
        before = await self._budgets.correct(
            id,
            new.cost_usd,
            read_actor(request),
            new.reason,
            input_tokens=new.input_tokens,
            output_tokens=new.output_tokens,
        )
        return 200, {"id": id, "cost_usd": usd(new.cost_usd), "cost_source": "operator", "before_usd": usd(before)}


def _change(row: AuditRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": row.at,
        "actor": row.actor,
        "action": row.action,
        "kind": row.kind,
        "name": row.name,
        "from": row.before,
        "to": row.after,
    }


def _row_id(item: str) -> UUID:
    try:
        return UUID(item)
    except ValueError:
        raise NotFound("There is no such usage row: it is addressed by its id.") from None
