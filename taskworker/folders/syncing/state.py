"""What a directory and a folder had in common at their last sync; kept on this machine, a file for each pair."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from storage.errors import StoreLocked
from storage.system.private_files import read_private, write_private
from storage.system.private_paths import make_private_directory
from taskworker.folders.entries import ENTRIES_MAX, Entry
from taskworker.folders.problems import FolderDamaged

_BYTES_MAX = 4 << 30


class _Common(msgspec.Struct, frozen=True, array_like=True):
    format: Annotated[int, Meta(ge=1, le=1)]
    directory: bytes
    place: str
    prefix: str
    entries: Annotated[tuple[Entry, ...], Meta(max_length=ENTRIES_MAX)]


_decoder = msgspec.msgpack.Decoder(_Common)


class SyncState:
    """The state of one pair of a directory and a folder.

    Its entries are those of the directory, by path. The content of a file is the id of the version that it had, and
    the BLAKE3 of its content.

    Args:
        directory: the directory.
        place: which store, and whose files in it.
        prefix: of the names of the folder's files.
        home: where states are, also an attribute; None: ``taskworker/sync`` in ``$XDG_STATE_HOME``.
    """

    def __init__(self, directory: Path, place: str, prefix: str, home: Path | None = None) -> None:
        self._directory = os.fsencode(directory.resolve())
        self._place = place
        self._prefix = prefix
        names = (self._directory, place.encode(), prefix.encode())
        pair = blake3(msgspec.msgpack.encode(names)).hexdigest()[:32]
        self.home = home or _home()
        self._path = self.home / pair

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other syncs of the pair on this machine away.

        Raises:
            StoreLocked: another one is running.
        """
        make_private_directory(self._path.parent)
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreLocked("another sync of this directory is running; wait for its end") from None
            yield
        finally:
            os.close(descriptor)

    def load(self) -> dict[bytes, Entry]:
        """The entries at the last sync; none if there was none.

        Raises:
            FolderDamaged: the file is damaged.
        """
        data = read_private(self._path, _BYTES_MAX)
        if data is None:
            return {}
        try:
            common = _decoder.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise FolderDamaged(
                f"{self._path} is damaged: {error}; remove it and sync again: nothing is deleted then, and both sides "
                "are kept where they differ"
            ) from None
        return {entry.name: entry for entry in common.entries}

    def save(self, entries: Iterable[Entry]) -> None:
        """Replace the entries; a crash leaves either the former ones or these."""
        common = _Common(1, self._directory, self._place, self._prefix, tuple(entries))
        write_private(self._path, msgspec.msgpack.encode(common))


def _home() -> Path:
    named = os.environ.get("XDG_STATE_HOME", "")
    state = Path(named) if named.startswith("/") else Path.home() / ".local" / "state"
    return state / "taskworker" / "sync"
