"""Locks of versions: until when, and whether, they may not be deleted.

What a version was put with is among its attributes, which cannot change. A lock that is changed later is kept in a file
of the gateway's own, named by the version's id, and counts in its place.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from storage import Version
from storage.errors import ConflictError, FileNotFound, PermissionDenied, VersionNotFound
from taskworker.client import Client
from taskworker.gateways.s3.buckets import Bucket, damaged, untold
from taskworker.gateways.s3.calls import Call
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.names import lock_name
from taskworker.gateways.s3.times import DAY_MS, iso

LOCK = "s3-lock"
"""The attribute of a version with the lock that it was put with."""
GOVERNANCE = "GOVERNANCE"
COMPLIANCE = "COMPLIANCE"
MODES = (GOVERNANCE, COMPLIANCE)
_BYTES_MAX = 4096
_TRIES = 20
_HEADER = "x-amz-object-lock-"
_STRIPES = [threading.Lock() for _ in range(64)]
_UNTIL_MAX_MS = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Lock:
    """What keeps a version from being deleted.

    Attributes:
        mode: ``GOVERNANCE`` or ``COMPLIANCE``; empty: it is not retained.
        until_ms: until when it is retained, in milliseconds since 1970.
        hold: whether it is held as evidence; None: nobody ever said so.
    """

    mode: str = ""
    until_ms: int = 0
    hold: bool | None = None

    def encoded(self) -> bytes:
        """As the value of an attribute, or the content of a file."""
        return json.dumps({"mode": self.mode, "until": self.until_ms, "hold": self.hold}).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Lock | None:
        """Inverse of :meth:`encoded`; None if others wrote it, and it makes no sense."""
        try:
            found = json.loads(raw)
            mode, until_ms, hold = found["mode"], int(found["until"]), found["hold"]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        if mode not in ("", *MODES) or not 0 <= until_ms <= _UNTIL_MAX_MS or hold not in (None, True, False):
            return None
        return cls(mode, until_ms, hold)

    def is_retained(self, now_ms: int) -> bool:
        """Whether it is retained at this time."""
        return bool(self.mode) and now_ms < self.until_ms

    def binds(self, now_ms: int, *, bypasses: bool) -> bool:
        """Whether the version may not be deleted at this time.

        Args:
            now_ms: milliseconds since 1970.
            bypasses: whether governance does not bind whoever would like to.
        """
        return bool(self.hold) or (self.is_retained(now_ms) and not (bypasses and self.mode == GOVERNANCE))

    def headers(self) -> list[tuple[str, str]]:
        """The headers of a reply about the version."""
        told = []
        if self.mode:
            told += [
                ("x-amz-object-lock-mode", self.mode),
                ("x-amz-object-lock-retain-until-date", iso(self.until_ms)),
            ]
        if self.hold is not None:
            told.append(("x-amz-object-lock-legal-hold", "ON" if self.hold else "OFF"))
        return told

    def changed_to(self, mode: str, until_ms: int, now_ms: int, *, bypasses: bool) -> Lock:
        """This with another retention; an empty mode: none.

        Raises:
            S3Error: the present retention does not allow that.
        """
        is_looser = mode != self.mode or until_ms < self.until_ms
        if self.is_retained(now_ms) and is_looser and not (bypasses and self.mode == GOVERNANCE):
            raise S3Error("AccessDenied", f"the version is retained in {self.mode} mode until {iso(self.until_ms)}")
        return replace(self, mode=mode, until_ms=until_ms)


def until_in(text: str, now_ms: int) -> int:
    """A date until which something is retained, in milliseconds since 1970.

    Raises:
        S3Error: it is malformed, or over.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        until_ms = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise S3Error("InvalidArgument", "the date must have the form 2030-01-31T12:00:00Z") from None
    if not now_ms < until_ms <= _UNTIL_MAX_MS:
        raise S3Error("InvalidArgument", "the date until which an object is retained must be in the future")
    return until_ms


