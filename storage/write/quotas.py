"""Quotas of users: how much they may store, and how much of that pushes under way have taken already.

What a file takes is counted with its entry in the catalog: the shards of its versions, each without the chunks that
stand at the same place in the version before it, and the copies of their records. Chunks that two files share count for
both, so that deleting one never gives back what the other needs. What an upload has written counts from when it is
written, until the upload ends; that of an interrupted upload, until it is resumed or collected. Of what failed uploads
and deleted files have left on the volumes, only what is more than the quota counts, until a collect begins: so a user
who makes a few mistakes, or replaces all files once, goes on at once, and one who does nothing else takes up to twice
the quota.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from storage.catalog import Catalog, FileEntry, Usage, user_key
from storage.catalog.port import UploadRecord
from storage.erasure import ErasureProfile
from storage.errors import FormatError, IncompletePush, InvalidArgument, QuotaExceeded, StorageError
from storage.formats.differences import differing_space
from storage.formats.manifest import RootNode
from storage.formats.sealed_nodes import manifest_of, manifest_over
from storage.formats.versions import StoredVersion, read_version
from storage.keys import StripeKey
from storage.limits import KIB, MIB
from storage.sealing.user_keys import KeyFinder
from storage.write.registry import Uploads
from storage.write.target import PushTarget


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user may store.

    Attributes:
        bytes: bytes on all volumes together; None: no limit.
        files: number of files; None: no limit.
    """

    bytes: int | None = None
    files: int | None = None


NO_QUOTA = Quota()

# A collect examines every file, so it is worthwhile if it frees a fair part of what they take.
_LEFT_PART = 10
_LEFT_PART_PRESSING = 1  # as much as all files together
_LEFT_MIN = 64 * MIB
_AWAITED_MAX = 4096
_ESTIMATED_MAX = 10_000
"""Chunks that are counted when a version is deleted, so that this is quick however large the file is."""


class Policy:
    """What users may do, set by whoever runs the store.

    Attributes:
        quota_of: returns a user's quota.
        beside: returns the bytes on volumes that a user takes with other than the user's own files.
        payer_of: returns who is charged for writing a file, given its owner and its version's note.
        allows: whether users may choose an erasure profile other than the store's own.
        allowed: which ones these are, for the texts of errors.
    """

    def __init__(self) -> None:
        self.quota_of: Callable[[str], Quota] = lambda _user: NO_QUOTA
        self.beside: Callable[[str], int] = lambda _user: 0
        self.payer_of: Callable[[str, str], str] = lambda owner, _note: owner
        self.allows: Callable[[ErasureProfile], bool] = lambda _profile: True
        self.allowed = "all"

    def check_profile(self, profile: ErasureProfile) -> None:
        """Check that users may choose a profile.

        Raises:
            InvalidArgument: they may not.
        """
        if not self.allows(profile):
            raise InvalidArgument(
                f"the profile {profile} is not allowed here; choose none, or one of those that are: {self.allowed}"
            )


