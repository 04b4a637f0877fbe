"""Whose stored objects a call may touch, and whose the ones become that it makes.

All keys share a provider's credential, so in `auth.mode: virtual` farebox itself has to say no: an
object answers to the key it was made with, to any other as if it were not there. Before anything goes
up the path and the members of a JSON body that name objects are looked at; of the answer the ids are
learned. What is an id and where it stands is `farebox.objects`' business; here is only when.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from uuid import UUID

import structlog

from farebox import routing
from farebox.errors import BadEncoding, BadRequest, BodyTooLarge, Forbidden, NotFound, Unavailable
from farebox.heads import RequestHead
from farebox.logs import exception_facts
from farebox.meter import Meter
from farebox.objects.answers import Made, Sniffer, made
from farebox.objects.places import Place, place_of
from farebox.objects.references import Reference, may_name, references
from farebox.objects.registry import Objects
from farebox.paths import Target
from farebox.proxy.call import Call
from farebox.proxy.reading import read_ahead
from farebox.request import RequestFacts
from farebox.server import Upload
from farebox.store.objects import StoredObject
from farebox.upstream import Head

_OUTLIVING = ("container", "file")
"""What stays at the provider also of an answer that it does not keep."""


class Claim:
    """What one call of a virtual key has to do with stored objects."""

    def __init__(self, objects: Objects, method: str, target: Target, place: Place | None, key_id: UUID) -> None:
        self._objects = objects
        self._method = method
        self._target = target
        self.key_id = key_id
        self.place = place
        self.owner: UUID = key_id
        """Whose the object in the path is, and so what comes along with it."""
        self.homes: frozenset[str] = frozenset()
        """The providers that have all the objects the call names; empty: it names none."""
        self._facts: RequestFacts | None = None
        self._kind: str | None = None
        """What a metered answer is, where the provider keeps it."""
        self._sniffer: Sniffer | None = None
        self._provider: str | None = None
        self._noted: dict[str, StoredObject] = {}
        self._over = False

    def begin(self, provider: str, head: Head, facts: RequestFacts | None) -> None:
        """An answer came from `provider`; a failure stores nothing."""
        self._facts = facts
        self._kind = _answer_kind(self._target, facts)
        if head.status >= 300 or not self._learns():
            return
        self._provider = provider
        self._note(self._located(head))
        if not self._target.metered:
            self._sniffer = Sniffer(content_type=head.content_type, content_encoding=head.content_encoding)

    def tells(self, facts: RequestFacts | None, stored: Mapping[str, str]) -> bool:
        """Whether a whole answer of a metered call, in which `stored` is named, tells of an object that outlives it."""
        return (
            self.place is not None
            or _answer_kind(self._target, facts) is not None
            or any(kind in _OUTLIVING for kind in stored.values())
        )

    @property
    def reads(self) -> bool:
        """Whether `feed` has anything to look for."""
        return self._provider is not None and (self._sniffer is not None or self._kind is not None)

    def feed(self, chunk: bytes, meter: Meter) -> None:
        """The next piece of the answer, which `meter` has read. Of a metered one the first id is noted at once."""
        if self._sniffer is not None:
            self._sniffer.feed(chunk)
        elif (
            self._kind is not None
            and self._provider is not None
            and not self._noted
            and (id := meter.stored_id) is not None
        ):
            self._note([Made(self._kind, id, derived=False)])

    async def kept(self, meter: Meter) -> None:
        """Note all that the answer told of and wait, within bounds, until it is written down."""
        self.close(meter)
        if self._noted:
            await self._objects.kept(self._noted.values())

    def close(self, meter: Meter) -> None:
        """Note all that the answer told of."""
        if self._over or self._provider is None:
            return
        self._over = True
        try:
            self._learn(meter)
        except Exception as exc:
            # The answer goes on; what it made is nobody's then.
            structlog.get_logger().error("an answer could not be searched for ids", **exception_facts(exc))

    def _learn(self, meter: Meter) -> None:
        if self._sniffer is not None:
            self._note(made(self._method, self.place, self._sniffer.documents()))
        else:
            stored = {id: kind for id, kind in meter.stored.items() if self._kind is not None or kind in _OUTLIVING}
            if self._kind is not None and (id := meter.stored_id) is not None:
                stored[id] = self._kind
            self._note([Made(kind, id, derived=False) for id, kind in stored.items()])
        place = self.place
        if self._method == "DELETE" and place is not None and place.id is not None and not place.below:
            assert self._provider is not None
            self._objects.forget(StoredObject(place.id, self._provider, place.kind, self.owner))

    def _located(self, head: Head) -> list[Made]:
        """A call of the realtime API is answered with its media's terms; its id stands in a header alone."""
        place = self.place
        if self._method != "POST" or place is None or place.kind != "realtime_call" or place.id is not None:
            return []
        located = [value.decode("latin-1") for value in head.values(b"location")]
        return [Made(place.kind, value.rstrip("/").rpartition("/")[2], derived=False) for value in located]

    def _note(self, found: list[Made]) -> None:
        assert self._provider is not None
        for one in found:
            owner = self.owner if one.derived else self.key_id
            self._noted.setdefault(one.id, StoredObject(one.id, self._provider, one.kind, owner))
        self._objects.note(self._noted.values())

    def _learns(self) -> bool:
        """Whether the answer may tell of an object that outlives it."""
        if not self._target.metered:
            return self.place is not None
        return may_make(self._target, self._facts)


