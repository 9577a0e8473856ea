"""Applies the lifecycle rules of all buckets: one pass after another, in the background of a gateway.

A pass keeps nothing of its own. It reads a few hundred versions at a time, and each deletion is one step of the store
that is made only if what it was decided on is still so. So a pass can be killed anywhere, several gateways can make
passes at once, and the next pass does what is left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage import Version, VersionPage
from storage.clocks import wall_ms
from storage.errors import ConflictError, FileNotFound, PermissionDenied, StorageError, VersionNotFound
from taskworker.gateways.s3.accounts import Account, Accounts
from taskworker.gateways.s3.bodies import Expected
from taskworker.gateways.s3.buckets import Bucket, read_settings
from taskworker.gateways.s3.calls import Call
from taskworker.gateways.s3.deleting import marked
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.lifecycle_rules import Rule, after_days, enabled
from taskworker.gateways.s3.locks import delete_unlocked
from taskworker.gateways.s3.metadata import Metadata, metadata_of
from taskworker.gateways.s3.multipart import UPLOAD_KEY, abort
from taskworker.gateways.s3.names import SETTINGS, is_bucket, uploads_prefix

_log = logging.getLogger(__name__)
INTERVAL_S = 3600.0
_FIRST_AFTER_S = 60.0
_PAGE = 200
"""Versions that are read at a time; each may have attributes of 16 KiB."""


@dataclass(slots=True)
class Expired:
    """What a pass did.

    Attributes:
        objects: that expired.
        versions: former versions that were deleted.
        markers: delete markers that hid nothing.
        uploads: that were aborted.
    """

    objects: int = 0
    versions: int = 0
    markers: int = 0
    uploads: int = 0


class Lifecycles:
    """Applies rules when it is told to.

    Args:
        accounts: whose buckets.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, accounts: Accounts, *, now_ms: Callable[[], int] = wall_ms) -> None:
        self._accounts = accounts
        self._now_ms = now_ms

    def apply(self, stopped: Callable[[], bool] = lambda: False) -> Expired:
        """Make a pass over all buckets; what cannot be done now is logged, and left to the next one.

        Args:
            stopped: whether to end before all is done.
        """
        told = Expired()
        user, done = "", set[str]()
        try:
            for account in self._accounts.every():
                if account.user != user:
                    user, done = account.user, set()
                self._apply_to(account, done, told, stopped)
                if stopped():
                    break
        except StorageError as error:
            _log.warning("lifecycle rules were not applied to all buckets: %s", error)
        if told != Expired():
            _log.info(
                "lifecycle rules: %d objects expired; %d former versions, %d markers and %d uploads deleted",
                *(told.objects, told.versions, told.markers, told.uploads),
            )
        return told

    def _apply_to(self, account: Account, done: set[str], told: Expired, stopped: Callable[[], bool]) -> None:
        """Apply the rules of a user's buckets, but of those that are done by another key of the user."""
        try:
            for name in _buckets_of(account):
                if stopped():
                    return
                if name not in done and self._apply_to_bucket(account, name, told, stopped):
                    done.add(name)
        except PermissionDenied:
            _log.debug("the access key %s may not read settings of buckets", account.access_key_id)
        except StorageError as error:
            _log.warning("lifecycle rules of %r were not applied to all buckets: %s", account.user, error)

    def _apply_to_bucket(self, account: Account, name: str, told: Expired, stopped: Callable[[], bool]) -> bool:
        """Return whether it was done; a key may not be for this bucket, for which another one is."""
        try:
            kept = read_settings(account.client, account.user, name)
            rules = [] if kept is None else enabled(kept[1].lifecycle)
            if kept is not None and rules:
                _Pass(account, name, kept, rules, self._now_ms(), told, stopped).run()
        except PermissionDenied:
            return False
        except (StorageError, S3Error) as error:
            _log.warning("lifecycle rules of bucket %r of %r were not applied: %s", name, account.user, error)
        return True


