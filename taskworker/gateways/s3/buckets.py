"""Buckets: their settings, and whether they exist.

A bucket is a first component of names that was made a bucket, or that has files below it.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cachetools import TTLCache

from storage import Version
from storage.clocks import monotonic_s
from storage.errors import ConflictError, FileNotFound, PermissionDenied
from taskworker.client import Client
from taskworker.gateways.s3.calls import Call
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.kept_settings import cors_rule, elements, region_of
from taskworker.gateways.s3.names import OWN, SETTINGS, check_new_bucket, is_bucket, locks_prefix, settings_name
from taskworker.gateways.s3.steadiness import alone

ENABLED = "Enabled"
SUSPENDED = "Suspended"

_SETTINGS_BYTES_MAX = 256 * 1024
_BUCKETS_MAX = 10_000
_TRIES = 20
_KEPT = 10_000
_KEPT_S = 2.0
"""How long this gateway may not notice what another one did to a bucket."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, and what was set for it.

    Attributes:
        created_ms: when it was made, in milliseconds since 1970; 0: it was not, but has files.
        region: what was asked for when it was made; empty: us-east-1.
        versioning: ``Enabled`` or ``Suspended``; empty: it never was.
        tags: of the bucket.
        cors: rules, each as it is in JSON.
        lifecycle: likewise.
        object_lock: the default retention of new versions, as it is in XML, empty: none; None: versions cannot be
            locked.
        policy: JSON; empty: none.
        granted: what the policy granted, or may have: users, and names that they may read.
        public_block: what shall not be made public; None: nothing was said.
        ownership: what was said about who owns objects; empty: nothing.
        is_known: whether the access key may read what was set; False: at most ``created_ms``, ``versioning`` and
            ``object_lock`` are known.
        is_told: whether these are known, by a connection that the gateway trusts if not by that of the key.
        is_damaged: whether what is kept of it makes no sense, so that nothing is known.
    """

    created_ms: int = 0
    region: str = ""
    versioning: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    cors: tuple[dict[str, Any], ...] = ()
    lifecycle: tuple[dict[str, Any], ...] = ()
    object_lock: dict[str, Any] | None = None
    policy: str = ""
    granted: tuple[tuple[str, str], ...] = ()
    public_block: tuple[str, ...] | None = None
    ownership: str = ""
    is_known: bool = True
    is_told: bool = True
    is_damaged: bool = False

    def encoded(self) -> bytes:
        """As the content of a file."""
        return json.dumps(
            {
                "created_ms": self.created_ms,
                "region": self.region,
                "versioning": self.versioning,
                "tags": self.tags,
                "cors": self.cors,
                "lifecycle": self.lifecycle,
                "object_lock": self.object_lock,
                "policy": self.policy,
                "granted": self.granted,
                "public_block": self.public_block,
                "ownership": self.ownership,
            },
            ensure_ascii=False,
        ).encode("utf-8", "surrogatepass")

    @classmethod
    def parse(cls, raw: bytes) -> Bucket:
        """Inverse of :meth:`encoded`. Others may write what they like: if some of it makes no sense, nothing counts."""
        try:
            found = json.loads(raw)
            versioning, lock = found["versioning"], found.get("object_lock")
            if versioning not in ("", ENABLED, SUSPENDED) or (lock is not None and versioning != ENABLED):
                raise ValueError("no state of versioning and locks")
            json.dumps(found, ensure_ascii=False).encode()  # no halves of characters
            return cls(
                int(found["created_ms"]),
                region_of(str(found["region"])),
                versioning,
                tuple((str(name), str(value)) for name, value in found["tags"]),
                tuple(cors_rule(rule) for rule in found["cors"]),
                tuple(elements(rule) for rule in found.get("lifecycle", ())),
                None if lock is None else elements(lock),
                str(found.get("policy", "")),
                tuple((str(user), str(granted)) for user, granted in found.get("granted", ())),
                None if found.get("public_block") is None else tuple(map(str, found["public_block"])),
                str(found.get("ownership", "")),
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return cls(created_ms=1, is_known=False, is_damaged=True)


class Buckets:
    """The buckets of all users. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, *, clock_s: Callable[[], float] = monotonic_s) -> None:
        self._kept: TTLCache[tuple[str, str, str], Bucket] = TTLCache(_KEPT, _KEPT_S, timer=clock_s)
        self._denied: TTLCache[tuple[str, str, str], bool] = TTLCache(_KEPT, _KEPT_S, timer=clock_s)
        self._lock = threading.Lock()
        self._changes = 0

    def shown(self, call: Call) -> Bucket | None:
        """The bucket of a call, for replies that show something of its settings; None if it is not known.

        An access key may be for a few objects, and not for what tells whether there is a bucket.
        """
        which = (call.account.access_key_id, call.user, call.bucket)
        with self._lock:
            if which in self._denied:
                return None
        try:
            return self.find(call, call.bucket)
        except PermissionDenied:
            with self._lock:
                self._denied[which] = True
            return None

    def get(self, call: Call) -> Bucket:
        """The bucket of a call.

        Raises:
            S3Error: there is none.
        """
        found = self.find(call, call.bucket)
        if found is None:
            raise S3Error("NoSuchBucket", "there is no such bucket; make it first", BucketName=call.bucket)
        return found

    def understood(self, call: Call) -> Bucket:
        """The bucket of a call that goes by its settings.

        Raises:
            S3Error: there is none, or they are damaged.
        """
        bucket = self.get(call)
        check_undamaged(bucket, call.bucket)
        return bucket

    def settled(self, call: Call) -> Bucket:
        """The bucket of a call that puts or deletes something: it is known whether it has versions, and locks them.

        Raises:
            S3Error: there is none, or that cannot be told.
        """
        bucket = self.understood(call)
        if not bucket.is_told:
            raise untold()
        return bucket

    def find(self, call: Call, name: str) -> Bucket | None:
        """A bucket of the caller; None if there is none. Guests are not told what was set, nor whether it exists."""
        if call.account.is_guest:
            return Bucket(is_known=False, is_told=False)
        which = (call.account.access_key_id, call.user, name)
        with self._lock:
            kept, changes = self._kept.get(which), self._changes
        if kept is not None:
            return kept
        found = self._read(call, name) if is_bucket(name) else None
        if found is not None:
            with self._lock:
                if changes == self._changes:  # what was changed meanwhile may have been read before
                    self._kept[which] = found
        return found

    def kept(self, call: Call) -> Bucket | None:
        """The bucket of a call, if it was found lately, so that the pool need not be asked."""
        with self._lock:
            return self._kept.get((call.account.access_key_id, call.user, call.bucket))

    def reread(self, call: Call) -> Bucket:
        """The bucket of a call as it is now, whatever another gateway did to it just before.

        Raises:
            S3Error: there is none, or it cannot be told whether it has versions.
        """
        with self._lock:
            self._kept.pop((call.account.access_key_id, call.user, call.bucket), None)
        return self.settled(call)

    def make(self, call: Call, made: Bucket) -> None:
        """Make the bucket of a call, with these settings.

        Raises:
            S3Error: there is one, its name is against the rules, the access key is not for all of its files, or these
                settings would let versions be deleted whose locks are kept.
        """
        check_may_set(call)
        check_new_bucket(call.bucket)
        found = self._read(call, call.bucket)
        if found is not None and found.created_ms:
            raise S3Error("BucketAlreadyOwnedByYou", "you have this bucket already", BucketName=call.bucket)
        if found is not None and not made.versioning:
            check_without_locks(call)
        try:
            self._store(call, made, None)
        except (ConflictError, FileNotFound):
            raise S3Error("OperationAborted", "the bucket is being made by another request; try again") from None

    def change(self, call: Call, changed: Callable[[Bucket], Bucket]) -> None:
        """Change the settings of a call's bucket, so that no change that another request makes is lost.

        Args:
            call: whose bucket it is about.
            changed: returns the new settings for the present ones; may be called several times.

        Raises:
            S3Error: there is no such bucket, its settings are damaged or become too long, others change them all the
                time, or the access key is not for all files of the bucket.
        """
        check_may_set(call)
        self.get(call)
        for _ in range(_TRIES):
            kept = read_settings(call.client, call.user, call.bucket)
            version_id, bucket = kept or (None, Bucket())
            check_undamaged(bucket, call.bucket)
            new = changed(bucket)
            if not bucket.created_ms and not new.versioning:
                check_without_locks(call)
            try:
                self._store(call, new, version_id)
                return
            except (ConflictError, FileNotFound):
                continue  # another request was faster
        raise S3Error("OperationAborted", "other requests change the settings of this bucket; try again")

    def _store(self, call: Call, bucket: Bucket, former_id: str | None) -> None:
        content = replace(bucket, created_ms=bucket.created_ms or call.now_ms).encoded()
        if len(content) > _SETTINGS_BYTES_MAX:
            raise S3Error("InvalidRequest", f"the settings of a bucket may have at most {_SETTINGS_BYTES_MAX} bytes")
        call.client.push(
            content,
            user_id=call.user,
            filename=settings_name(call.bucket),
            if_absent=former_id is None,
            if_head=former_id,
        )
        self._forget(call)

    def remove(self, call: Call, before: Callable[[Bucket], None]) -> None:
        """Remove the bucket of a call.

        Args:
            call: whose bucket it is about.
            before: called with the bucket when it is known that it can be removed.

        Raises:
            S3Error: there is none, it has objects or versions, or the access key is not for all of its files.
        """
        check_may_set(call)
        with alone(call.user, call.bucket):
            bucket = self.reread(call)
            _check_empty(call)
            before(bucket)
            kept = call.client.find(settings_name(call.bucket), user_id=call.user)
            if kept is not None:
                try:
                    call.client.delete(kept.file_id, user_id=call.user, if_head=kept.version_id)
                except (ConflictError, FileNotFound):
                    raise S3Error("OperationAborted", "another request changes this bucket; try again") from None
            self._forget(call)
            try:
                _check_empty(call)  # something may have been put just now, counting on the bucket's locks
            except S3Error:
                if kept is not None:
                    with contextlib.suppress(ConflictError):  # it was made again
                        self._store(call, replace(bucket, policy="", granted=()), None)
                raise
            for name in _names_below(call, locks_prefix(call.bucket)):
                lock = call.client.find(name, user_id=call.user)
                if lock is not None:
                    call.client.delete(lock.file_id, user_id=call.user)

    def every(self, call: Call) -> Iterator[tuple[str, int]]:
        """All buckets of the caller by name, with the time when each was made, in milliseconds since 1970."""
        made = {head.filename.removeprefix(SETTINGS): head for head in _heads(call, SETTINGS)}
        found: dict[str, int] = {name: 0 for name in _first_components(call) if is_bucket(name)}
        for name, head in made.items():
            found[name] = head.time_ms
        yield from sorted(found.items())

    def _read(self, call: Call, name: str) -> Bucket | None:
        try:
            kept = read_settings(call.client, call.user, name)
        except PermissionDenied:  # the access key is for the bucket's files only
            return self._told(call, name)
        if kept is not None:
            return kept[1]
        page = call.client.list_page(user_id=call.user, prefix=f"{name}/", limit=1)
        return Bucket() if page.files else None

    def _told(self, call: Call, name: str) -> Bucket | None:
        """What an access key that may not read the settings must be told of them, as it puts and deletes by that."""
        page = call.client.list_page(user_id=call.user, prefix=f"{name}/", limit=1)
        bucket = Bucket(is_known=False, is_told=False)
        with contextlib.suppress(PermissionDenied):
            kept = call.account.read_own(lambda client: read_settings(client, call.user, name))
            full = Bucket() if kept is None else kept[1]
            bucket = Bucket(
                full.created_ms,
                versioning=full.versioning,
                object_lock=full.object_lock,
                is_known=False,
                is_damaged=full.is_damaged,
            )
        return bucket if page.files or bucket.created_ms else None

    def _forget(self, call: Call) -> None:
        with self._lock:
            self._changes += 1
            for which in [one for one in self._kept if one[1:] == (call.user, call.bucket)]:
                self._kept.pop(which, None)