def may_make(target: Target, facts: RequestFacts | None) -> bool:
    """Whether the answer to a metered call may tell of an object that outlives it."""
    if target.operation == "chat":
        return (facts is not None and facts.store is True) or "/async/" in target.suffix
    # A response that is not stored may still have run in a container, which is.
    return target.operation in ("responses", "messages")


def _answer_kind(target: Target, facts: RequestFacts | None) -> str | None:
    if target.operation == "chat":
        return "chat_completion" if may_make(target, facts) else None
    return "response" if target.operation == "responses" and (facts is None or facts.store is not False) else None


_PLACE = "ownership.place"


def _place(head: RequestHead) -> Place | None:
    """What the target names, found out once for a head."""
    memo = head.memo
    if _PLACE not in memo:
        memo[_PLACE] = place_of(head.method, head.target)
    place: Place | None = memo[_PLACE]
    return place


class Ownership:
    """Lets calls touch the objects of their own key only. It has no say in the other modes."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def check_path(self, call: Call) -> Awaitable[None] | None:
        """Refuse what the path names, before the body is taken. Raises `NotFound`, `Forbidden`, `Unavailable`.

        What it returns is to be awaited: then somebody has to be asked.
        """
        memo = call.head.memo
        key_id, place = call.caller.key_id, memo[_PLACE] if _PLACE in memo else _place(call.head)
        if place is None or key_id is None or call.snapshot.config.auth.mode != "virtual":
            return None
        claim = call.claim = self._claim(call, key_id)
        if place.id is not None:
            return self._own_path(call, claim, Reference(place.id, "path"))
        if call.request.method != "POST" and not call.caller.allow_shared_objects:
            raise Forbidden(
                f"Lists of stored objects ({place.kind}) show those of all keys: this key needs "
                "allow_shared_objects for them. Its own objects it may ask for by id."
            )

        return None

    def check_body(self, call: Call, hold: Callable[[Call, int], None]) -> Awaitable[None] | None:
        """Refuse what the body names; `hold` counts what is read for it. Raises `Refusal`; see `check_path`."""
        key_id, target = call.caller.key_id, call.target
        if key_id is None or call.snapshot.config.auth.mode != "virtual":
            return None
        if target.metered and not may_name(target.operation, call.outline):
            # Most calls end here: they name nothing, and nothing of their answers is kept by the provider.
            if call.claim is None and may_make(target, call.facts):
                call.claim = self._claim(call, key_id)
            return None
        if call.claim is None:
            call.claim = self._claim(call, key_id)
        return self._own_body(call, call.claim, partial(hold, call))

    def _claim(self, call: Call, key_id: UUID) -> Claim:
        return Claim(self._objects, call.request.method, call.target, _place(call.head), key_id)

    async def _own_path(self, call: Call, claim: Claim, named: Reference) -> None:
        entries = await self._own(call, claim, [named])
        claim.owner = entries[0].key_id if entries else claim.key_id

    async def _own_body(self, call: Call, claim: Claim, hold: Callable[[int], None]) -> None:
        try:
            if call.target.metered:
                named = references(call.target.operation, call.outline)
            else:
                named = await read_ahead(call, hold)
        except (BadRequest, BadEncoding, BodyTooLarge):
            if (isinstance(call.body, Upload) and call.body.broken) or not call.caller.allow_shared_objects:
                raise
            return  # to this key it makes no difference whose they are
        if named:
            await self._own(call, claim, named)

    async def _own(self, call: Call, claim: Claim, named: list[Reference]) -> list[StoredObject]:
        """The objects that `named` means, all of them the caller's or open to it; where they are goes into `claim`."""
        caller, config = call.caller, call.snapshot.config
        providers = None if call.target.provider is None else routing.same_account(config, call.target.provider)
        strict = {reference.id for reference in named if reference.strict}
        soft = {reference.id for reference in named} - strict
        found = await self._find(strict, providers, claim.key_id, excused=caller.allow_shared_objects)
        found |= await self._find(soft, providers, claim.key_id, excused=True)
        entries: list[StoredObject] = []
        for reference in named:
            known = found.get(reference.id, [])
            mine = [one for one in known if one.key_id == claim.key_id]
            if not mine and not caller.allow_shared_objects and (known or reference.strict):
                raise _missing(claim, reference)
            if reachable := mine or known:
                homes = frozenset[str]().union(*(routing.same_account(config, one.provider) for one in reachable))
                claim.homes = claim.homes & homes if claim.homes else homes
                if not claim.homes:
                    raise BadRequest("This request names stored objects of different providers.", param=reference.param)
                entries += reachable
        return entries

    async def _find(
        self, ids: Collection[str], providers: Collection[str] | None, key_id: UUID, *, excused: bool
    ) -> dict[str, list[StoredObject]]:
        try:
            return await self._objects.find(ids, providers=providers, key_id=key_id) if ids else {}
        except Unavailable:
            if not excused:
                raise
            return {}


def _missing(claim: Claim, reference: Reference) -> NotFound:
    """The same words for an object that is another's and for one that never was."""
    if reference.param == "path":
        kind = claim.place.kind.replace("_", " ") if claim.place is not None else "object"
        return NotFound(f"There is no {kind} with this id.")
    return NotFound(f"There is no object with an id that '{reference.param}' names.", param=reference.param)
