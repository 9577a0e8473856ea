"""A revision received by stream: applies all patches in one atomic change, with bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from weakref import WeakValueDictionary

from blake3 import blake3

from storage import ConflictError, FileStorage, InvalidArgument, ManifestDiff, Patch, StorageError, Upload, Version
from storage.limits import DIFF_PATCHES_MAX
from taskworker.errors import ServerBusy
from taskworker.protos import store_pb2
from taskworker.rpc.admission import DEFAULT_LIMITS, Gate
from taskworker.rpc.authorization import user_of
from taskworker.rpc.binding import Caller, stop_when_abandoned
from taskworker.rpc.conversion import patch_from_proto
from taskworker.rpc.limits import MIB
from taskworker.services.giving_way import HasOthers, Progress, paced
from taskworker.services.node_writes import NodeWrites
from taskworker.shares import SharedAmount

_HELD_BYTES_MAX = 8 * MIB
_PATCHES_MAX = 2 * DIFF_PATCHES_MAX  # of all revisions at once; each takes some 200 bytes of memory


class Patches:
    """How many patches the revisions under way have in memory, shared among users. Thread-safe."""

    def __init__(self, most: int = _PATCHES_MAX) -> None:
        self._lock = threading.Lock()
        self._shared = SharedAmount(most, times=1)

    def take(self, user: str | None, count: int) -> None:
        """Let a user's revision have more.

        Raises:
            ServerBusy: the user's revisions have too many.
        """
        with self._lock:
            taken = self._shared.take(user, count)
        if not taken:
            raise ServerBusy(
                "the revisions under way have as many changed chunks as this server keeps in memory; send the file "
                "with PushStream, or try again in a moment"
            )

    def give_back(self, user: str | None, count: int) -> None:
        """A user's revision has ended."""
        with self._lock:
            self._shared.give_back(user, count)


class _Turn:
    """What the pushes of one user wait for."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Revisions:
    """What the revisions of a server share.

    Args:
        checks: how many users may have a revision checked against a SHA-256 at once.
        has_others: whether users other than one are active; a revision that is checked gives way to them.
    """

    def __init__(
        self, checks: int = DEFAULT_LIMITS.checks, has_others: HasOthers = lambda _user, _within: False
    ) -> None:
        self._has_others = has_others
        self._checks = Gate(
            checks,
            f"{checks} revisions are being checked against a SHA-256, as many as this server allows",
            kind="revisions with a SHA-256",
            times=1 / checks,
        )
        self.patches = Patches()
        self.nodes = NodeWrites(has_others)
        self._guard = threading.Lock()
        self._turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()

    @contextmanager
    def turn(self, caller: object) -> Iterator[None]:
        """A context in which chunks are read for a user's pushes, by one of them at a time.

        A push with a SHA-256 can name the same chunk of 16 MiB again and again, in 34 bytes each time, and a file that
        is made of others the same large file.
        """
        user = user_of(caller)
        if user is None:
            yield
            return
        with self._guard:
            turn = self._turns.setdefault(user, _Turn())
        with turn.lock:
            yield

    def reading(self, caller: object, sha256: str) -> Callable[[], AbstractContextManager[None]]:
        """Makes contexts in which a push names chunks that the user has, which are read if it has a ``sha256``."""
        return partial(self.turn, caller) if sha256 else nullcontext

    def checking(self, caller: object, sha256: str) -> AbstractContextManager[None]:
        """A context for a revision, which reads the whole file if there is a ``sha256``.

        Raises:
            ServerBusy: (on entering) the user has one already, or too many users do.
        """
        return self._checks.place(user_of(caller)) if sha256 else nullcontext()

    def progress(self, caller: Caller, sha256: str) -> Progress:
        """What is told of a revision's progress. It ends with its caller, and gives way to others if it is checked."""
        return self.giving_way(caller) if sha256 else stop_when_abandoned(caller)

    def giving_way(self, caller: Caller) -> Progress:
        """What is told of the progress of expensive work. It ends with its caller, and gives way to others."""
        return paced(caller, self._has_others)


