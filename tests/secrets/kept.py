"""A pool's secrets over a real catalog, and the pieces around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from storage.catalog import LmdbCatalog
from taskworker.outbound.secrets.master_key import KeyFile, MasterKeySource
from taskworker.outbound.secrets.store import Secrets


@contextlib.contextmanager
def secrets_in(
    directory: Path, source: MasterKeySource | None = None, *, catalog: LmdbCatalog | None = None
) -> Iterator[Secrets]:
    """The secrets of the pool in a directory, closed and let go of in the end."""
    own = catalog or LmdbCatalog(directory / "catalog")
    try:
        kept = Secrets(own, source or KeyFile(directory / "master.key"))
        yield kept
        kept.close()
    finally:
        if catalog is None:
            own.close()