def lock_of(call: Call, version: Version) -> Lock:
    """The lock of a version, as it is now, to be shown to whoever has the access key of a call.

    Raises:
        S3Error: it is damaged, or others change it all the time.
    """
    return _undamaged(call, version, _kept(call.client, call, version)[1])


def lock_headers(call: Call, version: Version) -> list[tuple[str, str]]:
    """The headers of a reply about a version; a lock that is damaged is in none."""
    lock = _kept(call.client, call, version)[1]
    return [] if lock is None else lock.headers()


def kept_lock(call: Call, version: Version) -> Lock:
    """The lock of a version, as it is now, to go by it.

    Raises:
        S3Error: it cannot be told.
    """
    return _told(call, version)[1]


def change_lock(call: Call, version: Version, changed: Callable[[Lock], Lock]) -> None:
    """Change the lock of a version, so that no change of another request is lost.

    Args:
        call: about which bucket of whom.
        version: the version.
        changed: returns the new lock for the present one; may be called several times.

    Raises:
        S3Error: it is damaged, or others change it all the time; or what ``changed`` raises.
    """
    for _ in range(_TRIES):
        with _alone_with(version):
            kept, lock = _kept(call.client, call, version)
            new = changed(_undamaged(call, version, lock))
            try:
                call.client.push(
                    new.encoded(),
                    user_id=call.user,
                    filename=lock_name(call.bucket, version.version_id),
                    if_absent=kept is None,
                    if_head=None if kept is None else kept.version_id,
                )
                return
            except (ConflictError, FileNotFound):
                continue  # a request to another gateway was faster
    raise S3Error("OperationAborted", "other requests change the lock of this version; try again")


def delete_unlocked(call: Call, version: Version, if_head: str | None = None) -> None:
    """Delete a version for good, if it is not locked.

    Args:
        call: about which bucket of whom.
        version: the version.
        if_head: delete nothing unless the version with this id is the newest one then.

    Raises:
        S3Error: it is locked, or that cannot be told.
        FileNotFound, VersionNotFound: it is gone.
        ConflictError: another version is the newest one.
    """
    with _alone_with(version):
        kept = check_unlocked(call, version)
        call.client.delete_version(version.file_id, version.version_id, user_id=call.user, if_head=if_head)
        if kept is not None:
            with contextlib.suppress(FileNotFound, PermissionDenied):  # it says nothing about any other version
                call.client.delete(kept.file_id, user_id=call.user)


def check_unlocked(call: Call, version: Version) -> Version | None:
    """The file with the lock of a version, None if there is none, if the version may be deleted.

    Raises:
        S3Error: it is locked, or that cannot be told.
    """
    kept, lock = _told(call, version)
    if lock.binds(call.now_ms, bypasses=bypasses_governance(call)):
        why = "a legal hold" if lock.hold else f"{lock.mode} mode until {iso(lock.until_ms)}"
        raise S3Error("AccessDenied", f"the version is protected by object lock: {why}")
    return kept


def bypasses_governance(call: Call) -> bool:
    """Whether a request is not bound by governance: it says so, and its key is for all of its user's files."""
    return call.account.is_whole and call.fields.get("x-amz-bypass-governance-retention", "").lower() == "true"