class BackgroundLifecycles:
    """A thread that applies rules again and again.

    Args:
        lifecycles: applies them.
        interval_s: seconds between passes. The first one comes a minute after the start at the latest.
    """

    def __init__(self, lifecycles: Lifecycles, interval_s: float = INTERVAL_S) -> None:
        self._lifecycles = lifecycles
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lifecycle", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once the step that is under way is done."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        wait_s = min(self._interval_s, _FIRST_AFTER_S)
        while not self._stopped.wait(wait_s):
            try:
                self._lifecycles.apply(self._stopped.is_set)
            except Exception:
                _log.exception("lifecycle rules were not applied")
            wait_s = self._interval_s


class _Pass:
    """Applies the rules of one bucket."""

    def __init__(
        self,
        account: Account,
        name: str,
        settings: tuple[str, Bucket],
        rules: Sequence[Rule],
        now_ms: int,
        told: Expired,
        stopped: Callable[[], bool],
    ) -> None:
        self._account = account
        self._name = name
        self._settings_id, self._bucket = settings
        self._rules = rules
        self._now_ms = now_ms
        self._told = told
        self._stopped = stopped

    def run(self) -> None:
        start = f"{self._name}/"
        about_objects = [rule for rule in self._rules if _is_about_objects(rule)]
        for prefix in _shortest(rule.prefix for rule in about_objects):
            self._sift(_versions_below(self._account, start + prefix), about_objects)
        if any(rule.abort_days is not None for rule in self._rules):
            self._abort_uploads()

    # -- versions -----------------------------------------------------------------------------------

    def _sift(self, pages: Iterator[VersionPage], rules: Sequence[Rule]) -> None:
        newer: Version | None = None  # the version after the one that is looked at
        lone: Version | None = None  # a delete marker that may be all there is of its file
        former = 0
        for page in pages:
            if not self._is_as_set():
                return  # the next pass goes by what was set meanwhile
            for version in page.versions:
                if self._stopped():
                    return
                is_first = newer is None or newer.file_id != version.file_id
                if is_first and lone is not None:
                    self._clean(lone, rules)
                lone = None
                former = 0 if is_first else former + 1
                if version.version_id in page.latest:
                    if metadata_of(version).is_marker:
                        lone = version
                    else:
                        self._expire(version, rules)
                elif newer is not None and not is_first:
                    self._expire_former(version, metadata_of(newer).time_ms, former, rules)
                newer = version
        if lone is not None:
            self._clean(lone, rules)

    def _is_as_set(self) -> bool:
        kept = read_settings(self._account.client, self._account.user, self._name)
        return kept is not None and kept[0] == self._settings_id

    def _expire(self, version: Version, rules: Sequence[Rule]) -> None:
        metadata, key = metadata_of(version), self._key_of(version)
        due = [rule.expires_ms(metadata.time_ms) for rule in rules if rule.fits(key, version.size, metadata.tags)]
        if not key or not any(one is not None and one <= self._now_ms for one in due):
            return
        try:
            if self._bucket.versioning:
                marked(self._call(key), version.filename, self._bucket.versioning, version.version_id)
            else:
                self._account.client.delete(version.file_id, user_id=self._account.user, if_head=version.version_id)
        except (ConflictError, FileNotFound):
            return  # it was put again, or deleted, just now
        self._told.objects += 1

    def _expire_former(self, version: Version, since_ms: int, former: int, rules: Sequence[Rule]) -> None:
        metadata, key = metadata_of(version), self._key_of(version)
        for rule in rules:
            if (
                rule.noncurrent_days is not None
                and former > rule.newer_noncurrent
                and after_days(since_ms, rule.noncurrent_days) <= self._now_ms
                and rule.fits(key, version.size, metadata.tags)
            ):
                self._told.versions += self._delete(version, is_head=False)
                return

    def _clean(self, marker: Version, rules: Sequence[Rule]) -> None:
        key, metadata = self._key_of(marker), metadata_of(marker)
        if any(self._cleans(rule, key, metadata) for rule in rules):
            self._told.markers += self._delete(marker, is_head=True)

    def _cleans(self, rule: Rule, key: str, metadata: Metadata) -> bool:
        if not rule.fits(key, 0, {}):
            return False
        expires_ms = rule.expires_ms(metadata.time_ms)
        return rule.cleans_markers or (expires_ms is not None and expires_ms <= self._now_ms)

    def _delete(self, version: Version, *, is_head: bool) -> bool:
        """Delete a version for good, if it still is, or is not, the newest one, and is not locked."""
        client, user = self._account.client, self._account.user
        try:
            head = client.stat(version.file_id, user_id=user)
            if (head.version_id == version.version_id) is not is_head:
                return False
            delete_unlocked(self._call(self._key_of(version)), version)
        except (FileNotFound, VersionNotFound):
            return False  # it was deleted just now
        except S3Error as error:
            _log.debug("a former version in bucket %r stays: %s", self._name, error)
            return False
        return True

    def _key_of(self, version: Version) -> str:
        return version.filename.removeprefix(f"{self._name}/")

    # -- uploads ------------------------------------------------------------------------------------

    def _abort_uploads(self) -> None:
        start = uploads_prefix(self._name)
        for upload in _files_below(self._account, start, (UPLOAD_KEY,)):
            if self._stopped():
                return
            key = upload.attributes.get(UPLOAD_KEY, b"").decode("utf-8", "replace")
            if not any(
                rule.abort_days is not None
                and key.startswith(rule.prefix)
                and after_days(upload.time_ms, rule.abort_days) <= self._now_ms
                for rule in self._rules
            ):
                continue
            try:
                abort(self._call(key, f"uploadId={upload.filename.removeprefix(start)}"))
            except S3Error as error:
                _log.info("an upload to bucket %r was not aborted: %s", self._name, error)
                continue
            self._told.uploads += 1

    def _call(self, key: str, query: str = "") -> Call:
        """A request that nobody sent."""
        head = Head("DELETE", "/", query)
        return Call(head, self._account, self._name, key, Expected(size=0), self._now_ms)


