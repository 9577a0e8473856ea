"""Which store and slot a volume directory belongs to: the small file ``VOLUME`` in it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import msgspec

from storage.errors import FormatError
from storage.limits import CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN
from storage.shards.filesystem import FileSystem
from storage.shards.record import SEGMENT_HEADER_BYTES, parse_segment_header

IDENTITY_FILE = "VOLUME"
SEGMENT_SUFFIX = ".seg"
_FORMAT = 1

_Hex16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class VolumeIdentity(msgspec.Struct, frozen=True):
    """Content of ``VOLUME`` (JSON).

    Attributes:
        store_id: hex id of the store.
        slot: 0…volumes-1.
        volumes: number of volumes of the store.
        key: hex key of this volume's record tags.
        k, n, chunk_size: the store's defaults, for a rebuild.
        format: 1.
    """

    store_id: _Hex16
    slot: Annotated[int, msgspec.Meta(ge=0, le=255)]
    volumes: Annotated[int, msgspec.Meta(ge=1, le=256)]
    key: _Hex32
    k: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    n: Annotated[int, msgspec.Meta(ge=1, le=256)] = 6
    chunk_size: Annotated[int, msgspec.Meta(ge=CHUNK_SIZE_MIN, le=CHUNK_SIZE_MAX)] = CHUNK_SIZE_DEFAULT
    format: int = _FORMAT


def new_volume_key() -> str:
    """A random record key (hex) for a fresh volume."""
    return secrets.token_hex(32)


def read_identity(directory: Path) -> VolumeIdentity | None:
    """The identity of the volume in ``directory``; None if there is no volume in it.

    A lost or damaged ``VOLUME`` file is made up for by the first block of any segment.

    Raises:
        FormatError: written by a newer version, or damaged beyond that.
    """
    file = directory / IDENTITY_FILE
    identity = read_identity_file(directory)
    if identity is not None:
        return identity
    problem = "is damaged" if file.exists() else "is missing"
    found_segment = False
    for segment in sorted(directory.glob(f"*{SEGMENT_SUFFIX}")):
        found_segment = True
        with segment.open("rb") as stream:
            try:
                header = parse_segment_header(stream.read(SEGMENT_HEADER_BYTES))
            except FormatError:
                continue
        return VolumeIdentity(
            store_id=header.store_id.hex(),
            slot=header.slot,
            volumes=header.volume_count,
            key=header.volume_key.hex(),
            k=header.k,
            n=header.n,
            chunk_size=header.chunk_size,
        )
    if file.exists() or found_segment:
        raise FormatError(f"{file} {problem} and no segment of the volume can tell what it was; move it away")
    return None


def read_identity_file(directory: Path) -> VolumeIdentity | None:
    """What the ``VOLUME`` file in ``directory`` says; None if there is none, or a damaged one.

    Raises:
        FormatError: written by a newer version.
    """
    file = directory / IDENTITY_FILE
    try:
        identity = msgspec.json.decode(file.read_bytes(), type=VolumeIdentity)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if identity.format > _FORMAT:
        raise FormatError(f"{file} has format {identity.format}; this version reads up to {_FORMAT}: upgrade")
    return identity


def write_identity(directory: Path, identity: VolumeIdentity, filesystem: FileSystem) -> None:
    """Durably write ``VOLUME``."""
    filesystem.write_whole(directory / IDENTITY_FILE, msgspec.json.encode(identity))
