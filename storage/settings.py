"""A store's settings: made once, found again in the catalog, or beside it, or on the volumes."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from storage.catalog import Catalog, StoreSettings
from storage.catalog.port import DamagedSettings
from storage.erasure import ErasureProfile
from storage.errors import FormatError, InvalidArgument
from storage.limits import CHUNK_SIZE_DEFAULT
from storage.shards.filesystem import LocalFileSystem
from storage.shards.identity import SEGMENT_SUFFIX, VolumeIdentity, read_identity

log = logging.getLogger(__name__)

STORE_FILE = "STORE"
_VOLUMES_MAX = 256


@dataclass(frozen=True, slots=True)
class FoundSettings:
    """Settings and how they were come by."""

    settings: StoreSettings
    created: bool
    needs_rebuild: bool


def load_or_create_settings(
    root: Path,
    catalog: Catalog,
    *,
    profile: ErasureProfile | None,
    volumes: Sequence[Path] | None,
    chunk_size: int | None,
    create: bool,
) -> FoundSettings:
    """Settings of the store in ``root``; see :meth:`storage.FileStorage.open` for the arguments.

    A store whose catalog is gone is known by the data on its volumes.
    """
    try:
        settings = catalog.settings()
    except DamagedSettings as error:
        settings = _made_again(root, volumes, error)
        catalog.save_settings(settings)
    if settings is not None:
        moved = _relocated(settings, root, volumes)
        if moved != settings:
            catalog.save_settings(moved)
            _write_store_file(root, moved)
        return FoundSettings(moved, created=False, needs_rebuild=False)
    remembered = _read_store_file(root)
    paths = list(volumes) if volumes is not None else _default_paths(root, remembered)
    identities = [identity for path in paths if (identity := _identity(path)) is not None]
    if identities and any(list(path.glob(f"*{SEGMENT_SUFFIX}")) for path in paths if path.is_dir()):
        return FoundSettings(_from_identity(identities[0], paths, root), created=False, needs_rebuild=True)
    if not create:
        raise InvalidArgument(f"there is no store at {root}")
    fresh = _fresh(root, profile or ErasureProfile(), volumes, chunk_size, identities)
    _write_store_file(root, fresh)
    catalog.save_settings(fresh)
    return FoundSettings(fresh, created=True, needs_rebuild=False)


def _made_again(root: Path, volumes: Sequence[Path] | None, damage: DamagedSettings) -> StoreSettings:
    """Settings from the file beside the catalog, or the volumes. Which of these wait for a repair is not known: all do.

    Raises:
        FormatError: neither can tell.
    """
    settings = _read_store_file(root)
    if settings is None:
        paths = list(volumes) if volumes is not None else _default_paths(root, None)
        identities = [identity for path in paths if (identity := _identity(path)) is not None]
        if not identities:
            raise damage
        settings = _from_identity(identities[0], paths, root)
    log.warning("%s: they are made again, and all volumes wait for a repair", damage)
    return with_incomplete(settings, range(len(settings.volumes)))


def looks_like_store(root: Path, volumes: Sequence[object] | None) -> bool:
    """Whether there is anything of a store in ``root``, or volumes are named; nothing is created."""
    if volumes is not None:
        return root.is_dir()
    return any((root / name).exists() for name in (STORE_FILE, "catalog", "volumes"))


def with_incomplete(settings: StoreSettings, incomplete: Iterable[int]) -> StoreSettings:
    """The settings with this set of volume slots waiting for repair."""
    return msgspec.structs.replace(settings, incomplete=sorted(incomplete))


def _named(root: Path, paths: Sequence[Path]) -> list[str]:
    """Paths as they are kept: relative to the store where they lie in it, so that it can be moved."""
    home = root.absolute()
    return [
        str(path.absolute().relative_to(home)) if path.absolute().is_relative_to(home) else str(path.absolute())
        for path in paths
    ]


def _relocated(settings: StoreSettings, root: Path, volumes: Sequence[Path] | None) -> StoreSettings:
    if volumes is None:
        return settings
    if len(volumes) != len(settings.volumes):
        raise InvalidArgument(
            f"this store has {len(settings.volumes)} volumes, {len(volumes)} directories were given; name them all"
        )
    return msgspec.structs.replace(settings, volumes=_named(root, volumes))


def _fresh(
    root: Path,
    profile: ErasureProfile,
    volumes: Sequence[Path] | None,
    chunk_size: int | None,
    identities: list[VolumeIdentity],
) -> StoreSettings:
    paths = list(volumes) if volumes is not None else [root / "volumes" / str(slot) for slot in range(profile.n)]
    if not 1 <= len(paths) <= _VOLUMES_MAX:
        raise InvalidArgument(f"a store has 1 to {_VOLUMES_MAX} volumes, {len(paths)} directories were given")
    if len({path.absolute() for path in paths}) != len(paths):
        raise InvalidArgument("the same directory is given for two volumes")
    # An opening that was cut short before anything was stored left identities behind: go on with them.
    store_id = identities[0].store_id if identities else secrets.token_hex(16)
    return StoreSettings(
        store_id=store_id,
        k=profile.k,
        n=profile.n,
        chunk_size=chunk_size or CHUNK_SIZE_DEFAULT,
        volumes=_named(root, paths),
    )


def _default_paths(root: Path, remembered: StoreSettings | None) -> list[Path]:
    if remembered is not None:
        return [root / path for path in remembered.volumes]
    directories = [path for path in (root / "volumes").glob("*") if path.name.isdigit() and path.is_dir()]
    identities = [identity for path in directories if (identity := _identity(path)) is not None]
    if not identities:
        return []
    return [root / "volumes" / str(slot) for slot in range(identities[0].volumes)]


def _identity(path: Path) -> VolumeIdentity | None:
    return read_identity(path) if path.is_dir() else None


def _from_identity(identity: VolumeIdentity, paths: list[Path], root: Path) -> StoreSettings:
    if len(paths) != identity.volumes:
        raise FormatError(
            f"the catalog of {root} is missing and {len(paths)} of {identity.volumes} volumes were named; name them all"
        )
    return StoreSettings(
        store_id=identity.store_id,
        k=identity.k,
        n=identity.n,
        chunk_size=identity.chunk_size,
        volumes=_named(root, paths),
    )


def _read_store_file(root: Path) -> StoreSettings | None:
    """Settings beside the catalog: a convenience for finding the volumes, never needed."""
    try:
        return msgspec.json.decode((root / STORE_FILE).read_bytes(), type=StoreSettings)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _write_store_file(root: Path, settings: StoreSettings) -> None:
    LocalFileSystem().write_whole(root / STORE_FILE, msgspec.json.encode(settings))