def _is_about_objects(rule: Rule) -> bool:
    return rule.cleans_markers or any(one is not None for one in (rule.days, rule.date_ms, rule.noncurrent_days))


def _shortest(prefixes: Iterator[str]) -> list[str]:
    """Those of the prefixes that do not begin with others of them: what begins with these is all, and each once."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


def _versions_below(account: Account, prefix: str) -> Iterator[VersionPage]:
    """Pages of versions. Each is read before the one before it is yielded, whose deletions would lead nowhere."""
    page = account.client.list_versions(user_id=account.user, prefix=prefix, limit=_PAGE)
    while page.next_after is not None:
        try:
            following = account.client.list_versions(
                user_id=account.user, prefix=prefix, after=page.next_after, before=page.next_before, limit=_PAGE
            )
        except (FileNotFound, VersionNotFound):  # where to go on was deleted just now: go on with the next file
            following = account.client.list_versions(
                user_id=account.user, prefix=prefix, after=page.next_after, limit=_PAGE
            )
        yield page
        page = following
    yield page


def _files_below(account: Account, prefix: str, attributes: Sequence[str] = ()) -> Iterator[Version]:
    after: str | None = None
    while True:
        page = account.client.list_page(
            user_id=account.user, prefix=prefix, after=after, limit=_PAGE, with_attributes=attributes
        )
        yield from page.files
        after = page.next_after
        if after is None:
            return


def _buckets_of(account: Account) -> Iterator[str]:
    names = (one.filename.removeprefix(SETTINGS) for one in _files_below(account, SETTINGS))
    return (name for name in names if is_bucket(name))
