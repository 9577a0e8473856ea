"""Stores files anew with the current one of a user's own keys, so that nothing needs the former keys any more.

A sealed name tells the key, so a file that is stored anew is another one to the server: all its versions are stored
under the new name, oldest first, and then the former file is deleted. Until the last version is stored, the notes of
the others say that more follow, and the former file counts. So this may be interrupted at any time, and begun again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby

from blake3 import blake3

from storage import ErasureProfile, Version
from storage.clocks import wall_ms
from storage.errors import (
    ConflictError,
    DataLossError,
    FileNotFound,
    InvalidArgument,
    KeyRequired,
    SealBroken,
    ShardsUnavailable,
    VersionNotFound,
)
from storage.limits import SMALL_COPIES_BYTES_MAX, BytesLike
from storage.options import PushOptions
from taskworker.client.base import RETRIES, ClientBase
from taskworker.client.deadline import Deadline
from taskworker.client.fetching import Wanted
from taskworker.client.pushing import push
from taskworker.client.sealed.keys import NOTE_SEALED_BYTES_MAX, OwnKey
from taskworker.client.sealed.listings import with_new_versions
from taskworker.client.sealed.shares import SealedShares
from taskworker.client.sources import StreamSource
from taskworker.errors import CallNotOffered
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import profile_from_proto, version_from_proto

SNAPSHOTS = ".folders/"
"""Files of snapshots name each other by the id of a file, which storing anew would change."""
_ROUNDS_MAX = 3  # against somebody who stores versions faster than they can be stored anew
_ENDLESS = Deadline(None)
_OF_ONE_FILE = (
    ConflictError,
    DataLossError,
    FileNotFound,
    InvalidArgument,
    KeyRequired,
    SealBroken,
    ShardsUnavailable,
    VersionNotFound,
)

Progress = Callable[[int, int], None]
Remap = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Left:
    """What still needs a former key.

    Attributes:
        name: the file.
        owner: whose file it is.
        key: id of the key.
        reason: why it was not stored anew.
    """

    name: str
    owner: str
    key: str
    reason: str


@dataclass(slots=True)
class Rotated:
    """What was stored anew.

    Attributes:
        files: number of files.
        versions: number of their versions.
        left: what still needs a former key.
    """

    files: int
    versions: int
    left: list[Left]


@dataclass(slots=True)
class _Move:
    """A file on its way from a former key to the current one.

    Attributes:
        key: the former key.
        stored: the head of the former file, as the server knows it; that which was stored anew last.
        name: the clear name.
        became: id of the version that the head became.
        remap: makes the content of the head's successor from the head's; None: it is the same.
    """

    key: OwnKey
    stored: Version
    name: str
    became: str = ""
    remap: Remap | None = None


class OwnKeyRotation:
    """Stores a user's files anew with the current key.

    Args:
        client: a client with all keys.
        user_id: the user.
        now_ms: this machine's clock, milliseconds since 1970.

    Raises:
        CallNotOffered: the server is of a release that cannot tell whether somebody else changes a file meanwhile.
    """

    def __init__(self, client: ClientBase, user_id: str, now_ms: Callable[[], int] = wall_ms) -> None:
        files = client.sealed_files
        assert files is not None, "the client has keys"
        self.require_offered(client)
        self._files = files
        self._user = user_id
        self._profile = profile_from_proto(files.channel.describe(_ENDLESS).profile)
        self._shares = SealedShares(files, user_id, now_ms)
        self._report = Rotated(0, 0, [])

    @staticmethod
    def require_offered(client: ClientBase) -> None:
        """Check that the server is there, and offers all that is needed.

        Raises:
            CallNotOffered: it does not.
            StorageError: it cannot be reached, or refuses this client.
        """
        files = client.sealed_files
        assert files is not None, "the client has keys"
        described = files.channel.describe(_ENDLESS)
        if not (described.has_conditions and described.has_delete_conditions):
            raise CallNotOffered(f"the server at {client.address} knows no conditions yet; upgrade it")

    def run(self, progress: Progress | None = None) -> Rotated:
        """Store everything anew that can be.

        Args:
            progress: called with the number of files that were looked at, and of all.

        Raises:
            StorageError: nothing can be stored now, or read. Run it again later: what was done stays done.
        """
        self._report = Rotated(0, 0, [])
        unfinished: list[Version] = []
        for key in self._files.keys.former:  # newest first: of two files of one name, that is the one that counts
            moves = [self._move(key, one) for one in self._files.stored_with(key, self._user, _ENDLESS)]
            unfinished += [move.stored for move in moves if self._goes_on(move.stored)]
            self._store_all_anew([move for move in moves if move.stored not in unfinished], progress)
        self._drop_unfinished(unfinished)
        self._shares.share_rest_anew()
        self._report.left += [
            Left(name, owner, key_id, "its owner shares it, and has to store it anew")
            for name, owner, key_id in self._shares.received_with_former_keys()
        ]
        return self._report

    def _move(self, key: OwnKey, stored: Version) -> _Move:
        return _Move(key, stored, self._files.opened(stored, self._user).filename)

    def _store_all_anew(self, moves: list[_Move], progress: Progress | None) -> None:
        moves.sort(key=lambda move: move.name.encode())
        done = 0
        for _, group in groupby(moves, _Together([move.name for move in moves])):
            together = list(group)
            self._store_anew(together)
            done += len(together)
            if progress is not None:
                progress(done, len(moves))

    def _store_anew(self, moves: list[_Move]) -> None:
        """Store files anew, one of which may list the others."""
        done: list[_Move] = []
        for move in sorted(moves, key=_is_listing):
            if _is_listing(move):
                move.remap = with_new_versions({one.stored.version_id: one.became for one in done})
            if self._unless_left(move, self._carry):
                done.append(move)
        for move in reversed(done):  # listings first: they name versions of the former files, which are still there
            if self._unless_left(move, self._delete):
                self._report.files += 1

    def _unless_left(self, move: _Move, do: Callable[[_Move], None]) -> bool:
        if move.name.startswith(SNAPSHOTS):
            self._leave(move, "it belongs to snapshots of a folder: forget them, and take new ones of another name")
            return False
        try:
            do(move)
        except _OF_ONE_FILE as error:
            if self._files.head(move.key, self._user, move.name, _ENDLESS) is not None:  # else somebody deleted it
                self._leave(move, str(error))
            return False
        return True

    def _leave(self, move: _Move, reason: str) -> None:
        self._report.left.append(Left(move.name, self._user, move.key.id, reason))

    def _drop_unfinished(self, unfinished: list[Version]) -> None:
        """Delete what was begun to be stored anew, by an earlier run with another key, or of files that are deleted."""
        keys = self._files.keys
        for stored in self._files.stored_with(keys.current, self._user, _ENDLESS):
            name = self._files.opened(stored, self._user).filename
            if self._goes_on(stored) and not any(
                self._files.head(key, self._user, name, _ENDLESS) for key in keys.former
            ):
                unfinished.append(stored)
        for stored in unfinished:
            with suppress(ConflictError, FileNotFound):
                self._delete_stored(stored)

    def _delete_stored(self, stored: Version) -> None:
        request = store_pb2.DeleteRequest(file_id=stored.file_id, user_id=self._user, if_head=stored.version_id)
        self._files.channel.unary(self._files.channel.store.Delete, request, _ENDLESS)

    # -- one file -------------------------------------------------------------------------------------

    def _carry(self, move: _Move) -> None:
        """Store the versions of a file under its new name that are not there yet; the head last."""
        former = self._history(move.stored.file_id)
        head = self._files.head(self._files.keys.current, self._user, move.name, _ENDLESS)
        last = len(former) - 1
        done, became = 0, ""
        if head is not None:
            at = self._last_same(former, head, move.remap)
            if at is not None:
                done, became = at + 1, head.version_id
            elif not self._goes_on(head):
                done, became = last + 1, self._stored_before(former[last], head, move.remap)
        for at in range(done, last + 1):
            head = self._push_one(move, former[at], head, is_last=at == last)
            became = head.version_id
            self._report.versions += 1
        move.stored, move.became = former[last], became
        self._shares.share_anew(move.key, move.name)

    def _push_one(self, move: _Move, stored: Version, head: Version | None, *, is_last: bool) -> Version:
        version, note = self._files.opened_with_note(stored, self._user)
        # Who stored a version is the server's word. It becomes a part of the note, which the server cannot change.
        text = version.note if len(version.note.encode()) <= NOTE_SEALED_BYTES_MAX else note.text
        options = PushOptions(
            move.name,
            self._user,
            profile=self._chosen_profile(stored),
            chunk_size=stored.chunk_size,
            time_ms=stored.time_ms,
            note=text,
            sha256=version.sha256,
            if_absent=head is None,
            if_head=None if head is None else head.version_id,
        )
        key = self._files.keys.current
        remap = move.remap if is_last else None
        if remap is not None:
            options = replace(options, sha256=None)
        source = StreamSource(iter(self._content(stored, remap)))
        content, sealed = self._files.prepared(key, options, source, _ENDLESS, goes_on=not is_last)
        return push(self._files.channel, content, sealed, deadline=_ENDLESS, retries=RETRIES)

    def _chosen_profile(self, stored: Version) -> ErasureProfile | None:
        """The profile that the version's author chose; None: that of the server."""
        copies = ErasureProfile(1, self._profile.n - self._profile.k + 1)
        if stored.profile == self._profile or (stored.profile == copies and stored.size <= SMALL_COPIES_BYTES_MAX):
            return None
        return stored.profile

    def _delete(self, move: _Move) -> None:
        """Delete the former file, once all that was stored there meanwhile is stored anew, too."""
        for _ in range(_ROUNDS_MAX):
            try:
                self._delete_stored(move.stored)
            except ConflictError:
                self._carry(move)
                continue
            except FileNotFound:
                pass  # somebody else was faster
            self._shares.unshare_former(move.key, move.name)
            return
        raise ConflictError(
            "it was changed again and again while it was stored anew; run the command again",
            head=move.stored.version_id,
        )

    # -- what is there already --------------------------------------------------------------------------

    def _history(self, file_id: str) -> list[Version]:
        """All versions of a file as the server knows them, oldest first."""
        versions: list[Version] = []
        before = ""
        while True:
            request = store_pb2.HistoryRequest(file_id=file_id, user_id=self._user, before=before)
            page = self._files.channel.unary(self._files.channel.store.History, request, _ENDLESS)
            versions += map(version_from_proto, page.versions)
            before = page.next_before
            if not before:
                return versions[::-1]

    def _goes_on(self, head: Version) -> bool:
        return self._files.opened_with_note(head, self._user)[1].goes_on

    def _last_same(self, former: list[Version], head: Version, remap: Remap | None) -> int | None:
        """The index of the last version that became this one."""
        for at in range(len(former) - 1, -1, -1):
            if self._is_same(former[at], head, remap if at == len(former) - 1 else None):
                return at
        return None

    def _stored_before(self, last: Version, head: Version, remap: Remap | None) -> str:
        """The id of the version that this one became before somebody changed the new file.

        Raises:
            ConflictError: it is not in the file's history.
        """
        for one in self._history(head.file_id):
            if self._is_same(last, one, remap):
                return one.version_id
        raise ConflictError(
            "a file of this name was stored with the former key, after it was stored anew with the current one; to "
            "have both, get it with a key file that has the former key only, and delete it there",
            head=head.version_id,
        )

    def _is_same(self, former: Version, anew: Version, remap: Remap | None) -> bool:
        """Whether a version of a former file became this one."""
        if (former.time_ms, former.chunk_size) != (anew.time_ms, anew.chunk_size):
            return False
        one, note = self._files.opened_with_note(former, self._user)
        other, other_note = self._files.opened_with_note(anew, self._user)
        if one.size != other.size or other_note.text not in (one.note, note.text):
            return False
        return _digest(self._content(former, remap)) == _digest(self._content(anew, None))

    def _content(self, stored: Version, remap: Remap | None) -> Iterable[BytesLike]:
        wanted = Wanted(stored.file_id, self._user, stored.version_id)
        opened = self._files.open_version(wanted, lambda: _ENDLESS)
        content: Iterator[BytesLike] = opened.content(0, opened.layout.size)
        return content if remap is None else [remap(b"".join(content))]


class _Together:
    """Tells which files are stored anew together: those below a folder, whose listing names their versions.

    Args:
        names: of all files, sorted.
    """

    def __init__(self, names: list[str]) -> None:
        self._listings = [name for name in names if name.endswith("/")]
        self._at = 0

    def __call__(self, move: _Move) -> str:
        """The listing that is above a file, or the file's own name. To be called in order."""
        listings = self._listings
        while self._at < len(listings) and not move.name.startswith(listings[self._at]):
            if listings[self._at].encode() > move.name.encode():
                return move.name
            self._at += 1
        return listings[self._at] if self._at < len(listings) else move.name


def _is_listing(move: _Move) -> bool:
    return move.name.endswith("/")


def _digest(pieces: Iterable[BytesLike]) -> bytes:
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()
