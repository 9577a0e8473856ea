"""Stores single files anew with the current one of a user's own keys.

A sealed name tells the key, so a file that is stored anew is another one to the server: all its versions are stored
under the new name, oldest first, and then the former file is deleted. Until the last version is stored, the notes of
the others say that more follow, and the former file counts. So this may be interrupted at any time, and begun again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from storage import ErasureProfile, Version
from storage.errors import ConflictError, FileNotFound
from storage.limits import SMALL_COPIES_BYTES_MAX, BytesLike
from storage.options import PushOptions
from taskworker.client.base import RETRIES
from taskworker.client.deadline import Deadline
from taskworker.client.fetching import Wanted
from taskworker.client.pushing import push
from taskworker.client.sealed.files import SealedFiles
from taskworker.client.sealed.keys import NOTE_SEALED_BYTES_MAX, OwnKey
from taskworker.client.sealed.shares import SealedShares
from taskworker.client.sources import StreamSource
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import profile_from_proto, version_from_proto

ENDLESS = Deadline(None)
_ROUNDS_MAX = 3  # against somebody who stores versions faster than they can be stored anew

Remap = Callable[[bytes], bytes]


@dataclass(slots=True)
class Move:
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


class Mover:
    """Stores files anew with the current key.

    Args:
        files: the files, with all keys.
        user_id: the user.
        shares: what the user shares.

    Attributes:
        versions: how many versions were stored anew.
    """

    def __init__(self, files: SealedFiles, user_id: str, shares: SealedShares) -> None:
        self.versions = 0
        self._files = files
        self._user = user_id
        self._profile = profile_from_proto(files.channel.describe(ENDLESS).profile)
        self._shares = shares

    def carry(self, move: Move, *, finish: bool = True) -> Version:
        """Store the versions of a file under its new name that are not there yet; the head last.

        Args:
            move: the file.
            finish: whether the new file counts from then on.

        Returns:
            The new file's head, as the server knows it.

        Raises:
            ConflictError: there is another file of this name already, or somebody changes it meanwhile.
            FileNotFound: somebody has deleted the file.
        """
        former = self._history(move.stored.file_id)
        head = self._files.head(self._files.keys.current, self._user, move.name, ENDLESS)
        last = len(former) - 1
        done, became = 0, ""
        if head is not None:
            at = self._last_same(former, head, move.remap)
            if at is not None:
                # If more was to follow but nothing does, the last version is stored again, without saying so.
                done = last if at == last and finish and self.goes_on(head) else at + 1
                became = head.version_id
            elif not self.goes_on(head):
                done, became = last + 1, self._stored_before(former[last], head, move.remap)
        for at in range(done, last + 1):
            remap = move.remap if at == last else None
            head = self._push(move.name, former[at], head, remap, goes_on=at < last or not finish)
            became = head.version_id
            self.versions += 1
        assert head is not None, "a file has at least one version"
        move.stored, move.became = former[last], became
        self._shares.share_anew(move.key, move.name)
        return head

    def finish(self, move: Move, again: Callable[[], object]) -> None:
        """Delete a file that is stored anew.

        Args:
            move: the file.
            again: stores anew what somebody stored there meanwhile.

        Raises:
            ConflictError: somebody does so all the time.
        """
        for _ in range(_ROUNDS_MAX):
            try:
                self.delete(move.stored)
            except ConflictError:
                again()
                continue
            except FileNotFound:
                pass  # somebody else was faster
            self._shares.unshare_former(move.key, move.name)
            return
        raise ConflictError(
            "it was changed again and again while it was stored anew; run the command again",
            head=move.stored.version_id,
        )

    def delete(self, stored: Version) -> None:
        """Delete a file.

        Raises:
            ConflictError: it has another head by now.
            FileNotFound: it is gone.
        """
        request = store_pb2.DeleteRequest(file_id=stored.file_id, user_id=self._user, if_head=stored.version_id)
        self._files.channel.unary(self._files.channel.store.Delete, request, ENDLESS)

    def copy(self, stored: Version, name: str) -> None:
        """Store a file's content under another name with the current key, unless there is a file of this name.

        Raises:
            ConflictError: somebody does the same now.
        """
        if self._files.head(self._files.keys.current, self._user, name, ENDLESS) is None:
            self._push(name, stored, None, None, goes_on=False)
            self.versions += 1

    def goes_on(self, head: Version) -> bool:
        """Whether more versions were to follow this one."""
        return self._files.opened_with_note(head, self._user)[1].goes_on

    def _push(self, name: str, stored: Version, head: Version | None, remap: Remap | None, *, goes_on: bool) -> Version:
        version, note = self._files.opened_with_note(stored, self._user)
        options = PushOptions(
            name,
            self._user,
            profile=self._chosen_profile(stored),
            chunk_size=stored.chunk_size,
            time_ms=stored.time_ms,
            # Who stored a version is the server's word. It becomes a part of the note, which the server cannot change.
            note=version.note if len(version.note.encode()) <= NOTE_SEALED_BYTES_MAX else note.text,
            sha256=version.sha256 if remap is None else None,
            if_absent=head is None,
            if_head=None if head is None else head.version_id,
        )
        source = StreamSource(iter(self._content(stored, remap)))
        content, sealed = self._files.prepared(self._files.keys.current, options, source, ENDLESS, goes_on=goes_on)
        return push(self._files.channel, content, sealed, deadline=ENDLESS, retries=RETRIES)

    def _chosen_profile(self, stored: Version) -> ErasureProfile | None:
        """The profile that the version's author chose; None: that of the server."""
        copies = ErasureProfile(1, self._profile.n - self._profile.k + 1)
        if stored.profile == self._profile or (stored.profile == copies and stored.size <= SMALL_COPIES_BYTES_MAX):
            return None
        return stored.profile

    # -- what is there already --------------------------------------------------------------------------

    def _history(self, file_id: str) -> list[Version]:
        """All versions of a file as the server knows them, oldest first."""
        versions: list[Version] = []
        before = ""
        while True:
            request = store_pb2.HistoryRequest(file_id=file_id, user_id=self._user, before=before)
            page = self._files.channel.unary(self._files.channel.store.History, request, ENDLESS)
            versions += map(version_from_proto, page.versions)
            before = page.next_before
            if not before:
                return versions[::-1]

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
            "there is another file of this name with the current key; to have both, get this one with a key file that "
            "has the former key only, store it under another name, and delete it there",
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
        opened = self._files.open_version(wanted, lambda: ENDLESS)
        content: Iterator[BytesLike] = opened.content(0, opened.layout.size)
        return content if remap is None else [remap(b"".join(content))]


def _digest(pieces: Iterable[BytesLike]) -> bytes:
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()
