"""The control plane's keys: make, list, change, revoke and rotate them, with the limits they have of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

from farebox.admin import forms
from farebox.admin.budget_forms import read_actor
from farebox.errors import NotFound
from farebox.keylimits import NONE, KeyLimits
from farebox.keys import hash_secret, mint_secret
from farebox.records import KeyRecord
from farebox.server import Request
from farebox.store import Keys, Store

Query = dict[str, str]
Answer = tuple[int, Any]
Body = Callable[[Request], Awaitable[bytes]]
Action = Callable[[Request, str, Query], Awaitable[Answer]]


class KeysApi:
    """Answers `/keys`. A change takes hold here at once; other processes learn of it by their polls.

    `body` reads a request's; `key_changed` and `budgets_changed` tell this process's data plane.
    """

    def __init__(
        self,
        store: Store,
        body: Body,
        *,
        key_changed: Callable[[list[KeyRecord]], None],
        budgets_changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._keys = Keys(store)
        self._body = body
        self._key_changed = key_changed
        self._budgets_changed = budgets_changed
        self.actions: Mapping[tuple[str, str], Action] = {
            ("GET", "/keys"): self._list,
            ("POST", "/keys"): self._create,
            ("GET", "/keys/{id}"): self._get,
            ("PATCH", "/keys/{id}"): self._change,
            ("DELETE", "/keys/{id}"): self._revoke,
            ("POST", "/keys/{id}/rotate"): self._rotate,
        }

    async def _list(self, _: Request, __: str, query: Query) -> Answer:
        records = await self._store.list_keys(include_revoked=query.get("revoked") == "true")
        limits = await self._keys.limits()
        return 200, {"data": [forms.public(record, limits.get(record.id, NONE)) for record in records]}

    async def _create(self, request: Request, _: str, __: Query) -> Answer:
        fields, limits = forms.read_new_key(await self._body(request))
        secret = mint_secret()
        record = await self._keys.create({**fields, "secret_hash": hash_secret(secret)}, limits, read_actor(request))
        if limits != NONE:
            await self._budgets_changed()
        return 201, {**forms.public(record, limits), "key": secret}

    async def _get(self, _: Request, item: str, __: Query) -> Answer:
        record = _found(await self._store.get_key(_uuid(item)))
        return 200, await self._shown(record)

    async def _change(self, request: Request, item: str, _: Query) -> Answer:
        fields, limits = forms.read_key_changes(await self._body(request))
        changed = await self._keys.change(_uuid(item), fields, limits, read_actor(request))
        return 200, await self._changed(changed, budgets=bool(limits))

    async def _revoke(self, request: Request, item: str, _: Query) -> Answer:
        return 200, await self._changed(await self._keys.revoke(_uuid(item), read_actor(request)), budgets=True)

    async def _rotate(self, _: Request, item: str, __: Query) -> Answer:
        secret = mint_secret()
        changed = await self._changed(await self._store.rotate_key(_uuid(item), hash_secret(secret)), budgets=False)
        return 200, {**changed, "key": secret}

    async def _changed(self, record: KeyRecord | None, *, budgets: bool) -> dict[str, Any]:
        found = _found(record)
        self._key_changed([found])
        if budgets:
            await self._budgets_changed()
        return await self._shown(found)

    async def _shown(self, record: KeyRecord) -> dict[str, Any]:
        limits: KeyLimits = (await self._keys.limits(record.id)).get(record.id, NONE)
        return forms.public(record, limits)


def _uuid(item: str) -> UUID:
    try:
        return UUID(item)
    except ValueError:
        raise NotFound("There is no such key: a key is addressed by its id.") from None


def _found(record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise NotFound("There is no such key, or it was revoked.")
    return record
