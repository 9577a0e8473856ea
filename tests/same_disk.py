"""Copies of a store's directory that stand for its own disk after a crash."""

from __future__ import annotations

from pathlib import Path

import lmdb

from storage.system.lmdb_origin import DATA_FILE, ORIGIN_KEY, origin_of


def as_the_same_disk(root: Path) -> Path:
    """Have the databases below a directory count as written there: what was copied is what a crash has left."""
    for file in root.rglob(DATA_FILE):
        room = max(1 << 20, 2 * file.stat().st_size)
        with (
            lmdb.open(str(file.parent), map_size=room, sync=False) as environment,
            environment.begin(write=True) as txn,
        ):
            if txn.get(ORIGIN_KEY) is not None:
                txn.put(ORIGIN_KEY, origin_of(file.parent).encoded())
    return root
