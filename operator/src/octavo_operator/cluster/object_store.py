"""A Kubernetes API in memory, with the semantics the operator relies on and no others.

Resource versions and optimistic locking, generation, generateName, status isolation, server-side
apply with field managers, finalizers, owner-reference collection (in the background mode, done at
once), label selectors, watches with history. It has no schemas, no defaulting and no controllers.
Local mode keeps its cluster in it; the tests check the operator against it.
"""

from __future__ import annotations

import asyncio
import copy
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from octavo_operator.cluster.field_sets import (
    Path,
    field_set,
    merge_fields,
    remove_fields,
    to_fields_v1,
)
from octavo_operator.cluster.generation import first_generation, next_generation
from octavo_operator.cluster.interface import EventType, ObjectList, WatchEvent
from octavo_operator.errors import ConflictError, GoneError, NotFoundError, RejectedError
from octavo_operator.labels import FIELD_MANAGER
from octavo_operator.manifests.kinds import OPTIONAL_KINDS, OWN_KINDS, Kind, kind_of
from octavo_operator.reconcile.conditions import timestamp
from octavo_operator.reconcile.live_object import LiveObject, labels_of

Key = tuple[Kind, str, str]

_SERVER_FIELDS: Final = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "generateName",
)
_HISTORY: Final = 10_000
"""Events that are kept; who watches from before them lists again."""
_SUFFIX_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(slots=True)
class _Stored:
    """An object without its managed fields, and who owns which of its fields."""

    body: dict[str, Any]
    owners: dict[tuple[str, str], frozenset[Path]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Logged:
    """`before` is what the object was, None for one that is new."""

    version: int
    kind: Kind
    event: WatchEvent
    before: LiveObject | None

    def seen_by(self, labels: Mapping[str, str]) -> WatchEvent | None:
        """As a watch with a selector tells of it: what leaves the selection is deleted, as it was,
        and what enters it is added."""
        is_in = has_labels(self.event.object, labels)
        if self.event.type is not EventType.MODIFIED or self.before is None:
            return self.event if is_in else None
        was_in = has_labels(self.before, labels)
        if is_in:
            return self.event if was_in else WatchEvent(EventType.ADDED, self.event.object)
        if not was_in:
            return None
        metadata = {**self.before["metadata"], "resourceVersion": str(self.version)}
        return WatchEvent(EventType.DELETED, {**self.before, "metadata": metadata})


class ObjectStore:
    """See the module. `clock` and `seed` make what it writes repeatable.

    Every write method returns the object as it is afterwards. `writes` counts the calls that
    changed something.
    """

    def __init__(
        self,
        *,
        optional_kinds: Iterable[Kind] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        seed: int | None = None,
    ) -> None:
        self._objects: dict[Key, _Stored] = {}
        self._optional_kinds = frozenset(optional_kinds) & OPTIONAL_KINDS
        self._clock = clock
        self._random = random.Random(seed)
        self._version = 0
        self._log: list[_Logged] = []
        self._forgotten = 0
        self._changed = asyncio.Event()
        self.writes = 0

    # Reading

    async def served_kinds(self) -> frozenset[Kind]:
        return OWN_KINDS | self._optional_kinds

    async def get(self, kind: Kind, namespace: str, name: str) -> LiveObject:
        return self._shown(self._stored((kind, namespace, name)))

    async def list_objects(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> ObjectList:
        self._check_served(kind)
        items = [
            self._shown(stored)
            for (its_kind, its_namespace, _), stored in sorted(self._objects.items())
            if its_kind == kind
            and namespace in (None, its_namespace)
            and has_labels(stored.body, labels)
        ]
        return ObjectList(tuple(items), str(self._version))

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str],
        resource_version: str,
    ) -> AsyncIterator[WatchEvent]:
        self._check_served(kind)
        position = int(resource_version)
        while True:
            if position < self._forgotten:
                raise GoneError(f"resource version {position} is too old; list again")
            changed = self._changed
            due = [logged for logged in self._log if logged.version > position]
            for logged in due:
                position = logged.version
                its_namespace = logged.event.object["metadata"].get("namespace")
                if logged.kind != kind or namespace not in (None, its_namespace):
                    continue
                event = logged.seen_by(labels)
                if event is not None:
                    yield event
            if not due:
                await changed.wait()

    # Writing

    async def create(self, manifest: Mapping[str, Any], manager: str = FIELD_MANAGER) -> LiveObject:
        """POST: a new object; `generateName` gets a random ending."""
        kind = kind_of(manifest)
        self._check_served(kind)
        body = copy.deepcopy(dict(manifest))
        metadata = body["metadata"]
        if "name" not in metadata:
            metadata["name"] = metadata["generateName"] + self._suffix()
        key = (kind, metadata["namespace"], metadata["name"])
        if key in self._objects:
            raise ConflictError(f"{kind.kind} {metadata['name']} exists already")
        return self._insert(key, body, (manager, "Update"))

    async def apply(
        self, manifest: Mapping[str, Any], manager: str = FIELD_MANAGER, *, force: bool = True
    ) -> LiveObject:
        """Server-side apply; without `force`, a field that another manager set is a conflict."""
        kind = kind_of(manifest)
        self._check_served(kind)
        wanted = copy.deepcopy(dict(manifest))
        wanted.pop("status", None)
        metadata = wanted["metadata"]
        expected_version = metadata.pop("resourceVersion", None)
        if metadata.get("managedFields"):
            raise RejectedError("metadata.managedFields must be nil")
        key = (kind, metadata["namespace"], metadata["name"])
        owner = (manager, "Apply")
        stored = self._objects.get(key)
        if stored is None:
            if expected_version is not None:
                raise ConflictError(f"{kind.kind} {key[2]} does not exist")
            return self._insert(key, wanted, owner)
        self._check_version(stored, expected_version)
        claimed = field_set(wanted)
        present = field_set(stored.body)
        contested = _contested(stored.owners, owner, claimed, present)
        if contested and not force:
            raise ConflictError(f"conflict with {sorted(contested)[0][0]}")
        owners = {
            who: paths - contested.get(who, frozenset()) for who, paths in stored.owners.items()
        }
        given_up = owners.get(owner, frozenset()) - claimed.keys()
        others = frozenset().union(*(paths for who, paths in owners.items() if who != owner))
        body = remove_fields(stored.body, given_up - others)
        body = merge_fields(body, wanted)
        owners[owner] = frozenset(claimed)
        return self._replace(key, stored, body, owners)

    async def merge(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str = "",
        manager: str = "client",
    ) -> LiveObject:
        """JSON merge patch of an object, or of its status; a resourceVersion in it is a test."""
        stored = self._stored((kind, namespace, name))
        expected_version = (patch.get("metadata") or {}).get("resourceVersion")
        self._check_version(stored, expected_version)
        patched = _json_merge(stored.body, patch)
        return self._overwrite((kind, namespace, name), stored, patched, subresource, manager)

    async def update(self, manifest: Mapping[str, Any]) -> LiveObject:
        """PUT; a resourceVersion in it is a test."""
        metadata = manifest["metadata"]
        key = (kind_of(manifest), metadata["namespace"], metadata["name"])
        stored = self._stored(key)
        self._check_version(stored, metadata.get("resourceVersion"))
        return self._overwrite(key, stored, copy.deepcopy(dict(manifest)), "", "client")

    async def write_status(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        resource_version: str | None,
    ) -> LiveObject:
        metadata = {"resourceVersion": resource_version} if resource_version else {}
        return await self.merge(
            kind,
            namespace,
            name,
            {"metadata": metadata, "status": status},
            subresource="status",
            manager=FIELD_MANAGER,
        )

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        key = (kind, namespace, name)
        stored = self._objects.get(key)
        if stored is None:
            return
        if uid is not None and stored.body["metadata"]["uid"] != uid:
            raise ConflictError(f"{kind.kind} {name} has another uid than {uid}")
        self._delete(key, stored)

    # Inside

    def _stored(self, key: Key) -> _Stored:
        self._check_served(key[0])
        stored = self._objects.get(key)
        if stored is None:
            raise NotFoundError(f"{key[0].kind} {key[2]} not found in namespace {key[1]}")
        return stored

    def _check_served(self, kind: Kind) -> None:
        if kind in OPTIONAL_KINDS and kind not in self._optional_kinds:
            raise NotFoundError(f"the server has no kind {kind.kind} of {kind.api_version}")

    def _check_version(self, stored: _Stored, expected: str | None) -> None:
        current = stored.body["metadata"]["resourceVersion"]
        if expected is not None and expected != current:
            raise ConflictError(
                f"the object has been modified: it is at resource version {current}, not {expected}"
            )

    def _insert(self, key: Key, body: dict[str, Any], owner: tuple[str, str]) -> LiveObject:
        body.pop("status", None)
        for name in _SERVER_FIELDS:
            body["metadata"].pop(name, None)
        owners = {owner: frozenset(field_set(body))}
        body["metadata"].update(
            uid=str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
            creationTimestamp=timestamp(self._clock()),
            **first_generation(key[0]),
        )
        stored = _Stored(body, owners)
        self._objects[key] = stored
        return self._log_change(key, stored, EventType.ADDED)

    def _overwrite(
        self, key: Key, stored: _Stored, body: dict[str, Any], subresource: str, manager: str
    ) -> LiveObject:
        if subresource == "status":
            body = {**stored.body, "status": body.get("status", {})}
        else:
            status = {"status": stored.body["status"]} if "status" in stored.body else {}
            body = {**{name: body[name] for name in body if name != "status"}, **status}
        before, after = _owned(stored.body), _owned(body)
        gone = before.keys() - after.keys()
        changed = {path for path, value in after.items() if before.get(path, _ABSENT) != value}
        owners = {who: paths - gone - changed for who, paths in stored.owners.items()}
        owner = (manager, "Update")
        owners[owner] = owners.get(owner, frozenset()) | changed
        return self._replace(key, stored, body, owners)

    def _replace(
        self,
        key: Key,
        stored: _Stored,
        body: dict[str, Any],
        owners: Mapping[tuple[str, str], frozenset[Path]],
    ) -> LiveObject:
        """Keep what only the server writes, count generations, and notice that nothing changed."""
        body = copy.deepcopy(body)
        for name in _SERVER_FIELDS:
            if name != "deletionTimestamp":
                body["metadata"].pop(name, None)
            if name in stored.body["metadata"]:
                body["metadata"][name] = stored.body["metadata"][name]
        kept = {who: paths for who, paths in owners.items() if paths}
        if body == stored.body and kept == stored.owners:
            return self._shown(stored)
        generation = next_generation(key[0], stored.body, body)
        if generation is not None:
            body["metadata"]["generation"] = generation
        fresh = _Stored(body, kept)
        self._objects[key] = fresh
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            return self._remove(key, fresh)
        return self._log_change(key, fresh, EventType.MODIFIED, self._shown(stored))

    def _delete(self, key: Key, stored: _Stored) -> None:
        """At once, or marked for as long as a finalizer holds it."""
        if not stored.body["metadata"].get("finalizers"):
            self._remove(key, stored)
            return
        body = copy.deepcopy(stored.body)
        body["metadata"].setdefault("deletionTimestamp", timestamp(self._clock()))
        self._replace(key, stored, body, stored.owners)

    def _remove(self, key: Key, stored: _Stored) -> LiveObject:
        del self._objects[key]
        shown = self._log_change(key, stored, EventType.DELETED)
        self._collect_orphans(stored.body["metadata"]["uid"])
        return shown

    def _collect_orphans(self, uid: str) -> None:
        alive = {stored.body["metadata"]["uid"] for stored in self._objects.values()}
        for key, stored in list(self._objects.items()):
            references = stored.body["metadata"].get("ownerReferences") or ()
            uids = {reference["uid"] for reference in references}
            if uid in uids and not uids & alive and key in self._objects:
                self._delete(key, stored)

    def _log_change(
        self,
        key: Key,
        stored: _Stored,
        event_type: EventType,
        before: LiveObject | None = None,
    ) -> LiveObject:
        self._version += 1
        self.writes += 1
        stored.body["metadata"]["resourceVersion"] = str(self._version)
        shown = self._shown(stored)
        self._log.append(_Logged(self._version, key[0], WatchEvent(event_type, shown), before))
        if len(self._log) > _HISTORY:
            self._forget(len(self._log) - _HISTORY)
        self._changed.set()
        self._changed = asyncio.Event()
        return shown

    def forget_history(self) -> None:
        """Drop all events, as an API server does after a while: old watches get GoneError."""
        self._forget(len(self._log))

    def _forget(self, count: int) -> None:
        if count:
            self._forgotten = self._log[count - 1].version
            del self._log[:count]

    def _shown(self, stored: _Stored) -> LiveObject:
        shown = copy.deepcopy(stored.body)
        shown["metadata"]["managedFields"] = [
            {
                "manager": manager,
                "operation": operation,
                "apiVersion": shown["apiVersion"],
                "fieldsType": "FieldsV1",
                "fieldsV1": to_fields_v1(paths),
            }
            for (manager, operation), paths in sorted(stored.owners.items())
        ]
        return shown

    def _suffix(self) -> str:
        return "".join(self._random.choices(_SUFFIX_LETTERS, k=5))


_ABSENT: Final = object()


def has_labels(body: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether an object carries all of `labels`."""
    its_labels = labels_of(body)
    return all(its_labels.get(key) == value for key, value in labels.items())


def _contested(
    owners: Mapping[tuple[str, str], frozenset[Path]],
    claimant: tuple[str, str],
    claimed: Mapping[Path, Any],
    present: Mapping[Path, Any],
) -> dict[tuple[str, str], frozenset[Path]]:
    """Fields that others own and the claimant wants to be different."""
    contested = {}
    for who, paths in owners.items():
        if who != claimant:
            taken = frozenset(
                path
                for path in paths & claimed.keys()
                if present.get(path, _ABSENT) != claimed[path]
            )
            if taken:
                contested[who] = taken
    return contested


def _owned(body: Mapping[str, Any]) -> dict[Path, Any]:
    metadata = {key: value for key, value in body["metadata"].items() if key not in _SERVER_FIELDS}
    return field_set({**body, "metadata": metadata})


def _json_merge(base: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _json_merge(merged.get(key), value)
    return merged
