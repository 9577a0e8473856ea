"""Snapshots: consistent copies of a store's or pool's databases and small files, made while it runs.

A plain copy of the files of an LMDB environment in use is inconsistent. LMDB's own copy function copies the state that
one read transaction sees.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from storage.catalog import CatalogTransaction, LmdbCatalog
from storage.errors import FormatError, InvalidArgument, StoreFull, StoreLocked, StoreUnavailable
from storage.system.directories import sync_directory
from storage.system.faults import Fault, fault_of
from storage.system.lmdb_copy import copy_environment, note_closed
from storage.system.lmdb_files import LOCK_FILE
from storage.system.lmdb_origin import DATA_FILE, Past, past_of
from storage.system.locking import StoreLock
from storage.system.private_paths import open_private

CATALOG = "catalog"
_TEMPORARY_SUFFIX = ".new"  # a directory with this suffix is left over from a crash and can be removed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finished snapshot.

    Attributes:
        path: where it is.
        databases: names of the LMDB environments in it.
        files: names of the other files in it.
        bytes_used: total size.
    """

    path: Path
    databases: list[str]
    files: list[str]
    bytes_used: int


def take_snapshot(
    directory: Path, target: Path, *, databases: Sequence[str] = (), files: Sequence[str] = ()
) -> Snapshot:
    """Copy the catalog of a store or pool, and other files of its directory, to a new directory.

    Another process may be using the store or pool; it is not delayed. The copy contains everything that was
    acknowledged before the call. Once ``target`` exists, it is complete and durable. The calling process must not have
    the store open itself.

    Args:
        directory: the directory of the store or pool.
        target: the directory to create.
        databases: names of further LMDB environments in ``directory`` to copy, if they exist.
        files: names of small files in ``directory`` to copy, if they exist.

    Raises:
        InvalidArgument: ``directory`` has no catalog, or ``target`` exists already.
        FormatError: a database is damaged.
        StoreFull: no space; nothing is left behind.
        StoreUnavailable: a file cannot be read or written now.
    """
    if not (directory / CATALOG / DATA_FILE).exists():
        raise InvalidArgument(f"there is no catalog in {directory}: name the directory of a pool or an embedded store")
    if os.path.lexists(target):
        raise InvalidArgument(f"{target} exists already: name a directory that does not exist yet")
    copied = [CATALOG, *(name for name in databases if (directory / name / DATA_FILE).exists())]
    with _errors_of(target), _appearing(target) as place:
        _check_idle(directory, copied)
        for name in copied:
            copy_environment(directory / name, place / name)
        _end(place / CATALOG)
        for name in copied:
            (place / name / LOCK_FILE).unlink()
            past_of(place / name, thoroughly=True)
            sync_directory(place / name)
        others = [name for name in files if _copy_file(directory / name, place / name)]
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return Snapshot(target, copied, others, size)


def _check_idle(directory: Path, databases: Sequence[str]) -> None:
    """Check that databases are complete, unless a process has them open, which has checked this itself."""
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


def _end(path: Path) -> None:
    """Note in a catalog's copy that it ends here: further commits on the volumes are later, and unknown to it."""

    def work(txn: CatalogTransaction) -> None:
        txn.set_counters(msgspec.structs.replace(txn.counters(), closed=True))

    catalog = LmdbCatalog(path, spare_bytes=0)
    try:
        catalog.transact(work)
    finally:
        catalog.close()
    note_closed(path)


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
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A temporary directory to fill, renamed to ``target`` if the block succeeds, and removed if it fails."""
    place = Path(tempfile.mkdtemp(prefix="snapshot-", suffix=_TEMPORARY_SUFFIX, dir=target.parent))
    try:
        yield place
        sync_directory(place)
        place.rename(target)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    sync_directory(target.parent)


@contextmanager
def _errors_of(target: Path) -> Iterator[None]:
    """Turn errors of the block into StoreFull or StoreUnavailable, with the snapshot's path."""
    full = f"no space left for the snapshot {target}: make room, or choose another place"
    try:
        yield
    except StoreFull as error:
        raise StoreFull(full) from error
    except OSError as error:
        if fault_of(error) is Fault.FULL:
            raise StoreFull(full) from error
        raise StoreUnavailable(f"the snapshot {target} cannot be made: {error}") from error
