"""The counts of files and versions by profile match the versions in the catalog."""

from __future__ import annotations

from pathlib import Path

from storage import ErasureProfile
from storage.catalog import LmdbCatalog
from storage.catalog.profiles import as_counts, count_all
from tests.storage.helpers import USER, content, open_store, push


def _counts(root: Path) -> list[tuple[int, int, int, int]]:
    """Return the stored counts (k, n, files, versions), after comparing them with a recount."""
    catalog = LmdbCatalog(root / "catalog")
    kept = catalog.profiles()
    assert kept == as_counts(count_all(catalog.versions()))
    catalog.close()
    return [(one.k, one.n, one.files, one.versions) for one in kept]


def test_counts_follow_pushes_revisions_deletes_and_collects(root: Path) -> None:
    with open_store(root) as store:
        for number in range(3):
            push(store, content(number, 100), "file")
        doomed = push(store, content(3, 100), "doomed")
    assert _counts(root) == [(4, 6, 2, 4)]
    with open_store(root) as store:
        store.delete(doomed.file_id, user_id=USER)
    assert [one[2] for one in _counts(root)] == [1]
    with open_store(root) as store:
        store.collect(grace_s=0)
    assert _counts(root) == [(4, 6, 1, 3)]
    with open_store(root) as store:  # later versions of a file may have another profile
        store.push(content(4, 100), filename="file", user_id=USER, profile=ErasureProfile(2, 4))
    assert _counts(root) == [(2, 4, 1, 1), (4, 6, 0, 3)]