class Quotas:
    """Compares what users take with what they may take. Thread-safe.

    Args:
        catalog: knows what their files take.
        uploads: knows which interrupted uploads are kept.
        keys: finds the keys of sealed versions.
        copies: how many copies there are of each manifest node.
    """

    def __init__(self, catalog: Catalog, uploads: Uploads, keys: KeyFinder, copies: int) -> None:
        self._keys = keys
        self._copies = copies
        self.policy = Policy()
        self._catalog = catalog
        self._uploads = uploads
        self._lock = threading.Lock()
        self._writing: Counter[bytes] = Counter()  # by user key
        self._left: Counter[bytes] = Counter()  # by user key: what no file needs any more since a collect began
        self._all_left = 0  # the same of all users
        self._thinned: Counter[bytes] = Counter()  # by user key: about what a collect would find that versions left
        self._refused = False  # a user, because of that
        self._collects = 0  # as many had begun by then

    def uncommitted(self, user: bytes) -> int:
        """The bytes that a user's uploads have written and not committed."""
        with self._lock:
            return self._uncommitted(user)

    def _uncommitted(self, user: bytes) -> int:
        return self._writing[user] + self._uploads.waiting_bytes(user)

    def take(self, target: PushTarget, count: int) -> None:
        """Let an upload write more.

        Raises:
            QuotaExceeded: its user would take more than allowed.
        """
        payer = self._payer(target)
        user = user_key(payer.encode())
        quota = self._quota_for(target, payer)
        used = 0 if quota.bytes is None else self._committed(payer, self._catalog.usage(user))
        with self._lock:
            if quota.bytes is not None:
                left = max(0, self._left_by(user) - quota.bytes)
                used += self._uncommitted(user) + left
                if used + count > quota.bytes:
                    raise self._too_many_bytes(payer, used, count, quota.bytes, left)
            self._writing[user] += count

    def _payer(self, target: PushTarget) -> str:
        return self.policy.payer_of(target.user_id, target.note)

    def _quota_for(self, target: PushTarget, payer: str) -> Quota:
        return NO_QUOTA if target.may_exceed_quota else self.policy.quota_of(payer)

    def _forget_collected(self) -> None:
        if self._collects != self._uploads.collects:
            self._collects = self._uploads.collects
            self._left.clear()
            self._thinned.clear()
            self._all_left = 0
            self._refused = False

    def _left_by(self, user: bytes) -> int:
        self._forget_collected()
        return self._left[user]

    def left(self, user: bytes, count: int) -> None:
        """Note that so many bytes on the volumes, which a user had stored, are needed no more."""
        with self._lock:
            self._left[user] = self._left_by(user) + count
            self._all_left += count

    def thinned(self, user_id: str, former: StoredVersion | None, version: StoredVersion) -> None:
        """Note that a version was deleted, so that a collect may free what it added to the one before it.

        That counts until then, as it is only known then whether the next version needs it.
        """
        added = self._added_by(former, version)
        with self._lock:
            self._forget_collected()
            self._thinned[user_key(user_id.encode())] += added
            self._all_left += added

    def _added_by(self, former: StoredVersion | None, version: StoredVersion) -> int:
        """About what a version added to the one before it: the shards of the first chunks that differ."""
        root = version.root
        if former is None or (former.root.profile, former.root.chunk_size) != (root.profile, root.chunk_size):
            return root_bytes(root)

        def load(node_id: bytes) -> bytes:
            raw = self._catalog.node(node_id)
            if raw is None:
                raise IncompletePush("a part of this version was collected")
            return raw

        try:
            differing = differing_space(manifest_of(former, load), manifest_of(version, load))
            return sum(
                shards_bytes(root.profile, root.chunk_length(index)) for index, _ in islice(differing, _ESTIMATED_MAX)
            )
        except StorageError:
            return 0  # a collect was faster, or reports it

    def is_collect_worthwhile(self, stored: Callable[[], int]) -> bool:
        """Whether much could be freed, or a user is refused what there would be room for.

        Args:
            stored: returns how many bytes are on the volumes. Files may count for more, as equal chunks count each.
        """
        with self._lock:
            self._forget_collected()
            if self._refused:
                return True
        return self._is_left(_LEFT_PART, stored)

    def is_collect_pressing(self, stored: Callable[[], int]) -> bool:
        """Whether as much could be freed as all files take."""
        return self._is_left(_LEFT_PART_PRESSING, stored)

    def _is_left(self, part: int, stored: Callable[[], int]) -> bool:
        with self._lock:
            self._forget_collected()
            left = self._all_left
        return left >= _LEFT_MIN and left * part >= min(stored(), sum(usage.bytes for usage in self._catalog.usages()))

    def end(self, target: PushTarget, count: int, *, committed: bool, counted: bool) -> None:
        """An upload has ended.

        Args:
            target: what it wrote.
            count: how many bytes it took.
            committed: whether it became a version. Then what earlier, interrupted ones wrote of it is a part of it.
            counted: whether its chunks count already: as those of an interrupted upload, or of another version.
        """
        payer = self._payer(target)
        user = user_key(payer.encode())
        with self._lock:
            self._writing[user] -= count
            if not self._writing[user]:
                del self._writing[user]
        # What is charged to another than its owner is not among that user's files, and nobody keeps it for long.
        if count and not counted and (not committed or payer != target.user_id):
            self.left(user, count)
        if committed and (waited := self._uploads.resumed(target.user, target.name)):
            self.left(target.user, waited)  # whether the version has it, a collect finds out

    def check(self, target: PushTarget, usage: Usage, added: Usage) -> None:
        """Check whether a version may be committed.

        Args:
            target: what it is of.
            usage: what the owner's files take.
            added: what the version adds.

        Raises:
            QuotaExceeded: it is too much.
        """
        user_id = target.user_id
        quota = self._quota_for(target, user_id)
        if quota.bytes is not None:
            used = self._committed(user_id, usage)
            with self._lock:
                left = max(0, self._left_by(user_key(user_id.encode())) - quota.bytes)
                if used + left + added.bytes > quota.bytes:
                    raise self._too_many_bytes(user_id, used + left, added.bytes, quota.bytes, left)
        if quota.files is not None and added.files and usage.files + added.files > quota.files:
            raise QuotaExceeded(
                f"user {user_id!r} has {usage.files:,} files, and may have {quota.files:,}; delete some, or ask the "
                "operator for a higher quota"
            )

    def require_room(self, user_id: str, count: int) -> None:
        """Check whether a user may take so many bytes more with other than the user's own files.

        Raises:
            QuotaExceeded: it is too much.
        """
        quota = self.policy.quota_of(user_id)
        if quota.bytes is not None:
            user = user_key(user_id.encode())
            used = self._committed(user_id, self._catalog.usage(user))
            with self._lock:
                left = max(0, self._left_by(user) - quota.bytes)
                used += self._uncommitted(user) + left
                if used + count > quota.bytes:
                    raise self._too_many_bytes(user_id, used, count, quota.bytes, left)

    def _too_many_bytes(self, user_id: str, used: int, added: int, quota: int, left: int) -> QuotaExceeded:
        left_at_most = left + self._thinned[user_key(user_id.encode())]
        self._refused = self._refused or (left_at_most > 0 and used - left_at_most + added <= quota)
        waits = f" ({_size(left)} of it by deleted files and failed pushes, until the next collect)" if left else ""
        return QuotaExceeded(
            f"user {user_id!r} takes {_size(used)} on the volumes{waits}, and may take {_size(quota)}: "
            f"{_size(added)} more are too much; delete files, or ask the operator for a higher quota"
        )

    def _committed(self, user_id: str, usage: Usage) -> int:
        return usage.bytes + self.policy.beside(user_id)

    def added_bytes(self, target: PushTarget, root: RootNode, nodes: Iterable[tuple[bytes, bytes]]) -> int:
        """What a version adds to the newest one of its name: the shards of the chunks that differ, and its nodes.

        Args:
            target: what the version is of.
            root: its manifest's root.
            nodes: its nodes that are not in the catalog yet, as (id, bytes).
        """
        own = dict(nodes)
        metadata = self._copies * sum(map(len, own.values()))
        head = self._head(target)
        if head is None or (head.root.profile, head.root.chunk_size) != (root.profile, root.chunk_size):
            return root_bytes(root) + metadata

        def load(node_id: bytes) -> bytes:
            raw = own.get(node_id) or self._catalog.node(node_id)
            if raw is None:
                raise IncompletePush("a part of this version was collected before its commit; push again")
            return raw

        old, new = manifest_of(head, load), manifest_over(root, target.keys, load)
        return metadata + sum(
            shards_bytes(root.profile, root.chunk_length(index)) for index, _ in differing_space(old, new)
        )

    def _head(self, target: PushTarget) -> StoredVersion | None:
        """The newest version of a name; None if there is none that can be read."""
        file_id = self._catalog.find(target.name)
        try:
            entry: FileEntry | None = None if file_id is None else self._catalog.file(file_id)
            raw = None if entry is None or file_id is None else self._catalog.version(file_id, entry.head)
            return None if raw is None or entry is None else read_version(raw, entry.head, self._keys)
        except FormatError:
            return None  # the commit reports it