def check_may_set(call: Call) -> None:
    """Check that the access key of a call may change all files of its bucket: by settings, it can.

    Raises:
        S3Error: it may change some at most.
    """
    if not call.account.may_change(f"{call.bucket}/"):
        raise S3Error(
            "AccessDenied",
            f"settings are about all files of a bucket, but this key is not; it needs files:write:{call.bucket}/",
        )


def has_locks(call: Call) -> bool:
    """Whether locks of versions in a call's bucket were changed, and are kept.

    Raises:
        S3Error: that cannot be told.
    """
    prefix = locks_prefix(call.bucket)
    try:
        page = call.account.read_own(lambda client: client.list_page(user_id=call.user, prefix=prefix, limit=1))
    except PermissionDenied:
        raise untold() from None
    return bool(page.files)


def check_without_locks(call: Call) -> None:
    """Check that a bucket of which nothing is known may be taken for one without versions.

    Raises:
        S3Error: locks of its versions are kept, or that cannot be told.
    """
    if has_locks(call):
        raise S3Error(
            "InvalidBucketState",
            "the bucket has no settings any more, but locks of its versions are kept; make it with object lock "
            "(`aws s3api create-bucket --object-lock-enabled-for-bucket`) first",
            BucketName=call.bucket,
        )


def check_undamaged(bucket: Bucket, name: str) -> None:
    """Check that it is known what was set for a bucket: if not, its versions may be locked.

    Raises:
        S3Error: what is kept of it makes no sense.
    """
    if bucket.is_damaged:
        raise damaged(name)


