"""Snapshots: a consistent copy of a store's or pool's databases and small files, made while it runs.

Copying the files of an LMDB environment that is in use tears it. LMDB itself copies what one read transaction sees.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb
import msgspec

from storage.catalog import CatalogTransaction, LmdbCatalog
from storage.errors import FormatError, InvalidArgument, StoreFull, StoreLocked, StoreUnavailable
from storage.system.faults import Fault, fault_of
from storage.system.lmdb_errors import translated
from storage.system.lmdb_origin import DATA_FILE, Past, origin_of, past_of, write_closing_note
from storage.system.locking import StoreLock

CATALOG = "catalog"
_LOCK_FILE = "lock.mdb"
_DIRECTORY_MODE = 0o700  # it names all users' files
_FILE_MODE = 0o600
_ROOM_BYTES = 16 << 20
_TEMPORARY_SUFFIX = ".new"  # what is left of one after a crash means nothing


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was copied.

    Attributes:
        path: where it is.
        databases: directories of the LMDB environments in it.
        files: other files in it.
        bytes_used: size of all of that.
    """

    path: Path
    databases: list[str]
    files: list[str]
    bytes_used: int


def take_snapshot(
    directory: Path, target: Path, *, databases: Sequence[str] = (), files: Sequence[str] = ()
) -> Snapshot:
    """Copy the catalog of a store or pool, and more of its directory, to a directory that is not there yet.

    The store or pool may be in use by another process, which is not held up. All that was acknowledged before is in
    the copy. It is durable and complete once it has its name. The process must not have the store open itself.

    Args:
        directory: of the store or pool.
        target: what to make.
        databases: names of environments in ``directory`` to be copied besides the catalog, if they are there.
        files: names of small files there, likewise.

    Raises:
        InvalidArgument: ``directory`` has no catalog, or ``target`` is there already.
        FormatError: a database is damaged.
        StoreFull: no space; nothing is left behind.
        StoreUnavailable: a file cannot be read or written now.
    """
    if not (directory / CATALOG / DATA_FILE).exists():
        raise InvalidArgument(f"there is no catalog in {directory}: name the directory of a pool or an embedded store")
    if os.path.lexists(target):
        raise InvalidArgument(f"{target} is there already: name a directory that is to be made")
    copied = [CATALOG, *(name for name in databases if (directory / name / DATA_FILE).exists())]
    with _errors_of(target), _appearing(target) as place:
        _check_idle(directory, copied)
        for name in copied:
            _copy_database(directory / name, place / name)
        _end(place / CATALOG)
        for name in copied:
            (place / name / _LOCK_FILE).unlink()
            past_of(place / name, thoroughly=True)
            _sync(place / name)
        others = [name for name in files if _copy_file(directory / name, place / name)]
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return Snapshot(target, copied, others, size)


def _check_idle(directory: Path, databases: Sequence[str]) -> None:
    """See that databases are whole, if nobody has them open, who would have seen that."""
    try:
        lock = StoreLock(directory)
    except StoreLocked:
        return
    try:
        for name in databases:
            if past_of(directory / name) is Past.COPIED_IN_USE and name == CATALOG:
                raise FormatError(
                    f"{directory / name} was copied while it was in use, and may lack entries: open the store, or "
                    "start the pool, and run rebuild before a snapshot"
                )
    finally:
        lock.release()


def _copy_database(source: Path, target: Path) -> None:
    target.mkdir(_DIRECTORY_MODE)
    try:
        with (
            closing(lmdb.open(str(source), map_size=_map_bytes(source), readonly=True, create=False)) as environment,
            _new_file(target / DATA_FILE) as descriptor,
        ):
            environment.reader_check()  # a copy that was killed would keep pages from being used again
            environment.copyfd(descriptor, compact=True)
    except lmdb.Error as error:
        raise translated(error, source) from error
    _note_closed(target)


def _note_closed(path: Path) -> None:
    """Make an environment durable, as one that was written here and closed in good order."""
    try:
        with closing(lmdb.open(str(path), map_size=_map_bytes(path))) as environment:
            origin = origin_of(path)
            with environment.begin(write=True) as txn:
                write_closing_note(txn, origin)
    except lmdb.Error as error:
        raise translated(error, path) from error


def _end(path: Path) -> None:
    """Note in a catalog's copy that it ends here: commits that volumes have besides are later, and unknown to it."""

    def work(txn: CatalogTransaction) -> None:
        txn.set_counters(msgspec.structs.replace(txn.counters(), closed=True))

    catalog = LmdbCatalog(path)
    try:
        catalog.transact(work)
    finally:
        catalog.close()
    _note_closed(path)


def _map_bytes(path: Path) -> int:
    return 2 * (path / DATA_FILE).stat().st_size + _ROOM_BYTES


def _copy_file(source: Path, target: Path) -> bool:
    """Copy a file durably; False if there is none."""
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        return False
    with _new_file(target) as descriptor, open(descriptor, "wb", closefd=False) as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return True


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A directory to fill, which gets its name once that is done; nothing is left if it is not."""
    place = Path(tempfile.mkdtemp(prefix="snapshot-", suffix=_TEMPORARY_SUFFIX, dir=target.parent))
    try:
        yield place
        _sync(place)
        place.rename(target)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    _sync(target.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _errors_of(target: Path) -> Iterator[None]:
    """Errors inside are those of making a snapshot."""
    full = f"no space left for the snapshot {target}: make room, or choose another place"
    try:
        yield
    except StoreFull as error:
        raise StoreFull(full) from error
    except OSError as error:
        if fault_of(error) is Fault.FULL:
            raise StoreFull(full) from error
        raise StoreUnavailable(f"the snapshot {target} cannot be made: {error}") from error