class Taken:
    """What one upload has taken of its user's quota. Thread-safe."""

    def __init__(self, quotas: Quotas, target: PushTarget) -> None:
        self._quotas = quotas
        self._target = target
        self._count = 0
        self._awaited: dict[StripeKey, int] = {}  # lengths of chunks that take no more space
        self._lock = threading.Lock()
        self._has_ended = False

    def add(self, length: int, stripe: StripeKey | None = None) -> None:
        """Take the space for a chunk that is about to be stored.

        Args:
            length: length of its content in bytes.
            stripe: its stripe, if it may be one that was to be sent again.

        Raises:
            QuotaExceeded: the user would take more than allowed.
            InvalidArgument: the upload has ended meanwhile.
        """
        with self._lock:
            if stripe is not None and self._awaited.get(stripe) == length:
                del self._awaited[stripe]
                return
        count = shards_bytes(self._target.profile, length)
        self._quotas.take(self._target, count)
        with self._lock:
            has_ended = self._has_ended
            self._count += 0 if has_ended else count
        if has_ended:  # nobody would give it back
            self._quotas.end(self._target, count, committed=False, counted=True)
            raise InvalidArgument("this upload has ended")

    def await_again(self, stripe: StripeKey, length: int) -> None:
        """Note that a chunk of this length, whose space was taken, is to be sent again, which takes none then.

        If thousands are to be sent again, the others count twice.
        """
        with self._lock:
            if len(self._awaited) < _AWAITED_MAX:
                self._awaited[stripe] = length

    def drop(self, lengths: Iterable[int]) -> None:
        """Count chunks of these lengths as left over, as well as those that were to be sent again and were not.

        They are not known any more, so that their space is taken again if the upload is repeated.
        """
        with self._lock:
            dropped = [*lengths, *self._awaited.values()]
            self._awaited.clear()
            count = 0 if self._has_ended else sum(shards_bytes(self._target.profile, length) for length in dropped)
            self._count -= count
        self._quotas.end(self._target, count, committed=False, counted=False)

    def record(self, interrupted_s: float | None) -> UploadRecord:
        """The record of the upload in the catalog, with what it has taken."""
        return UploadRecord(interrupted_s, self._target.user, self._target.name, self._count)

    def end(self, *, committed: bool = False, counted: bool = False) -> None:
        """The upload has ended; see :meth:`Quotas.end`. Calls after the first one do nothing."""
        with self._lock:
            had_ended, self._has_ended = self._has_ended, True
        if not had_ended:
            self._quotas.end(self._target, self._count, committed=committed, counted=counted)


def shards_bytes(profile: ErasureProfile, length: int) -> int:
    """The size of all shards of an object."""
    return profile.n * profile.shard_length(length)


def root_bytes(root: RootNode) -> int:
    """The size of all shards of a file's chunks, if each chunk counts, be it equal to another one or not."""
    return shards_bytes(root.profile, root.size)


def _size(count: int) -> str:
    return f"{count / MIB:,.1f} MiB" if count >= 10 * MIB else f"{count / KIB:,.1f} KiB"
