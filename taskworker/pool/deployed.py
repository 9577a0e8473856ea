"""Deployed functions: each is a file owned by the pool, whose versions are the function's versions."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from storage import FileStorage, Version
from storage.clocks import wall_ms
from storage.errors import InvalidArgument, StorageError
from storage.write.quotas import shards_bytes
from taskworker.calls.bundle import ARCHIVE_BYTES_MAX, spec_of
from taskworker.calls.owners import CANDIDATE_OWNER
from taskworker.calls.owners import DEPLOYED_OWNER as OWNER
from taskworker.calls.spec import LIMITS_MAX, FunctionSpec, check_name
from taskworker.errors import FunctionBroken, FunctionNotFound, FunctionsUnavailable
from taskworker.functions.routing.port import RoutedFunction
from taskworker.pool.candidates import drop_old_candidates
from taskworker.sandbox import Limits


@dataclass(frozen=True, slots=True)
class Deployment:
    """The result of a deployment.

    Attributes:
        function: its name.
        version_id: id of the newest version; empty after a dry run.
        changed: False if this version was already the newest.
        imported_by: workers that have imported it.
        not_imported: why no worker has; only for a function's first version, or one deployed before.
        able: workers that can run it now.
        unable: workers that cannot, and why.
    """

    function: str
    version_id: str
    changed: bool
    imported_by: tuple[str, ...] = ()
    not_imported: str = ""
    able: tuple[str, ...] = ()
    unable: Mapping[str, str] = field(default_factory=dict)


class Importing(Protocol):
    """The port to the workers, which import a function before it is deployed."""

    def able(self, function: RoutedFunction) -> list[str]:
        """Workers that can run it."""

    def obstacles(self, function: RoutedFunction) -> dict[str, str]:
        """Why the other workers cannot."""

    def prepare(self, function: RoutedFunction) -> tuple[str, ...]:
        """Have workers import it; returns those that did.

        Raises:
            FunctionsUnavailable: no worker could import it now.
            StorageError: the function cannot be imported; the error says why.
        """


class DeployedFunctions:
    """The deployed functions of a pool. Thread-safe.

    Args:
        store: the pool's store.
        importing: imports functions before they are deployed.
        limits_max: the highest limits that a function may ask for.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        store: FileStorage,
        importing: Importing,
        limits_max: Limits = LIMITS_MAX,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._now_ms = now_ms
        self._store = store
        self._importing = importing
        self._limits_max = limits_max
        self._lock = threading.RLock()  # for changes
        self._known: dict[str, RoutedFunction] = {}
        self._trying: set[str] = set()  # versions of candidates
        self._tried: dict[str, str] = {}  # by function: the candidate's version id of its newest version
        self._taken: Counter[str] | None = None  # bytes by user; None: to be counted

    def find(self, name: str) -> RoutedFunction | None:
        """The function with this name."""
        known = self._known.get(name)
        if known is None:
            with self._lock:
                head = self._store.find(name, user_id=OWNER)
                if head is None:
                    return None
                known = self._known[name] = self._routed(head)
        return known

    def is_wanted(self, name: str, version_id: str) -> bool:
        """Whether this version of a function is live or a candidate; reads only the catalog.

        Args:
            name: the function.
            version_id: version id of the function, or of the candidate that workers imported.
        """
        if version_id in self._trying or self._tried.get(name) == version_id:
            return True
        known = self._known.get(name)
        if known is not None:
            return known.version == version_id
        head = self._store.find(name, user_id=OWNER)
        return head is not None and head.version_id == version_id

    def any(self) -> bool:
        """Whether there are any deployed functions."""
        return bool(self._known or self._store.list_files(user_id=OWNER, limit=1))

    def all(self) -> list[tuple[RoutedFunction, Version]]:
        """All functions with their newest versions, by name; without options while a bundle cannot be read."""
        return [(self._listed(head), head) for head in self._store.list_files(user_id=OWNER)]

    def names(self) -> list[RoutedFunction]:
        """All functions by name, without options: reads only the catalog, so that it never waits for a worker."""
        heads = self._store.list_files(user_id=OWNER)
        return [RoutedFunction(head.filename, head.version_id, head.file_id) for head in heads]

    def _listed(self, head: Version) -> RoutedFunction:
        try:
            found = self.find(head.filename)
        except StorageError:
            found = None
        return found or RoutedFunction(head.filename, head.version_id, head.file_id)

    def deploy(
        self, bundle: bytes, user_id: str, *, dry_run: bool = False, permit: Callable[[str], None] = lambda _name: None
    ) -> Deployment:
        """Make a bundle the newest version of its function, once a worker has imported it.

        Args:
            bundle: the function's bundle.
            user_id: the user who deploys it.
            dry_run: import it, but do not deploy it.
            permit: raises PermissionDenied if the user may not deploy a function of this name.

        Raises:
            FormatError, InvalidArgument: it is not a bundle, or its document asks for something out of bounds.
            FunctionBroken: it cannot be imported, or has no such entry.
            FunctionsUnavailable: no worker could import it, and an earlier version would no longer be the newest.
            QuotaExceeded: the user's files and functions would take too much.
        """
        permit(spec_of(bundle).name)  # so that a bundle is not stored which is invalid, or not permitted
        drop_old_candidates(self._store, self._now_ms)
        version = self._pushed(bundle, user_id)
        return self.deploy_pushed(version.file_id, version.version_id, user_id, dry_run=dry_run)

    def deploy_pushed(
        self,
        file_id: str,
        version_id: str,
        user_id: str,
        *,
        dry_run: bool = False,
        permit: Callable[[str], None] = lambda _name: None,
    ) -> Deployment:
        """Like :meth:`deploy`, with a bundle that was pushed as a file of ``CANDIDATE_OWNER``; deletes that file."""
        drop_old_candidates(self._store, self._now_ms)
        try:
            bundle = self._candidate(file_id, version_id)
            spec = spec_of(bundle).within(self._limits_max)
            permit(spec.name)
            candidate = RoutedFunction.of(spec, version_id, file_id)
            may_be_untried = self._store.find(spec.name, user_id=OWNER) is None
            with self._being_tried(version_id):
                return self._put(candidate, spec, bundle, user_id, dry_run=dry_run, may_be_untried=may_be_untried)
        finally:
            self._store.delete(file_id, user_id=CANDIDATE_OWNER)

    def _pushed(self, bundle: bytes, user_id: str) -> Version:
        return self._store.push(bundle, filename=secrets.token_hex(16), user_id=CANDIDATE_OWNER, note=user_id)

    def _candidate(self, file_id: str, version_id: str) -> bytes:
        size = self._store.stat(file_id, user_id=CANDIDATE_OWNER, version_id=version_id).size
        if size > ARCHIVE_BYTES_MAX:
            raise InvalidArgument(f"a bundle of {size:,} bytes: at most {ARCHIVE_BYTES_MAX:,} are taken")
        return self._store.get(file_id, user_id=CANDIDATE_OWNER, version_id=version_id)

    def roll_back(self, name: str, version_id: str, user_id: str) -> Deployment:
        """Make an earlier version the newest again.

        Args:
            name: the function.
            version_id: the version, or the start of its id; empty: the one before the newest.
            user_id: the user who rolls back.

        Raises:
            FunctionNotFound: there is no such function.
            InvalidArgument: there is no such version, or there are several.
        """
        history = self.history(name)
        if not version_id:
            if len(history) < 2:
                raise InvalidArgument(f"function {name!r} has only one version; there is none before it")
            chosen = [history[1]]
        else:
            chosen = [version for version in history if version.version_id.startswith(version_id)]
        if len(chosen) != 1:
            raise InvalidArgument(
                f"function {name!r} has {len(chosen) or 'no'} versions that begin with {version_id!r}; "
                f"`taskworker functions log {name}` lists them"
            )
        bundle = self._store.get(chosen[0].file_id, user_id=OWNER, version_id=chosen[0].version_id)
        version = self._pushed(bundle, user_id)
        try:
            spec = spec_of(bundle)
            candidate = RoutedFunction.of(spec, version.version_id, version.file_id)
            with self._being_tried(version.version_id):
                return self._put(candidate, spec, bundle, user_id, may_be_untried=True)
        finally:
            self._store.delete(version.file_id, user_id=CANDIDATE_OWNER)

    def history(self, name: str) -> list[Version]:
        """All versions, newest first.

        Raises:
            FunctionNotFound: no such function.
        """
        head = self._head(name)
        return list(self._store.history(head.file_id, user_id=OWNER))

    def bytes_of(self, user_id: str) -> int:
        """The bytes on volumes of all versions of functions that a user has deployed."""
        taken = self._taken
        if taken is None:
            with self._lock:
                taken = self._taken = self._counted()
        return taken[user_id]

    def _counted(self) -> Counter[str]:
        taken: Counter[str] = Counter()
        for head in self._store.list_files(user_id=OWNER):
            for version in self._store.history(head.file_id, user_id=OWNER):
                taken[version.note] += shards_bytes(version.profile, version.size)
        return taken

    def undeploy(self, name: str) -> None:
        """Remove a function and its versions.

        Raises:
            FunctionNotFound: no such function.
        """
        with self._lock:
            self._store.delete(self._head(name).file_id, user_id=OWNER)
            self._taken = None
            self._known.pop(name, None)
            self._tried.pop(name, None)

    def _put(
        self,
        candidate: RoutedFunction,
        spec: FunctionSpec,
        bundle: bytes,
        user_id: str,
        *,
        dry_run: bool = False,
        may_be_untried: bool,
    ) -> Deployment:
        imported_by, not_imported = self._imported(candidate, may_be_untried)
        able = tuple(sorted(self._importing.able(candidate)))
        unable = self._importing.obstacles(candidate)
        if dry_run:
            return Deployment(spec.name, "", False, imported_by, not_imported, able, unable)
        with self._lock:
            before = self._store.find(spec.name, user_id=OWNER)
            if before is None or not self._is_content(before, bundle):
                self._store.upkeep.require_room(user_id, shards_bytes(self._store.profile, len(bundle)))
            version = self._store.push(bundle, filename=spec.name, user_id=OWNER, note=user_id)
            self._taken = None
            self._known[spec.name] = RoutedFunction.of(spec, version.version_id, version.file_id)
            self._tried[spec.name] = candidate.version
        changed = before is None or before.version_id != version.version_id
        return Deployment(spec.name, version.version_id, changed, imported_by, not_imported, able, unable)

    def _is_content(self, version: Version, bundle: bytes) -> bool:
        return version.size == len(bundle) and bundle == self._store.get(
            version.file_id, user_id=OWNER, version_id=version.version_id
        )

    @contextlib.contextmanager
    def _being_tried(self, version_id: str) -> Iterator[None]:
        """Within this context, workers keep a candidate's processes; afterwards they end unless it was deployed."""
        self._trying.add(version_id)
        try:
            yield
        finally:
            self._trying.discard(version_id)

    def _imported(self, candidate: RoutedFunction, may_be_untried: bool) -> tuple[tuple[str, ...], str]:
        """The workers that imported it, or the reason why none could."""
        try:
            return self._importing.prepare(candidate), ""
        except FunctionsUnavailable as error:
            if not may_be_untried:
                raise FunctionsUnavailable(f"{candidate.name} stays as it was deployed before: {error}") from error
            return (), str(error)
        except FunctionBroken as error:
            raise FunctionBroken(f"{candidate.name} is not deployed as this version: {error}") from error

    def _routed(self, head: Version) -> RoutedFunction:
        bundle = self._store.get(head.file_id, user_id=OWNER, version_id=head.version_id)
        return RoutedFunction.of(spec_of(bundle), head.version_id, head.file_id)

    def _head(self, name: str) -> Version:
        head = self._store.find(check_name(name), user_id=OWNER)
        if head is None:
            raise FunctionNotFound(f"there is no deployed function {name!r}; `taskworker functions` lists them")
        return head
