"""A folder's snapshots and blobs, over the port of files."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from storage import FileNotFound, Version
from storage.errors import ConflictError, InvalidArgument
from taskworker.folders.ports import Files
from taskworker.folders.problems import FolderDamaged
from taskworker.folders.snapshots.blobs import Index, Place, blob_id, decode_index
from taskworker.folders.snapshots.directories import DIRECTORY_BYTES_MAX
from taskworker.folders.snapshots.records import (
    DATA,
    RECORD_BYTES_MAX,
    RECORDS,
    Pending,
    Record,
    Snapshot,
    decode_record,
    encode_record,
    record_name,
)

PACK_BYTES_MAX = 32 << 20
"""Containers up to this size hold many blobs, and are read as a whole."""
_INDEX_BYTES_MAX = 256 << 20
_PACKS_KEPT = 4
_PIECES_MAX = 3
"""If more pieces of a pack are needed, the whole is read, as all of it may be."""
_ASKED_MAX = 1000
"""If more blobs are looked up, a set of all is made."""
_ID_DIGITS_MIN = 4


def folder_names(files: Files) -> list[str]:
    """The folders of which there are snapshots."""
    return [head.filename[len(RECORDS) :] for head in files.heads(RECORDS)]


@dataclass(frozen=True, slots=True)
class Found:
    """A folder's record, and the version of the file that it was read from."""

    record: Record
    version: Version


