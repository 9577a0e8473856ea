"""Stores all files anew with the current one of a user's own keys, so that nothing needs the former keys any more.

Files that name others by their ids or versions are stored anew together with these: the listing of a folder, and the
record of its snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from storage import Version
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
from taskworker.client.base import ClientBase
from taskworker.client.sealed.keys import OwnKey
from taskworker.client.sealed.moving import ENDLESS, Move, Mover
from taskworker.client.sealed.shares import SealedShares
from taskworker.errors import CallNotOffered
from taskworker.folders.listings import with_new_versions
from taskworker.folders.snapshots.records import DATA, RECORDS

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

_ROUNDS_MAX = 3
"""Somebody may go on storing files with a former key; these are named then."""

Progress = Callable[[int, int], None]


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
        self._shares = SealedShares(files, user_id, now_ms)
        self._mover = Mover(files, user_id, self._shares)
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
        described = files.channel.describe(ENDLESS)
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
        self._mover.versions = 0
        for _ in range(_ROUNDS_MAX):
            self._report.left = []
            self._store_what_is_there_anew(progress)
            stored_meanwhile = self._others_with_former_keys()
            if not stored_meanwhile:
                break
        self._report.left += stored_meanwhile
        self._report.versions = self._mover.versions
        self._report.left += [
            Left(name, owner, key_id, "its owner shares it, and has to store it anew")
            for name, owner, key_id in self._shares.received_with_former_keys()
        ]
        return self._report

    def _store_what_is_there_anew(self, progress: Progress | None) -> None:
        unfinished: list[Version] = []
        for key in self._files.keys.former:  # newest first: of two files of one name, that is the one that counts
            moves = [Move(key, stored, name) for name, stored in self._names(key, self._leave_broken)]
            unfinished += [move.stored for move in moves if self._mover.goes_on(move.stored)]
            self._store_all_anew([move for move in moves if move.stored not in unfinished], progress)
        self._drop_unfinished(unfinished)
        self._shares.share_rest_anew()

    def _others_with_former_keys(self) -> list[Left]:
        """What needs a former key, and is not known to: a program that has no other key may have stored it just now."""
        known = {(one.key, one.name) for one in self._report.left}
        found = [(key.id, name) for key in self._files.keys.former for name, _ in self._names(key, _skip_broken)]
        reason = "it was stored meanwhile, by somebody who has only the former key; run the command again"
        return [Left(name, self._user, key_id, reason) for key_id, name in found if (key_id, name) not in known]

    def _names(
        self, key: OwnKey, broken: Callable[[Version, SealBroken], None] | None = None
    ) -> Iterator[tuple[str, Version]]:
        """The names of all files that are sealed with a key, and their heads as the server knows them.

        Args:
            key: the key.
            broken: told of files whose names or notes were changed; None: an error is raised.
        """
        for stored in self._files.stored_with(key, self._user, ENDLESS):
            try:
                name = self._files.opened(stored, self._user).filename
            except SealBroken as error:
                if broken is None:
                    raise
                broken(stored, error)
            else:
                yield name, stored

    def _leave_broken(self, stored: Version, error: SealBroken) -> None:
        key = self._files.keys.key_of(stored.file_id, stored.filename)
        self._report.left.append(Left(stored.filename, self._user, key.id, str(error)))

    def _store_all_anew(self, moves: list[Move], progress: Progress | None) -> None:
        moves.sort(key=lambda move: move.name.encode())
        records = [move for move in moves if move.name.startswith(RECORDS)]
        containers = tuple(_containers_of(record) for record in records)
        with_record = {id(move) for move in moves if containers and move.name.startswith(containers)}
        others = [move for move in moves if id(move) not in with_record and not move.name.startswith(RECORDS)]
        for record in records:
            if self._unless_left(record, self._store_snapshots):
                self._report.files += 1
        others = self._without_copied(others)
        done = len(moves) - len(others)
        for _, group in groupby(others, _Together([move.name for move in others])):
            together = list(group)
            self._store_anew(together)
            done += len(together)
            if progress is not None:
                progress(done, len(moves))

    def _store_anew(self, moves: list[Move]) -> None:
        """Store files anew, one of which may list the others."""
        done: list[Move] = []
        for move in sorted(moves, key=_is_listing):
            if _is_listing(move):
                move.remap = with_new_versions({one.stored.version_id: one.became for one in done})
            if self._unless_left(move, self._mover.carry):
                done.append(move)
        for move in reversed(done):  # listings first: they name versions of the former files, which are still there
            if self._unless_left(move, lambda move: self._mover.finish(move, lambda: self._mover.carry(move))):
                self._report.files += 1

    def _store_snapshots(self, record: Move) -> None:
        """Store the record of a folder's snapshots anew, and their containers, whose names have the record's id."""
        former = _containers_of(record)

        def carry() -> None:
            begun = self._mover.carry(record, finish=False)
            for name, stored in self._all_names(former):
                self._mover.copy(stored, f"{DATA}{begun.file_id}/{name.removeprefix(former)}")
            self._mover.carry(record)

        carry()
        self._mover.finish(record, carry)
        for _, stored in self._all_names(former):
            with suppress(ConflictError, FileNotFound):
                self._mover.delete(stored)
            self._report.files += 1

    def _without_copied(self, moves: list[Move]) -> list[Move]:
        """Delete containers of snapshots that were copied by a run which was stopped before it deleted them."""
        if not any(move.name.startswith(DATA) for move in moves):
            return moves
        records = {stored.file_id for _, stored in self._all_names(RECORDS)}
        left: list[Move] = []
        for move in moves:
            record_id, _, container = move.name.removeprefix(DATA).partition("/")
            if not move.name.startswith(DATA) or record_id in records or not self._is_current(records, container):
                left.append(move)
                continue
            with suppress(ConflictError, FileNotFound):
                self._mover.delete(move.stored)
        return left

    def _is_current(self, records: Iterable[str], container: str) -> bool:
        """Whether a container belongs to one of these records by now; no two have the same random name."""
        key = self._files.keys.current
        return any(self._files.head(key, self._user, f"{DATA}{one}/{container}", ENDLESS) for one in records)

    def _all_names(self, prefix: str) -> list[tuple[str, Version]]:
        """Names with this prefix and heads, with whichever key they are sealed."""
        keys = self._files.keys
        return [found for key in keys for found in self._names(key) if found[0].startswith(prefix)]

    def _unless_left(self, move: Move, do: Callable[[Move], object]) -> bool:
        try:
            do(move)
        except _OF_ONE_FILE as error:
            if self._files.head(move.key, self._user, move.name, ENDLESS) is not None:  # else somebody deleted it
                self._report.left.append(Left(move.name, self._user, move.key.id, str(error)))
            return False
        return True

    def _drop_unfinished(self, unfinished: list[Version]) -> None:
        """Delete what was begun to be stored anew, by an earlier run with another key, or of files that are deleted."""
        keys = self._files.keys
        for name, stored in self._names(keys.current, _skip_broken):
            if self._mover.goes_on(stored) and not any(
                self._files.head(key, self._user, name, ENDLESS) for key in keys.former
            ):
                unfinished.append(stored)
        for stored in unfinished:
            with suppress(ConflictError, FileNotFound):
                self._mover.delete(stored)


class _Together:
    """Tells which files are stored anew together: those below a folder, whose listing names their versions.

    Args:
        names: of all files, sorted.
    """

    def __init__(self, names: list[str]) -> None:
        self._listings = [name for name in names if name.endswith("/")]
        self._at = 0

    def __call__(self, move: Move) -> str:
        """The listing that is above a file, or the file's own name. To be called in order."""
        listings = self._listings
        while self._at < len(listings) and not move.name.startswith(listings[self._at]):
            if listings[self._at].encode() > move.name.encode():
                return move.name
            self._at += 1
        return listings[self._at] if self._at < len(listings) else move.name


def _skip_broken(_stored: Version, _error: SealBroken) -> None:
    """Do nothing: reading it says what is wrong."""


def _is_listing(move: Move) -> bool:
    return move.name.endswith("/")


def _containers_of(record: Move) -> str:
    """How the names of the containers begin that belong to a record of snapshots."""
    return f"{DATA}{record.stored.file_id}/"
