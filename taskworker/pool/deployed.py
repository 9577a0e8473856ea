"""Deployed functions: each a file of the pool's own, its versions the function's versions."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from storage import FileStorage, Version
from storage.errors import InvalidArgument, StorageError
from taskworker.bundles.archive import spec_of
from taskworker.bundles.spec import LIMITS_MAX, FunctionSpec, check_name
from taskworker.errors import FunctionNotFound
from taskworker.functions.routing import RoutedFunction
from taskworker.sandbox import Limits
from taskworker.wire.deployed import DEPLOYED_OWNER as OWNER


@dataclass(frozen=True, slots=True)
class Deployment:
    """What became of a deployment."""

    version: Version
    changed: bool


class DeployedFunctions:
    """The functions deployed into a pool. Thread-safe.

    Args:
        store: the pool's.
        limits_max: what a function may ask for at most.
    """

    def __init__(self, store: FileStorage, limits_max: Limits = LIMITS_MAX) -> None:
        self._store = store
        self._limits_max = limits_max
        self._lock = threading.Lock()  # of changes
        self._known: dict[str, RoutedFunction] = {}

    def find(self, name: str) -> RoutedFunction | None:
        """A function by its name."""
        known = self._known.get(name)
        if known is None:
            with self._lock:
                head = self._store.find(name, user_id=OWNER)
                if head is None:
                    return None
                known = self._known[name] = self._routed(head)
        return known

    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._known or self._store.list_files(user_id=OWNER, limit=1))

    def all(self) -> list[tuple[RoutedFunction, Version]]:
        """Each function with its newest version, by name; while a bundle cannot be read, without its options."""
        return [(self._listed(head), head) for head in self._store.list_files(user_id=OWNER)]

    def names(self) -> list[RoutedFunction]:
        """Each function without its options, by name: from the catalog alone, so that no worker is waited for."""
        heads = self._store.list_files(user_id=OWNER)
        return [RoutedFunction(head.filename, head.version_id, head.file_id) for head in heads]

    def _listed(self, head: Version) -> RoutedFunction:
        try:
            found = self.find(head.filename)
        except StorageError:
            found = None
        return found or RoutedFunction(head.filename, head.version_id, head.file_id)

    def deploy(self, bundle: bytes, user_id: str) -> Deployment:
        """Make a bundle the newest version of the function that it names.

        Raises:
            FormatError, InvalidArgument: it is no bundle, or asks for what is not given.
        """
        return self._put(spec_of(bundle).within(self._limits_max), bundle, user_id)

    def roll_back(self, name: str, version_id: str, user_id: str) -> Deployment:
        """Make an earlier version the newest again.

        Args:
            name: the function.
            version_id: the version, or how its id begins; empty: the one before the newest.
            user_id: who does so.

        Raises:
            FunctionNotFound: no such function.
            InvalidArgument: no such version, or several.
        """
        history = self.history(name)
        if not version_id:
            if len(history) < 2:
                raise InvalidArgument(f"function {name!r} has but one version; there is none before it")
            chosen = [history[1]]
        else:
            chosen = [version for version in history if version.version_id.startswith(version_id)]
        if len(chosen) != 1:
            raise InvalidArgument(
                f"function {name!r} has {len(chosen) or 'no'} versions that begin with {version_id!r}; "
                f"`taskworker functions log {name}` lists them"
            )
        bundle = self._store.get(chosen[0].file_id, user_id=OWNER, version_id=chosen[0].version_id)
        return self._put(spec_of(bundle), bundle, user_id)

    def history(self, name: str) -> list[Version]:
        """All versions, newest first.

        Raises:
            FunctionNotFound: no such function.
        """
        head = self._head(name)
        return list(self._store.history(head.file_id, user_id=OWNER))

    def undeploy(self, name: str) -> None:
        """End a function and its versions.

        Raises:
            FunctionNotFound: no such function.
        """
        with self._lock:
            self._store.delete(self._head(name).file_id, user_id=OWNER)
            self._known.pop(name, None)

    def _put(self, spec: FunctionSpec, bundle: bytes, user_id: str) -> Deployment:
        with self._lock:
            before = self._store.find(spec.name, user_id=OWNER)
            version = self._store.push(bundle, filename=spec.name, user_id=OWNER, note=user_id)
            self._known[spec.name] = RoutedFunction.of(spec, version.version_id, version.file_id)
        return Deployment(version, before is None or before.version_id != version.version_id)

    def _routed(self, head: Version) -> RoutedFunction:
        bundle = self._store.get(head.file_id, user_id=OWNER, version_id=head.version_id)
        return RoutedFunction.of(spec_of(bundle), head.version_id, head.file_id)

    def _head(self, name: str) -> Version:
        head = self._store.find(check_name(name), user_id=OWNER)
        if head is None:
            raise FunctionNotFound(f"there is no deployed function {name!r}; `taskworker functions` lists them")
        return head