class Repository:
    """The snapshots of one folder, and the blobs that they consist of.

    Args:
        files: where it is kept.
        folder: its name.
        create: whether to begin one that does not exist.

    Raises:
        InvalidArgument: this is no name of a folder.
        FileNotFound: there are no snapshots of it.
        FolderDamaged: its record cannot be read.
    """

    def __init__(self, files: Files, folder: str, *, create: bool = False) -> None:
        self.files = files
        self.folder = folder
        self._name = record_name(folder)
        self._found = self._load(create=create)
        self.data = f"{DATA}{self._found.version.file_id}/"
        record = self._found.record
        self.index_containers = (*record.indexes, *(each.index for each in record.pending))
        self._packs: OrderedDict[bytes, bytes] = OrderedDict()
        self._pieces: Counter[bytes] = Counter()
        self._asked = 0

    @property
    def record(self) -> Record:
        """The folder's record as it was last read or written."""
        return self._found.record

    def _load(self, *, create: bool) -> Found:
        version = self.files.find(self._name)
        if version is None:
            if not create:
                raise FileNotFound(
                    f"there are no snapshots of a folder {self.folder[:80]!r}; `taskworker folder list` shows of which"
                )
            version = self._begun()
        return self._read(version)

    def _begun(self) -> Version:
        """The first version of a record. If another one was made at the same time, that one."""
        version = self.files.push(self._name, b"")
        if not version.parent_id or version.unchanged:
            return version
        former = self.files.version(version.file_id, version.parent_id)
        return self.files.push_after(self._name, self.files.read(former, 0, former.size), version.version_id)

    def _read(self, version: Version) -> Found:
        if version.size > RECORD_BYTES_MAX:
            raise FolderDamaged(f"the folder's record has {version.size:,} bytes, which no record has")
        return Found(decode_record(self.files.read(version, 0, version.size) if version.size else b""), version)

    def reload(self) -> None:
        """Read the record again."""
        self._found = self._load(create=False)

    def save(self, record: Record) -> None:
        """Make a record the folder's, if nobody has changed it since it was read.

        Raises:
            ConflictError: somebody has.
        """
        self._found = Found(
            record, self.files.push_after(self._name, encode_record(record), self._found.version.version_id)
        )

    # -- snapshots -------------------------------------------------------------------------------

    def snapshot(self, reference: str) -> Snapshot:
        """The snapshot whose id begins with this; ``latest`` is the newest one.

        Raises:
            InvalidArgument: the reference is malformed, or several snapshots begin with it.
            FileNotFound: there is none.
        """
        snapshots = self.record.snapshots
        if reference == "latest" and snapshots:
            return snapshots[-1]
        if reference != "latest" and (len(reference) < _ID_DIGITS_MIN or set(reference) - set("0123456789abcdef")):
            raise InvalidArgument("a snapshot is named by 4 to 32 hex digits of its id, or `latest`")
        found = [snapshot for snapshot in snapshots if snapshot.id.startswith(reference)]
        if len(found) > 1:
            raise InvalidArgument(f"{len(found)} snapshots begin with {reference}: give more of the id")
        if not found:
            raise FileNotFound(f"the folder has no snapshot {reference}; `taskworker folder snapshots` lists them")
        return found[0]

    # -- blobs -----------------------------------------------------------------------------------

    @cached_property
    def indexes(self) -> list[Index]:
        """The folder's indexes, as of when its record was first read.

        Raises:
            FolderDamaged: one of them cannot be read.
        """
        return self._load_indexes(self.index_containers)

    def require_indexes(self) -> None:
        """Look whether the indexes are there, without reading them.

        Raises:
            FolderDamaged: one of them is not.
        """
        for container in self.index_containers:
            self.head(container)

    def has(self, blob: bytes) -> bool:
        """Whether a blob is stored."""
        return self.has_all((blob,))

    def has_all(self, blobs: Collection[bytes]) -> bool:
        """Whether all of these are stored."""
        self._asked += len(blobs)
        if self._asked <= _ASKED_MAX:
            return all(self.place_of(blob) is not None for blob in blobs)
        return self._stored.issuperset(blobs)

    @cached_property
    def _stored(self) -> frozenset[bytes]:
        return frozenset().union(*self.indexes)

    def place_of(self, blob: bytes) -> Place | None:
        """Where a blob lies; None if it is not stored."""
        for index in reversed(self.indexes):
            position = index.position_of(blob)
            if position is not None:
                return index.place_at(position)
        return None

    def load(self, blob: bytes, *, with_pack: bool = False) -> bytes:
        """A blob that fits into memory, verified: a directory, or the content of a file that was packed.

        Args:
            blob: its id.
            with_pack: whether to read all of its pack at once, as most of that will be asked for.

        Raises:
            FolderDamaged: it is not stored, or is not what its name says.
            StorageError: it cannot be read.
        """
        place = self._place(blob)
        if place.length > max(PACK_BYTES_MAX, DIRECTORY_BYTES_MAX):
            raise FolderDamaged(f"a blob of {place.length:,} bytes is no directory")
        data = self._piece(place, with_pack=with_pack)
        if blob_id(data) != blob:
            raise FolderDamaged(f"blob {blob.hex()[:16]} of the folder is not what its name says")
        return data

    def content(self, blob: bytes) -> Iterator[bytes]:
        """The content of a file of any size in pieces; verified in the end, when it is an error if it is not right.

        Raises: as :meth:`load`.
        """
        place = self._place(blob)
        if place.length <= PACK_BYTES_MAX:
            yield self.load(blob, with_pack=True)
            return
        from blake3 import blake3

        digest = blake3()
        left = place.length
        with self.files.opened(self.head(place.container)) as reader:
            reader.seek(place.offset)
            while left and (piece := reader.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
                yield piece
        if left or digest.digest() != blob:
            raise FolderDamaged(f"blob {blob.hex()[:16]} of the folder is not what its name says")

    def _place(self, blob: bytes) -> Place:
        place = self.place_of(blob)
        if place is None:
            raise FolderDamaged(f"blob {blob.hex()[:16]} of the folder is not stored any more")
        return place

    def _piece(self, place: Place, *, with_pack: bool) -> bytes:
        pack = self._packs.get(place.container)
        if pack is None:
            self._pieces[place.container] += 1
            if self._pieces[place.container] <= _PIECES_MAX and not with_pack:
                return self.files.read(self.head(place.container), place.offset, place.offset + place.length)
            (outcome,) = self.files.get_many(
                [self.container_name(place.container)], by_name=True, bytes_max=PACK_BYTES_MAX
            )
            if isinstance(outcome.error, FileNotFound):
                raise FolderDamaged(
                    f"container {place.container.hex()} of the folder is gone; if snapshots are being forgotten now, "
                    "try again"
                )
            if outcome.error is not None or outcome.version is None:
                raise outcome.error or FolderDamaged("there is no outcome")
            if outcome.data is None:  # it is larger than what is read as a whole
                return self.files.read(outcome.version, place.offset, place.offset + place.length)
            pack = self._packs[place.container] = outcome.data
            while len(self._packs) > _PACKS_KEPT:
                self._packs.popitem(last=False)
        else:
            self._packs.move_to_end(place.container)
        return pack[place.offset : place.offset + place.length]

    # -- containers ------------------------------------------------------------------------------

    def container_name(self, container: bytes) -> str:
        """The name of the file that a container is."""
        return self.data + container.hex()

    def head(self, container: bytes) -> Version:
        """The file that a container is.

        Raises:
            FolderDamaged: it does not exist.
        """
        found = self.files.find(self.container_name(container))
        if found is None:
            raise FolderDamaged(f"container {container.hex()} of the folder is gone")
        return found

    def containers(self) -> dict[bytes, Version]:
        """All containers that there are, also those that no index names."""
        start = len(self.data)
        found = {}
        for head in self.files.heads(self.data):
            try:
                found[bytes.fromhex(head.filename[start:])] = head
            except ValueError:
                continue  # it is not one of ours
        return found

    def _load_indexes(self, containers: Sequence[bytes]) -> list[Index]:
        names = [self.container_name(container) for container in containers]
        loaded = []
        for outcome in self.files.get_many(names, by_name=True, bytes_max=_INDEX_BYTES_MAX):
            if outcome.error is not None:
                raise FolderDamaged(
                    f"an index of the folder cannot be read; if snapshots are being forgotten now, try again: "
                    f"{outcome.error}"
                )
            if outcome.data is None:
                raise FolderDamaged("an index of the folder is larger than any index is")
            loaded.append(decode_index(outcome.data))
        return loaded


def change(repository: Repository, changed: Callable[[Record], Record]) -> None:
    """Change a folder's record, on top of what others have changed since it was read.

    Raises:
        ConflictError: blobs were moved or removed since.
    """
    generation = repository.record.generation
    while True:
        if repository.record.generation != generation:
            raise ConflictError(
                "snapshots of this folder were forgotten while this one was taken, and it is not stored; take it again",
                head="",
            )
        try:
            repository.save(changed(repository.record))
            return
        except ConflictError:
            repository.reload()  # somebody else's change was made, so all together get on


def add_pending(repository: Repository, indexes: Sequence[bytes], time_ms: int) -> None:
    """Note indexes of what was stored for a snapshot that is still being taken, so that it is not stored twice.

    Raises: as :func:`change`.
    """
    pending = tuple(Pending(index, time_ms) for index in indexes)
    change(repository, lambda now: msgspec.structs.replace(now, pending=(*now.pending, *pending)))


def add_snapshot(repository: Repository, snapshot: Snapshot, indexes: Sequence[bytes]) -> None:
    """Add a snapshot to a folder's record.

    Args:
        repository: the folder, as it was when the snapshot was begun.
        snapshot: the snapshot.
        indexes: containers of the indexes of all that was stored for it.

    Raises: as :func:`change`.
    """

    def changed(now: Record) -> Record:
        used = dict.fromkeys((*now.indexes, *repository.index_containers, *indexes))
        return msgspec.structs.replace(
            now,
            snapshots=tuple(sorted((*now.snapshots, snapshot), key=lambda each: each.time_ms)),
            indexes=tuple(used),
            pending=tuple(each for each in now.pending if each.index not in used),
        )

    change(repository, changed)