def damaged(name: str) -> S3Error:
    """The error of whoever would go by settings of a bucket that make no sense."""
    file = settings_name(name)
    return S3Error(
        "InvalidBucketState",
        "the bucket's settings are damaged, so it is not known whether it has versions and locks, and nothing is put, "
        f"set or deleted; store an earlier version of the file {file} again (`taskworker log {file}` lists them), or "
        "remove that file and set everything anew",
        BucketName=name,
    )


def untold() -> S3Error:
    """The error of whoever would put or delete something by settings and locks that nobody may read."""
    return S3Error(
        "AccessDenied",
        "whether the bucket has versions, and which are locked, cannot be read by this access key; it needs the scope "
        "files:read:.s3/",
    )


def read_settings(client: Client, user: str, name: str) -> tuple[str, Bucket] | None:
    """The settings of a user's bucket, and the id of their version; None: it was not made."""
    kept = read_file(client, user, settings_name(name), _SETTINGS_BYTES_MAX)
    return None if kept is None else (kept[0].version_id, Bucket.parse(kept[1]))


def read_file(client: Client, user: str, name: str, bytes_max: int) -> tuple[Version, bytes] | None:
    """A file of the gateway's own, and its content, by one call of the pool; None: there is none.

    Others may have written it: if it has more than ``bytes_max`` bytes, the content is empty, which makes no sense.
    """
    try:
        version, content = client.get_small(name, user_id=user, by_name=True, bytes_max=bytes_max)
    except FileNotFound:
        return None
    return version, content or b""


