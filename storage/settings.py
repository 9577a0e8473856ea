"""A store's settings: chosen once, then loaded from the catalog, the file beside it or the volumes."""

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
from storage.errors import FormatError, InvalidArgument, StoreFull, StoreUnavailable
from storage.limits import CHUNK_SIZE_DEFAULT
from storage.shards.filesystem import LocalFileSystem
from storage.shards.identity import SEGMENT_SUFFIX, VolumeIdentity, read_identity

log = logging.getLogger(__name__)

STORE_FILE = "STORE"
_VOLUMES_MAX = 256
_NAMED_MAX = 6
_settings = msgspec.json.Decoder(StoreSettings)


@dataclass(frozen=True, slots=True)
class FoundSettings:
    """Settings, and how they were found."""

    settings: StoreSettings
    created: bool
    needs_rebuild: bool
    relocated: bool = False  # the caller's volume paths differ from the catalog's, see :func:`keep_settings`


def load_or_create_settings(
    root: Path,
    catalog: Catalog,
    *,
    profile: ErasureProfile | None,
    volumes: Sequence[Path] | None,
    chunk_size: int | None,
    create: bool,
) -> FoundSettings:
    """The settings of the store in ``root``; see :meth:`storage.FileStorage.open` for the arguments.

    A store whose catalog is gone is recognised by the data on its volumes. If the file beside the catalog shows that
    there was a store, but no data is found, no new store is created, since its volumes may not be mounted yet.

    Raises:
        StoreUnavailable: volumes are missing, or cannot be checked now.
        FormatError: the settings are damaged and stored nowhere else, or not all volumes were named.
        InvalidArgument: there is no store and ``create`` is False, or the arguments are invalid.
    """
    try:
        settings = catalog.settings()
    except DamagedSettings as error:
        settings = _made_again(root, volumes, error)
        catalog.save_settings(settings)
    if settings is not None:
        moved = _relocated(settings, root, volumes)
        if _read_store_file(root) is None:
            _write_store_file(root, settings)
        return FoundSettings(moved, created=False, needs_rebuild=False, relocated=moved != settings)
    remembered = _read_store_file(root)
    paths = list(volumes) if volumes is not None else _default_paths(root, remembered)
    identities = _identities(paths)
    if identities and any(name.endswith(SEGMENT_SUFFIX) for path in paths for name in _names(path)):
        return FoundSettings(_from_identity(identities[0], paths, root), created=False, needs_rebuild=True)
    if remembered is not None and len(identities) < len(paths):
        raise _lost(root, [path for path in paths if read_identity(path) is None])
    if not create:
        raise InvalidArgument(f"there is no store at {root}")
    fresh = _fresh(root, profile or ErasureProfile(), volumes, chunk_size, identities)
    catalog.save_settings(fresh)  # first: the file means that the catalog has had them
    _write_store_file(root, fresh)
    return FoundSettings(fresh, created=True, needs_rebuild=False)


def keep_settings(root: Path, catalog: Catalog, settings: StoreSettings) -> None:
    """Save where the volumes are. Call this once they were opened there, so that wrong paths are not saved."""
    catalog.save_settings(settings)
    _write_store_file(root, settings)


def _lost(root: Path, absent: Sequence[Path]) -> StoreUnavailable:
    """The error to raise if the catalog is gone, and volumes to rebuild it from are missing."""
    named = ", ".join(str(path) for path in absent[:_NAMED_MAX]) + (" and others" if len(absent) > _NAMED_MAX else "")
    return StoreUnavailable(
        f"the catalog of {root} is gone, and there is no volume in {named} to rebuild it from: mount the disks with "
        f"the volumes, or say where they are; to begin a new store in place of this one, remove {root / STORE_FILE}"
    )


def _made_again(root: Path, volumes: Sequence[Path] | None, damage: DamagedSettings) -> StoreSettings:
    """Settings from the file beside the catalog, or from the volumes. All volumes count as waiting for repair.

    Raises:
        FormatError: neither has them.
    """
    settings = _read_store_file(root)
    if settings is None:
        paths = list(volumes) if volumes is not None else _default_paths(root, None)
        identities = _identities(paths)
        if not identities:
            raise damage
        settings = _from_identity(identities[0], paths, root)
    log.warning("%s: they are restored from a copy, and all volumes wait for a repair", damage)
    return with_incomplete(settings, range(len(settings.volumes)))


def looks_like_store(root: Path, volumes: Sequence[object] | None) -> bool:
    """Whether ``root`` has any part of a store, or exists if volumes are named; creates nothing."""
    if volumes is not None:
        return root.is_dir()
    return any((root / name).exists() for name in (STORE_FILE, "catalog", "volumes"))


def with_incomplete(settings: StoreSettings, incomplete: Iterable[int]) -> StoreSettings:
    """The settings with this set of volume slots waiting for repair."""
    return msgspec.structs.replace(settings, incomplete=sorted(incomplete))


def _named(root: Path, paths: Sequence[Path]) -> list[str]:
    """Paths in the form that is saved: relative to the store if they are inside it, so that it can be moved."""
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
    if len({path.resolve() for path in paths}) != len(paths):
        raise InvalidArgument("the same directory is given for two volumes")
    # Use the identities left by an opening that was interrupted before anything was stored.
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
    home = root / "volumes"
    identities = _identities(home / name for name in sorted(_names(home)) if name.isascii() and name.isdigit())
    if not identities:
        return []
    return [root / "volumes" / str(slot) for slot in range(identities[0].volumes)]


def _identities(paths: Iterable[Path]) -> list[VolumeIdentity]:
    return [identity for path in paths if (identity := read_identity(path)) is not None]


def _names(path: Path) -> list[str]:
    """The names in a directory; empty if there is no such directory."""
    try:
        return LocalFileSystem().names(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be read now: {error}") from error


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
    """The settings in the file beside the catalog. It helps to find the volumes, and may be missing."""
    try:
        return _settings.decode((root / STORE_FILE).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    except OSError as error:
        raise StoreUnavailable(f"{root / STORE_FILE} cannot be read now: {error}") from error


def _write_store_file(root: Path, settings: StoreSettings) -> None:
    """Write the file beside the catalog. If that fails, the next opening tries again, as the catalog has them, too."""
    try:
        LocalFileSystem().write_whole(root / STORE_FILE, msgspec.json.encode(settings))
    except (OSError, StoreFull) as error:
        log.warning("%s cannot be written now; the next opening will try again: %s", root / STORE_FILE, error)