def given_lock(call: Call, bucket: Bucket, *, with_default: bool = True) -> Lock | None:
    """The lock that a request puts an object with; None: none.

    Args:
        call: the request.
        bucket: where it puts the object.
        with_default: whether the bucket's default counts, if the request says nothing.

    Raises:
        S3Error: what it says is malformed, or the bucket has no object lock, or a damaged default.
    """
    fields = call.fields
    mode, until = fields.get(f"{_HEADER}mode"), fields.get(f"{_HEADER}retain-until-date")
    hold = fields.get(f"{_HEADER}legal-hold")
    given = [one for one in (mode, until, hold) if one is not None]
    if given and bucket.object_lock is None:
        raise S3Error("InvalidRequest", "the bucket has no object lock; put-object-lock-configuration enables it")
    if (mode is None) != (until is None):
        raise S3Error("InvalidArgument", f"{_HEADER}mode and {_HEADER}retain-until-date belong together")
    if mode not in (None, *MODES):
        raise S3Error("InvalidArgument", f"{_HEADER}mode must be {' or '.join(MODES)}", ArgumentName=f"{_HEADER}mode")
    if hold not in (None, "ON", "OFF"):
        raise S3Error("InvalidArgument", f"{_HEADER}legal-hold must be ON or OFF", ArgumentName=f"{_HEADER}legal-hold")
    held = None if hold is None else hold == "ON"
    if mode is not None and until is not None:
        return Lock(mode, until_in(until, call.now_ms), held)
    lock = None if held is None else Lock(hold=held)
    return or_default(lock, bucket, call.bucket, call.now_ms) if with_default else lock


def or_default(lock: Lock | None, bucket: Bucket, name: str, now_ms: int) -> Lock | None:
    """A lock that a version is put with now; if it says nothing of retention, the bucket's default counts.

    Raises:
        S3Error: the default of the bucket of this name is damaged.
    """
    default = default_lock(bucket, name, now_ms)
    if default is None or (lock is not None and lock.mode):
        return lock
    return replace(default, hold=None if lock is None else lock.hold)


def default_lock(bucket: Bucket, name: str, now_ms: int) -> Lock | None:
    """The lock of an object that is put into a bucket of this name now, if nothing else is said; None: none.

    Raises:
        S3Error: what is kept of it makes no sense.
    """
    default = bucket.object_lock
    if not default:
        return None
    try:
        days = int(default["Days"]) if "Days" in default else 365 * int(default["Years"])
        mode, until_ms = str(default["Mode"]), now_ms + days * DAY_MS
    except (KeyError, ValueError, TypeError, OverflowError):  # others wrote them, who may write what they like
        raise damaged(name) from None
    if mode not in MODES or days < 1 or until_ms > _UNTIL_MAX_MS:
        raise damaged(name)
    return Lock(mode, until_ms)


def _alone_with(version: Version) -> threading.Lock:
    """Held while a lock is changed, or looked at and then the version deleted: not both at once in this gateway."""
    return _STRIPES[int(version.version_id[:8], 16) % len(_STRIPES)]


def _told(call: Call, version: Version) -> tuple[Version | None, Lock]:
    """Like :func:`_kept`, by whichever connection may read it.

    Raises:
        S3Error: none may, or it is damaged.
    """
    try:
        kept, lock = call.account.read_own(lambda client: _kept(client, call, version))
    except PermissionDenied:
        raise untold() from None
    return kept, _undamaged(call, version, lock)


def _undamaged(call: Call, version: Version, lock: Lock | None) -> Lock:
    """A lock, if there is one or may be one.

    Raises:
        S3Error: it is None, as what is kept of it makes no sense.
    """
    if lock is not None:
        return lock
    file = lock_name(call.bucket, version.version_id)
    raise S3Error(
        "AccessDenied",
        f"the lock of version {version.version_id} is damaged, so that it is not known until when it holds; if there "
        f"is a file {file}, store an earlier version of that again (`taskworker log {file}` lists them)",
    )


def _kept(client: Client, call: Call, version: Version) -> tuple[Version | None, Lock | None]:
    """The file with the lock, None if there is none; and the lock, None if what is kept of it makes no sense."""
    first = Lock.parse(version.attributes[LOCK]) if LOCK in version.attributes else Lock()
    for _ in range(_TRIES):
        kept = client.find(lock_name(call.bucket, version.version_id), user_id=call.user)
        if kept is None:
            return None, first
        try:
            raw = client.get(kept.file_id, user_id=call.user, version_id=kept.version_id, length=_BYTES_MAX)
        except (FileNotFound, VersionNotFound):
            continue  # it was changed or removed just now
        return kept, Lock.parse(raw)
    raise S3Error("OperationAborted", "other requests change the lock of this version; try again")