def _check_empty(call: Call) -> None:
    """Check that there are no files in a call's bucket.

    Raises:
        S3Error: there are.
    """
    if call.client.list_page(user_id=call.user, prefix=f"{call.bucket}/", limit=1).files:
        raise S3Error(
            "BucketNotEmpty",
            "the bucket has objects, or former versions of objects; delete them first",
            BucketName=call.bucket,
        )


def _heads(call: Call, prefix: str) -> Iterator[Version]:
    after: str | None = None
    for _ in range(_BUCKETS_MAX // 1000):
        page = call.client.list_page(user_id=call.user, prefix=prefix, after=after)
        yield from page.files
        after = page.next_after
        if after is None:
            return


def _names_below(call: Call, prefix: str) -> Iterator[str]:
    """The names that begin so, of files that may be deleted meanwhile."""
    after: str | None = None
    while True:
        page = call.client.list_page(user_id=call.user, prefix=prefix, after=after)
        yield from (one.filename for one in page.files)
        after = page.next_after
        if after is None:
            return


def _first_components(call: Call) -> Iterator[str]:
    after: str | None = None
    for _ in range(_BUCKETS_MAX // 1000):
        page = call.client.list_page(user_id=call.user, delimiter="/", after=after)
        yield from (prefix.removesuffix("/") for prefix in page.prefixes if prefix != OWN)
        after = page.next_after
        if after is None:
            return
