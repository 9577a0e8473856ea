"""Applies the lifecycle rules of one bucket, a page at a time.

How old a version is goes by the store's clock, in its sequence: the time that authors of versions give may be any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage import Version, VersionPage
from storage.errors import ConflictError, FileNotFound, VersionNotFound
from taskworker.errors import CallNotOffered
from taskworker.gateways.s3.accounts import Account
from taskworker.gateways.s3.bodies import Expected
from taskworker.gateways.s3.buckets import Bucket, read_settings
from taskworker.gateways.s3.calls import Call
from taskworker.gateways.s3.deleting import delete_unlocked_file, marked
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.lifecycle_rules import Rule, after_days
from taskworker.gateways.s3.locks import delete_unlocked
from taskworker.gateways.s3.metadata import ETAG, metadata_of
from taskworker.gateways.s3.multipart import UPLOAD_KEY, abort
from taskworker.gateways.s3.names import uploads_prefix

_log = logging.getLogger(__name__)
PAGE = 200
"""Versions that are read at a time; each may have attributes of 16 KiB."""


@dataclass(slots=True)
class Expired:
    """What a pass did.

    Attributes:
        objects: that expired.
        versions: former versions that were deleted.
        markers: delete markers that hid nothing.
        uploads: that were aborted.
        parts: of uploads that had ended, which were deleted.
    """

    objects: int = 0
    versions: int = 0
    markers: int = 0
    uploads: int = 0
    parts: int = 0


@dataclass(slots=True)
class _Seen:
    """What was seen of a file, whose versions come newest first.

    Attributes:
        newer: the version before, maybe of another file; None: there was none.
        lone: a delete marker that may be all there is of its file.
        former: how many former versions there were, but those that only differ in tags from what came after them.
    """

    newer: Version | None = None
    lone: Version | None = None
    former: int = 0


class BucketPass:
    """Applies the rules of one bucket.

    Args:
        account: returns the account to act by, which may have another connection after each step.
        name: of the bucket.
        settings: the id of the version of its settings, and what they say.
        rules: those of the bucket that are enabled.
        now_ms: milliseconds since 1970.
        told: where it is counted what was done.
        stopped: whether to end before all is done.
    """

    def __init__(
        self,
        account: Callable[[], Account],
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

    def steps(self) -> Iterator[None]:
        """Apply the rules; a step is what there is to do about a page of versions or uploads.

        Raises:
            StorageError: the pool refuses something, or does not answer.
        """
        start = f"{self._name}/"
        about_objects = [rule for rule in self._rules if _is_about_objects(rule)]
        for prefix in _shortest(rule.prefix for rule in about_objects):
            yield from self._sift(_versions_below(self._account, start + prefix), about_objects)
        if any(rule.abort_days is not None for rule in self._rules):
            yield from self._abort_uploads()

    # -- versions -----------------------------------------------------------------------------------

    def _sift(self, pages: Iterator[VersionPage], rules: Sequence[Rule]) -> Iterator[None]:
        seen = _Seen()
        for page in pages:
            if not self._is_as_set():
                return  # the next pass goes by what was set meanwhile
            for position in range(len(page.versions)):
                if self._stopped():
                    return
                self._sift_one(page, position, seen, rules)
            yield
        if seen.lone is not None:
            self._clean(seen.lone, rules)

    def _sift_one(self, page: VersionPage, position: int, seen: _Seen, rules: Sequence[Rule]) -> None:
        version, newer, lone = page.versions[position], seen.newer, seen.lone
        seen.newer, seen.lone = version, None
        if newer is None or newer.file_id != version.file_id:
            newer, seen.former = None, 0
            if lone is not None:
                self._clean(lone, rules)
        elif not _is_same_object(newer, version):
            seen.former += 1
        if version.version_id not in page.latest:
            if newer is not None:
                self._expire_former(version, _stored_ms(newer), seen.former, rules)
        elif metadata_of(version).is_marker:
            seen.lone = version
        else:
            self._expire(version, _stored_ms(_first_of_same(page.versions, position)), rules)

    def _is_as_set(self) -> bool:
        account = self._account()
        kept = read_settings(account.client, account.user, self._name)
        return kept is not None and kept[0] == self._settings_id

    def _expire(self, version: Version, stored_ms: int, rules: Sequence[Rule]) -> None:
        metadata, key = metadata_of(version), self._key_of(version)
        since_ms = max(metadata.time_ms, stored_ms)
        due = [rule.expires_ms(since_ms) for rule in rules if rule.fits(key, version.size, metadata.tags)]
        if not key or not any(one is not None and one <= self._now_ms for one in due):
            return
        try:
            if self._bucket.versioning:
                marked(self._call(key), version.filename, self._bucket.versioning, version.version_id)
            else:
                delete_unlocked_file(self._call(key), version)
        except (ConflictError, FileNotFound):
            return  # it was put again, or deleted, just now
        except S3Error as error:
            _log.debug("an object in bucket %r stays: %s", self._name, error)
            return
        self._told.objects += 1

    def _expire_former(self, version: Version, since_ms: int, former: int, rules: Sequence[Rule]) -> None:
        """Delete a former version if a rule says so.

        Args:
            version: it.
            since_ms: when the version after it was stored, in milliseconds since 1970.
            former: how many former versions there are from it on, but those that only differ in tags.
            rules: of the bucket.
        """
        metadata, key = metadata_of(version), self._key_of(version)
        for rule in rules:
            if (
                rule.noncurrent_days is not None
                and (not rule.newer_noncurrent or former > rule.newer_noncurrent)
                and after_days(since_ms, rule.noncurrent_days) <= self._now_ms
                and rule.fits(key, version.size, metadata.tags)
            ):
                self._told.versions += self._delete(version, is_head=False)
                return

    def _clean(self, marker: Version, rules: Sequence[Rule]) -> None:
        key, metadata = self._key_of(marker), metadata_of(marker)
        since_ms = max(metadata.time_ms, _stored_ms(marker))
        if any(self._cleans(rule, key, since_ms) for rule in rules):
            self._told.markers += self._delete(marker, is_head=True)

    def _cleans(self, rule: Rule, key: str, since_ms: int) -> bool:
        if not rule.fits(key, 0, {}):
            return False
        expires_ms = rule.expires_ms(since_ms)
        return rule.cleans_markers or (expires_ms is not None and expires_ms <= self._now_ms)

    def _delete(self, version: Version, *, is_head: bool) -> bool:
        """Delete a version for good, if it is, or is not, the newest one, and is not locked.

        Nothing is deleted if another version becomes the newest one meanwhile, unless the pool is of a former release,
        which has no deletion on that condition.
        """
        account = self._account()
        try:
            head = account.client.stat(version.file_id, user_id=account.user)
            if (head.version_id == version.version_id) is not is_head:
                return False
            call = self._call(self._key_of(version))
            try:
                delete_unlocked(call, version, head.version_id)
            except CallNotOffered:
                delete_unlocked(call, version)
        except (ConflictError, FileNotFound, VersionNotFound):
            return False  # it, or a newer one, was deleted or put just now
        except S3Error as error:
            _log.debug("a former version in bucket %r stays: %s", self._name, error)
            return False
        return True

    def _key_of(self, version: Version) -> str:
        return version.filename.removeprefix(f"{self._name}/")

    # -- uploads ------------------------------------------------------------------------------------

    def _abort_uploads(self) -> Iterator[None]:
        start = uploads_prefix(self._name)
        for uploads in pages_below(self._account, start, (UPLOAD_KEY,)):
            for upload in uploads:
                if self._stopped():
                    return
                self._abort_upload(upload, upload.filename.removeprefix(start))
            yield

    def _abort_upload(self, upload: Version, upload_id: str) -> None:
        key = upload.attributes.get(UPLOAD_KEY, b"").decode("utf-8", "replace")
        since_ms = max(upload.time_ms, _stored_ms(upload))
        if not any(
            rule.abort_days is not None
            and key.startswith(rule.prefix)
            and after_days(since_ms, rule.abort_days) <= self._now_ms
            for rule in self._rules
        ):
            return
        try:
            abort(self._call(key, f"uploadId={upload_id}"))
        except S3Error as error:
            _log.info("an upload to bucket %r was not aborted: %s", self._name, error)
            return
        self._told.uploads += 1

    def _call(self, key: str, query: str = "") -> Call:
        """A request that nobody sent."""
        head = Head("DELETE", "/", query)
        return Call(head, self._account(), self._name, key, Expected(size=0), self._now_ms)


def pages_below(
    account: Callable[[], Account], prefix: str, attributes: Sequence[str] = ()
) -> Iterator[Sequence[Version]]:
    """The newest versions of all files whose names begin so, by their names, some at a time.

    Args:
        account: returns the account whose files they are.
        prefix: what the names begin with.
        attributes: which the versions shall have.

    Raises:
        StorageError: the pool refuses it, or does not answer.
    """
    after: str | None = None
    while True:
        by = account()
        page = by.client.list_page(user_id=by.user, prefix=prefix, after=after, limit=PAGE, with_attributes=attributes)
        yield page.files
        after = page.next_after
        if after is None:
            return


def _is_about_objects(rule: Rule) -> bool:
    return rule.cleans_markers or any(one is not None for one in (rule.days, rule.date_ms, rule.noncurrent_days))


def _shortest(prefixes: Iterator[str]) -> list[str]:
    """Those of the prefixes that do not begin with others of them: what begins with these is all, and each once."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