class Revision:
    """Collects the patches of one ReviseStream; a context manager.

    Data of a few patches is held in memory until the commit. With many patches, whole chunks are written to the
    store as they arrive, by an upload that is never committed. These chunks belong to the user while the upload
    lasts, so that patches can name them; if it is cut off, for a further day, so that the revision can be resumed.
    """

    def __init__(self, store: FileStorage, header: store_pb2.ReviseHeader, shared: Revisions, caller: Caller) -> None:
        """Start a revision.

        Raises:
            ConflictError, InvalidArgument, FileNotFound, VersionNotFound: as the engine would raise later, but before
                any chunk is written to the store in vain.
        """
        self._store = store
        self._header = header
        self._head = _checked_head(store, header)
        self._shared = shared
        self._caller = caller
        self._taken = 0
        self._patches: list[Patch] = []
        self._held: list[int] = []  # positions of patches whose data is in memory
        self._held_bytes = 0
        self._staging: Upload | None = None

    def __enter__(self) -> Revision:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._shared.patches.give_back(user_of(self._caller), self._taken)
        # Bad input leaves nothing behind, but a sender that disconnected may come back.
        self.abort(keep_chunks=not isinstance(error, StorageError))

    def abort(self, *, keep_chunks: bool) -> None:
        """End without a version; with ``keep_chunks``, the user can resume the revision within a day."""
        if self._staging is not None:
            self._staging.abort(keep_chunks=keep_chunks)

    def _end(self) -> None:
        """The version refers to the chunks now."""
        if self._staging is not None:
            self._staging.abort(keep_chunks=False, used=True)

    def add(self, messages: Sequence[store_pb2.Patch]) -> None:
        """Add patches.

        Raises:
            InvalidArgument: the data of a patch does not match its chunk id, or there are too many patches.
            ServerBusy: the user's revisions have too many patches.
        """
        self._shared.patches.take(user_of(self._caller), len(messages))
        self._taken += len(messages)
        for message in messages:
            if len(self._patches) >= DIFF_PATCHES_MAX:
                raise InvalidArgument(f"more than {DIFF_PATCHES_MAX} patches in one revision; push the file instead")
            patch = patch_from_proto(message)
            if patch.data is not None:
                self._held.append(len(self._patches))
                self._held_bytes += len(patch.data)
            self._patches.append(patch)
            if self._held_bytes > _HELD_BYTES_MAX:
                self._stage()

    def commit(self, patch_count: int) -> Version:
        """Apply all patches if their number is that sent by the caller.

        Raises:
            InvalidArgument: patches are missing, or the engine refuses them.
            ConflictError: the base is not the head.
            ServerBusy: revisions of this user have written too much.
        """
        if patch_count != len(self._patches):
            raise InvalidArgument(f"{len(self._patches)} patches came of {patch_count} sent; send the revision again")
        header = self._header
        if self._staging is not None:
            self._stage()
            self._staging.claim()  # the patches refer to these chunks now
        diff = ManifestDiff(
            base_version_id=header.base_version,
            new_size=header.new_size,
            chunk_size=header.chunk_size,
            patches=tuple(self._patches),
        )
        self._shared.nodes.take(self._caller, diff)
        with self._shared.checking(self._caller, header.sha256):
            version = self._store.revise(
                header.file_id,
                diff,
                user_id=header.user_id,
                sha256=header.sha256 or None,
                time_ms=header.time_ms if header.HasField("time_ms") else None,
                note=header.note,
                progress=self._shared.progress(self._caller, header.sha256),
            )
        self._end()
        return version

    def _stage(self) -> None:
        """Write the whole chunks held in memory to the store, and keep only their ids."""
        if self._staging is None:
            self._staging = self._open_staging()
        held, self._held, self._held_bytes = self._held, [], 0
        for position in held:
            patch = self._patches[position]
            data = patch.data or b""
            if len(data) != self._staging.chunk_size:
                self._keep_last(position, len(data))
                continue
            if blake3(data).digest() != patch.chunk_id:
                raise InvalidArgument(f"the data of patch {patch.index} is not the chunk its id names; send it again")
            self._staging.write(data)
            self._patches[position] = Patch(index=patch.index, chunk_id=patch.chunk_id)

    def _keep_last(self, position: int, length: int) -> None:
        """Keep the data of the file's last chunk in memory; only this chunk may be shorter."""
        last = (self._header.new_size - 1) // (self._header.chunk_size or 1)
        if self._patches[position].index != last:
            raise InvalidArgument(
                f"patch {self._patches[position].index} has {length} bytes of data, not a whole chunk, "
                "and is not the last chunk of the file; cut the file into chunks of its chunk_size"
            )
        self._held.append(position)
        self._held_bytes += length

    def _open_staging(self) -> Upload:
        return self._store.upload(
            filename=self._head.filename,
            user_id=self._head.user_id,
            chunk_size=self._head.chunk_size,
            profile=self._store.profile_after(self._head, self._header.new_size),
        )


def _checked_head(store: FileStorage, header: store_pb2.ReviseHeader) -> Version:
    head = store.stat(header.file_id, user_id=header.user_id)
    base = store.stat(header.file_id, user_id=header.user_id, version_id=header.base_version)
    if base.version_id != head.version_id:
        raise ConflictError(
            f"head is {head.version_id}, the change was made against {base.version_id}; "
            "synchronize, make the change again and retry",
            head=head.version_id,
            base=base.version_id,
        )
    if header.chunk_size != head.chunk_size:
        raise InvalidArgument(f"the diff has chunks of {header.chunk_size} bytes, the file has {head.chunk_size}")
    return head
