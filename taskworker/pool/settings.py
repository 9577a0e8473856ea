"""The pool's own entries in its catalog: its settings, whether it is running, and whether a rebuild is due."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from storage import ErasureProfile
from storage.catalog import Catalog, StoreSettings
from storage.errors import FormatError, InvalidArgument
from storage.limits import CHUNK_SIZE_DEFAULT, check_chunk_size
from storage.runtime import Runtime

_RUNNING = "pool-running"
_REBUILD = "pool-rebuild"
_ENCRYPTION = "pool-encryption"
SETTINGS_DOCUMENTS = (_RUNNING, _REBUILD, _ENCRYPTION)


class PoolSettings:
    """Reads and writes these entries.

    Args:
        catalog: the pool's catalog.
        root: the pool's directory.
    """

    def __init__(self, catalog: Catalog, root: Path) -> None:
        self._catalog = catalog
        self._root = root

    def load(
        self,
        runtime: Runtime,
        *,
        profile: ErasureProfile | None,
        chunk_size: int | None,
        rebuild: str,
        encrypts: bool,
    ) -> StoreSettings:
        """Return the stored settings; for a new pool, make and store them.

        Args:
            runtime: random bytes, for the id of a new pool.
            profile: erasure profile of a new pool; None: the default.
            chunk_size: chunk size of a new pool; None: the default.
            rebuild: id of the former pool that a new one replaces; empty: none.
            encrypts: whether a new pool encrypts, unless it is told otherwise.

        Raises:
            FormatError: the directory holds an embedded store.
            InvalidArgument: ``rebuild`` is not a pool's id, or the catalog belongs to another pool.
        """
        made = _new(profile, chunk_size)
        settings = self._catalog.settings()
        if (settings is None and (self._root / "volumes").exists()) or (settings is not None and settings.volumes):
            raise FormatError(f"{self._root} holds an embedded store, not a pool; give the pool a directory of its own")
        if settings is None:
            # Store first that a rebuild is due: if an empty catalog passed for a complete one, collect would remove all
            # shards. The former id is stored with it, so that a pool killed in between uses it at its next start.
            rebuilt = _checked_id(rebuild or (self._catalog.document(_REBUILD) or b"").decode(errors="replace"))
            store_id = rebuilt or runtime.token_bytes(16).hex()
            self._catalog.save_document(_REBUILD, rebuilt.encode())
            if encrypts and not rebuilt:
                self._catalog.save_document(_ENCRYPTION, b"1")
            settings = msgspec.structs.replace(made, store_id=store_id)
            self._catalog.save_settings(settings)
        elif rebuild not in ("", settings.store_id):
            raise InvalidArgument(
                f"{self._root} holds the catalog of pool {settings.store_id} already; to take the place of pool "
                f"{rebuild}, give the new pool a directory of its own"
            )
        return settings

    def encrypts(self, wanted: bool | None) -> bool:
        """Return whether the pool encrypts new files, and store that.

        Args:
            wanted: whether it should; None: as before. A pool that was made before pools encrypted does not.
        """
        kept = self._catalog.document(_ENCRYPTION)
        told = {True: b"1", False: b"0", None: kept}[wanted]
        if told is not None and told != kept:
            self._catalog.save_document(_ENCRYPTION, told)
        return told == b"1"

    @property
    def refuses_strangers(self) -> bool:
        """Whether the pool was told not to encrypt, so that workers of other owners are refused."""
        return self._catalog.document(_ENCRYPTION) == b"0"

    def needs_rebuild(self) -> bool:
        """Whether the catalog has yet to be rebuilt from what the workers hold."""
        return bool(self._catalog.document(_REBUILD))

    def note_rebuilt(self) -> None:
        """Record that the catalog was rebuilt."""
        self._catalog.save_document(_REBUILD, b"")

    def begin_run(self) -> bool:
        """Record that the pool is running; return whether its last run was cut off."""
        cut_off = bool(self._catalog.document(_RUNNING))
        self._catalog.save_document(_RUNNING, b"1")
        return cut_off

    def end_run(self) -> None:
        """Record that the pool was closed properly, so that its record of members that lack shards is complete."""
        self._catalog.save_document(_RUNNING, b"")


def _new(profile: ErasureProfile | None, chunk_size: int | None) -> StoreSettings:
    """Settings of a new pool, without its id."""
    chosen = profile or ErasureProfile()
    size = CHUNK_SIZE_DEFAULT if chunk_size is None else check_chunk_size(chunk_size)
    return StoreSettings("", chosen.k, chosen.n, size, volumes=[])


def _checked_id(pool_id: str) -> str:
    if pool_id and not re.fullmatch("[0-9a-f]{32}", pool_id):
        raise InvalidArgument(
            f"{pool_id!r} is no pool's id, which has 32 digits of 0-9 and a-f; the pool's workers know it"
        )
    return pool_id