def _stored_ms(version: Version) -> int:
    """When the store took a version, by its clock, in milliseconds since 1970."""
    return version.sequence // 1000


def _is_same_object(newer: Version, older: Version) -> bool:
    """Whether a version is the one before it with other tags: who changes tags makes a copy, with the same time.

    Whoever may write the object can forge that. Then former versions are kept longer, and the newest one expires when
    the one before it would have.
    """
    if (newer.file_id, newer.size) != (older.file_id, older.size):
        return False
    etag = newer.attributes.get(ETAG)
    if etag is None or etag != older.attributes.get(ETAG):
        return False
    return metadata_of(newer).time_ms == metadata_of(older).time_ms


def _first_of_same(versions: Sequence[Version], position: int) -> Version:
    """What a version was before its tags were changed; only what is on the same page is known of that."""
    while position + 1 < len(versions) and _is_same_object(versions[position], versions[position + 1]):
        position += 1
    return versions[position]


def _versions_below(account: Callable[[], Account], prefix: str) -> Iterator[VersionPage]:
    """Pages of versions. Each is read before the one before it is yielded, whose deletions would lead nowhere."""
    page = _versions_after(account(), prefix)
    while page.next_after is not None:
        try:
            following = _versions_after(account(), prefix, page.next_after, page.next_before)
        except (FileNotFound, VersionNotFound):  # where to go on was deleted just now: go on with the next file
            following = _versions_after(account(), prefix, page.next_after)
        yield page
        page = following
    yield page


def _versions_after(account: Account, prefix: str, after: str | None = None, before: str | None = None) -> VersionPage:
    return account.client.list_versions(user_id=account.user, prefix=prefix, after=after, before=before, limit=PAGE)
