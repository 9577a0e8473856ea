"""The file ``VOLUME``, which says which store and slot a volume directory belongs to."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Annotated

import msgspec

from storage.errors import FormatError, StoreUnavailable
from storage.limits import CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN
from storage.shards.filesystem import FileSystem, LocalFileSystem
from storage.shards.port import VolumeUnavailable
from storage.shards.record import SEGMENT_HEADER_BYTES, SegmentHeader, parse_segment_header
from storage.system.faults import Fault, fault_of

log = logging.getLogger(__name__)

IDENTITY_FILE = "VOLUME"
SEGMENT_SUFFIX = ".seg"
_FORMAT = 1

_Hex16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class VolumeIdentity(msgspec.Struct, frozen=True):
    """Content of ``VOLUME`` (JSON).

    Attributes:
        store_id: hex id of the store.
        slot: the volume's number in the store, from 0 to ``volumes - 1``.
        volumes: number of volumes of the store.
        key: hex key for the tags of this volume's records.
        k, n, chunk_size: the store's defaults, for a rebuild.
        format: version of this file's format.
    """

    store_id: _Hex16
    slot: Annotated[int, msgspec.Meta(ge=0, le=255)]
    volumes: Annotated[int, msgspec.Meta(ge=1, le=256)]
    key: _Hex32
    k: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    n: Annotated[int, msgspec.Meta(ge=1, le=256)] = 6
    chunk_size: Annotated[int, msgspec.Meta(ge=CHUNK_SIZE_MIN, le=CHUNK_SIZE_MAX)] = CHUNK_SIZE_DEFAULT
    format: int = _FORMAT


_identities = msgspec.json.Decoder(VolumeIdentity)


def new_volume_key() -> str:
    """Return a random key (hex) for the tags of a new volume's records."""
    return secrets.token_hex(32)


def read_identity(directory: Path, filesystem: FileSystem | None = None) -> VolumeIdentity | None:
    """Return the identity of the volume in ``directory``; None if there is no volume in it.

    If the ``VOLUME`` file is lost or damaged, the identity is read from the first block of any segment.

    Raises:
        FormatError: written by a newer version, or no segment has an intact first block either.
        StoreUnavailable: the directory cannot be read now.
    """
    filesystem = filesystem or LocalFileSystem()
    try:
        try:
            names = filesystem.names(directory)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return identity_among(names, directory, filesystem)
    except OSError as error:
        raise StoreUnavailable(f"the volume in {directory} cannot be read now: {error}") from error


def identity_among(names: list[str], directory: Path, filesystem: FileSystem) -> VolumeIdentity | None:
    """Like :func:`read_identity`, for a directory that has just been listed.

    Raises:
        FormatError: like :func:`read_identity`.
        OSError: a listed file cannot be read now.
    """
    unread: OSError | None = None
    try:
        identity = _read_identity_file(directory, filesystem) if IDENTITY_FILE in names else None
    except OSError as error:
        identity, unread = None, _bad_sector(error)
    if identity is not None:
        return identity
    segments = sorted(name for name in names if name.endswith(SEGMENT_SUFFIX))
    for name in segments:
        try:
            header = read_segment_header(directory / name, filesystem)
        except OSError as error:
            unread = _bad_sector(error)
            continue
        if header is not None:
            return VolumeIdentity(
                store_id=header.store_id.hex(),
                slot=header.slot,
                volumes=header.volume_count,
                key=header.volume_key.hex(),
                k=header.k,
                n=header.n,
                chunk_size=header.chunk_size,
            )
    if unread is not None:
        raise unread
    if IDENTITY_FILE in names or segments:
        problem = "is damaged" if IDENTITY_FILE in names else "is missing"
        raise FormatError(
            f"{directory / IDENTITY_FILE} {problem}, and no segment says which volume this is; move the directory away"
        )
    return None


def _bad_sector(error: OSError) -> OSError:
    """Return the error if it concerns only this file, so that others may be tried; raise it otherwise."""
    if fault_of(error) is not Fault.BROKEN:
        raise error
    return error


def read_segment_header(path: Path, filesystem: FileSystem) -> SegmentHeader | None:
    """Return the first block of a segment file; None if it is damaged or incomplete. Raises OSError."""
    raw = memoryview(bytearray(SEGMENT_HEADER_BYTES))
    count = filesystem.open(path, writable=False).read_into([raw], 0)
    try:
        return parse_segment_header(bytes(raw[:count]))
    except FormatError:
        return None


def read_identity_file(directory: Path, filesystem: FileSystem | None = None) -> VolumeIdentity | None:
    """Return the content of the ``VOLUME`` file in ``directory``; None if it is missing or damaged.

    Raises:
        FormatError: written by a newer version.
        OSError: it cannot be read now.
    """
    try:
        return _read_identity_file(directory, filesystem or LocalFileSystem())
    except FileNotFoundError:
        return None


def lacks_identity(directory: Path, expected: VolumeIdentity, filesystem: FileSystem) -> bool:
    """Whether ``VOLUME`` must be written before a directory is opened as this volume.

    Also checks that the directory holds this volume or none: it may have been out of reach, and therefore seemed
    empty, when ``expected`` was determined.

    Raises:
        VolumeUnavailable: there is another volume in it.
        FormatError: written by a newer version, or no segment has an intact first block either.
        OSError: it cannot be read now.
    """
    found, is_missing = None, False
    try:
        found = read_identity_file(directory, filesystem)
        is_missing = found is None
    except OSError as error:
        if fault_of(error) is not Fault.BROKEN:
            raise
        log.warning("%s cannot be read, so its segments are read instead: %s", directory / IDENTITY_FILE, error)
    if found is None:
        found = identity_among(filesystem.names(directory), directory, filesystem)
    if found is not None and found.key != expected.key:
        raise VolumeUnavailable(f"the volume in {directory} is not the one that was there before; it will be reopened")
    return is_missing


def _read_identity_file(directory: Path, filesystem: FileSystem) -> VolumeIdentity | None:
    file = directory / IDENTITY_FILE
    try:
        identity = _identities.decode(filesystem.read_whole(file))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if identity.format > _FORMAT:
        raise FormatError(f"{file} has format {identity.format}; this version reads up to {_FORMAT}: upgrade")
    return identity


def write_identity(directory: Path, identity: VolumeIdentity, filesystem: FileSystem) -> None:
    """Write ``VOLUME`` durably."""
    filesystem.write_whole(directory / IDENTITY_FILE, msgspec.json.encode(identity))
