"""The figures of a store that is served, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from storage import FileStorage
from storage.reports import VolumeStats
from taskworker.metrics.certificates import certificates
from taskworker.metrics.families import Families, Parts, gauge, gauges
from taskworker.services.file_server import FileServer
from taskworker.services.store_server import StoreServer


def store_unready(store: FileStorage) -> str:
    """Why a store takes no files now; empty if it does."""
    if store.needs_rebuild:
        return "the catalog is lost, and must be rebuilt (`taskworker rebuild`)"
    if store.behind:
        return "the catalog is older than the volumes; run `taskworker rebuild`"
    return store.trouble() or store.unfinished


def store_parts(store: FileStorage, server: FileServer) -> Parts:
    """What to read of a store and its server, by name."""
    return {"store": lambda: _store(store), "certificates": lambda: _certificates(server)}


def _store(store: FileStorage) -> Families:
    stats = store.stats()
    yield gauge("taskworker_files", "Files, without deleted ones.", stats.files)
    yield gauge("taskworker_versions", "Versions of files.", stats.versions)
    yield gauge("taskworker_logical_bytes", "Bytes of the newest versions of all files.", stats.logical_bytes)
    yield gauges(
        "taskworker_losses_survivable",
        "How many further volumes, whichever, may be lost now; negative: some files cannot be read.",
        ["domain"],
        [(["volume"], stats.losses_survivable)],
    )
    for name, help_text, figure in _OF_VOLUMES:
        rows = [([str(volume.slot)], figure(volume)) for volume in stats.volumes]
        yield gauges(f"taskworker_store_volume_{name}", help_text, ["volume"], rows)


_OF_VOLUMES: tuple[tuple[str, str, Callable[[VolumeStats], float]], ...] = (
    ("up", "Whether a volume is there.", lambda one: one.state != "offline"),
    ("used_bytes", "Bytes that a volume takes.", lambda one: one.bytes_used),
    ("live_bytes", "Bytes of these that files need.", lambda one: one.bytes_live),
    ("free_bytes", "Bytes that are free on a volume's disk.", lambda one: one.bytes_free),
    ("shards", "Shards that a volume holds.", lambda one: one.shards),
)


def _certificates(server: FileServer) -> Families:
    tls = server.tls if isinstance(server, StoreServer) else None
    yield from certificates({} if tls is None else {"users": tls.lifetime})
